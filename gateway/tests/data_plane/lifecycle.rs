//! Models that wake, gateways that drain, and the gateway's own probes.

use std::time::{Duration, Instant};

use stowage_contracts::signals::{self, Signals};
use stowage_gateway::world::facts::DeploymentFact;
use stowage_telemetry::catalog::{Process, page};

use crate::support::engine::{Behaviour, Heart, MockEngine};
use crate::support::harness::{Harness, LIMITS, OK, chat, model_m, pod, read, until};

#[tokio::test]
async fn a_request_for_a_model_without_a_replica_is_held_until_there_is_one() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[]).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(10));
    gateway.apply();
    let asking: Vec<_> = (0..5).map(|_| gateway.chat_later(false)).collect();
    until("all are held", || gateway.waiting() == 5).await;
    gateway.facts.pods.push(pod("chat-0", engine.address));
    gateway.apply();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), OK);
    }
}

#[tokio::test]
async fn when_the_hold_is_over_the_answer_says_when_to_come_back() {
    let gateway = Harness::start(&[]).await;
    let started = Instant::now();
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "model_waking"));
    assert!(answer.headers.contains_key("retry-after"));
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(gateway.waiting(), 0);
}

#[tokio::test]
async fn time_to_come_back_is_what_is_left_of_the_starts_that_were_measured() {
    let mut gateway = Harness::start(&[]).await;
    let come_back = async |gateway: &mut Harness, start: Option<Duration>| {
        gateway.facts.deployments[0].cold_start = start;
        gateway.apply();
        let answer = gateway.chat(false).await;
        assert_eq!(answer.code(), "model_waking");
        answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap()
    };
    let long = Some(Duration::from_secs(1000));
    let first = come_back(&mut gateway, long).await;
    assert!((900..=1000).contains(&first), "{first} s");
    assert!(come_back(&mut gateway, long).await <= first, "it counts from the first request on");
    assert_eq!(come_back(&mut gateway, Some(Duration::from_millis(400))).await, 5, "overdue");
    assert_eq!(come_back(&mut gateway, None).await, 5, "not measured");
}

#[tokio::test]
async fn refusal_names_broken_replicas_and_missing_ones_differently() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    engine.kill();
    gateway.until_routable("chat-0", false).await;
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_replica"));
}

#[tokio::test]
async fn a_model_that_is_switched_off_is_refused_at_once() {
    let mut gateway = Harness::start(&[]).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(60));
    gateway.facts.deployments[0].switched_off = true;
    gateway.apply();
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_replica"));
    assert!(answer.text().contains("replicas to 0"), "{}", answer.text());
}

#[tokio::test]
async fn no_more_are_held_than_may_be() {
    let mut gateway = Harness::start(&[]).await;
    gateway.facts.deployments[0].max_held = Some(2);
    gateway.apply();
    let _held = [gateway.chat_later(false), gateway.chat_later(false)];
    until("two are held", || gateway.waiting() == 2).await;
    let started = Instant::now();
    assert_eq!(gateway.chat(false).await.code(), "model_waking");
    assert!(started.elapsed() < Duration::from_millis(300));
}

#[tokio::test]
async fn draining_pod_is_counted_until_its_last_request_ends_whatever_becomes_of_its_deployment() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    let counts = |gateway: &Harness| gateway.gateway.directory.draining().into_iter().collect::<Vec<_>>();
    engine.set(Behaviour::Stream { events: 10_000, gap: Duration::from_millis(50) });
    let open = gateway.open_stream().await;
    assert_eq!(counts(&gateway), [], "it does not drain");
    gateway.facts.pods[0].draining = true;
    gateway.apply();
    assert_eq!(counts(&gateway), [("chat-0".to_owned(), 1)]);
    assert_eq!(gateway.chat(false).await.status, 503, "nothing new goes there");
    // Its namespace belongs to no tenant any more: the deployment is served no more, and the stream goes on.
    let quotas = std::mem::take(&mut gateway.facts.quotas);
    gateway.apply();
    assert_eq!(counts(&gateway), [("chat-0".to_owned(), 1)]);
    gateway.facts.quotas = quotas;
    gateway.apply();
    assert_eq!(counts(&gateway), [("chat-0".to_owned(), 1)], "the stream belongs to the pool from before");
    drop(open);
    until("nothing is in flight", || counts(&gateway) == [("chat-0".to_owned(), 0)]).await;
    gateway.facts.pods.clear();
    gateway.apply();
    assert_eq!(counts(&gateway), []);
}

#[tokio::test]
async fn client_that_leaves_while_held_frees_its_place() {
    let gateway = Harness::start(&[]).await;
    let socket = gateway.raw_chat().await;
    until("it is held", || gateway.waiting() == 1).await;
    drop(socket);
    until("its place is free", || gateway.waiting() == 0).await;
}

#[tokio::test]
async fn waiting_requests_are_refused_when_their_deployment_is_deleted() {
    let mut gateway = Harness::start(&[]).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(60));
    gateway.apply();
    let asking = gateway.chat_later(false);
    until("it is held", || gateway.waiting() == 1).await;
    gateway.facts.deployments.clear();
    gateway.apply();
    assert_eq!(asking.await.unwrap(), 404);
}

#[tokio::test]
async fn deployment_that_is_being_deleted_finishes_its_requests_and_takes_no_new_ones() {
    let engine = MockEngine::start(Behaviour::Stream { events: 10, gap: Duration::from_millis(50) }).await;
    let mut limits = LIMITS;
    limits.pool.gate.max_in_flight = 1;
    let mut gateway = Harness::with(&[&engine], limits).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(60));
    let running = gateway.open_stream().await;
    let queued = gateway.chat_later(true);
    until("one waits", || gateway.waiting() == 1).await;
    gateway.facts.deployments[0].deleting = true;
    gateway.apply();
    assert_eq!(gateway.chat(true).await.code(), "model_not_found");
    assert_eq!(gateway.get(Some("sk-a"), "/v1/models").await.json()["data"], serde_json::json!([]));
    // The operator's drain: nothing new on the pod, so what still waits is refused.
    gateway.facts.pods[0].draining = true;
    gateway.apply();
    assert_eq!(queued.await.unwrap(), 404);
    assert!(read(running).await.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn draining_finishes_streams_and_takes_no_new_connections() {
    let engine = MockEngine::start(Behaviour::Stream { events: 20, gap: Duration::from_millis(50) }).await;
    let mut gateway = Harness::start(&[&engine]).await;
    let stream = gateway.open_stream().await;
    let serving = gateway.stop();
    until("not ready", || !gateway.gateway.readiness.is_ready()).await;
    // For a moment everything is still served, only the probe answers 503.
    assert_eq!(gateway.get(None, "/readyz").await.status, 503);
    assert_eq!(gateway.get(None, "/healthz").await.status, OK);
    let late = gateway.open_stream().await;
    let read_to_end = async {
        for answer in [read(stream).await, read(late).await] {
            assert!(answer.text().ends_with("data: [DONE]\n\n"));
        }
        Instant::now()
    };
    let ended = async {
        serving.await.unwrap();
        Instant::now()
    };
    let (read_at, ended_at) = tokio::join!(read_to_end, ended);
    assert!(ended_at + Duration::from_millis(50) > read_at, "the process waits for its streams");
    assert!(tokio::net::TcpStream::connect(gateway.address).await.is_err());
}

#[tokio::test]
async fn the_signals_name_deployments_replicas_and_tenants() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    engine.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&engine]).await;
    let quiet = DeploymentFact { name: "quiet".into(), uid: "q".into(), model: "q".into(), ..model_m() };
    gateway.facts.deployments.push(quiet);
    gateway.apply();
    let mut twice = chat(false);
    twice["n"] = 2.into();
    assert_eq!(gateway.post("sk-a", &twice).await.status, OK);
    let address = gateway.admin().await;
    let request = http::Request::get(format!("http://{address}/stowage/v1/signals")).body(Default::default()).unwrap();
    gateway.until_reported("chat-0").await;
    let signals = read(gateway.client.request(request).await.unwrap()).await.json();
    let signals: Signals = serde_json::from_value(signals).unwrap();
    assert_eq!(signals.deployments.len(), 1, "nothing is to be reported of the other");
    let chat = &signals.deployments[0];
    assert_eq!((signals.version, chat.name.as_str(), chat.uid.as_str()), (signals::VERSION, "chat", "u"));
    assert_eq!((chat.arrivals, chat.mean_output_tokens, chat.queued, chat.held), (1, 1.0, 0, 0));
    assert_eq!((chat.sequences, chat.placed), (Some(2), Some(1)));
    assert!(chat.input_tokens > 0 && chat.cached_tokens <= chat.input_tokens, "{chat:?}");
    assert_eq!((chat.replicas[0].in_flight, &chat.replicas[0].refused), (0, &None));
    assert!(chat.replicas[0].engine.is_some(), "the engine's load report");
    let tenant = &signals.tenants[0];
    assert_eq!((tenant.tenant.as_str(), tenant.arrivals, tenant.output_tokens), ("a", 1, 2));
    let other = Harness::start(&[&engine]).await;
    assert_ne!(signals.epoch, other.gateway.epoch.name, "another start, another epoch");
}

#[tokio::test]
async fn metrics_page_is_as_the_catalog_lists_and_objectives_are_counted() {
    let engine = MockEngine::start(Behaviour::Stream { events: 3, gap: Duration::from_millis(1) }).await;
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].objectives = Some((Duration::from_secs(60), Duration::from_secs(60)));
    gateway.apply();
    assert_eq!(gateway.chat(true).await.status, OK);
    let address = gateway.admin().await;
    let request = http::Request::get(format!("http://{address}/metrics")).body(Default::default()).unwrap();
    let page = read(gateway.client.request(request).await.unwrap()).await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    page::assert_clean(Process::Gateway, &page);
    let mut missing = page::missing(Process::Gateway, &page);
    // Without a second attempt there is no reason for one.
    missing.retain(|name| *name != "stowage_gateway_retries_total");
    assert_eq!(missing, Vec::<&str>::new());
    let at = r#"{namespace="a",deployment="chat""#;
    for line in [
        format!("stowage_objective_requests_total{at},objective=\"ttft\",attained=\"true\"}} 1"),
        format!("stowage_objective_requests_total{at},objective=\"ttft\",attained=\"false\"}} 0"),
        format!("stowage_objective_seconds{at},objective=\"itl\"}} 60"),
        format!("stowage_objective_target_ratio{at}}} 0.95"),
        format!("stowage_gateway_routable_replicas{at}}} 1"),
        format!("stowage_time_to_first_token_seconds_count{at}}} 1"),
        format!("stowage_request_duration_seconds_count{at}}} 1"),
    ] {
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

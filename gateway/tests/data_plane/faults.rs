//! Engines that end, hang, answer garbage and drain.

use std::time::{Duration, Instant};

use serde_json::json;
use stowage_gateway::world::facts::{DeploymentFact, PodFact};
use stowage_planner::route::Refusal;
use tokio::io::AsyncReadExt;

use crate::support::engine::{Behaviour, Heart, MockEngine, event};
use crate::support::harness::{Harness, OK, model_m, pod, read, until};

const DRAINING: &str =
    r#"{"error":{"message":"bye","type":"service_unavailable_error","param":null,"code":"draining"}}"#;
const SLOW: Behaviour = Behaviour::Stream { events: 40, gap: Duration::from_millis(50) };

#[tokio::test]
async fn with_two_replicas_a_dead_one_costs_no_request() {
    let (dead, alive) = (MockEngine::start(Behaviour::Whole).await, MockEngine::start(Behaviour::Whole).await);
    let gateway = Harness::start(&[&dead, &alive]).await;
    dead.kill();
    for _ in 0..20 {
        assert_eq!(gateway.chat(false).await.status, OK);
    }
    assert_eq!(alive.seen().len(), 20);
}

#[tokio::test]
async fn request_that_breaks_before_the_first_byte_is_sent_to_another_replica() {
    for broken in [
        Behaviour::CutAtOnce,
        Behaviour::Answer(200, "<html>hello</html>"),
        Behaviour::Answer(200, ""),
        Behaviour::Answer(503, DRAINING),
        Behaviour::Answer(301, "moved"),
    ] {
        for stream in [false, true] {
            let works = if stream { SLOW } else { Behaviour::Whole };
            let (bad, good) = (MockEngine::start(broken.clone()).await, MockEngine::start(works).await);
            let gateway = Harness::start(&[&bad, &good]).await;
            for _ in 0..4 {
                let answer = gateway.open_chat(stream).await;
                assert_eq!(answer.status(), 200, "{broken:?}");
            }
            assert!(
                bad.seen().len() <= 4 && good.seen().len() == 4,
                "{broken:?}: {} {}",
                bad.seen().len(),
                good.seen().len()
            );
        }
    }
}

#[tokio::test]
async fn request_that_every_replica_breaks_is_refused_after_two_attempts() {
    let engines = [MockEngine::start(Behaviour::CutAtOnce).await, MockEngine::start(Behaviour::CutAtOnce).await];
    let gateway = Harness::start(&[&engines[0], &engines[1]]).await;
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "engine_lost"));
    assert_eq!(engines[0].seen().len() + engines[1].seen().len(), 2);
}

#[tokio::test]
async fn an_engine_lost_mid_stream_ends_the_stream_with_an_error_event() {
    let engine = MockEngine::start(Behaviour::Cut { events: 3 }).await;
    let gateway = Harness::start(&[&engine]).await;
    let answer = gateway.chat(true).await;
    assert!(!answer.cut, "the stream is closed properly");
    let text = answer.text();
    let sent: String = (0..3).map(event).collect();
    let last = text.strip_prefix(&sent).unwrap();
    assert!(last.starts_with("data: {\"error\":") && last.ends_with("\n\n"), "{last}");
    assert!(last.contains("stream_broken"), "{last}");
    assert_eq!(engine.seen().len(), 1, "not tried again after the first byte");
}

#[tokio::test]
async fn a_killed_engine_ends_its_streams_and_leaves_routing_at_once() {
    let engine = MockEngine::start(SLOW).await;
    engine.set_heart(Heart::Beating);
    let gateway = Harness::start(&[&engine]).await;
    let response = gateway.open_stream().await;
    engine.kill();
    assert!(gateway.until_routable("chat-0", false).await < Duration::from_secs(2));
    assert!(read(response).await.text().contains("stream_broken"));
}

#[tokio::test]
async fn errors_of_the_engine_are_passed_on() {
    const TOO_LONG: &str = r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
    const FAILED: &str = r#"{"error":{"message":"oops","type":"server_error","param":null,"code":"internal_error"}}"#;
    let engine = MockEngine::start(Behaviour::Answer(400, TOO_LONG)).await;
    let gateway = Harness::start(&[&engine]).await;
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.text().as_str()), (400, TOO_LONG));
    engine.set(Behaviour::Answer(500, FAILED));
    let answer = gateway.chat(true).await;
    assert_eq!((answer.status, answer.text().as_str()), (500, FAILED));
}

#[tokio::test]
async fn a_hung_engine_leaves_routing_within_two_seconds_and_its_requests_move_on() {
    let (hung, alive) = (MockEngine::start(Behaviour::Hang).await, MockEngine::start(Behaviour::Whole).await);
    hung.set_heart(Heart::Beating);
    alive.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&hung]).await;
    let asking = gateway.chat_later(false);
    until("it is sent", || hung.seen().len() == 1).await;
    gateway.facts.pods.push(pod("chat-1", alive.address));
    gateway.apply();
    let started = Instant::now();
    hung.set_heart(Heart::Stopped);
    gateway.until_routable("chat-0", false).await;
    assert_eq!(asking.await.unwrap(), OK);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // It continues: back in routing.
    hung.set_heart(Heart::Beating);
    gateway.until_routable("chat-0", true).await;
}

#[tokio::test]
async fn only_replica_that_hangs_keeps_its_request_until_it_continues() {
    let engine = MockEngine::start(Behaviour::Late(Duration::from_millis(2500))).await;
    engine.set_heart(Heart::Beating);
    let gateway = Harness::start(&[&engine]).await;
    let asking = gateway.chat_later(false);
    until("it is sent", || engine.seen().len() == 1).await;
    engine.set_heart(Heart::Stopped);
    gateway.until_routable("chat-0", false).await;
    engine.set_heart(Heart::Beating);
    gateway.until_routable("chat-0", true).await;
    assert_eq!(asking.await.unwrap(), OK);
    assert_eq!(engine.seen().len(), 1);
}

#[tokio::test]
async fn a_garbled_load_stream_takes_the_replica_out() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    engine.set_heart(Heart::Beating);
    let gateway = Harness::start(&[&engine]).await;
    gateway.until_routable("chat-0", true).await;
    engine.set_load("\u{1}\u{2}garbage");
    assert!(gateway.until_routable("chat-0", false).await < Duration::from_secs(2));
    engine.set_load(r#"{"running":0,"waiting":0}"#);
    gateway.until_routable("chat-0", true).await;
}

#[tokio::test]
async fn engine_that_answers_garbage_gets_nothing_for_a_while() {
    let (bad, good) =
        (MockEngine::start(Behaviour::Answer(200, "\u{0}")).await, MockEngine::start(Behaviour::Whole).await);
    let gateway = Harness::start(&[&bad, &good]).await;
    for _ in 0..20 {
        assert_eq!(gateway.chat(false).await.status, OK);
    }
    assert_eq!(bad.seen().len(), 1);
}

#[tokio::test]
async fn an_unhealthy_gpu_takes_its_replicas_out_and_back() {
    let (unhealthy, healthy) = (MockEngine::start(Behaviour::Whole).await, MockEngine::start(Behaviour::Whole).await);
    let mut gateway = Harness::start(&[&unhealthy, &healthy]).await;
    gateway.facts.pods[0].gpus = vec!["GPU-1".to_owned()];
    gateway.facts.unhealthy_gpus.insert("GPU-1".into());
    gateway.apply();
    let view = gateway.gateway.directory.view();
    let refused: Vec<_> = view.pools().flat_map(|pool| pool.status().replicas).map(|replica| replica.refused).collect();
    assert_eq!(refused, [Some(Refusal::UnhealthyDevice), None]);
    for _ in 0..6 {
        assert_eq!(gateway.chat(false).await.status, OK);
    }
    assert_eq!((unhealthy.seen().len(), healthy.seen().len()), (0, 6));
    gateway.facts.unhealthy_gpus.clear();
    gateway.apply();
    gateway.until_routable("chat-0", true).await;
}

#[tokio::test]
async fn a_draining_replica_gets_nothing_new_and_ends_what_it_has() {
    let (leaving, staying) = (MockEngine::start(SLOW).await, MockEngine::start(SLOW).await);
    let mut gateway = Harness::start(&[&leaving]).await;
    let stream = gateway.open_stream().await;
    gateway.facts.pods[0].draining = true;
    gateway.facts.pods.push(pod("chat-1", staying.address));
    gateway.apply();
    // So many that the draining one would be the less loaded.
    let _open = futures::future::join_all((0..5).map(|_| gateway.open_stream())).await;
    assert_eq!((leaving.seen().len(), staying.seen().len()), (1, 5));
    assert!(read(stream).await.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_killed_only_replica_holds_new_requests_until_its_successor_is_there() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    engine.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].hold = Some(Duration::from_secs(10));
    gateway.apply();
    engine.kill();
    let asking = gateway.chat_later(true);
    until("it is held", || gateway.waiting() == 1).await;
    let successor = MockEngine::start(SLOW).await;
    gateway.facts.pods = vec![pod("chat-9", successor.address)];
    gateway.apply();
    assert_eq!(asking.await.unwrap(), OK);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_engines_work_within_a_tenth_of_a_second() {
    for behaviour in [SLOW, Behaviour::Hang, Behaviour::Stream { events: 2, gap: Duration::from_secs(60) }] {
        let engine = MockEngine::start(behaviour.clone()).await;
        let gateway = Harness::start(&[&engine]).await;
        // A connection of its own, so that leaving closes it.
        let mut socket = gateway.raw_chat().await;
        until("the engine works", || engine.seen().len() == 1).await;
        if !matches!(behaviour, Behaviour::Hang) {
            assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
        }
        let left = Instant::now();
        drop(socket);
        until("the work ends", || engine.cancelled() == 1 && gateway.in_flight() == 0).await;
        assert!(left.elapsed() < Duration::from_millis(100), "{behaviour:?}: {:?}", left.elapsed());
    }
}

#[tokio::test]
async fn engine_that_reports_absurd_figures_is_not_used_and_stops_nobody_else() {
    let (absurd, good) = (MockEngine::start(Behaviour::Whole).await, MockEngine::start(Behaviour::Whole).await);
    absurd.set_heart(Heart::Beating);
    let mut gateway = Harness::start(&[&absurd]).await;
    gateway.until_routable("chat-0", true).await;
    let most = u64::MAX;
    for load in [
        format!(r#"{{"running":0,"waiting":0,"kvBlocksUsed":{most},"kvBlocksTotal":{most},"blockTokens":{most}}}"#),
        r#"{"running":4294967295,"waiting":4294967295}"#.to_owned(),
    ] {
        absurd.set_load(&load);
        gateway.until_routable("chat-0", false).await;
        // It waits in the pool while the world changes.
        let waits = gateway.chat_later(false);
        until("it waits", || gateway.waiting() == 1).await;
        let other = DeploymentFact {
            namespace: "b".into(),
            name: "own".into(),
            uid: "v".into(),
            model: "n".into(),
            ..model_m()
        };
        let served = PodFact {
            namespace: "b".into(),
            deployment: "own".into(),
            owner_uid: Some("v".into()),
            ..pod("own-0", good.address)
        };
        gateway.facts.deployments.push(other);
        gateway.facts.pods.push(served);
        gateway.apply();
        let ask = json!({"model": "n", "messages": [{"role": "user", "content": "hello"}]});
        assert_eq!(gateway.post("sk-b", &ask).await.status, OK);
        let keys = gateway.facts.secrets.remove("b-keys").unwrap();
        gateway.apply();
        assert_eq!(gateway.post("sk-b", &ask).await.status, 401);
        gateway.facts.secrets.insert("b-keys".into(), keys);
        gateway.facts.deployments.pop();
        gateway.facts.pods.pop();
        gateway.apply();
        assert_eq!(waits.await.unwrap(), 503);
        absurd.set_load(r#"{"running":0,"waiting":0}"#);
        gateway.until_routable("chat-0", true).await;
    }
}

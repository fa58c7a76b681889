//! What works: answers, streams, models, tenants, limits.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::json;
use stowage_gateway::outcome::Outcome;
use stowage_gateway::world::snapshot::TokenLimits;

use crate::engine::{Behaviour, MockEngine, WHOLE, event};
use crate::harness::{Harness, LIMITS, Limits, OK, chat, model_m, read, until};

#[tokio::test]
async fn a_whole_answer_comes_back_byte_by_byte() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let answer = gateway.chat(false).await;
    assert_eq!((answer.status, answer.text().as_str()), (OK, WHOLE));
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.headers.contains_key("x-request-id"));
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("x-stowage")));
}

#[tokio::test]
async fn a_stream_is_relayed_event_by_event_as_it_comes() {
    let engine = MockEngine::start(Behaviour::Stream { events: 5, gap: Duration::from_millis(100) }).await;
    let gateway = Harness::start(&[&engine]).await;
    let mut response = gateway.open_stream().await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut came = Vec::new();
    let started = Instant::now();
    while let Some(frame) = response.body_mut().frame().await {
        came.push((started.elapsed(), frame.unwrap().into_data().unwrap()));
    }
    let text: String = came.iter().map(|(_, data)| String::from_utf8_lossy(data)).collect();
    let expected: String = (0..5).map(event).chain(["data: [DONE]\n\n".to_owned()]).collect();
    assert_eq!(text, expected);
    // Not collected: the first event is here long before the last is written.
    assert!(came[0].0 < Duration::from_millis(250), "{:?}", came[0].0);
    assert!(came.len() >= 5);
}

#[tokio::test]
async fn an_engine_gets_the_body_as_it_came_and_only_our_headers() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let body = r#"{ "model":"m" , "messages":[{"role":"user","content":"Ünïcode"}],"x_unknown":1.50 }"#;
    let request = http::Request::post(format!("http://{}/v1/chat/completions", gateway.address))
        .header("authorization", "Bearer sk-a")
        .header("x-stowage-tenant-salt", "forged")
        .header("x-stowage-tenant", "b")
        .header("x-stowage-priority", "high")
        .header("tenant", "b")
        .header("cookie", "secret")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(http_body_util::Full::new(body.into()))
        .unwrap();
    assert_eq!(read(gateway.client.request(request).await.unwrap()).await.status, OK);
    let seen = &engine.seen()[0];
    assert_eq!((seen.path.as_str(), &seen.body[..]), ("/v1/chat/completions", body.as_bytes()));
    let mut names: Vec<_> = seen.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["content-length", "content-type", "host", "traceparent", "x-request-id", "x-stowage-tenant-salt"]
    );
    assert_eq!(seen.headers["x-stowage-tenant-salt"], stowage_gateway::listen::credentials::cache_salt("a").as_str());
}

#[tokio::test]
async fn a_tenants_model_does_not_exist_for_others() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    let refused = gateway.post("sk-b", &chat(false)).await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "model_not_found"));
    // Word for word what an invented name gets.
    let invented = gateway.post("sk-b", &json!({"model": "zzz", "messages": []})).await;
    assert_eq!(refused.text().replace("`m`", "`zzz`"), invented.text());
    assert_eq!(gateway.get(Some("sk-b"), "/v1/models").await.json()["data"], json!([]));
    assert_eq!(gateway.get(Some("sk-b"), "/v1/models/m").await.status, 404);
    assert_eq!(gateway.get(Some("sk-a"), "/v1/models").await.json()["data"][0]["id"], "m");
    assert_eq!(gateway.get(Some("sk-a"), "/v1/models/m").await.json()["id"], "m");
    assert_eq!(engine.seen().len(), 0);

    gateway.facts.deployments[0].access = vec!["b".into()];
    gateway.apply();
    assert_eq!(gateway.post("sk-b", &chat(false)).await.status, OK);
    assert_eq!(gateway.get(Some("sk-b"), "/v1/models").await.json()["data"][0]["id"], "m");
    let salts: Vec<_> = engine.seen().iter().map(|seen| seen.headers["x-stowage-tenant-salt"].clone()).collect();
    assert_eq!(salts, [stowage_gateway::listen::credentials::cache_salt("b").as_str()]);
}

#[tokio::test]
async fn keys_count_from_the_next_request_on() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    assert_eq!(gateway.chat(false).await.status, OK);
    let secret = gateway.facts.secrets.get_mut("a-keys").unwrap();
    *secret = vec![("new".into(), stowage_gateway::listen::credentials::hash_key("sk-new"))];
    gateway.apply();
    assert_eq!(gateway.chat(false).await.status, 401);
    assert_eq!(gateway.post("sk-new", &chat(false)).await.status, OK);
}

#[tokio::test]
async fn requests_spread_over_replicas_by_load() {
    let (left, right) = (MockEngine::start(Behaviour::Hang).await, MockEngine::start(Behaviour::Hang).await);
    let gateway = Harness::start(&[&left, &right]).await;
    let asking: Vec<_> = (0..10).map(|_| gateway.chat(false)).collect();
    tokio::select! {
        _ = futures::future::join_all(asking) => panic!("nothing answers"),
        () = until("all are sent", || left.seen().len() + right.seen().len() == 10) => {}
    }
    assert_eq!((left.seen().len(), right.seen().len()), (5, 5));
}

#[tokio::test]
async fn a_tenant_over_its_tokens_waits_and_others_do_not() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].access = vec!["b".into()];
    gateway.facts.quotas[0].limits =
        TokenLimits { per_minute: Some(60), burst: Some(Duration::from_secs(10)), ..TokenLimits::default() };
    gateway.apply();
    // The first one finds a full bucket and uses 9 of its 10 tokens.
    assert_eq!(gateway.chat(false).await.status, OK);
    let refused = gateway.chat(false).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "tenant_tokens"));
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    assert_eq!(gateway.post("sk-b", &chat(false)).await.status, OK);
}

#[tokio::test]
async fn concurrency_is_limited_and_freed() {
    let engine = MockEngine::start(Behaviour::Stream { events: 3, gap: Duration::from_millis(20) }).await;
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.quotas[0].limits = TokenLimits { max_concurrent: Some(1), ..TokenLimits::default() };
    gateway.apply();
    let first = gateway.open_stream().await;
    let refused = gateway.chat(true).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "tenant_concurrency"));
    read(first).await;
    assert_eq!(gateway.chat(true).await.status, OK);
}

#[tokio::test]
async fn more_than_a_replica_takes_is_queued_and_more_than_the_queue_holds_is_refused() {
    let engine = MockEngine::start(Behaviour::Stream { events: 2, gap: Duration::from_millis(100) }).await;
    let mut limits: Limits = LIMITS;
    limits.pool.gate.max_in_flight = 1;
    limits.pool.max_queued = 2;
    let gateway = Harness::with(&[&engine], limits).await;
    let answers = futures::future::join_all((0..4).map(|_| gateway.chat(true))).await;
    let mut outcomes: Vec<_> =
        answers.iter().map(|a| if a.status == OK { "ok".to_owned() } else { a.code() }).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["ok", "ok", "ok", "queue_full"]);
}

#[tokio::test]
async fn tokens_and_outcomes_are_counted() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    gateway.chat(false).await;
    gateway.post("sk-a", &json!({"model": "zzz", "messages": []})).await;
    let series = gateway.gateway.metrics.series(&"a".into(), &"m".into());
    assert_eq!((series.counted(Outcome::Ok), series.output_tokens()), (1, 2));
    let nobody = gateway.gateway.metrics.series(&"a".into(), &"".into());
    assert_eq!(nobody.counted(Outcome::ModelNotFound), 1);
}

#[tokio::test]
async fn of_equally_named_models_each_tenant_gets_its_own() {
    let (ours, theirs) = (MockEngine::start(Behaviour::Whole).await, MockEngine::start(Behaviour::Whole).await);
    let mut gateway = Harness::start(&[&ours]).await;
    let mut other = model_m();
    other.namespace = "b".into();
    gateway.facts.deployments.push(other);
    let mut pod = crate::harness::pod("chat-9", theirs.address);
    pod.namespace = "b".into();
    gateway.facts.pods.push(pod);
    gateway.apply();
    assert_eq!(gateway.post("sk-b", &chat(false)).await.status, OK);
    assert_eq!((ours.seen().len(), theirs.seen().len()), (0, 1));
}

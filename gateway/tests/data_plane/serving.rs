//! What works: answers, streams, models, tenants, limits.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::json;
use stowage_gateway::outcome::Outcome;
use stowage_gateway::world::facts::TokenLimits;
use stowage_gateway::world::salt::SaltKey;

use crate::support::engine::{Behaviour, MockEngine, WHOLE, event};
use crate::support::harness::{Harness, LIMITS, Limits, OK, SALT_KEY, chat, model_m, read, shared_chat, until};

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
    assert_eq!(seen.headers["x-stowage-tenant-salt"], salt("a", "a").as_str());
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
    assert_eq!(gateway.post("sk-b", &chat(false)).await.status, 404, "sharing gives no bare name");
    assert_eq!(gateway.post("sk-b", &shared_chat()).await.status, OK);
    assert_eq!(gateway.get(Some("sk-b"), "/v1/models").await.json()["data"][0]["id"], "a/m");
    assert_eq!(gateway.get(Some("sk-b"), "/v1/models/a/m").await.json()["id"], "a/m");
    let sent: serde_json::Value = serde_json::from_slice(&engine.seen()[0].body).unwrap();
    assert_eq!(sent["model"], "m", "the engine knows the model by the owner's name");
    let salts: Vec<_> = engine.seen().iter().map(|seen| seen.headers["x-stowage-tenant-salt"].clone()).collect();
    assert_eq!(salts, [salt("a", "b").as_str()]);
}

fn salt(owner: &str, caller: &str) -> String {
    SaltKey::new(SALT_KEY).unwrap().salt(owner, caller)
}

#[tokio::test]
async fn without_a_salt_key_other_tenants_models_are_refused_and_own_ones_served() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    gateway.facts.deployments[0].access = vec!["b".into()];
    gateway.facts.salt_key = None;
    gateway.apply();
    let refused = gateway.post("sk-b", &shared_chat()).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "sharing_unavailable"));
    assert!(engine.seen().is_empty());
    assert_eq!(gateway.chat(false).await.status, OK);
    assert!(!engine.seen()[0].headers.contains_key("x-stowage-tenant-salt"));
    gateway.facts.salt_key = SaltKey::new(SALT_KEY);
    gateway.apply();
    assert_eq!(gateway.post("sk-b", &shared_chat()).await.status, OK);
}

#[tokio::test]
async fn keys_count_from_the_next_request_on() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let mut gateway = Harness::start(&[&engine]).await;
    assert_eq!(gateway.chat(false).await.status, OK);
    let secret = gateway.facts.secrets.get_mut("a-keys").unwrap();
    secret.hashes = vec![("new".into(), stowage_gateway::listen::credentials::hash_key("sk-new"))];
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
    assert_eq!(gateway.post("sk-b", &shared_chat()).await.status, OK);
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
    let status = gateway.gateway.directory.view().pools().next().unwrap().status();
    assert_eq!((status.arrivals, status.placed), (4, 3));
}

#[tokio::test]
async fn tokens_and_outcomes_are_counted() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    gateway.chat(false).await;
    gateway.post("sk-a", &json!({"model": "zzz", "messages": []})).await;
    let series = gateway.gateway.metrics.series(&"a".into(), &"m".into());
    assert_eq!((series.counted(Outcome::Ok), series.output_tokens()), (1, 2));
    let without_model = gateway.gateway.metrics.series(&"a".into(), &"".into());
    assert_eq!(without_model.counted(Outcome::ModelNotFound), 1);
}

#[tokio::test]
async fn of_equally_named_models_each_tenant_gets_its_own() {
    let (ours, theirs) = (MockEngine::start(Behaviour::Whole).await, MockEngine::start(Behaviour::Whole).await);
    let mut gateway = Harness::start(&[&ours]).await;
    let mut other = model_m();
    other.namespace = "b".into();
    gateway.facts.deployments.push(other);
    let mut pod = crate::support::harness::pod("chat-9", theirs.address);
    pod.namespace = "b".into();
    gateway.facts.pods.push(pod);
    gateway.apply();
    assert_eq!(gateway.post("sk-b", &chat(false)).await.status, OK);
    assert_eq!((ours.seen().len(), theirs.seen().len()), (0, 1));
}

#[tokio::test]
async fn a_tenant_with_many_requests_does_not_keep_another_waiting() {
    let engine = MockEngine::start(Behaviour::Late(Duration::from_millis(20))).await;
    let mut limits = LIMITS;
    limits.pool.gate.max_in_flight = 2;
    let mut gateway = Harness::with(&[&engine], limits).await;
    gateway.facts.deployments[0].access = vec!["b".into()];
    gateway.apply();
    let many: Vec<_> = (0..40).map(|_| gateway.chat_later(false)).collect();
    until("they wait", || gateway.waiting() >= 30).await;
    assert_eq!(gateway.post("sk-b", &shared_chat()).await.status, OK);
    assert!(gateway.waiting() > 15, "it was next, not last: {} still wait", gateway.waiting());
    for asked in many {
        assert_eq!(asked.await.unwrap(), OK);
    }
}

/// Requests of tenant `a` that are in flight when it asks for eight places of eight, and whether another
/// tenant is served then.
async fn places_of_one_tenant(shared: bool) -> (u32, bool) {
    let engine = MockEngine::start(Behaviour::Hang).await;
    let mut limits = LIMITS;
    limits.pool.gate.max_in_flight = 8;
    let mut gateway = Harness::with(&[&engine], limits).await;
    gateway.facts.deployments[0].access = if shared { vec!["b".into()] } else { Vec::new() };
    gateway.apply();
    let _many: Vec<_> = (0..20).map(|_| gateway.chat_later(false)).collect();
    until("the rest waits", || gateway.in_flight() + gateway.waiting() as u32 == 20).await;
    let taken = gateway.in_flight();
    engine.set(Behaviour::Whole);
    let other = tokio::time::timeout(Duration::from_secs(10), gateway.post("sk-b", &shared_chat())).await;
    (taken, other.is_ok_and(|answer| answer.status == OK))
}

#[tokio::test]
async fn tenant_does_not_fill_a_model_that_others_may_use() {
    assert_eq!(places_of_one_tenant(true).await, (6, true));
    assert_eq!(places_of_one_tenant(false).await, (8, false), "alone it gets all places");
}

#[tokio::test]
async fn request_with_more_sequences_than_can_ever_run_is_400() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let mut body = chat(false);
    body["n"] = 65.into();
    let refused = gateway.post("sk-a", &body).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("n")));
    assert_eq!(engine.seen().len(), 0);
    body["n"] = 64.into();
    assert_eq!(gateway.post("sk-a", &body).await.status, OK);
}

#[tokio::test]
async fn head_is_answered_as_get_without_the_body() {
    let gateway = Harness::start(&[]).await;
    for path in ["/v1/models", "/v1/models/m", "/healthz", "/readyz"] {
        let get = gateway.get(Some("sk-a"), path).await;
        let head = gateway.send(http::Method::HEAD, path, Some("sk-a"), bytes::Bytes::new()).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.headers["content-length"], get.body.len().to_string().as_str(), "{path}");
        assert_eq!(head.headers["content-type"], get.headers["content-type"], "{path}");
    }
    assert_eq!(gateway.send(http::Method::HEAD, "/v1/models", None, bytes::Bytes::new()).await.status, 401);
}

#[tokio::test]
async fn page_of_a_listed_origin_may_call_and_others_may_not() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let ask = async |method: &str, origin: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}/v1/chat/completions", gateway.address))
            .header("origin", origin)
            .header("authorization", "Bearer sk-a");
        let request = match method {
            "OPTIONS" => request.header("access-control-request-method", "POST"),
            _ => request,
        };
        let body = if method == "POST" { chat(false).to_string() } else { String::new() };
        read(gateway.client.request(request.body(http_body_util::Full::new(body.into())).unwrap()).await.unwrap()).await
    };
    let preflight = ask("OPTIONS", "https://page.example").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "https://page.example");
    let answer = ask("POST", "https://page.example").await;
    assert_eq!(
        (answer.status, answer.headers["access-control-allow-origin"].to_str().unwrap()),
        (OK, "https://page.example")
    );
    for (method, status) in [("OPTIONS", 204), ("POST", OK)] {
        let other = ask(method, "https://other.example").await;
        assert_eq!(other.status, status);
        assert!(!other.headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn encoded_request_reaches_the_engine_decoded() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, chat(false).to_string().as_bytes()).unwrap();
    let request = http::Request::post(format!("http://{}/v1/chat/completions", gateway.address))
        .header("authorization", "Bearer sk-a")
        .header("content-encoding", "gzip")
        .body(http_body_util::Full::new(encoder.finish().unwrap().into()))
        .unwrap();
    assert_eq!(read(gateway.client.request(request).await.unwrap()).await.status, OK);
    assert_eq!(engine.seen()[0].body, chat(false).to_string());
    assert!(!engine.seen()[0].headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn usage_that_a_request_cannot_have_had_is_not_charged() {
    const LIES: &str = r#"{"choices":[],"usage":{"prompt_tokens":900000000,"completion_tokens":900000000}}"#;
    let engine = MockEngine::start(Behaviour::Answer(200, LIES)).await;
    let gateway = Harness::start(&[&engine]).await;
    assert_eq!(gateway.chat(false).await.status, OK);
    let series = gateway.gateway.metrics.series(&"a".into(), &"m".into());
    assert_eq!((series.output_tokens(), series.implausible_usage.get()), (0, 1));
}

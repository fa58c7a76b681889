//! Spans of requests, as an OTLP receiver gets them.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use stowage_telemetry::traces::{Sampling, SpanCounts, TraceArgs, Tracer};

use crate::support::collector::{Answers, Collector, attribute, hex, named, tree};
use crate::support::engine::{Behaviour, MockEngine};
use crate::support::harness::{Answer, Harness, LIMITS, Limits, OK, chat, read};
use crate::support::process::Gateway;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const STREAM: Behaviour = Behaviour::Stream { events: 3, gap: Duration::from_millis(5) };
/// Stands in each place where a client's text could be taken from.
const SECRET: &str = "zq-secret-zq";

struct Traced {
    collector: Collector,
    tracer: Tracer,
    counts: SpanCounts,
    gateway: Harness,
}

impl Traced {
    async fn start(engines: &[&MockEngine], ratio: f64) -> Self {
        Self::with(engines, ratio, Answers::Takes, LIMITS).await
    }

    async fn with(engines: &[&MockEngine], ratio: f64, answers: Answers, limits: Limits) -> Self {
        let (collector, counts) = (Collector::start(answers), SpanCounts::default());
        let args = TraceArgs {
            otlp_endpoint: collector.endpoint(),
            otlp_protocol: "http/protobuf".into(),
            trace_ratio: ratio.to_string(),
        };
        let tracer = Tracer::start(&args, "stowage-gateway", Sampling::Own, counts.clone()).unwrap();
        let gateway = Harness::traced(engines, limits, tracer.clone()).await;
        Self { collector, tracer, counts, gateway }
    }

    /// Ends the tracer; what was sent until then.
    async fn spans(&self) -> Vec<Span> {
        self.tracer.shutdown(Duration::from_secs(30)).await;
        self.collector.spans()
    }
}

/// A chat with these headers.
async fn ask(gateway: &Harness, stream: bool, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::post(format!("http://{}/v1/chat/completions", gateway.address));
    if !headers.iter().any(|(name, _)| *name == "authorization") {
        request = request.header("authorization", "Bearer sk-a");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::from(chat(stream).to_string()));
    read(gateway.client.request(request.body(body).unwrap()).await.unwrap()).await
}

fn sent_parent(engine: &MockEngine) -> Option<String> {
    let seen = engine.seen();
    let value = seen.last().unwrap().headers.get("traceparent")?;
    Some(value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn request_is_one_tree_of_spans_that_continues_the_clients_trace() {
    let engine = MockEngine::start(STREAM).await;
    let traced = Traced::start(&[&engine], 1.0).await;
    let parent = format!("00-{TRACE}-{SPAN}-00");
    let answer = ask(&traced.gateway, true, &[("traceparent", &parent), ("tracestate", "a=b")]).await;
    assert_eq!(answer.status, OK);
    let spans = traced.spans().await;
    assert_eq!(
        tree(&spans),
        ["attempt<chat m", "chat m<-", "decode<attempt", "prefill<attempt", "queue<chat m", "route<chat m"]
    );
    let (server, attempt) = (named(&spans, "chat m"), named(&spans, "attempt"));
    assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.to_owned(), SPAN.to_owned()));
    assert_eq!(sent_parent(&engine).unwrap(), format!("00-{TRACE}-{}-01", hex(&attempt.span_id)));
    assert!(!engine.seen()[0].headers.contains_key("tracestate"));
    let id = answer.headers["x-request-id"].to_str().unwrap();
    for (key, want) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "stowage"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("stowage.tenant", "a"),
        ("stowage.namespace", "a"),
        ("stowage.deployment", "chat"),
        ("stowage.outcome", "ok"),
        ("stowage.request.id", id),
        ("error.type", ""),
    ] {
        assert_eq!(attribute(server, key), want, "{key}");
    }
    let first: f64 = attribute(server, "gen_ai.response.time_to_first_chunk").parse().unwrap();
    assert!((0.0..30.0).contains(&first), "{first}");
    assert_eq!(
        (attribute(attempt, "stowage.replica.pod"), attribute(attempt, "error.type")),
        ("chat-0".into(), "".into())
    );
    let decode = named(&spans, "decode");
    assert!(decode.end_time_unix_nano - decode.start_time_unix_nano >= 9_000_000, "two gaps of 5 ms");
}

#[tokio::test]
async fn whole_answer_has_no_first_token_and_its_reported_tokens() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let traced = Traced::start(&[&engine], 1.0).await;
    assert_eq!(traced.gateway.chat(false).await.status, OK);
    let spans = traced.spans().await;
    assert_eq!(tree(&spans), ["attempt<chat m", "chat m<-", "queue<chat m", "route<chat m"]);
    let server = named(&spans, "chat m");
    assert_eq!(server.parent_span_id, b"", "a trace of its own");
    let tokens = ["input_tokens", "cache_read.input_tokens", "output_tokens"];
    assert_eq!(tokens.map(|key| attribute(server, &format!("gen_ai.usage.{key}"))), ["7", "3", "2"]);
    assert_eq!(attribute(server, "gen_ai.response.time_to_first_chunk"), "");
}

#[tokio::test]
async fn retry_is_a_second_attempt_of_the_same_request() {
    let (bad, good) = (MockEngine::start(Behaviour::CutAtOnce).await, MockEngine::start(STREAM).await);
    let traced = Traced::start(&[&bad, &good], 1.0).await;
    // Routing may begin with either.
    while bad.seen().is_empty() {
        assert_eq!(traced.gateway.chat(true).await.status, OK);
    }
    let spans = traced.spans().await;
    tree(&spans);
    let failed: Vec<_> = spans.iter().filter(|span| attribute(span, "error.type") == "broken").collect();
    assert_eq!(failed.len(), 1);
    let of_request: Vec<_> = spans.iter().filter(|span| span.parent_span_id == failed[0].parent_span_id).collect();
    let count = |name| of_request.iter().filter(|span| span.name == name).count();
    assert_eq!((count("attempt"), count("queue"), count("route")), (2, 2, 2));
    let second = of_request.iter().find(|span| attribute(span, "http.request.resend_count") == "1").unwrap();
    assert_eq!(
        (attribute(failed[0], "stowage.replica.pod"), attribute(second, "stowage.replica.pod")),
        ("chat-0".into(), "chat-1".into())
    );
    assert_ne!(sent_parent(&bad), sent_parent(&good), "each attempt is a parent of its own");
    let server = spans.iter().find(|span| span.span_id == failed[0].parent_span_id).unwrap();
    assert_eq!((attribute(server, "stowage.outcome"), attribute(server, "error.type")), ("ok".into(), "".into()));
}

#[tokio::test]
async fn requests_that_fail_say_how() {
    const REFUSAL: &str = r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"bad"}}"#;
    for (behaviour, stream, status, outcome, error) in [
        (Behaviour::Answer(400, REFUSAL), false, "400", "engine_refused", ""),
        (Behaviour::Answer(500, REFUSAL), false, "500", "engine_failed", "engine_failed"),
        (Behaviour::Cut { events: 2 }, true, "200", "stream_broken", "stream_broken"),
    ] {
        let engine = MockEngine::start(behaviour.clone()).await;
        let traced = Traced::start(&[&engine], 1.0).await;
        traced.gateway.chat(stream).await;
        let spans = traced.spans().await;
        tree(&spans);
        let server = named(&spans, "chat m");
        let found = ["http.response.status_code", "stowage.outcome", "error.type"].map(|key| attribute(server, key));
        assert_eq!(found, [status, outcome, error], "{behaviour:?}");
    }
}

#[tokio::test]
async fn request_that_is_refused_at_the_door_says_why() {
    for (body, status, outcome) in [
        (json!({"model": "zzz", "messages": []}), "404", "model_not_found"),
        (json!({"messages": []}), "400", "invalid"),
    ] {
        let traced = Traced::start(&[], 1.0).await;
        traced.gateway.post("sk-a", &body).await;
        let spans = traced.spans().await;
        assert_eq!(tree(&spans), ["chat<-"]);
        let found = ["http.response.status_code", "stowage.outcome"].map(|key| attribute(&spans[0], key));
        assert_eq!(found, [status, outcome]);
    }
}

#[tokio::test]
async fn request_without_a_place_is_a_queue_that_failed() {
    let traced = Traced::start(&[], 1.0).await;
    assert_eq!(traced.gateway.chat(false).await.status, 503);
    let spans = traced.spans().await;
    assert_eq!(tree(&spans), ["chat m<-", "queue<chat m"]);
    assert_eq!(attribute(named(&spans, "queue"), "error.type"), "unplaced");
    assert_eq!(attribute(named(&spans, "chat m"), "stowage.outcome"), "no_replica");
}

#[tokio::test]
async fn client_that_leaves_ends_its_spans() {
    let engine = MockEngine::start(Behaviour::Flood).await;
    let traced = Traced::start(&[&engine], 1.0).await;
    drop(traced.gateway.open_stream().await);
    let collector = traced.collector;
    let spans = tokio::task::spawn_blocking(move || collector.wait(6)).await.unwrap();
    let server = named(&spans, "chat m");
    assert_eq!(
        (attribute(server, "stowage.outcome"), attribute(server, "error.type")),
        ("client_gone".into(), "".into())
    );
}

#[tokio::test]
async fn nothing_that_a_client_wrote_is_sent() {
    let engine = MockEngine::start(STREAM).await;
    let traced = Traced::start(&[&engine], 1.0).await;
    let secret_header = [
        ("x-secret", SECRET),
        ("user-agent", SECRET),
        ("x-request-id", SECRET),
        ("tracestate", "zq-secret-zq=1"),
        ("baggage", "zq-secret-zq=1"),
        ("traceparent", SECRET),
        ("cookie", SECRET),
    ];
    assert_eq!(ask(&traced.gateway, true, &secret_header).await.status, OK);
    let message = json!([{"role": "user", "content": SECRET}]);
    for body in [
        json!({"model": "m", "stream": true, "messages": message, "user": SECRET, "metadata": {"a": SECRET}}),
        json!({"model": "m", "messages": message, "stop": [SECRET]}),
        json!({"model": SECRET, "messages": message}),
        json!({"model": "m", "prompt": SECRET, "n": 1000}),
    ] {
        traced.gateway.post("sk-a", &body).await;
    }
    traced.gateway.post(SECRET, &chat(false)).await;
    traced.gateway.post("sk-a", &json!(SECRET)).await;
    let path = format!("/v1/chat/completions?user={SECRET}");
    traced.gateway.send(http::Method::POST, &path, Some("sk-a"), chat(false).to_string().into()).await;
    assert!(traced.spans().await.len() > 15);
    let bytes = traced.collector.bytes();
    // The request's own words, its key, the answer's words.
    for text in [SECRET, "sk-a", "Bearer", "capital of France", "Paris", "w0 "] {
        assert_eq!(memchr::memmem::find(&bytes, text.as_bytes()), None, "{text}");
    }
}

#[tokio::test]
async fn callers_without_a_key_cause_no_spans() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let traced = Traced::start(&[&engine], 1.0).await;
    assert_eq!(traced.gateway.post("sk-unknown", &chat(false)).await.status, 401);
    for path in ["/healthz", "/readyz", "/v1/models", "/nothing"] {
        traced.gateway.get(Some("sk-a"), path).await;
    }
    assert_eq!((traced.spans().await.len(), traced.collector.requests()), (0, 0));
}

#[tokio::test]
async fn invalid_parents_begin_a_trace_and_reach_no_engine() {
    let long = format!("00-{TRACE}-{SPAN}-01-{}", "x".repeat(8 << 10));
    for bad in ["", "garbage", &format!("00-{}-{SPAN}-01", "0".repeat(32)), &long] {
        let engine = MockEngine::start(Behaviour::Whole).await;
        let traced = Traced::start(&[&engine], 1.0).await;
        assert_eq!(ask(&traced.gateway, false, &[("traceparent", bad)]).await.status, OK);
        let spans = traced.spans().await;
        assert_eq!(named(&spans, "chat m").parent_span_id, b"", "{bad}");
        let sent = sent_parent(&engine).unwrap();
        assert!(sent.len() == 55 && !sent.contains(TRACE), "{sent}");
        // The same without tracing.
        let plain = Harness::start(&[&engine]).await;
        assert_eq!(ask(&plain, false, &[("traceparent", bad)]).await.status, OK);
        assert_eq!(sent_parent(&engine), None, "{bad}");
    }
}

#[tokio::test]
async fn client_cannot_ask_to_be_recorded() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let traced = Traced::start(&[&engine], 0.0).await;
    let asks = format!("00-{}1-{SPAN}-01", "0".repeat(31));
    assert_eq!(ask(&traced.gateway, false, &[("traceparent", &asks)]).await.status, OK);
    let sent = sent_parent(&engine).unwrap();
    assert!(sent.starts_with(&asks[..36]) && sent.ends_with("-00"), "the trace's id is kept: {sent}");
    assert_eq!(traced.spans().await.len(), 0);
}

#[tokio::test]
async fn without_an_endpoint_the_engine_gets_what_the_client_sent() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    let gateway = Harness::start(&[&engine]).await;
    assert_eq!(gateway.chat(false).await.status, OK);
    assert_eq!(sent_parent(&engine), None);
    for flags in ["00", "01"] {
        let parent = format!("00-{TRACE}-{SPAN}-{flags}");
        assert_eq!(ask(&gateway, false, &[("traceparent", &parent)]).await.status, OK);
        assert_eq!(sent_parent(&engine), Some(parent));
    }
}

#[tokio::test]
async fn receiver_that_hangs_or_refuses_changes_no_answer() {
    // Four spans each: twelve rounds are more than the queue and the batch under way hold.
    for (answers, rounds) in [(Answers::Hangs, 12), (Answers::Refuses, 1)] {
        let engine = MockEngine::start(Behaviour::Whole).await;
        let traced = Traced::with(&[&engine], 1.0, answers, LIMITS).await;
        for _ in 0..rounds {
            let some = futures::future::join_all((0..64).map(|_| traced.gateway.chat(false))).await;
            assert!(some.iter().all(|answer| answer.status == OK), "{answers:?}");
        }
        assert_eq!(traced.counts.dropped.get() > 0, answers == Answers::Hangs);
    }
}

#[tokio::test]
async fn program_sends_its_last_spans_when_it_ends() {
    let engine = MockEngine::start(Behaviour::Whole).await;
    for (on, count) in [(true, 4), (false, 0)] {
        let collector = Collector::start(Answers::Takes);
        let endpoint = if on { collector.endpoint() } else { String::new() };
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("STOWAGE_DRAIN_DELAY_SECONDS", "0")];
        let mut gateway = Gateway::start_with(engine.address, &environment).await;
        assert_eq!(gateway.chat_of_b().await, OK);
        gateway.end().await;
        let spans = collector.spans();
        assert_eq!((spans.len(), sent_parent(&engine).is_some()), (count, on));
        if on {
            assert_eq!(attribute(named(&spans, "chat m"), "stowage.tenant"), "b");
            let service = Value::StringValue("stowage-gateway".into());
            assert_eq!(collector.resource("service.name"), Some(service));
        }
    }
}

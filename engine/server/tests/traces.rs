//! Spans of an engine that runs by itself, as an OTLP receiver gets them.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/telemetry/tests/support/collector.rs"]
mod collector;
mod support;

use std::time::Duration;

use collector::{Answers, Collector, attribute, hex, named, tree};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{CHAT, Running, chat_body, start};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn drained(mut server: Running, collector: &Collector) -> Vec<Span> {
    server.runtime.block_on(server.server.take().unwrap().drain(Duration::from_secs(30)));
    collector.spans()
}

#[test]
fn request_is_queue_prefill_and_decode_in_the_callers_trace() {
    for stream in ["", r#","stream":true"#] {
        let collector = Collector::start(Answers::Takes);
        let server = start(&["--otlp-endpoint", &collector.endpoint()]);
        let parent = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n");
        let answer = server.request("POST", CHAT, &parent, &chat_body(&format!(r#","max_tokens":20{stream}"#)));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let spans = drained(server, &collector);
        assert_eq!(tree(&spans), ["chat toy<-", "decode<chat toy", "prefill<chat toy", "queue<chat toy"], "{stream}");
        let span = named(&spans, "chat toy");
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), SPAN.to_owned()));
        assert_eq!(attribute(span, "gen_ai.usage.output_tokens"), "20");
        assert!(attribute(span, "gen_ai.usage.input_tokens").parse::<u32>().unwrap() > 1);
        assert_eq!(attribute(span, "stowage.outcome"), "ok");
        // About a millisecond per token: the phases follow each other, and prefill is not part of the queue.
        let [queue, prefill, decode] = ["queue", "prefill", "decode"].map(|name| named(&spans, name));
        assert!(prefill.end_time_unix_nano >= prefill.start_time_unix_nano + 1_000_000, "one step");
        assert!(decode.end_time_unix_nano >= decode.start_time_unix_nano + 15_000_000, "nineteen steps");
        assert!(queue.end_time_unix_nano <= prefill.start_time_unix_nano + 1_000_000);
    }
}

#[test]
fn nothing_of_a_requests_text_is_sent() {
    let collector = Collector::start(Answers::Takes);
    let server = start(&["--otlp-endpoint", &collector.endpoint()]);
    let headers = "authorization: Bearer zq-secret\r\ntracestate: zq-secret=1\r\nuser-agent: zq-secret\r\n";
    for extra in
        [r#","user":"zq-secret","max_tokens":3"#, r#","stop":"zq-secret","max_tokens":3"#, r#","n":"zq-secret""#]
    {
        server.request("POST", CHAT, headers, &chat_body(extra).replace("hi", "zq-secret"));
    }
    let body = chat_body("").replace("toy", "zq-secret");
    assert_eq!(server.request("POST", CHAT, headers, &body).status, 404);
    let spans = drained(server, &collector);
    let refused = spans.iter().filter(|span| attribute(span, "stowage.outcome") == "invalid").count();
    assert_eq!(refused, 2, "of {}", spans.len());
    let bytes = collector.bytes();
    assert_eq!(memchr::memmem::find(&bytes, b"zq-secret"), None);
}

#[test]
fn callers_decide_whether_their_trace_is_recorded() {
    let collector = Collector::start(Answers::Takes);
    let server = start(&["--otlp-endpoint", &collector.endpoint(), "--trace-ratio", "0"]);
    for flags in ["00", "01"] {
        let trace = TRACE.replace("0a", flags);
        let parent = format!("traceparent: 00-{trace}-{SPAN}-{flags}\r\n");
        assert_eq!(server.request("POST", CHAT, &parent, &chat_body(r#","max_tokens":1"#)).status, 200);
        // Nobody asks for a trace here, so the ratio decides.
        assert_eq!(server.chat(r#","max_tokens":1"#).status, 200);
    }
    let spans = drained(server, &collector);
    let servers: Vec<_> = spans.iter().filter(|span| span.name == "chat toy").collect();
    assert_eq!(servers.len(), 1);
    assert!(hex(&servers[0].trace_id).starts_with("01"));
}

#[test]
fn setting_that_cannot_work_ends_the_start() {
    let args = support::args(&["--otlp-endpoint", "localhost:4317"]);
    let model = stowage_engine::process::load_model(&args).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let Err(error) = runtime.block_on(stowage_engine::process::Server::start(&args, model, address)) else {
        panic!("it started")
    };
    assert!(error.to_string().contains("must begin with http://"), "{error}");
}

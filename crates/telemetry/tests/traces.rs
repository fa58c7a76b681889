//! The tracer against a receiver: what is sent, what is counted, and what a receiver that does not answer costs.
#![allow(clippy::unwrap_used)]

#[path = "support/collector.rs"]
mod collector;

use std::time::{Duration, Instant};

use collector::{Answers, Collector};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use stowage_telemetry::traces::{Sampling, SpanCounts, TraceArgs, Tracer};

fn start(endpoint: String, ratio: f64) -> (Tracer, SpanCounts) {
    let counts = SpanCounts::default();
    let args =
        TraceArgs { otlp_endpoint: endpoint, otlp_protocol: "http/protobuf".into(), trace_ratio: ratio.to_string() };
    (Tracer::start(&args, "test", Sampling::Own, counts.clone()).unwrap(), counts)
}

fn spans(tracer: &Tracer, count: usize) {
    (0..count).for_each(|_| tracer.server("request", None, Instant::now()).end(Instant::now()));
}

#[tokio::test]
async fn spans_that_ended_before_the_shutdown_are_sent() {
    for suffix in ["", "/"] {
        let collector = Collector::start(Answers::Takes);
        let (tracer, counts) = start(collector.endpoint() + suffix, 1.0);
        spans(&tracer, 1500);
        tracer.shutdown(Duration::from_secs(30)).await;
        assert_eq!((collector.spans().len(), counts.sent.get(), counts.dropped.get()), (1500, 1500, 0));
        assert_eq!(collector.requests(), 3, "at most 512 together");
        assert_eq!(collector.resource("service.name"), Some(Value::StringValue("test".into())));
    }
}

#[tokio::test]
async fn span_is_sent_while_nothing_follows_it() {
    let collector = Collector::start(Answers::Takes);
    let (tracer, _) = start(collector.endpoint(), 1.0);
    spans(&tracer, 1);
    tokio::task::spawn_blocking(move || collector.wait(1)).await.unwrap();
}

#[tokio::test]
async fn receiver_that_hangs_costs_spans_and_neither_time_nor_memory() {
    let collector = Collector::start(Answers::Hangs);
    let (tracer, counts) = start(collector.endpoint(), 1.0);
    let began = Instant::now();
    spans(&tracer, 50_000);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(counts.dropped.get() >= 50_000 - 2048 - 2 * 512, "{}", counts.dropped.get());
    let began = Instant::now();
    tracer.shutdown(Duration::from_millis(200)).await;
    assert!(began.elapsed() < Duration::from_secs(4), "less than a request to it may take: {:?}", began.elapsed());
}

#[tokio::test]
async fn spans_that_are_not_taken_are_counted_as_failed() {
    for dead in [true, false] {
        let collector = Collector::start(Answers::Refuses);
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = if dead { format!("http://{nobody}") } else { collector.endpoint() };
        let (tracer, counts) = start(endpoint, 1.0);
        spans(&tracer, 7);
        tracer.shutdown(Duration::from_secs(30)).await;
        assert_eq!((counts.sent.get(), counts.failed.get()), (0, 7), "dead: {dead}");
    }
}

#[tokio::test]
async fn traces_that_are_not_recorded_still_have_ids_for_the_next_process() {
    let collector = Collector::start(Answers::Takes);
    let (tracer, counts) = start(collector.endpoint(), 0.0);
    let span = tracer.server("request", None, Instant::now());
    assert!(!span.is_recording());
    assert!(span.traceparent().unwrap().to_string().ends_with("-00"));
    drop(span);
    tracer.shutdown(Duration::from_secs(30)).await;
    assert_eq!((collector.requests(), counts.sent.get(), counts.dropped.get()), (0, 0, 0));
    assert!(tracer.server("request", None, Instant::now()).traceparent().is_none(), "after the end there is nothing");
}

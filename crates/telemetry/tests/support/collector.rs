//! A small OTLP receiver on loopback, for the tests of each program. It runs in a thread of its own and keeps what it
//! gets, as bytes and decoded.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Takes,
    /// Takes the bytes and never answers.
    Hangs,
    Refuses,
}

#[derive(Default)]
struct Got {
    bytes: Vec<Bytes>,
    headers: Vec<HeaderMap>,
    spans: Vec<Span>,
    resources: Vec<Vec<KeyValue>>,
}

pub struct Collector {
    pub address: SocketAddr,
    got: Arc<Mutex<Got>>,
    /// Ends the thread when it is dropped.
    _runtime: tokio::sync::oneshot::Sender<()>,
}

impl Collector {
    pub fn start(answers: Answers) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::<Mutex<Got>>::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state((got.clone(), answers));
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = async { axum::serve(listener, router).await } => served.unwrap(),
                    _ = ended => {}
                }
            });
        });
        Self { address, got, _runtime: end }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.got.lock().unwrap().spans.clone()
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.got.lock().unwrap().bytes.len()
    }

    /// Everything that was sent, headers too, one after the other.
    pub fn bytes(&self) -> Vec<u8> {
        let got = self.got.lock().unwrap();
        let headers = got.headers.iter().flat_map(|headers| format!("{headers:?}").into_bytes());
        headers.chain(got.bytes.iter().flatten().copied()).collect()
    }

    /// An attribute of the process that sends.
    pub fn resource(&self, key: &str) -> Option<Value> {
        self.got.lock().unwrap().resources.iter().find_map(|attributes| find(attributes, key))
    }

    /// Waits for so many spans, at most half a minute.
    pub fn wait(&self, count: usize) -> Vec<Span> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.spans().len() < count {
            assert!(Instant::now() < deadline, "{} of {count} spans came", self.spans().len());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.spans()
    }
}

async fn take(
    State((got, answers)): State<(Arc<Mutex<Got>>, Answers)>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Bytes) {
    let message = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    {
        let mut got = got.lock().unwrap();
        got.bytes.push(body);
        got.headers.push(headers);
        for part in message.resource_spans {
            got.resources.extend(part.resource.map(|resource| resource.attributes));
            got.spans.extend(part.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    match answers {
        Answers::Takes => (StatusCode::OK, Bytes::new()),
        Answers::Refuses => (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        Answers::Hangs => std::future::pending().await,
    }
}

fn find(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

/// An attribute as text; empty where there is none.
pub fn attribute(span: &Span, key: &str) -> String {
    match find(&span.attributes, key) {
        None => String::new(),
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
    }
}

pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The span of this name that begins first.
#[track_caller]
pub fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().filter(|span| span.name == name).min_by_key(|span| span.start_time_unix_nano);
    found.unwrap_or_else(|| panic!("no span {name}: {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>()))
}

/// The spans as `child<parent` by name, in order; a parent that is not among them is `-`. Each is within its parent.
#[track_caller]
pub fn tree(spans: &[Span]) -> Vec<String> {
    let parent_of = |span: &Span| spans.iter().find(|other| other.span_id == span.parent_span_id);
    let line = |span: &Span| {
        let parent = parent_of(span);
        if let Some(parent) = parent {
            assert_eq!(span.trace_id, parent.trace_id, "{} is in another trace", span.name);
            // The clock is read anew for each span; a millisecond is what that may differ by.
            let (begins, ends) = (span.start_time_unix_nano + 1_000_000, span.end_time_unix_nano);
            assert!(begins >= parent.start_time_unix_nano, "{} begins before {}", span.name, parent.name);
            assert!(ends <= parent.end_time_unix_nano + 1_000_000, "{} ends after {}", span.name, parent.name);
        }
        assert!(span.end_time_unix_nano + 1_000_000 >= span.start_time_unix_nano, "{} is negative", span.name);
        format!("{}<{}", span.name, parent.map_or("-", |parent| &parent.name))
    };
    let mut lines: Vec<_> = spans.iter().map(line).collect();
    lines.sort();
    lines
}

//! A proxy in front of the API server that counts writes and can inject faults. An operator under test
//! is given its plain loopback address; the proxy authenticates as its own client.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// What the proxy does to requests beside passing them on.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    #[default]
    None,
    /// The n-th write reaches the server, its answer does not come back, and from then on nothing passes.
    CutAfterWrite(usize),
    /// Every request waits that long.
    Slow(Duration),
    /// So many times, every second request is answered with the next of these codes instead.
    Errors(Vec<u16>, usize),
    /// Watches end and cannot be continued (410), and every list whose path contains this is complete and empty.
    EmptyLists(&'static str),
}

struct Inner {
    client: kube::Client,
    fault: Mutex<Fault>,
    requests: AtomicUsize,
    /// Method, path and query of each, in order.
    writes: Mutex<Vec<String>>,
    errors: AtomicUsize,
    cut: AtomicBool,
    emptied: AtomicUsize,
    /// Notified when open watches are to end.
    breaks: tokio::sync::Notify,
}

/// A running proxy; it ends with this value.
pub struct Proxy {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

// === impl Proxy ===

impl Proxy {
    pub async fn start(client: kube::Client, fault: Fault) -> anyhow::Result<Self> {
        let inner = Arc::new(Inner {
            client,
            fault: Mutex::new(fault),
            requests: AtomicUsize::new(0),
            writes: Mutex::default(),
            errors: AtomicUsize::new(0),
            cut: AtomicBool::new(false),
            emptied: AtomicUsize::new(0),
            breaks: tokio::sync::Notify::new(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind the proxy")?;
        let address = listener.local_addr()?;
        let router = axum::Router::new().fallback(pass).with_state(inner.clone());
        let task = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                eprintln!("the proxy ended: {e}");
            }
        });
        Ok(Self { address, inner, task })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self, folder: &std::path::Path) -> anyhow::Result<std::path::PathBuf> {
        let path = folder.join(format!("proxy-{}.kubeconfig", self.address.port()));
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}]});
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    pub fn set(&self, fault: Fault) {
        if let Ok(mut now) = self.inner.fault.lock() {
            *now = fault;
        }
        self.inner.breaks.notify_waiters();
    }

    /// Lists that were answered with nothing.
    pub fn emptied(&self) -> usize {
        self.inner.emptied.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// How many writes of objects there were; Leases and Events do not count.
    pub fn writes(&self) -> usize {
        self.inner.writes.lock().map(|w| w.len()).unwrap_or_default()
    }

    /// The same writes, in order, as `METHOD path?query`.
    pub fn written(&self) -> Vec<String> {
        self.inner.writes.lock().map(|w| w.clone()).unwrap_or_default()
    }

    /// How many requests were looked at since the errors began.
    pub fn faulted(&self) -> usize {
        self.inner.errors.load(Ordering::SeqCst)
    }

    pub fn is_cut(&self) -> bool {
        self.inner.cut.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    inner.requests.fetch_add(1, Ordering::SeqCst);
    if inner.cut.load(Ordering::SeqCst) {
        return silence().await;
    }
    let counts = is_write(&request);
    let fault = inner.fault.lock().map(|m| m.clone()).unwrap_or_default();
    match &fault {
        Fault::Slow(by) => tokio::time::sleep(*by).await,
        Fault::Errors(codes, times) => {
            let n = inner.errors.fetch_add(1, Ordering::SeqCst);
            if n % 2 == 0 && n / 2 < *times && !codes.is_empty() {
                return failure(codes[n / 2 % codes.len()]);
            }
        }
        Fault::EmptyLists(_) if is_read(&request, "/leases/") => {}
        Fault::EmptyLists(kind) if is_read(&request, kind) => return inner.empty(&request),
        Fault::EmptyLists(_) | Fault::None | Fault::CutAfterWrite(_) => {}
    }
    let number = if counts { inner.count(&request) } else { 0 };
    // Later writes must not slip through beside the one that is the last.
    if let Fault::CutAfterWrite(last) = fault
        && counts
        && number >= last
    {
        inner.cut.store(true, Ordering::SeqCst);
        if number == last {
            let answer = forward(&inner, request).await;
            drop(answer);
        }
        return silence().await;
    }
    forward(&inner, request).await
}

/// No answer, ever; the caller's own end closes the connection.
async fn silence() -> Response {
    std::future::pending::<()>().await;
    StatusCode::BAD_GATEWAY.into_response()
}

async fn forward(inner: &Arc<Inner>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = match axum::body::to_bytes(body, 16 << 20).await {
        Ok(bytes) => bytes,
        Err(e) => return (StatusCode::BAD_REQUEST, e.to_string()).into_response(),
    };
    let mut onward = axum::http::Request::builder().method(parts.method).uri(parts.uri);
    for (name, value) in &parts.headers {
        if name != "host" && name != "content-length" && name != "connection" {
            onward = onward.header(name, value);
        }
    }
    let sent = match onward.body(kube::client::Body::from(bytes.to_vec())) {
        Ok(request) => inner.client.send(request).await,
        Err(e) => return (StatusCode::BAD_REQUEST, e.to_string()).into_response(),
    };
    match sent {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let until = Arc::clone(inner);
            let over = async move { until.breaks.notified().await };
            Response::from_parts(
                parts,
                Body::from_stream(Body::new(body).into_data_stream().take_until(Box::pin(over))),
            )
        }
        Err(e) => (StatusCode::BAD_GATEWAY, e.to_string()).into_response(),
    }
}

impl Inner {
    /// Records a write; its number, from 1.
    fn count(&self, request: &Request) -> usize {
        let Ok(mut writes) = self.writes.lock() else { return 0 };
        writes.push(format!("{} {}", request.method(), request.uri()));
        writes.len()
    }

    /// A complete list of nothing, as a stream where one is asked for, or the end of a watch.
    fn empty(&self, request: &Request) -> Response {
        let asks = |what| request.uri().query().is_some_and(|query| query.contains(what));
        if asks("sendInitialEvents=true") {
            self.emptied.fetch_add(1, Ordering::SeqCst);
            let end = json!({"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}});
            let mark = json!({"kind": "List", "apiVersion": "v1", "metadata": end});
            return axum::Json(json!({"type": "BOOKMARK", "object": mark})).into_response();
        }
        if asks("watch=true") {
            // Sent in the stream, as the API server does for a version that is too old.
            return axum::Json(json!({"type": "ERROR", "object": status(410)})).into_response();
        }
        self.emptied.fetch_add(1, Ordering::SeqCst);
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        axum::Json(list).into_response()
    }
}

fn is_read(request: &Request, path: &str) -> bool {
    *request.method() == Method::GET && request.uri().path().contains(path)
}

fn is_write(request: &Request) -> bool {
    let path = request.uri().path();
    let counts = !path.contains("/leases") && !path.contains("/events") && !path.contains("selfsubject");
    counts && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE)
}

/// An error as the API server would word it.
fn failure(code: u16) -> Response {
    let http = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (http, axum::Json(status(code))).into_response()
}

fn status(code: u16) -> Value {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "made by the test's proxy", "reason": reason, "code": code})
}

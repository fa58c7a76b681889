//! A mock engine on loopback: answers as it is set, can be cut off, frozen and brought back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinHandle};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What the engine does with a request.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// A whole answer.
    Whole,
    /// So many events, so far apart, then `[DONE]`.
    Stream { events: usize, gap: Duration },
    /// So many events of so many bytes, as fast as they are taken.
    Events { events: usize, bytes: usize },
    /// Events without end to whom asks for a stream, as fast as they are taken; a whole answer to others.
    Flood,
    /// The same, with a whole answer after this time.
    FloodLate(Duration),
    /// So many events, then the connection breaks.
    Cut { events: usize },
    /// The connection breaks before an answer.
    CutAtOnce,
    /// A whole answer after this time.
    Late(Duration),
    /// The process ends before an answer, and another one runs at once.
    Restart,
    /// An answer that never comes.
    Hang,
    /// This status with this body.
    Answer(u16, &'static str),
}

/// How the load stream behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heart {
    /// No such route.
    None,
    Beating,
    /// The process is stopped: connections stay, nothing comes.
    Stopped,
}

/// What one request carried.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    heart: Mutex<Heart>,
    seen: Mutex<Vec<Seen>>,
    /// Streams and answers that were dropped before their end.
    cancelled: AtomicUsize,
    connections: Mutex<Vec<AbortHandle>>,
    load: Mutex<String>,
    /// Names the process in load reports, behind `load`'s own fields.
    incarnation: AtomicUsize,
}

pub struct MockEngine {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl MockEngine {
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::start_at(behaviour, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(behaviour: Behaviour, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            heart: Mutex::new(Heart::None),
            seen: Mutex::default(),
            cancelled: AtomicUsize::new(0),
            connections: Mutex::default(),
            load: Mutex::new(r#"{"running":0,"waiting":0}"#.into()),
            incarnation: AtomicUsize::new(std::process::id() as usize),
        });
        let server = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, server }
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    pub fn set_heart(&self, heart: Heart) {
        *self.shared.heart.lock().unwrap() = heart;
    }

    pub fn set_load(&self, json: &str) {
        *self.shared.load.lock().unwrap() = json.to_owned();
    }

    /// Inference requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn cancelled(&self) -> usize {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// Another process takes the place of this one.
    pub fn restart(&self) {
        self.shared.restart();
    }

    /// Ends the "process": the port and every connection close at once.
    pub fn kill(&self) {
        self.server.abort();
        self.shared.end_connections();
    }
}

impl Shared {
    /// Another process takes the place of this one, at the same address.
    fn restart(&self) {
        self.incarnation.fetch_add(1, Ordering::SeqCst);
        self.end_connections();
    }

    fn end_connections(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for MockEngine {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let service = {
            let shared = shared.clone();
            service_fn(move |request| answer(shared.clone(), request))
        };
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let task = tokio::spawn(async move { drop(serving.await) });
        shared.connections.lock().unwrap().push(task.abort_handle());
    }
}

/// Counts itself as cancelled unless it is marked as done.
struct Work {
    shared: Arc<Shared>,
    done: AtomicBool,
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.done.load(Ordering::SeqCst) {
            self.shared.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    if path == "/stowage/v1/load" {
        return Ok(load_stream(shared));
    }
    if path == "/readyz" {
        return Ok(full(200, "ok"));
    }
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let streams = memchr::memmem::find(&body, br#""stream":true"#).is_some();
    shared.seen.lock().unwrap().push(Seen { path, headers, body });
    let work = Work { shared: shared.clone(), done: AtomicBool::new(false) };
    let behaviour = shared.behaviour.lock().unwrap().clone();
    match behaviour {
        Behaviour::Flood | Behaviour::FloodLate(_) if streams => Ok(large_events(work, usize::MAX, 16 << 10)),
        Behaviour::Whole | Behaviour::Flood => {
            work.done.store(true, Ordering::SeqCst);
            Ok(full(200, WHOLE))
        }
        Behaviour::Answer(status, body) => {
            work.done.store(true, Ordering::SeqCst);
            Ok(full(status, body))
        }
        Behaviour::Late(time) | Behaviour::FloodLate(time) => {
            tokio::time::sleep(time).await;
            work.done.store(true, Ordering::SeqCst);
            Ok(full(200, WHOLE))
        }
        Behaviour::Restart => {
            shared.restart();
            std::future::pending().await
        }
        Behaviour::Hang => std::future::pending().await,
        Behaviour::CutAtOnce => Err(std::io::Error::other("cut")),
        Behaviour::Stream { events, gap } => Ok(stream(work, events, gap, false)),
        Behaviour::Events { events, bytes } => Ok(large_events(work, events, bytes)),
        Behaviour::Cut { events } => Ok(stream(work, events, Duration::from_millis(5), true)),
    }
}

pub const WHOLE: &str = r#"{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3}}}"#;

fn full(status: u16, body: &'static str) -> Response<Body> {
    let body =
        Full::new(Bytes::from_static(body.as_bytes())).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn stream(work: Work, events: usize, gap: Duration, cut: bool) -> Response<Body> {
    let frames = futures::stream::unfold((0, work), move |(index, work)| async move {
        if index > 0 {
            tokio::time::sleep(gap).await;
        }
        let text = match index {
            _ if index < events => event(index),
            _ if index == events && cut => return Some((Err(std::io::Error::other("cut")), (events + 2, work))),
            _ if index == events => {
                work.done.store(true, Ordering::SeqCst);
                "data: [DONE]\n\n".to_owned()
            }
            _ => return None,
        };
        Some((Ok(Frame::data(Bytes::from(text))), (index + 1, work)))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(frames));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

fn large_events(work: Work, events: usize, bytes: usize) -> Response<Body> {
    let event = Bytes::from(format!("data: {{\"choices\":[],\"x\":\"{}\"}}\n\n", "y".repeat(bytes)));
    let frames = futures::stream::unfold((0, work), move |(index, work)| {
        let event = event.clone();
        async move {
            if index == events {
                work.done.store(true, Ordering::SeqCst);
                return None;
            }
            Some((Ok(Frame::data(event)), (index + 1, work)))
        }
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(frames));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

pub fn event(index: usize) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"w{index} \"}}}}]}}\n\n")
}

fn load_stream(shared: Arc<Shared>) -> Response<Body> {
    let heart = *shared.heart.lock().unwrap();
    if heart == Heart::None {
        return full(404, r#"{"error":{"message":"no such route","type":"not_found_error"}}"#);
    }
    let lines = futures::stream::unfold(shared, |shared| async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if *shared.heart.lock().unwrap() == Heart::Beating {
                let incarnation = shared.incarnation.load(Ordering::SeqCst);
                let line =
                    shared.load.lock().unwrap().replacen('{', &format!("{{\"incarnation\":\"{incarnation}\","), 1);
                let line = format!("{line}\n");
                return Some((Ok(Frame::data(Bytes::from(line))), shared));
            }
        }
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
}

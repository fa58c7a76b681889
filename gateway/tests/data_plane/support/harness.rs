//! A gateway with both ports on loopback, over a world that the test writes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use stowage_gateway::admin;
use stowage_gateway::gateway::{Gateway, Settings};
use stowage_gateway::listen::body::BodyLimits;
use stowage_gateway::listen::cors::Cors;
use stowage_gateway::listen::credentials::hash_key;
use stowage_gateway::listen::peers::PeerLimits;
use stowage_gateway::listen::server::{Server, ServerLimits, bind};
use stowage_gateway::metrics::Metrics;
use stowage_gateway::queue::client::{EngineClient, client};
use stowage_gateway::queue::directory::Directory;
use stowage_gateway::queue::pool::PoolSettings;
use stowage_gateway::queue::replica::Gate;
use stowage_gateway::relay::stream::StreamPatience;
use stowage_gateway::world::facts::{DeploymentFact, Facts, PodFact, QuotaFact, SecretKeys, TokenLimits};
use stowage_gateway::world::salt::SaltKey;
use stowage_telemetry::metrics::Registry;
use stowage_telemetry::traces::Tracer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::engine::MockEngine;

/// Limits small enough to be reached in a test.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub pool: PoolSettings,
    pub settings: Settings,
    pub server: ServerLimits,
}

pub const LIMITS: Limits = Limits {
    pool: PoolSettings {
        gate: Gate { max_in_flight: 64, backlog_tokens: 8192.0 },
        max_queued: 100,
        queue_timeout: Duration::from_secs(5),
    },
    settings: Settings {
        body: BodyLimits { max_bytes: 64 << 10, max_total_bytes: 4 << 20, patience: Duration::from_secs(1) },
        stream: StreamPatience { idle: Duration::from_secs(5), lost: Duration::from_millis(500) },
        gateways: 1,
        max_headers: 64,
        max_sequences: 64,
    },
    server: ServerLimits {
        max_connections: 4000,
        peers: PeerLimits { max_per_address: 3000, max_guests: 2000 },
        max_partial_heads: 1 << 20,
        write_timeout: Duration::from_secs(1),
        header_timeout: Duration::from_secs(1),
        max_headers: 64,
        max_head_bytes: 16 << 10,
        drain_delay: Duration::from_millis(200),
        drain_timeout: Duration::from_secs(5),
    },
};

pub struct Harness {
    pub address: SocketAddr,
    pub gateway: Arc<Gateway>,
    pub facts: Facts,
    pub client: EngineClient,
    registry: Option<Registry>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body broke off.
    pub cut: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The key of the salts.
pub const SALT_KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Tenants `a` and `b` with keys `sk-a` and `sk-b`.
pub fn tenants() -> Facts {
    let mut facts = Facts { salt_key: SaltKey::new(SALT_KEY), ..Facts::default() };
    for name in ["a", "b"] {
        let hashes = vec![("k".into(), hash_key(&format!("sk-{name}")))];
        facts.secrets.insert(format!("{name}-keys"), SecretKeys { hashes, unreadable: Vec::new() });
        facts.quotas.push(QuotaFact {
            name: name.into(),
            created: 0,
            namespaces: vec![name.into()],
            key_secrets: vec![format!("{name}-keys")],
            models_from: Vec::new(),
            limits: TokenLimits::default(),
        });
    }
    facts
}

/// Model `m` of tenant `a`, held for half a second.
pub fn model_m() -> DeploymentFact {
    DeploymentFact {
        namespace: "a".into(),
        name: "chat".into(),
        uid: "u".into(),
        model: "m".into(),
        hold: Some(Duration::from_millis(500)),
        max_held: Some(10),
        ..DeploymentFact::default()
    }
}

/// A ready pod of model `m`.
pub fn pod(name: &str, address: SocketAddr) -> PodFact {
    PodFact {
        namespace: "a".into(),
        name: name.into(),
        uid: name.into(),
        deployment: "chat".into(),
        owner_uid: Some("u".into()),
        address: Some(address),
        ready: true,
        draining: false,
        gpus: Vec::new(),
    }
}

pub fn chat(stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "capital of France?"}]})
}

/// Model `m` of tenant `a`, as another tenant calls it.
pub fn shared_chat() -> Value {
    json!({"model": "a/m", "messages": [{"role": "user", "content": "capital of France?"}]})
}

impl Harness {
    pub async fn start(engines: &[&MockEngine]) -> Self {
        Self::with(engines, LIMITS).await
    }

    pub async fn with(engines: &[&MockEngine], limits: Limits) -> Self {
        Self::traced(engines, limits, Tracer::default()).await
    }

    pub async fn traced(engines: &[&MockEngine], limits: Limits, tracer: Tracer) -> Self {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let client = client();
        let directory = Directory::new(limits.pool, client.clone(), metrics.clone());
        let gateway = Gateway::new(
            limits.settings,
            Cors::new(vec!["https://page.example".into()]).unwrap(),
            directory,
            client.clone(),
            metrics,
            tracer,
        );
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server =
            Server { limits: limits.server, readiness: gateway.readiness.clone(), metrics: gateway.metrics.clone() };
        let serving = tokio::spawn(server.serve(listener, gateway.clone(), stopped));
        let mut facts = tenants();
        facts.deployments.push(model_m());
        facts.pods = engines.iter().enumerate().map(|(i, engine)| pod(&format!("chat-{i}"), engine.address)).collect();
        let registry = Some(registry);
        let harness = Self { address, gateway, facts, client, registry, stop: Some(stop), serving: Some(serving) };
        harness.apply();
        harness.gateway.readiness.set_ready();
        harness
    }

    /// Serves the administrative port, once; answers its address.
    pub async fn admin(&mut self) -> SocketAddr {
        let registry = self.registry.take().unwrap();
        let metrics = admin::metrics(&self.gateway, registry);
        let router = admin::router(self.gateway.clone(), metrics, stowage_telemetry::health::always());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// Makes the facts known.
    pub fn apply(&self) {
        self.gateway.directory.apply(&self.facts);
    }

    /// SIGTERM. What comes back ends with the server.
    pub fn stop(&mut self) -> JoinHandle<()> {
        drop(self.stop.take());
        self.serving.take().unwrap()
    }

    pub async fn chat(&self, stream: bool) -> Answer {
        self.post("sk-a", &chat(stream)).await
    }

    pub async fn post(&self, key: &str, body: &Value) -> Answer {
        self.send(Method::POST, "/v1/chat/completions", Some(key), body.to_string().into()).await
    }

    pub async fn get(&self, key: Option<&str>, path: &str) -> Answer {
        self.send(Method::GET, path, key, Bytes::new()).await
    }

    pub async fn send(&self, method: Method, path: &str, key: Option<&str>, body: Bytes) -> Answer {
        read(self.open(method, path, key, body).await).await
    }

    /// A chat stream, with its head read only.
    pub async fn open_stream(&self) -> http::Response<Incoming> {
        self.open_chat(true).await
    }

    pub async fn open_chat(&self, stream: bool) -> http::Response<Incoming> {
        self.open(Method::POST, "/v1/chat/completions", Some("sk-a"), chat(stream).to_string().into()).await
    }

    /// Asks in the background; the status comes when the answer begins.
    pub fn chat_later(&self, stream: bool) -> JoinHandle<u16> {
        let request = Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("authorization", "Bearer sk-a")
            .body(Full::new(chat(stream).to_string().into()))
            .unwrap();
        let answer = self.client.request(request);
        tokio::spawn(async move { answer.await.unwrap().status().as_u16() })
    }

    /// A chat stream on a socket of its own.
    pub async fn raw_chat(&self) -> TcpStream {
        let body = chat(true).to_string();
        self.raw(&format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await
    }

    /// A socket on which this was written.
    pub async fn raw(&self, text: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        socket
    }

    pub async fn open(&self, method: Method, path: &str, key: Option<&str>, body: Bytes) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.client.request(request.body(Full::new(body)).unwrap()).await.unwrap()
    }

    /// Waits until `pod` is, or is not, routed to.
    pub async fn until_routable(&self, pod: &str, wanted: bool) -> Duration {
        let started = std::time::Instant::now();
        until(&format!("{pod} routable = {wanted}"), || {
            let view = self.gateway.directory.view();
            view.pools().flat_map(|pool| pool.status().replicas).any(|r| r.pod == pod && r.refused.is_none()) == wanted
        })
        .await;
        started.elapsed()
    }

    /// Waits until the pod's load stream has brought a report.
    pub async fn until_reported(&self, pod: &str) {
        until(&format!("{pod} to report"), || {
            let view = self.gateway.directory.view();
            view.pools().flat_map(|pool| pool.status().replicas).any(|r| r.pod == pod && r.report.is_some())
        })
        .await;
    }

    /// Requests that wait for a place.
    pub fn waiting(&self) -> usize {
        self.gateway.directory.view().pools().map(|pool| pool.status().waiting).sum()
    }

    /// Requests in flight on engines.
    pub fn in_flight(&self) -> u32 {
        let view = self.gateway.directory.view();
        view.pools().flat_map(|pool| pool.status().replicas).map(|replica| replica.in_flight).sum()
    }
}

pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut all, mut cut) = (Vec::new(), false);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => all.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Err(_) => {
                cut = true;
                break;
            }
        }
    }
    Answer { status: head.status.as_u16(), headers: head.headers, body: all.into(), cut }
}

/// Waits for a condition, at most half a minute.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    until_within(what, Duration::from_secs(30), condition).await;
}

/// Waits for a condition, at most so long.
pub async fn until_within(what: &str, longest: Duration, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + longest;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub const OK: u16 = StatusCode::OK.as_u16();

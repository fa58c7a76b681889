//! The gateway as a process under clients that hold resources: its memory stays bounded and others are served.
//!
//! On loopback, bounded in count and time. `make test-long` runs it at full size.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use stowage_gateway::queue::client::{EngineClient, client};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::engine::{Behaviour, MockEngine};
use crate::support::harness::{OK, chat, until_within};
use crate::support::process::free_address;

/// Sixty per cent of the chart's limit of 512 MiB.
const MOST_KIB: u64 = 512 * 1024 * 60 / 100;
const LONG: Duration = Duration::from_secs(120);
/// Of one request's body.
const BODY: usize = 8 << 20;

/// Unfinished heads that the test itself keeps open; the gateway has closed older ones, and files are not without end.
const HEADS_HELD: usize = 5000;

/// How much of the attack is run.
struct Size {
    zero_windows: usize,
    partial_heads: usize,
    stalled_streams: usize,
    unfinished_bodies: usize,
}

impl Size {
    fn of_this_run() -> Self {
        if std::env::var_os("STOWAGE_TEST_LONG").is_some() {
            Self { zero_windows: 2000, partial_heads: 20_000, stalled_streams: 256, unfinished_bodies: 32 }
        } else {
            Self { zero_windows: 50, partial_heads: 500, stalled_streams: 16, unfinished_bodies: 32 }
        }
    }
}

/// A gateway process with one engine; killed when dropped.
struct Gateway {
    process: Child,
    world: PathBuf,
    address: SocketAddr,
    client: EngineClient,
}

impl Gateway {
    async fn start(engine: SocketAddr) -> Self {
        let address = free_address();
        let world = std::env::temp_dir().join(format!("stowage-attack-{}.yaml", std::process::id()));
        let yaml = format!(
            "tenants: [{{name: a, keys: [sk-a]}}, {{name: b, keys: [sk-b]}}]
models: [{{name: m, tenant: a, access: [b], endpoints: ['{engine}']}}]"
        );
        std::fs::write(&world, yaml).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_stowage-gateway"))
            .env("STOWAGE_LISTEN", address.to_string())
            .env("STOWAGE_ADMIN_LISTEN", free_address().to_string())
            .env("STOWAGE_STATIC_WORLD", &world)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until_within("the gateway listens", LONG, || std::net::TcpStream::connect(address).is_ok()).await;
        Self { process, world, address, client: client() }
    }

    /// The most that was resident at any time.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A request of tenant `b` by a client that behaves.
    async fn chat_of_b(&self) -> u16 {
        let mut body = chat(false);
        body["model"] = "a/m".into();
        let request = self.request("sk-b", body.to_string());
        match self.client.request(request).await {
            Ok(response) => response.status().as_u16(),
            Err(_) => 0,
        }
    }

    fn request(&self, key: &str, body: String) -> Request<Full<bytes::Bytes>> {
        Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(body.into()))
            .unwrap()
    }

    /// A socket from one of many addresses of loopback.
    async fn connect(&self, n: usize) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().ok()?;
        let from: SocketAddr = ([127, 1, (n / 200) as u8, (n % 200 + 1) as u8], 0).into();
        socket.bind(from).ok()?;
        socket.set_recv_buffer_size(4096).ok()?;
        socket.connect(self.address).await.ok()
    }

    async fn written(&self, n: usize, text: &str) -> Option<TcpStream> {
        let mut socket = self.connect(n).await?;
        // What the gateway does not want any more need not be written.
        let _ = tokio::time::timeout(Duration::from_secs(1), socket.write_all(text.as_bytes())).await;
        Some(socket)
    }

    async fn zero_window(&self, n: usize) -> Option<tokio::task::JoinHandle<()>> {
        let io = TokioIo::new(self.connect(n).await?);
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.initial_stream_window_size(0).handshake(io).await.ok()?;
        let requests: Vec<_> = (0..32).map(|_| self.request("sk-no", String::new())).collect();
        Some(tokio::spawn(async move {
            let asked = requests.into_iter().map(|request| {
                let mut sender = sender.clone();
                async move {
                    let answer = sender.send_request(request).await.ok()?;
                    answer.into_body().frame().await
                }
            });
            tokio::join!(futures::future::join_all(asked), async { drop(connection.await) });
        }))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_file(&self.world));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_another_tenant_is_served_while_clients_hold_all_they_can() {
    stowage_gateway::listen::server::raise_file_limit();
    let size = Size::of_this_run();
    let engine = MockEngine::start(Behaviour::Flood).await;
    let gateway = Gateway::start(engine.address).await;
    let (mut sockets, mut tasks) = (Vec::new(), Vec::new());
    let stream = chat(true).to_string();
    let stalled = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: {}\r\n\r\n{stream}",
        stream.len()
    );
    for n in 0..size.stalled_streams {
        sockets.push(gateway.written(n, &stalled).await);
    }
    until_within("the engine to work on some", LONG, || !engine.seen().is_empty()).await;
    let body = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY - 1)
    );
    for n in 0..size.unfinished_bodies {
        sockets.push(gateway.written(n, &body).await);
    }
    for n in 0..size.zero_windows {
        tasks.push(gateway.zero_window(n).await);
    }
    let head = format!("GET /v1/models HTTP/1.1\r\nx-long: {}", "y".repeat(31 << 10));
    let mut heads = VecDeque::new();
    for n in 0..size.partial_heads {
        heads.push_back(gateway.written(n, &head).await);
        if heads.len() > HEADS_HELD {
            heads.pop_front();
        }
        if n % 1000 == 0 {
            assert_eq!(gateway.chat_of_b().await, OK, "after {n} heads");
        }
    }
    assert_eq!(gateway.chat_of_b().await, OK);
    let peak = gateway.peak_kib();
    println!("peak of the gateway: {} MiB", peak / 1024);
    assert!(peak <= MOST_KIB, "{peak} KiB of {MOST_KIB}");
    tasks.into_iter().flatten().for_each(|task| task.abort());
}

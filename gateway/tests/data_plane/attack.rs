//! The gateway as a process under clients that hold resources: its memory stays bounded and others are served.
//!
//! On loopback, bounded in count and time. `make test-long` runs it at full size.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::engine::{Behaviour, MockEngine};
use crate::support::harness::{OK, chat, until_within};
use crate::support::process::Gateway;

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

    /// Rounds in which latencies are compared.
    fn rounds() -> usize {
        if std::env::var_os("STOWAGE_TEST_LONG").is_some() { 5 } else { 1 }
    }
}

impl Gateway {
    /// The most that was resident at any time.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
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

/// Everything that the attackers keep open.
#[derive(Default)]
struct Attack {
    streams: VecDeque<Option<TcpStream>>,
    bodies: Vec<Option<TcpStream>>,
    heads: VecDeque<Option<TcpStream>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Attack {
    /// Tenant `a` takes the model's places with streams that it does not read, and memory with bodies that it does
    /// not finish.
    async fn with_a_key(&mut self, gateway: &Gateway, size: &Size) {
        let stream = chat(true).to_string();
        let stalled = post_of_a(stream.len(), &stream);
        for n in 0..size.stalled_streams {
            self.streams.push_back(gateway.written(n, &stalled).await);
        }
        let body = post_of_a(BODY, &"x".repeat(BODY - 1));
        for n in 0..size.unfinished_bodies {
            self.bodies.push(gateway.written(n, &body).await);
        }
    }

    /// Opens one more of each kind, the oldest of each is dropped: the gateway has ended it, or will.
    async fn again(&mut self, gateway: &Gateway, size: &Size, n: usize) {
        let stream = chat(true).to_string();
        self.streams.push_back(gateway.written(n, &post_of_a(stream.len(), &stream)).await);
        self.streams.pop_front();
        self.partial_head(gateway, n).await;
        self.tasks.retain(|task| !task.is_finished());
        if self.tasks.len() < size.zero_windows {
            self.tasks.extend(gateway.zero_window(n).await);
        }
    }

    async fn with_zero_windows(&mut self, gateway: &Gateway, size: &Size) {
        for n in 0..size.zero_windows {
            self.tasks.extend(gateway.zero_window(n).await);
        }
    }

    /// Head number `n`; the oldest of those kept open is dropped.
    async fn partial_head(&mut self, gateway: &Gateway, n: usize) {
        let head = format!("GET /v1/models HTTP/1.1\r\nx-long: {}", "y".repeat(31 << 10));
        self.heads.push_back(gateway.written(n, &head).await);
        if self.heads.len() > HEADS_HELD {
            self.heads.pop_front();
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

fn post_of_a(length: usize, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-a\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_another_tenant_is_served_while_clients_hold_all_they_can() {
    stowage_gateway::listen::server::raise_file_limit();
    let size = Size::of_this_run();
    let engine = MockEngine::start(Behaviour::Flood).await;
    let gateway = Gateway::start(engine.address).await;
    let mut attack = Attack::default();
    attack.with_a_key(&gateway, &size).await;
    until_within("the engine to work on some", LONG, || !engine.seen().is_empty()).await;
    attack.with_zero_windows(&gateway, &size).await;
    for n in 0..size.partial_heads {
        attack.partial_head(&gateway, n).await;
        if n % 1000 == 0 {
            assert_eq!(gateway.chat_of_b().await, OK, "after {n} heads");
        }
    }
    assert_eq!(gateway.chat_of_b().await, OK);
    let peak = gateway.peak_kib();
    println!("peak of the gateway: {} MiB", peak / 1024);
    assert!(peak <= MOST_KIB, "{peak} KiB of {MOST_KIB}");
}

/// An engine that takes as long as a small model does for a short answer, and the requests that are measured.
const ANSWER: Duration = Duration::from_millis(40);
const MEASURED: usize = 200;

/// The time in which 95 % of tenant `b`'s requests are answered, one after the other.
async fn p95_of_b(gateway: &Gateway) -> Duration {
    let mut times = Vec::new();
    for _ in 0..MEASURED {
        let started = Instant::now();
        assert_eq!(gateway.chat_of_b().await, OK);
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() * 95 / 100]
}

/// Rounds alone and under attack take turns, so that a busy machine slows both. While it is measured, some fifty
/// streams, heads and zero windows a second are opened again in place of those that the gateway has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_latency_under_attack_is_within_a_fifth_of_alone() {
    stowage_gateway::listen::server::raise_file_limit();
    let (size, rounds) = (Size::of_this_run(), Size::rounds());
    let engine = MockEngine::start(Behaviour::FloodLate(ANSWER)).await;
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let gateway = Gateway::start(engine.address).await;
        let alone = p95_of_b(&gateway).await;
        let mut attack = Attack::default();
        attack.with_a_key(&gateway, &size).await;
        attack.with_zero_windows(&gateway, &size).await;
        for n in 0..size.partial_heads {
            attack.partial_head(&gateway, n).await;
        }
        let measured = std::sync::atomic::AtomicBool::new(false);
        let attacked = async {
            let p95 = p95_of_b(&gateway).await;
            measured.store(true, std::sync::atomic::Ordering::Relaxed);
            p95
        };
        let again = async {
            let mut n = 0;
            while !measured.load(std::sync::atomic::Ordering::Relaxed) {
                attack.again(&gateway, &size, n).await;
                n += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (attacked, ()) = tokio::join!(attacked, again);
        println!("round {round}: p95 of another tenant {alone:?} alone, {attacked:?} under attack");
        ratios.push(attacked.as_secs_f64() / alone.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let middle = ratios[ratios.len() / 2];
    println!("under attack over alone: {ratios:.2?}");
    assert!(middle <= 1.2, "{ratios:.2?}");
}

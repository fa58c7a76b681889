//! Processes: a mock engine that can be killed, which is this test binary, started again; and the gateway's program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use rustix::process::{Pid, Signal, kill_process};
use stowage_gateway::queue::client::{EngineClient, client};

use crate::support::engine::{Behaviour, Heart, MockEngine};
use crate::support::harness::{chat, until, until_within};

const LONG: Duration = Duration::from_secs(120);

/// Set in the child: where it listens.
const ADDRESS: &str = "STOWAGE_TEST_ENGINE_ADDRESS";

/// A running process; killed when dropped.
pub struct EngineProcess(Child);

impl EngineProcess {
    pub fn start(address: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::process::engine_process"])
            .env(ADDRESS, address.to_string())
            // It closes when the test ends, and the child ends with it.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGKILL, and the end of the process.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// A free port of loopback, for engines that come and go at one address.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The child. Without an address it is one more test that passes.
#[test]
fn engine_process() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let address = address.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = MockEngine::start_at(Behaviour::Late(Duration::from_millis(10)), address).await;
        engine.set_heart(Heart::Beating);
        let parent_ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        drop(parent_ended.await);
    });
}

/// A gateway process with one engine; killed when dropped.
pub struct Gateway {
    pub process: Child,
    world: PathBuf,
    pub address: SocketAddr,
    pub client: EngineClient,
}

impl Gateway {
    pub async fn start(engine: SocketAddr) -> Self {
        Self::start_with(engine, &[]).await
    }

    /// With these variables in its environment.
    pub async fn start_with(engine: SocketAddr, environment: &[(&str, &str)]) -> Self {
        let address = free_address();
        let world = std::env::temp_dir().join(format!("stowage-gateway-{}.yaml", address.port()));
        let yaml = format!(
            "tenants: [{{name: a, keys: [sk-a]}}, {{name: b, keys: [sk-b]}}]
models: [{{name: m, tenant: a, access: [b], endpoints: ['{engine}']}}]
cacheKey: 0123456789abcdef0123456789abcdef"
        );
        std::fs::write(&world, yaml).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_stowage-gateway"))
            .env("STOWAGE_LISTEN", address.to_string())
            .env("STOWAGE_ADMIN_LISTEN", free_address().to_string())
            .env("STOWAGE_STATIC_WORLD", &world)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until_within("the gateway listens", LONG, || std::net::TcpStream::connect(address).is_ok()).await;
        Self { process, world, address, client: client() }
    }

    /// A request of tenant `b` by a client that behaves.
    pub async fn chat_of_b(&self) -> u16 {
        let mut body = chat(false);
        body["model"] = "a/m".into();
        let request = self.request("sk-b", body.to_string());
        match self.client.request(request).await {
            Ok(response) => response.status().as_u16(),
            Err(_) => 0,
        }
    }

    pub fn request(&self, key: &str, body: String) -> Request<Full<bytes::Bytes>> {
        Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(body.into()))
            .unwrap()
    }

    /// SIGTERM, and the end of the process.
    pub async fn end(&mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let process = std::sync::Mutex::new(&mut self.process);
        until("the gateway ended", || process.lock().unwrap().try_wait().unwrap().is_some()).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_file(&self.world));
    }
}

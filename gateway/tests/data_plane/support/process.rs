//! A mock engine as a process of its own, which can be killed: this test binary, started again.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::engine::{Behaviour, Heart, MockEngine};

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

//! An operator of a test's own: our program as a process here, and a proxy between it and the API server. The
//! cluster's own operators are absent meanwhile (`parts::without_operators`).

use std::process::Stdio;

use anyhow::Context;

use super::process;
use super::proxy::{Fault, Proxy};
use super::world::{Env, World};

/// Milliseconds after which the next operator of a crash test takes over.
pub const SHORT_LEASE: u32 = 3000;
/// The operator's default.
pub const LEASE: u32 = 8000;

/// An operator of this test's own: the same program, as a process here, through the proxy.
pub struct Operator(tokio::process::Child);

impl Operator {
    /// Starts it; it leads when no other has led for `lease_ms`.
    pub fn start(w: &World, proxy: &Proxy, lease_ms: u32) -> anyhow::Result<Self> {
        Self::start_with(w, proxy, lease_ms, &[])
    }

    /// With these options beside the usual ones.
    pub fn start_with(w: &World, proxy: &Proxy, lease_ms: u32, options: &[&str]) -> anyhow::Result<Self> {
        let program = Env::built("stowage-operator")?;
        // Beside the program, so that a red test can be understood.
        let log = std::fs::File::create(program.with_file_name(format!("{}.log", w.unique("operator"))))?;
        let config = proxy.kubeconfig(&std::env::temp_dir())?;
        let child = tokio::process::Command::new(&program)
            .env("KUBECONFIG", config)
            .args(["--admin-address", "127.0.0.1:0", "--identity", &w.unique("operator")])
            .args(["--lease-ms", &lease_ms.to_string(), "--renew-ms", &(lease_ms / 4).to_string()])
            .args(options)
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self(child))
    }

    /// Sends it a signal, such as STOP.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.0.id().context("the operator has ended")?;
        process::signal(i32::try_from(pid)?, signal)
    }

    /// Ends it at once.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill().await.context("kill the operator")
    }
}

/// A proxy that sends requests to the API server as the operator's own account, so that policies and rights are the real ones.
pub async fn between(w: &World, fault: Fault) -> anyhow::Result<Proxy> {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:stowage-system", "system:authenticated"];
    let operator = w.cluster().impersonate(&stowage_contracts::names::operator_username(), &groups).await?;
    Proxy::start(operator.client().clone(), fault).await
}

//! End-to-end tests on a real Kubernetes: the local cluster, or whatever KUBECONFIG names.
//!
//! `stowage-e2e [PART-OF-A-NAME…]` runs the matching tests, some beside each other (`schedule`), and prints
//! `ok NAME SECONDS` or `FAIL NAME: why` for each, then `N passed, N failed`. A test owns the
//! namespaces and tenants that it makes (`World`); they are removed when it ends, passed or not.
//! Nothing here waits on a clock: every wait is for a condition with a deadline.

mod external_metrics;
mod reserved;
mod run;
mod scale;
mod schedule;
mod terminal;
mod tests;
mod tools;

use anyhow::Context;
use clap::Parser;

use crate::schedule::Needs;
use crate::tools::disk;
use crate::tools::world;

/// What a run needs from outside; `cargo xtask e2e` sets it.
#[derive(Debug, Parser)]
#[command(name = "stowage-e2e", about = "Stowage's end-to-end tests on a running cluster")]
pub struct Options {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
    /// List the tests' names and stop.
    #[arg(long)]
    list: bool,
    /// Run the slow tests too (`make test-long`).
    #[arg(long)]
    long: bool,
    /// How many tests run beside each other.
    #[arg(long, default_value_t = 3)]
    beside: usize,
    /// The gateway's address, reachable from here.
    #[arg(long, env = "STOWAGE_URL", default_value = "http://127.0.0.1:18080")]
    url: String,
    /// Where kubectl, helm and the other programs of the cluster are; default: the PATH.
    #[arg(long, env = "STOWAGE_BIN")]
    bin: Option<std::path::PathBuf>,
    /// State directory of the local cluster; tests that end nodes or edit scenarios need it.
    #[arg(long, env = "STOWAGE_STATE")]
    state: Option<std::path::PathBuf>,
    /// A Python with the packages of e2e/clients/requirements.txt.
    #[arg(long, env = "STOWAGE_PYTHON")]
    python: Option<std::path::PathBuf>,
    /// A Python with the packages of e2e/clients/requirements-long.txt.
    #[arg(long, env = "STOWAGE_PYTHON_LONG")]
    python_long: Option<std::path::PathBuf>,
    /// The scripts of e2e/clients, beside the packages that those for Node import.
    #[arg(long, env = "STOWAGE_CLIENTS")]
    clients: Option<std::path::PathBuf>,
    /// The program behind `cargo xtask`; tests that end nodes need it.
    #[arg(long, env = "STOWAGE_XTASK")]
    xtask: Option<std::path::PathBuf>,
    /// The file of the demo's model.
    #[arg(long, env = "STOWAGE_MODEL_FILE")]
    model: Option<std::path::PathBuf>,
    /// The checkout: charts and examples are read from here.
    #[arg(long, env = "STOWAGE_ROOT", default_value = ".")]
    root: std::path::PathBuf,
}

fn main() -> anyhow::Result<()> {
    // Before the runtime: a process with several threads cannot enter another's mounts.
    if let Some(request) = disk::Request::of(std::env::args()) {
        return request.carry_out();
    }
    if let Some(request) = external_metrics::Request::of(std::env::args()) {
        return request.carry_out();
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before ours");
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    match scale::Request::of(std::env::args()) {
        Some(request) => runtime.block_on(request.carry_out()),
        None => runtime.block_on(tests()),
    }
}

async fn tests() -> anyhow::Result<()> {
    let options = Options::parse();
    let chosen: Vec<_> = tests::all()
        .into_iter()
        .filter(|t| {
            (options.long || !t.long)
                && (options.filter.is_empty() || options.filter.iter().any(|f| t.name.contains(f.as_str())))
        })
        .collect();
    anyhow::ensure!(
        !chosen.is_empty(),
        "no test has {:?} in its name; --list shows all (with --long, the long ones too)",
        options.filter
    );
    if options.list {
        chosen.iter().for_each(|t| println!("{}", t.name));
        return Ok(());
    }
    let mut env =
        world::Env::connect(&options).await.context("connect to the cluster (is it up? `cargo xtask cluster up`)")?;
    if chosen.iter().any(|t| matches!(t.needs, Needs::Node | Needs::Cluster)) {
        env.reserved = reserved::nodes(&env.cluster).await?.into_iter().skip(2).collect();
        reserved::reserve(&env).await.context("reserve nodes for tests that need one")?;
    }
    let count = run::all(&env, chosen, options.beside).await;
    reserved::release(&env).await.context("release the reserved nodes")?;
    println!("{} passed, {} failed", count.passed, count.failed);
    if count.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

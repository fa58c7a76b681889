//! End-to-end tests on a real Kubernetes: the local cluster, or whatever KUBECONFIG names.
//!
//! `stowage-e2e [PART-OF-A-NAME…]` runs the matching tests one after the other and prints
//! `ok NAME SECONDS` or `FAIL NAME: why` for each, then `N passed, N failed`. A test owns the
//! namespaces and tenants that it makes (`World`); they are removed when it ends, passed or not, while
//! the next one begins already, unless that one must be alone (`Test::alone`).
//! Nothing here waits on a clock: every wait is for a condition with a deadline.

mod cluster;
mod disk;
mod history;
mod http;
mod load;
mod process;
mod proxy;
mod scenario;
mod tests;
mod world;

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use tokio::task::JoinSet;

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
    /// The gateway's address, reachable from here.
    #[arg(long, env = "STOWAGE_URL", default_value = "http://127.0.0.1:18080")]
    url: String,
    /// Where kubectl, helm and the other programs of the cluster are; default: the PATH.
    #[arg(long, env = "STOWAGE_BIN")]
    bin: Option<std::path::PathBuf>,
    /// State directory of the local cluster; tests that end nodes or edit scenarios need it.
    #[arg(long, env = "STOWAGE_STATE")]
    state: Option<std::path::PathBuf>,
    /// A Python with the `openai` package.
    #[arg(long, env = "STOWAGE_PYTHON")]
    python: Option<std::path::PathBuf>,
    /// The program behind `cargo xtask`; tests that end nodes need it.
    #[arg(long, env = "STOWAGE_XTASK")]
    xtask: Option<std::path::PathBuf>,
    /// The checkout: charts and examples are read from here.
    #[arg(long, env = "STOWAGE_ROOT", default_value = ".")]
    root: std::path::PathBuf,
}

fn main() -> anyhow::Result<()> {
    // Before the runtime: a process with several threads cannot enter another's mounts.
    if let Some(request) = disk::Request::of(std::env::args()) {
        return request.carry_out();
    }
    tokio::runtime::Runtime::new().context("start the runtime")?.block_on(tests())
}

async fn tests() -> anyhow::Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before ours");
    }
    let options = Options::parse();
    let chosen: Vec<_> = tests::all()
        .into_iter()
        .filter(|t| {
            (options.long || !t.long)
                && (options.filter.is_empty() || options.filter.iter().any(|f| t.name.contains(f.as_str())))
        })
        .collect();
    if options.list {
        chosen.iter().for_each(|t| println!("{}", t.name));
        return Ok(());
    }
    let env =
        world::Env::connect(&options).await.context("connect to the cluster (is it up? `cargo xtask cluster up`)")?;
    let (mut passed, mut failed, mut leaving) = (0, 0, JoinSet::new());
    for test in chosen {
        if test.alone {
            failed += left(&mut leaving).await;
        }
        let (started, world) = (Instant::now(), world::World::new(env.clone(), test.name));
        match run(&world, &test).await {
            Ok(()) => {
                passed += 1;
                println!("ok {} {:.1}", test.name, started.elapsed().as_secs_f64());
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why:#}", test.name);
            }
        }
        // Replicas drain for some seconds: the next test need not wait for that unless it wants to be alone.
        leaving.spawn(async move { world.remove().await.with_context(|| format!("clean up after {}", test.name)) });
    }
    failed += left(&mut leaving).await;
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Waits until nothing of earlier tests is left; how many could not be removed.
async fn left(leaving: &mut JoinSet<anyhow::Result<()>>) -> usize {
    let mut failed = 0;
    while let Some(removed) = leaving.join_next().await {
        if let Err(why) = removed.map_err(anyhow::Error::from).flatten() {
            failed += 1;
            println!("FAIL {why:#}");
        }
    }
    failed
}

/// One test in its world.
async fn run(world: &world::World, test: &tests::Test) -> anyhow::Result<()> {
    let result = match tokio::time::timeout(Duration::from_secs(test.limit_seconds), (test.body)(world.clone())).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("did not end within {} s", test.limit_seconds)),
    };
    if result.is_err() {
        world.print_evidence().await;
    }
    if world.left_without_operators() {
        tests::operators::operators(world, 2).await.context("bring the cluster's operators back")?;
    }
    result
}

//! The Stowage operator. Everything is in the library; see `docs/operator.md`.

use clap::Parser;
use stowage_operator::config::Config;

fn main() -> anyhow::Result<()> {
    stowage_telemetry::install_crypto();
    let config = Config::parse();
    stowage_telemetry::init_tracing("stowage-operator");
    // Two threads are plenty: the work is waiting, and a plan is milliseconds.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(stowage_operator::run::run(config))
}

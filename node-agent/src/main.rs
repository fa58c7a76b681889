//! Starts the node agent. See the library for what it does.

use clap::Parser;
use stowage_node_agent::agent;
use stowage_node_agent::args::{Args, ensure_scenario};
use stowage_node_agent::models::headers;

fn main() -> anyhow::Result<()> {
    if std::env::args_os().nth(1).is_some_and(|first| first == headers::READ_HEADERS) {
        return Ok(headers::answer_and_end()?);
    }
    stowage_telemetry::install_crypto();
    stowage_telemetry::init_tracing("node-agent");
    let args = Args::parse();
    if let Some(profile) = args.profile() {
        let scenario = args.scenario();
        let made = ensure_scenario(&scenario, profile, &args.node_name).map_err(|err| {
            anyhow::anyhow!("cannot make {}: {err}; free space or repair the disk", scenario.display())
        })?;
        tracing::info!(%profile, scenario = %scenario.display(), made, "GPUs of this node are simulated");
        // SAFETY: no other thread exists yet.
        unsafe {
            std::env::set_var(stowage_gpu_scenario::SCENARIO_ENV, &scenario);
            std::env::set_var(stowage_gpu_scenario::REPORTS_ENV, args.state_dir.join("reports"));
        }
    }
    // Two workers: one may wait for a disk while the other answers the kubelet's GetInfo in time.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).enable_all().build()?;
    runtime.block_on(agent::run(args))
}

//! `cargo xtask bench`: each measurement is a JSON line, the last has `"summary": true`. The programs
//! that measure are examples of the crates they measure; this finds the model, starts them and compares.

mod engine;
mod scale;
mod stopwatch;

use crate::base::sh;
use anyhow::{Context, Result, ensure};
use clap::Parser;

#[derive(clap::Args)]
pub struct Args {
    /// What to measure; everything when nothing is named
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Prefill, decode alone and in a crowd, on the demo's model
    Engine(engine::Args),
    /// Time of one plan, by size of the cluster (--nodes, --gpus, --replicas)
    Planner(Passed),
    /// The published placement protocol through the planner (--nodes FILE --pods FILE [--seeds 42..52])
    Placement(Passed),
    /// Replicas of all sizes that come and go, three tenants (--seeds 1..4 --hours 24 --load 1.1 --policy NAME)
    Mixed(Passed),
    /// Time of the operator's whole turn but its writes, by number of deployments (or --nodes 5000 --deployments 5000)
    Operator(Passed),
    /// Many deployments at once on simulated nodes (--nodes 500 --deployments 1000 --replicas 4 [--count-writes])
    Scale(Passed),
    /// Objectives kept and replica-hours, by policy (--arrivals FILE --cold-start SECONDS --policy NAME)
    Autoscaling(Passed),
}

/// Options of the program that measures.
#[derive(clap::Args)]
struct Passed {
    /// See the head of the example that is run
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// The engine's options when none is given.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    engine: engine::Args,
}

pub fn run(args: Args) -> Result<()> {
    match args.what {
        Some(What::Engine(args)) => engine::run(&args),
        Some(What::Planner(passed)) => example("stowage-planner", "bench_plan", &passed.options),
        Some(What::Placement(passed)) => example("stowage-planner", "bench_placement", &passed.options),
        Some(What::Mixed(passed)) => example("stowage-planner", "bench_mixed", &passed.options),
        Some(What::Scale(passed)) => scale::run(&passed.options),
        Some(What::Operator(passed)) => example("stowage-operator", "bench_turn", &passed.options),
        Some(What::Autoscaling(passed)) => example("stowage-simulator", "bench_autoscaling", &passed.options),
        None => {
            engine::run(&Defaults::parse_from(["engine"]).engine)?;
            example("stowage-planner", "bench_plan", &[])?;
            example("stowage-operator", "bench_turn", &[])
        }
    }
}

fn example(package: &str, name: &str, options: &[String]) -> Result<()> {
    let mut cargo = sh::cargo(&["run", "--release", "--quiet", "-p", package, "--example", name, "--"]);
    cargo.args(options);
    ensure!(cargo.status().context("start cargo")?.success(), "{name} failed");
    Ok(())
}

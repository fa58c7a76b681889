//! `cargo xtask bench`: each measurement is a JSON line, the last has `"summary": true`. The programs
//! that measure are examples of the crates they measure; this finds the model, starts them and compares.

mod engine;
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
    /// Time of one plan over snapshots of several sizes
    Planner,
    /// Time of the operator's whole turn but its writes, by number of deployments
    Operator,
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
        Some(What::Planner) => example("stowage-planner", "bench_plan"),
        Some(What::Operator) => example("stowage-operator", "bench_turn"),
        None => {
            engine::run(&Defaults::parse_from(["engine"]).engine)?;
            example("stowage-planner", "bench_plan")?;
            example("stowage-operator", "bench_turn")
        }
    }
}

fn example(package: &str, name: &str) -> Result<()> {
    let mut cargo = sh::cargo(&["run", "--quiet", "-p", package, "--example", name]);
    ensure!(cargo.status().context("start cargo")?.success(), "{name} failed");
    Ok(())
}

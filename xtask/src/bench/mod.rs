//! `cargo xtask bench`: each measurement is a JSON line, the last has `"summary": true`. The programs
//! that measure are examples of the crates they measure; this finds the model, starts them and compares.

mod engine;
mod stopwatch;

use crate::sh;
use anyhow::{Context, Result, ensure};
use clap::Parser;

#[derive(clap::Args)]
pub struct Args {
    /// What to measure; both when none is named
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Prefill, decode alone and in a crowd, on the demo's model
    Engine(engine::Args),
    /// Time of one plan over snapshots of three sizes
    Planner,
}

/// The engine's options as nobody gave them.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    engine: engine::Args,
}

pub fn run(args: Args) -> Result<()> {
    match args.what {
        Some(What::Engine(args)) => engine::run(&args),
        Some(What::Planner) => planner(),
        None => engine::run(&Defaults::parse_from(["engine"]).engine).and_then(|()| planner()),
    }
}

fn planner() -> Result<()> {
    let mut cargo = sh::cargo(&["run", "--quiet", "-p", "stowage-planner", "--example", "bench_plan"]);
    ensure!(cargo.status().context("start cargo")?.success(), "the bench of the planner failed");
    Ok(())
}

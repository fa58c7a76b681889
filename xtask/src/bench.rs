//! `cargo xtask bench`: each measurement is a JSON line, the last has `"summary": true`. The programs
//! that measure are examples of the crates they measure; this only finds the model and starts them.

use crate::{product, sh};
use anyhow::{Context, Result, ensure};

#[derive(clap::Args)]
pub struct Args {
    /// What to measure; both when none is named
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Load, prefill, decode alone and in a crowd, on the demo's model
    Engine {
        /// Options of the measuring program, as `--threads 2 --streams 8 --seconds 3 --model FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Time of one plan over snapshots of three sizes
    Planner,
}

pub fn run(args: Args) -> Result<()> {
    match args.what {
        Some(What::Engine { options }) => engine(&options),
        Some(What::Planner) => example("stowage-planner", "bench_plan", &[]),
        None => engine(&[]).and_then(|()| example("stowage-planner", "bench_plan", &[])),
    }
}

fn engine(options: &[String]) -> Result<()> {
    let mut all = vec!["--json".to_owned()];
    if !options.iter().any(|o| o == "--model") {
        let said = product::own(&["model"])?;
        let model = said.lines().find(|l| l.ends_with(".gguf")).context("`cargo xtask model` named no model")?;
        all.extend(["--model".into(), model.to_owned()]);
    }
    all.extend_from_slice(options);
    example("stowage-engine-models", "bench", &all)
}

fn example(package: &str, name: &str, options: &[String]) -> Result<()> {
    let mut cargo = sh::cargo(&["run", "--quiet", "-p", package, "--example", name, "--"]);
    ensure!(cargo.args(options).status().context("start cargo")?.success(), "the bench {name} failed");
    Ok(())
}

//! `cargo xtask`: what a developer of Stowage does besides writing code. One file (or folder) per
//! subcommand; each exposes its arguments and a `run`, and this file only lists them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cluster;
#[cfg(feature = "codegen")]
mod codegen;
mod image;
mod model;
mod paths;
mod progress;
mod sh;
mod tidy;
mod wait;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What a developer of Stowage does besides writing code")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The local Kubernetes
    Cluster(cluster::Args),
    /// Write OCI archives of our programs to target/images
    Image(image::Args),
    /// Fetch the demo's model and write it as an image
    Model,
    /// Check the dependency rule; hint at long files
    Tidy,
    /// Write the generated files (CRDs and their reference), or check that they are up to date
    Codegen {
        /// Change nothing; fail when a file would change
        #[arg(long)]
        check: bool,
    },
}

fn main() -> std::process::ExitCode {
    let done = match Cli::parse().command {
        Command::Cluster(args) => cluster::run(args),
        Command::Image(args) => image::run(args),
        Command::Model => model::run(),
        Command::Tidy => tidy::run(),
        Command::Codegen { check } => codegen(check),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "codegen")]
fn codegen(check: bool) -> anyhow::Result<()> {
    codegen::run(check)
}

/// Builds this program with the API types, and lets that one do it.
#[cfg(not(feature = "codegen"))]
fn codegen(check: bool) -> anyhow::Result<()> {
    let mut cargo = std::process::Command::new("cargo");
    cargo.args(["run", "--quiet", "--package=xtask", "--features=codegen", "--", "codegen"]);
    cargo.args(check.then_some("--check")).current_dir(paths::repo());
    anyhow::ensure!(cargo.status()?.success(), "codegen failed");
    Ok(())
}

//! `cargo xtask`: what a developer of Stowage does besides writing code. One file (or folder) per
//! subcommand; each exposes its arguments and a `run`, and this file only lists them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base;
mod bench;
mod cluster;
#[cfg(feature = "codegen")]
mod codegen;
mod image;
mod product;
mod programs;
mod suite;
mod tidy;

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
    /// The kubectl plugin's archive and its manifest for krew, in target/krew
    Krew(product::krew::Args),
    /// The demo: from a clean clone to an answer (`make demo`)
    Demo(product::demo::Args),
    /// Every suite, and one last line that counts (`make test`)
    Test(suite::TestArgs),
    /// The end-to-end tests on the running cluster (`make e2e`)
    E2e(suite::E2eArgs),
    /// Look for inputs that break the parsers of foreign bytes (fuzz/)
    Fuzz(suite::fuzz::Args),
    /// Measure; JSON lines (`make bench`)
    Bench(bench::Args),
    /// Write the generated files (CRDs and their reference), or check that they are up to date
    Codegen {
        /// Change nothing; fail when a file would change
        #[arg(long)]
        check: bool,
    },
}

fn main() -> std::process::ExitCode {
    // A reader that goes away (`| head`) ends this program, as it ends every other.
    // SAFETY: nothing else has started yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let done = match Cli::parse().command {
        Command::Cluster(args) => cluster::run(args),
        Command::Image(args) => image::run(args),
        Command::Model => image::model::run(),
        Command::Tidy => tidy::run(),
        Command::Demo(args) => product::demo::run(&args),
        Command::Krew(args) => product::krew::run(&args),
        Command::Test(args) => suite::test(&args),
        Command::E2e(args) => suite::e2e(&args),
        Command::Fuzz(args) => suite::fuzz::run(&args),
        Command::Bench(args) => bench::run(args),
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
    // Not with the variables of this program: build scripts of dependencies look at them, and would run anew.
    let mut cargo = base::sh::cargo(&[]);
    cargo.args(["run", "--quiet", "--package=xtask", "--features=codegen", "--", "codegen"]);
    cargo.args(check.then_some("--check")).current_dir(base::paths::repo());
    anyhow::ensure!(cargo.status()?.success(), "codegen failed");
    Ok(())
}

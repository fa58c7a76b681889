//! `cargo xtask`: what a developer of Stowage does besides writing code. One file (or folder) per
//! subcommand; each exposes its arguments and a `run`, and this file only lists them.

mod codegen;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What a developer of Stowage does besides writing code")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the generated files (CRDs and their reference), or check that they are up to date
    Codegen {
        /// Change nothing; fail when a file would change
        #[arg(long)]
        check: bool,
    },
}

fn main() -> std::process::ExitCode {
    let done = match Cli::parse().command {
        Command::Codegen { check } => codegen::run(check),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

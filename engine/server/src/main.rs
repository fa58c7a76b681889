//! `stowage-engine`: serves one model over an OpenAI-compatible API.

use std::process::ExitCode;

use clap::Parser;
use stowage_engine::args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { command: Command::Serve(args) } = Cli::parse();
    stowage_telemetry::init_tracing("engine");
    match stowage_engine::process::serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => stowage_engine::startup::report(&err),
    }
}

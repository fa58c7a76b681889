//! `stowage-engine`: serves one model over an OpenAI-compatible API.

use std::process::ExitCode;

use clap::Parser;
use stowage_engine::args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    stowage_telemetry::init_tracing("engine");
    let done = match command {
        Command::Serve(args) => stowage_engine::process::serve(args),
        Command::WaitModel { file } => {
            stowage_engine::startup::wait_for(&file);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => stowage_engine::startup::report(&err),
    }
}

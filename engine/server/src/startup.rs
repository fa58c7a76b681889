//! A failed start is reported in one line: what happened, why, and what to do.
//!
//! The line goes to stderr and to the container's termination message, from where it reaches the
//! pod's status and the deployment's condition. The exit code tells Kubernetes whether another start can help.

use std::path::Path;
use std::process::ExitCode;

/// Why the process ends. `Display` is the one line.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}. {next}")]
pub struct StartError {
    pub code: Exit,
    /// The operation that failed.
    pub what: String,
    pub why: String,
    /// What to do about it, a sentence without its full stop.
    pub next: String,
}

/// Exit codes, after sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The cause is the machine or the process; another start may work.
    Unavailable = 69,
    /// A bug in the engine.
    Software = 70,
    /// Model, arguments or environment are wrong; another start fails in the same way.
    Config = stowage_contracts::names::EXIT_MODEL_REFUSED as isize,
}

impl StartError {
    pub fn config(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: Exit::Config, what: what.into(), why: why.into(), next: next.into() }
    }

    pub fn unavailable(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: Exit::Unavailable, what: what.into(), why: why.into(), next: next.into() }
    }

    pub fn software(what: impl Into<String>, why: impl Into<String>) -> Self {
        let next = "Please report this with the log".to_owned();
        Self { code: Exit::Software, what: what.into(), why: why.into(), next }
    }
}

/// How often a file is looked for.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Waits until the file exists. Kubernetes ends the process when nobody needs the model any more.
pub fn wait_for(file: &Path) {
    tracing::info!(file = %file.display(), "waiting for the model");
    while !file.exists() {
        std::thread::sleep(LOOK);
    }
}

/// Where Kubernetes reads the termination message; another place for tests and other runtimes.
const TERMINATION_LOG_ENV: &str = "STOWAGE_TERMINATION_LOG";
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Reports why the process ends, and gives the exit code.
pub fn report(err: &StartError) -> ExitCode {
    let line = err.to_string().replace(['\n', '\r'], " ");
    eprintln!("stowage-engine: {line}");
    let path = std::env::var(TERMINATION_LOG_ENV).unwrap_or_else(|_| TERMINATION_LOG.to_owned());
    // Kubernetes makes the file; without the file this is no container, and there is no reader.
    if Path::new(&path).exists()
        && let Err(err) = std::fs::write(&path, format!("{line}\n"))
    {
        tracing::warn!(%err, path, "cannot write the termination message");
    }
    ExitCode::from(err.code as u8)
}

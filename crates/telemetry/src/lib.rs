//! What every Stowage process does the same way: logs, metrics, traces, probes, shutdown, the TLS provider.
//!
//! One place, so that an operator who learnt one process has learnt them all: `STOWAGE_LOG` chooses
//! levels, `STOWAGE_LOG_FORMAT` the form, `/metrics` speaks both Prometheus text formats, `/healthz`
//! and `/readyz` answer with the reason. This crate knows nothing of what the processes do.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod catalog;
pub mod health;
pub mod labels;
mod logging;
pub mod metrics;
mod shutdown;
pub mod traces;

pub use logging::init_tracing;
pub use shutdown::{ShutdownReason, shutdown_signal};

/// Installs the ring provider of rustls for the whole process. First thing in `main` of every
/// binary that uses TLS: without it the first handshake panics when two providers are compiled in.
/// Calling it twice is harmless.
pub fn install_crypto() {
    // An error only says that a provider is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

//! The signals that end a process of ours in good order.

use std::fmt;
use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Which signal asked us to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownReason {
    /// SIGTERM: the kubelet, before it waits for the grace period.
    Terminate,
    /// SIGINT: Ctrl-C at a terminal.
    Interrupt,
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Resolves at the first SIGTERM or SIGINT.
///
/// The handlers are installed by the call, not by the first poll, so a signal that arrives between
/// the two is not lost. Call it inside a tokio runtime. Each call makes its own future, and each of
/// them resolves.
pub fn shutdown_signal() -> impl Future<Output = ShutdownReason> + Send + 'static {
    let terminate = listen(SignalKind::terminate(), "SIGTERM");
    let interrupt = listen(SignalKind::interrupt(), "SIGINT");
    async move {
        let reason = tokio::select! {
            () = next(terminate) => ShutdownReason::Terminate,
            () = next(interrupt) => ShutdownReason::Interrupt,
        };
        tracing::info!(signal = %reason, "shutting down");
        reason
    }
}

/// A process that cannot catch a signal still serves; the default action then ends it abruptly.
fn listen(kind: SignalKind, name: &str) -> Option<Signal> {
    signal(kind).inspect_err(|err| tracing::warn!(%err, "cannot catch {name}, it will end this process at once")).ok()
}

async fn next(signal: Option<Signal>) {
    match signal {
        Some(mut signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

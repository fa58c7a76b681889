//! The listening side: connections, their limits, and the end of service in good order.
//!
//! Draining has two phases. First `/readyz` answers 503 while everything is still served, because
//! clients' load balancers need a moment to notice; then the socket closes, each connection finishes
//! the requests that it has, and streams run to their end or to the deadline.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stowage_telemetry::health::Readiness;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::listen::connection::Connections;
pub use crate::listen::connection::{Handler, ServerLimits};
use crate::listen::peers::Peers;
use crate::metrics::Metrics;

/// The listening side.
pub struct Server {
    pub limits: ServerLimits,
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `shutdown` resolves and what was open has ended.
    pub async fn serve(self, listener: TcpListener, handler: Arc<impl Handler>, shutdown: impl Future) {
        let Self { limits, readiness, metrics } = self;
        let (closing, _) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(limits.max_connections));
        let peers = Peers::new(limits.peers);
        let connections = Arc::new(Connections::new(handler, limits));
        let stop = async {
            shutdown.await;
            readiness.set_not_ready("draining");
            tokio::time::sleep(limits.drain_delay).await;
        };
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &slots) => accepted,
                () = &mut stop => break,
            };
            let Some((stream, address, slot)) = accepted else { continue };
            let Some(peer) = peers.admit(address) else {
                metrics.refused_connections.inc();
                continue;
            };
            let (connections, metrics, closing) = (connections.clone(), metrics.clone(), closing.subscribe());
            tokio::spawn(async move {
                metrics.connections.inc();
                connections.serve(stream, peer, closing).await;
                metrics.connections.dec();
                drop(slot);
            });
        }
        drop(listener);
        closing.send_replace(true);
        let all = u32::try_from(limits.max_connections).unwrap_or(u32::MAX);
        if tokio::time::timeout(limits.drain_timeout, slots.acquire_many(all)).await.is_err() {
            tracing::warn!(seconds = limits.drain_timeout.as_secs(), "streams were still open at the drain deadline");
        }
    }
}

/// Answers that the kernel keeps for one client, in bytes; it doubles the figure for its own use. Left to
/// itself it would keep up to 4 MiB of what a client does not read.
const SEND_BUFFER: u32 = 128 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens for clients.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Raises the soft limit of open files to the hard one, and returns it. Container runtimes start
/// processes with 1,024, which is fewer connections than we promise.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // None is unlimited.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Waits for a free slot first: connections beyond the limit wait in the kernel's queue.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Tokens are small and must not wait for one another.
            let _ = stream.set_nodelay(true);
            Some((stream, address.ip(), slot))
        }
        Err(error) => {
            // Out of descriptors, mostly; accepting again at once would spin.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

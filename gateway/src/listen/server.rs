//! The listening side: connections, their limits, and the end of service in good order.
//!
//! Draining has two phases. First `/readyz` says no while everything is still served, because
//! clients' load balancers need a moment to notice; then the socket closes, each connection is told
//! to finish what it has, and streams run to their end or to the deadline.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::gateway::Gateway;

/// Limits of the listening side.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    pub max_connections: usize,
    /// Time for a request's head to arrive, and for an idle connection to stay open.
    pub header_timeout: Duration,
    pub max_headers: usize,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// Served after `/readyz` says no, before the socket closes.
    pub drain_delay: Duration,
    /// Longest time for open streams to end after that.
    pub drain_timeout: Duration,
}

/// Serves until `shutdown` resolves and what was open has ended.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, limits: ServerLimits, shutdown: impl Future) {
    let (closing, _) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let builder = Arc::new(builder(limits));
    let stop = async {
        shutdown.await;
        gateway.readiness.set_not_ready("draining");
        tokio::time::sleep(limits.drain_delay).await;
    };
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = &mut stop => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (gateway, builder, mut closing) = (gateway.clone(), builder.clone(), closing.subscribe());
        tokio::spawn(async move {
            gateway.metrics.connections.inc();
            connection(stream, &gateway, &builder, limits, &mut closing).await;
            gateway.metrics.connections.dec();
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
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Tokens are small and must not wait for one another.
            let _ = stream.set_nodelay(true);
            Some((stream, slot))
        }
        Err(error) => {
            // Out of descriptors, mostly; accepting again at once would spin.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    gateway: &Arc<Gateway>,
    builder: &auto::Builder<TokioExecutor>,
    limits: ServerLimits,
    closing: &mut watch::Receiver<bool>,
) {
    let begun = Arc::new(AtomicBool::new(false));
    let service = {
        let (gateway, begun) = (gateway.clone(), begun.clone());
        service_fn(move |request| {
            begun.store(true, Ordering::Relaxed);
            let gateway = gateway.clone();
            async move { Ok::<_, Infallible>(gateway.answer(request).await) }
        })
    };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // The builder's own timeout starts when it knows the protocol; a client that does not even send
    // that much is not allowed to stay either.
    let silent = async {
        tokio::time::sleep(limits.header_timeout).await;
        if begun.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    };
    tokio::pin!(silent);
    let mut told = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = &mut silent => return,
            _ = closing.wait_for(|closing| *closing), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder(limits: ServerLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_head_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .max_header_list_size(limits.max_head_bytes as u32)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

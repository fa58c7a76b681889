//! Connections: how many, and for how long.
//!
//! `axum::serve` sets no time limit for a request's head, so the accept loop is our
//! own: a bound on connections, a time for the head (which also closes idle ones), a bound on
//! buffered head bytes. HTTP/1.1 only: our clients are gateways, which pool connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::Service;

/// The most bytes of a request's head, and of what is read ahead.
const BUFFER: usize = 64 << 10;
const MAX_HEADERS: usize = 64;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections: usize,
    /// For the head of a request, from the first moment its connection is idle.
    pub head: Duration,
}

/// Serves until `stop` becomes true, then lets responses under way finish, `linger` at most.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    open: Gauge,
    mut stop: watch::Receiver<bool>,
    linger: Duration,
) {
    let (permits, tracker) = (Arc::new(Semaphore::new(limits.connections)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            () = stopped(&mut stop) => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (router, stop, open) = (router.clone(), stop.clone(), open.clone());
        tracker.spawn(async move {
            open.inc();
            connection(stream, router, limits, stop).await;
            open.dec();
            drop(permit);
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(linger, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "closing connections whose clients do not read");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(err) => {
            // Out of descriptors, or the client is gone already. An immediate retry helps in neither case.
            tracing::warn!(%err, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Resolves when the server is to stop. A function of its own, so that the guard which `wait_for`
/// returns is not held across an await of the caller.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, mut stop: watch::Receiver<bool>) {
    // Tokens are small and must not be delayed.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            Ok::<Response, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = result {
        tracing::debug!(%err, "a connection ended early");
    }
}

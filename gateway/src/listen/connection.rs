//! One client's connection, from its first byte to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use stowage_openai_api::SharedBudget;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::listen::guarded::Guarded;
use crate::listen::peers::{Peer, PeerLimits};
use crate::listen::streams::{Outbound, StreamExecutor};

/// HTTP/2: requests at a time on one connection.
const MAX_STREAMS: u32 = 64;
/// HTTP/2: bytes of a body that a client may send before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// As [`STREAM_WINDOW`], for all streams of a connection.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// More headers than this end the connection without a body; those between the limit and this are answered.
const MOST_HEADERS: usize = 256;

/// What answers the requests.
pub trait Handler: Send + Sync + 'static {
    type Body: http_body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin + 'static;

    /// Never fails, since every failure is an answer.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Limits of the listening side.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    pub max_connections: usize,
    pub peers: PeerLimits,
    /// Bytes of all unfinished heads, beyond the first 4 KiB of each.
    pub max_partial_heads: usize,
    /// How long a client may leave an answer unread; each KiB that it reads gives it a second back.
    pub write_timeout: Duration,
    /// Time for a request's head to arrive, and for an idle connection to stay open.
    pub header_timeout: Duration,
    pub max_headers: usize,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// Served after `/readyz` answers 503, before the socket closes.
    pub drain_delay: Duration,
    /// Longest time for open streams to end after that.
    pub drain_timeout: Duration,
}

/// What all connections share.
pub struct Connections<H> {
    pub handler: Arc<H>,
    pub limits: ServerLimits,
    /// Unfinished heads, in bytes.
    pub heads: Arc<SharedBudget>,
    builder: auto::Builder<StreamExecutor>,
}

impl<H: Handler> Connections<H> {
    pub fn new(handler: Arc<H>, limits: ServerLimits) -> Self {
        Self { handler, limits, heads: SharedBudget::new(limits.max_partial_heads), builder: builder(limits) }
    }

    /// Serves one connection to its end. `closing` becomes true when the process drains.
    pub async fn serve(&self, socket: TcpStream, peer: Arc<Peer>, mut closing: watch::Receiver<bool>) {
        let io = Guarded::new(socket, peer.clone(), self.limits.write_timeout, &self.heads);
        let service = {
            let (handler, peer) = (self.handler.clone(), peer.clone());
            service_fn(move |request| respond(handler.clone(), peer.clone(), request))
        };
        let connection = self.builder.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let idle = idle_for(&peer, self.limits.header_timeout);
        tokio::pin!(idle);
        let mut ending = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "connection ended");
                    }
                    return;
                }
                () = peer.displaced() => return,
                () = peer.finished(), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut idle => {
                    if std::mem::replace(&mut ending, true) {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                    idle.set(idle_for(&peer, self.limits.header_timeout));
                }
                _ = closing.wait_for(|closing| *closing), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn respond<H: Handler>(
    handler: Arc<H>,
    peer: Arc<Peer>,
    mut request: Request<Incoming>,
) -> Result<Response<Outbound<H::Body>>, Infallible> {
    let in_flight = peer.begin();
    request.extensions_mut().insert(peer);
    let response = handler.answer(request).await;
    Ok(response.map(|body| Outbound::new(body, in_flight)))
}

/// Resolves when no request has been in flight for so long. It also ends connections whose answers are all
/// handed over and never read, and those that send nothing at all.
async fn idle_for(peer: &Peer, longest: Duration) {
    // At least once from the beginning, so that what is already idle gets time to end in good order.
    let mut left = longest;
    while !left.is_zero() {
        tokio::time::sleep(left).await;
        left = longest.saturating_sub(peer.idle());
    }
}

fn builder(limits: ServerLimits) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(StreamExecutor { patience: limits.write_timeout });
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MOST_HEADERS.max(limits.max_headers))
        .max_buf_size(limits.max_head_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(limits.max_head_bytes as u32)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

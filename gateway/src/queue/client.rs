//! Connections to engines.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// The pool of connections to engines.
pub type EngineClient = Client<HttpConnector, Full<Bytes>>;

/// A pod network answers within a millisecond; a node that is gone does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Shorter than any engine keeps an idle connection.
const IDLE_CONNECTION: Duration = Duration::from_secs(20);

/// A client with its own pool of keep-alive connections.
pub fn client() -> EngineClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(256)
        .build(connector)
}

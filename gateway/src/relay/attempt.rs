//! One attempt: a request to one replica, until the first byte that could go to the client.
//!
//! Everything before that byte can still be undone, so the attempt waits for it even when the head of
//! the answer is there: a stream for its first event, a whole answer for its end. What it
//! returns says whether to relay, to pass on, or to try elsewhere.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use stowage_crds::names::{HEADER_LOAD, HEADER_TENANT_SALT};

use crate::listen::paths::Inference;
use crate::metrics::Retry;
use crate::queue::pool::Lease;

/// The pool of connections to engines.
pub type EngineClient = Client<HttpConnector, Full<Bytes>>;

/// A pod network answers within a millisecond; a node that is gone does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Shorter than any engine keeps an idle connection.
const IDLE_CONNECTION: Duration = Duration::from_secs(20);
/// A whole answer up to this size is held until it is complete, so that its loss can be retried.
const HELD_ANSWER: usize = 1 << 20;
/// Errors are read whole, up to this size.
const MAX_ERROR: usize = 64 << 10;
/// How often a request on a lost replica looks for another one.
const LOOK_AROUND: Duration = Duration::from_millis(200);

/// What is sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub route: Inference,
    pub body: Bytes,
    pub stream: bool,
    pub salt: HeaderValue,
    pub request_id: HeaderValue,
    pub traceparent: Option<HeaderValue>,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// A whole answer.
    Whole { content_type: Option<HeaderValue>, body: Bytes },
    /// The beginning of an answer, and where the rest comes from.
    Begun { content_type: Option<HeaderValue>, first: Bytes, rest: Incoming },
    /// The engine refuses this request, in OpenAI's form; nobody else would answer otherwise.
    Refused { status: StatusCode, body: Bytes, retry_after: Option<HeaderValue> },
    /// The engine cannot now, and says so properly: somebody else may; otherwise pass it on.
    Busy { status: StatusCode, body: Bytes, retry_after: Option<HeaderValue> },
    /// Nothing usable came.
    Failed(Retry),
}

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

/// Sends the request to the lease's replica. Dropping the future closes the connection, which is how
/// an engine learns that its work is not wanted any more.
pub async fn attempt(client: &EngineClient, lease: &Lease, out: &Outgoing) -> Attempt {
    let Some(request) = request(lease, out) else { return Attempt::Failed(Retry::Unreachable) };
    tokio::select! {
        attempt = exchange(client, lease, out, request) => attempt,
        () = lost_with_alternative(lease) => Attempt::Failed(Retry::Lost),
    }
}

fn request(lease: &Lease, out: &Outgoing) -> Option<Request<Full<Bytes>>> {
    // Only headers that we name: nothing of the client's reaches an engine, its key least of all.
    let mut request = Request::post(format!("http://{}{}", lease.replica.address, out.route.path()))
        .header(CONTENT_TYPE, "application/json")
        .header(HEADER_TENANT_SALT, out.salt.clone())
        .header("x-request-id", out.request_id.clone());
    if let Some(traceparent) = &out.traceparent {
        request = request.header("traceparent", traceparent.clone());
    }
    request.body(Full::new(out.body.clone())).ok()
}

/// Resolves when the replica is lost and another could take over. With no other, waiting is as good
/// as anything: the replica may come back.
async fn lost_with_alternative(lease: &Lease) {
    let mut lost = lease.replica.watch_lost();
    loop {
        if lost.wait_for(|lost| *lost).await.is_err() {
            return std::future::pending().await;
        }
        if lease.pool().has_alternative(&lease.replica) {
            return;
        }
        tokio::time::sleep(LOOK_AROUND).await;
    }
}

async fn exchange(client: &EngineClient, lease: &Lease, out: &Outgoing, request: Request<Full<Bytes>>) -> Attempt {
    let response = match client.request(request).await {
        Ok(response) => response,
        Err(error) if error.is_connect() => {
            lease.unreachable();
            return Attempt::Failed(Retry::Unreachable);
        }
        Err(error) => return failed(lease, &error),
    };
    let load = response.headers().get(HEADER_LOAD).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = response.status();
    if !status.is_success() {
        return refusal(lease, status, response, load.as_deref()).await;
    }
    let content_type = response.headers().get(CONTENT_TYPE).cloned();
    let mut body = response.into_body();
    let first = if out.stream { first_piece(&mut body).await } else { whole(&mut body).await };
    match first {
        Ok((bytes, _)) if !makes_sense(&bytes, out.stream) => {
            lease.garbled();
            Attempt::Failed(Retry::Garbled)
        }
        Ok((bytes, ended)) => {
            lease.answered(load.as_deref());
            if ended {
                Attempt::Whole { content_type, body: bytes }
            } else {
                Attempt::Begun { content_type, first: bytes, rest: body }
            }
        }
        Err(error) => failed(lease, &error),
    }
}

/// The connection ended without an answer, or with something that is no HTTP.
fn failed(lease: &Lease, error: &(dyn std::error::Error + 'static)) -> Attempt {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            lease.garbled();
            return Attempt::Failed(Retry::Garbled);
        }
        cause = error.source();
    }
    lease.broken();
    Attempt::Failed(Retry::Broken)
}

async fn first_piece(body: &mut Incoming) -> Result<(Bytes, bool), hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok((data, false));
        }
    }
    Ok((Bytes::new(), true))
}

/// Everything, or as much as is held back. The flag says whether it is everything.
async fn whole(body: &mut Incoming) -> Result<(Bytes, bool), hyper::Error> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        all.extend_from_slice(&data);
        if all.len() > HELD_ANSWER {
            return Ok((all.freeze(), false));
        }
    }
    Ok((all.freeze(), true))
}

/// Whether the first bytes can be the beginning of what was asked for.
fn makes_sense(first: &[u8], stream: bool) -> bool {
    if stream {
        let lines = [&b"data:"[..], b":", b"event:", b"id:", b"retry:", b"\n", b"\r"];
        lines.iter().any(|line| first.starts_with(line))
    } else {
        first.trim_ascii_start().first() == Some(&b'{')
    }
}

async fn refusal(lease: &Lease, status: StatusCode, response: Response<Incoming>, load: Option<&str>) -> Attempt {
    let retry_after = response.headers().get(RETRY_AFTER).cloned();
    let body = match error_body(response.into_body()).await {
        Ok(body) => body,
        Err(error) => return failed(lease, &error),
    };
    let Some(code) = error_code(&body) else {
        // Redirects, HTML of some proxy: no engine of ours says that.
        lease.garbled();
        return Attempt::Failed(Retry::Garbled);
    };
    if code == "draining" {
        lease.refused_draining();
    }
    match status.as_u16() {
        429 | 503 => Attempt::Busy { status, body, retry_after },
        500.. => {
            lease.errored();
            Attempt::Busy { status, body, retry_after }
        }
        _ => {
            lease.answered(load);
            Attempt::Refused { status, body, retry_after }
        }
    }
}

async fn error_body(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > MAX_ERROR {
            break;
        }
    }
    Ok(all.freeze())
}

/// The code of an OpenAI error, empty where it has none; `None` when it is no such error.
fn error_code(body: &[u8]) -> Option<String> {
    let body: stowage_openai_api::ErrorBody = serde_json::from_slice(body).ok()?;
    Some(body.error.code.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_begin_like_streams_and_answers_like_objects() {
        for good in [&b"data: {}\n\n"[..], b": hello\n\n", b"event: x\n", b"\ndata: 1\n\n"] {
            assert!(makes_sense(good, true));
        }
        for bad in [&b""[..], b"{\"id\":1}", b"<html>", b"\x00\x01", b"garbage"] {
            assert!(!makes_sense(bad, true));
        }
        assert!(makes_sense(b" \n{\"id\":1}", false));
        for bad in [&b""[..], b"data: {}", b"<html>", b"[]", b"null"] {
            assert!(!makes_sense(bad, false));
        }
    }

    #[test]
    fn errors_are_openai_errors_or_garbage() {
        assert_eq!(
            error_code(br#"{"error":{"message":"m","type":"t","code":"draining"}}"#).as_deref(),
            Some("draining")
        );
        assert_eq!(error_code(br#"{"error":{"message":"m","type":"t"}}"#).as_deref(), Some(""));
        for bad in [&b""[..], b"<html>", b"{}", br#"{"error":"text"}"#] {
            assert_eq!(error_code(bad), None);
        }
    }
}

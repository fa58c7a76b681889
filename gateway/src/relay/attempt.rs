//! One attempt: a request to one replica, until the first byte that could go to the client.
//!
//! Everything before that byte can still be undone, so the attempt waits for it even when the head of
//! the answer is there: a stream for its first event, a whole answer for its end. Its result is
//! to relay, to pass on, or to try elsewhere.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use stowage_contracts::names::{HEADER_LOAD, HEADER_TENANT_SALT};
use stowage_telemetry::traces::traceparent;

use crate::metrics::Retry;
use crate::queue::client::EngineClient;
use crate::queue::pool::Lease;
use crate::relay::outgoing::Outgoing;

/// A whole answer up to this size is held until it is complete, so that its loss can be retried.
const HELD_ANSWER: usize = 1 << 20;
/// Errors are read whole, up to this size.
const MAX_ERROR: usize = 64 << 10;
/// How often a request on a lost replica looks for another one.
const LOOK_AROUND: Duration = Duration::from_millis(200);

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// A whole answer.
    Whole { content_type: Option<HeaderValue>, body: Bytes },
    /// The beginning of an answer, and where the rest comes from.
    Begun { content_type: Option<HeaderValue>, first: Bytes, rest: Incoming },
    /// The engine refuses this request, in OpenAI's form; no other replica would answer differently.
    Refused { status: StatusCode, body: Bytes, retry_after: Option<HeaderValue> },
    /// The engine cannot now, and reports it in OpenAI's form: another may; otherwise pass it on.
    Busy { status: StatusCode, body: Bytes, retry_after: Option<HeaderValue> },
    /// Nothing usable came.
    Failed(Retry),
}

/// Sends the request to the lease's replica. Dropping the future closes the connection, which is how
/// an engine learns that its work is not wanted any more. `traceparent` names the span of this attempt.
pub async fn attempt(
    client: &EngineClient,
    lease: &Lease,
    out: &Outgoing,
    traceparent: Option<HeaderValue>,
) -> Attempt {
    let Some(request) = request(lease, out, traceparent) else { return Attempt::Failed(Retry::Unreachable) };
    tokio::select! {
        attempt = exchange(client, lease, out, request) => attempt,
        () = lost_with_alternative(lease) => Attempt::Failed(Retry::Lost),
    }
}

fn request(lease: &Lease, out: &Outgoing, traceparent: Option<HeaderValue>) -> Option<Request<Full<Bytes>>> {
    // Only headers that we name: nothing of the client's reaches an engine, its key least of all.
    let mut request = Request::post(format!("http://{}{}", lease.replica.address, out.route.path()))
        .header(CONTENT_TYPE, "application/json")
        .header("x-request-id", out.request_id.clone());
    if let Some(salt) = &out.salt {
        request = request.header(HEADER_TENANT_SALT, salt.clone());
    }
    if let Some(traceparent) = traceparent {
        request = request.header(traceparent::HEADER, traceparent);
    }
    request.body(Full::new(out.body.clone())).ok()
}

/// Resolves when the answer cannot come any more, because another process runs in the replica, or when the
/// replica is lost and another could take over. With no other, waiting is as good as anything: a process
/// that only hangs may continue.
async fn lost_with_alternative(lease: &Lease) {
    let mut state = lease.replica.watch_state();
    loop {
        if state.wait_for(|state| state.lost || state.incarnation != lease.incarnation).await.is_err() {
            return std::future::pending().await;
        }
        if lease.renewed() || lease.pool().has_alternative(&lease.replica) {
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

/// Everything, or as much as is held back. The flag is true when it is everything.
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
        // Redirects, HTML of some proxy: no engine of ours sends that.
        lease.garbled();
        return Attempt::Failed(Retry::Garbled);
    };
    match code.as_str() {
        "draining" => {
            lease.refused_draining();
            return Attempt::Failed(Retry::Draining);
        }
        // The process is about to end.
        "engine_gone" => {
            lease.broken();
            return Attempt::Failed(Retry::Broken);
        }
        _ => {}
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

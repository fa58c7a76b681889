//! The responses that clients get.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use stowage_openai_api::ApiError;

use crate::relay::refusals::PROBABLE_CAUSE;
use crate::relay::stream::OutBody;

/// An engine's answer.
pub fn success(content_type: Option<HeaderValue>, stream: bool, body: OutBody) -> Response<OutBody> {
    let mut response = Response::new(body);
    let usual = if stream { "text/event-stream" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(usual)));
    if stream {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Proxies in front of us must not collect a stream.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    response
}

/// JSON in hand.
pub fn passed_on(status: StatusCode, body: Bytes, retry_after: Option<HeaderValue>) -> Response<OutBody> {
    let mut response = Response::new(OutBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

pub fn json(value: &impl serde::Serialize) -> Response<OutBody> {
    passed_on(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default().into(), None)
}

pub fn plain(status: StatusCode, text: &str) -> Response<OutBody> {
    let mut response = Response::new(OutBody::full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// No body: the answer to a browser's question.
pub fn empty() -> Response<OutBody> {
    let mut response = Response::new(OutBody::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// `path` is the request's.
pub fn refusal(error: &ApiError, path: &str) -> Response<OutBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = passed_on(status, error.to_json().into(), error.retry_after.map(HeaderValue::from));
    let headers = response.headers_mut();
    if error.code == PROBABLE_CAUSE {
        // OpenAI's libraries obey it; they would repeat any other 5xx.
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    match error.status {
        401 => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        405 => {
            let posted = path.starts_with("/v1/") && !path.starts_with("/v1/models");
            headers.insert(ALLOW, HeaderValue::from_static(if posted { "POST" } else { "GET, HEAD" }));
        }
        _ => {}
    }
    response
}

/// The same answer without its body, as HEAD wants it.
pub fn head_only(mut response: Response<OutBody>) -> Response<OutBody> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| OutBody::full(Bytes::new()))
}

//! Reads a request body: at most so long, at most so large, and not too many at once.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use stowage_openai_api::{ApiError, ErrorKind, Share};

use super::App;
use super::job::Caller;

/// A body, and its part of what all bodies may take. That part is given back when the body is dropped,
/// so keep it until what was made of it is counted elsewhere.
pub(super) struct HeldBody {
    pub(super) bytes: Vec<u8>,
    _room: Share,
}

pub(super) async fn read(app: &App, headers: &HeaderMap, caller: &Caller, body: Body) -> Result<HeldBody, ApiError> {
    refuse_encodings(headers)?;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > app.max_body as u64) {
        return Err(ApiError::body_too_large(app.max_body));
    }
    tokio::time::timeout(app.body_timeout, collect(app, caller, body))
        .await
        .unwrap_or_else(|_| Err(ApiError::body_timeout(app.body_timeout.as_secs())))
}

/// Gateways decode; what reaches the engine is plain.
fn refuse_encodings(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |value: &&axum::http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(|value| is_plain(&value)) {
        return Ok(());
    }
    let message = "The engine takes bodies without content-encoding. Send the body as plain JSON.";
    Err(ApiError::new(415, ErrorKind::InvalidRequest, "unsupported_content_encoding", message))
}

async fn collect(app: &App, caller: &Caller, mut body: Body) -> Result<HeldBody, ApiError> {
    let mut room = app.bodies.share(caller.tenant());
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid_json("The request body broke off. Send it again."))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > app.max_body {
            return Err(ApiError::body_too_large(app.max_body));
        }
        room.grow(data.len()).map_err(|exceeded| {
            let message = format!("Too many large requests are coming in at once: {exceeded}. Try again in a moment.");
            ApiError::unavailable("overloaded", message, 1)
        })?;
        bytes.extend_from_slice(&data);
    }
    Ok(HeldBody { bytes, _room: room })
}

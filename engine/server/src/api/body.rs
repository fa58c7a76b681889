//! Reads a request body: at most so long, at most so large, and not too many at once.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use stowage_openai_api::ApiError;

use super::{App, BodyRoom};

/// All bodies on their way in, together. Beyond it clients are asked to come back.
const TOTAL: usize = 256 << 20;

pub(super) async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > app.max_body as u64) {
        return Err(ApiError::body_too_large(app.max_body));
    }
    tokio::time::timeout(app.body_timeout, collect(app, body))
        .await
        .unwrap_or_else(|_| Err(ApiError::body_timeout(app.body_timeout.as_secs())))
}

async fn collect(app: &App, mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut room = BodyRoom::new(app);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid_json("The request body broke off. Send it again."))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > app.max_body {
            return Err(ApiError::body_too_large(app.max_body));
        }
        if !room.grow(data.len(), TOTAL) {
            let message = "Too many large requests are coming in at once. Try again in a moment.";
            return Err(ApiError::unavailable("overloaded", message, 1));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

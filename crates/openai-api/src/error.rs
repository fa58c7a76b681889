//! OpenAI error objects with the HTTP status they travel with.
//!
//! Every refusal of the data plane is an [`ApiError`]. Its `code` is stable and meant for programs,
//! its `message` is meant for people and says what to change; `param` names the field.

use serde::{Deserialize, Serialize};

/// The body of every response that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

/// As OpenAI defines it: all four keys are always present, unknown ones `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub param: Option<String>,
    #[serde(default)]
    pub code: Option<String>,
}

/// The closed set of `type` values. Also a metric label, so it stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; sending it again changes nothing.
    InvalidRequest,
    /// No credential, or one we do not know.
    Authentication,
    /// Known, but not allowed.
    Permission,
    /// No such model, route or object for this caller.
    NotFound,
    /// Too much for now; `Retry-After` says when.
    RateLimit,
    /// We cannot serve now; `Retry-After` says when.
    Unavailable,
    /// Our fault.
    Internal,
}

impl ErrorKind {
    /// The value of `type` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::RateLimit => "rate_limit_error",
            Self::Unavailable => "service_unavailable_error",
            Self::Internal => "server_error",
        }
    }
}

/// A refusal: status, body, and when to come back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: u16,
    pub kind: ErrorKind,
    /// Stable, for programs: `context_length_exceeded`, `queue_full` …
    pub code: &'static str,
    pub param: Option<String>,
    pub message: String,
    /// Seconds, for the `Retry-After` header.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: u16, kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// 400: the field `param` is wrong.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, ErrorKind::InvalidRequest, code, message).with_param(param)
    }

    /// 400: the body is not the JSON object we need.
    pub fn invalid_json(message: impl Into<String>) -> Self {
        Self::new(400, ErrorKind::InvalidRequest, "invalid_json", message)
    }

    /// 400: the feature exists in the API, and this server does not have it.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, "unsupported_parameter", message)
    }

    /// 400: prompt and answer do not fit into the model's context.
    pub fn context_length(param: &str, message: impl Into<String>) -> Self {
        Self::invalid(param, "context_length_exceeded", message)
    }

    /// 401.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(401, ErrorKind::Authentication, "invalid_api_key", message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, ErrorKind::Permission, "forbidden", message)
    }

    /// 404: OpenAI's wording, which clients match on. Also said of models that others own.
    pub fn model_not_found(model: &str) -> Self {
        let shown: String = model.chars().take(120).collect();
        let message = format!(
            "The model `{shown}` does not exist or you do not have access to it. GET /v1/models lists the ones you can use."
        );
        Self::new(404, ErrorKind::NotFound, "model_not_found", message).with_param("model")
    }

    /// 404: no such route.
    pub fn no_route(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(120).collect();
        let message = format!("Unknown request URL: {method} {path}. Check the path; the API starts at /v1/.");
        Self::new(404, ErrorKind::NotFound, "unknown_url", message)
    }

    /// 405.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(120).collect();
        let message = format!("Not allowed to {method} on {path}. Use the method that the API reference gives.");
        Self::new(405, ErrorKind::InvalidRequest, "method_not_allowed", message)
    }

    /// 413: `limit` in bytes.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("The request body is larger than {limit} bytes. Send a shorter prompt.");
        Self::new(413, ErrorKind::InvalidRequest, "request_too_large", message)
    }

    /// 408: the body did not arrive in time.
    pub fn body_timeout(seconds: u64) -> Self {
        let message = format!("The request body did not arrive within {seconds} s. Send it at once.");
        Self::new(408, ErrorKind::InvalidRequest, "request_timeout", message)
    }

    /// 429 with the time to wait.
    pub fn rate_limited(code: &'static str, message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, ErrorKind::RateLimit, code, message).with_retry_after(retry_after)
    }

    /// 503 with the time to wait.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(503, ErrorKind::Unavailable, code, message).with_retry_after(retry_after)
    }

    /// 500. The message must not carry internals; log those.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, ErrorKind::Internal, "internal_error", message)
    }

    /// 502: what stands behind us failed or answered nonsense.
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(502, ErrorKind::Internal, "bad_gateway", message)
    }

    /// The body on the wire; also what a stream sends as its last event when it breaks.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: self.kind.as_str().to_owned(),
                param: self.param.clone(),
                code: Some(self.code.to_owned()),
            },
        }
    }

    /// The body as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.body()).unwrap_or_else(|_| r#"{"error":{}}"#.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_keys_are_on_the_wire() {
        let json = ApiError::unavailable("draining", "bye", 1).to_json();
        assert_eq!(
            json,
            r#"{"error":{"message":"bye","type":"service_unavailable_error","param":null,"code":"draining"}}"#
        );
    }

    #[test]
    fn errors_of_other_servers_without_param_and_code_can_be_read() {
        let body: ErrorBody = serde_json::from_str(r#"{"error":{"message":"m","type":"t"}}"#).unwrap();
        assert_eq!(body.error.code, None);
    }

    #[test]
    fn a_model_name_of_a_megabyte_is_not_repeated_in_full() {
        assert!(ApiError::model_not_found(&"x".repeat(1 << 20)).message.len() < 400);
    }
}

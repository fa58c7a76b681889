//! OpenAI error objects with the HTTP status they travel with.
//!
//! Every refusal of the data plane is an [`ApiError`]. Its `code` is stable and meant for programs,
//! its `message` is meant for people and names the change to make; `param` names the field.

use serde::{Deserialize, Serialize};

/// The body of every response that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The only key.
    pub error: ErrorObject,
}

/// As OpenAI defines it: all four keys are always present, unknown ones `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// What happened and what to do, for people.
    pub message: String,
    /// One of [`ErrorKind`] from our own servers; anything from others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field that is wrong, if it is one.
    #[serde(default)]
    pub param: Option<String>,
    /// For programs.
    #[serde(default)]
    pub code: Option<String>,
}

/// The closed set of `type` values. Also a metric label, so it stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; sending it again changes nothing.
    InvalidRequest,
    /// No credential, or an unknown one.
    Authentication,
    /// Known, but not allowed.
    Permission,
    /// No such model, route or object for this caller.
    NotFound,
    /// A limit is reached; `Retry-After` gives the time to wait.
    RateLimit,
    /// The service is unavailable; `Retry-After` gives the time to wait.
    Unavailable,
    /// A fault of the server.
    Internal,
}

/// How many tokens a prompt has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCount {
    /// All were counted.
    Exactly(usize),
    /// Counting stopped where it was clear that they do not fit.
    AtLeast(usize),
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
    /// The HTTP status.
    pub status: u16,
    /// The `type` on the wire.
    pub kind: ErrorKind,
    /// Stable, for programs: `context_length_exceeded`, `queue_full` …
    pub code: &'static str,
    /// The field that is wrong, if it is one.
    pub param: Option<String>,
    /// What happened, why, and what to do next.
    pub message: String,
    /// Seconds, for the `Retry-After` header.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// An error without a field and without a time to come back.
    pub fn new(status: u16, kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets after how many seconds another try can succeed.
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

    /// 400: a prompt of `found` tokens (at least, where counting stopped early) does not fit into a
    /// context of `limit`. In OpenAI's words, by which LiteLLM and agents recognise the error and shorten
    /// the conversation; with the code, which LangChain looks for in the message.
    pub fn context_length(param: &str, found: TokenCount, limit: usize) -> Self {
        let found = match found {
            TokenCount::Exactly(tokens) => tokens.to_string(),
            TokenCount::AtLeast(tokens) => format!("at least {tokens}"),
        };
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your {param} resulted in {found} tokens. Please reduce the length of the {param} (context_length_exceeded)."
        );
        Self::invalid(param, "context_length_exceeded", message)
    }

    /// 400: the request is more sequences than the engine ever takes from one tenant, so trying again
    /// cannot help.
    pub fn too_many_sequences(prompts: usize, n: u32, limit: usize) -> Self {
        let message = if prompts == 1 {
            format!("`n` ({n}) is more than the {limit} sequences that fit into the queue. Lower `n`.")
        } else {
            format!(
                "{prompts} prompts with `n` = {n} are {} sequences, and {limit} fit into the queue. Lower `n`, or send fewer prompts.",
                prompts.saturating_mul(n as usize)
            )
        };
        Self::invalid("n", "invalid_value", message)
    }

    /// 401.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(401, ErrorKind::Authentication, "invalid_api_key", message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, ErrorKind::Permission, "forbidden", message)
    }

    /// 404: OpenAI's wording, which clients match on. The same for models that other tenants own.
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

    /// 502: the upstream server failed, or its answer is malformed.
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
    fn context_overflow_is_worded_as_clients_expect() {
        let err = ApiError::context_length("messages", TokenCount::Exactly(9000), 8192);
        assert_eq!(err.code, "context_length_exceeded");
        // LiteLLM looks for the first, LangChain for the last: its client library shows the message alone.
        assert!(err.message.contains("context_length_exceeded"), "{}", err.message);
        assert!(err.message.contains("This model's maximum context length is 8192 tokens."), "{}", err.message);
        assert!(err.message.contains("your messages resulted in 9000 tokens."), "{}", err.message);
        let early = ApiError::context_length("prompt", TokenCount::AtLeast(9000), 8192);
        assert!(early.message.contains("your prompt resulted in at least 9000 tokens."), "{}", early.message);
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

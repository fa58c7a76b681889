//! How a request ended: the closed set that metrics count by, and the errors that clients read.
//!
//! Every refusal of the gateway is made here or in `paths`/`auth`, so that code, status, message and
//! `Retry-After` of one cause stand side by side.

use std::time::Duration;

use stowage_openai_api::ApiError;

use crate::queue::limits::Limited;
use crate::queue::pool::Unplaced;
use crate::world::snapshot::Deployment;

/// Label `outcome` of `stowage_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered to the end.
    Ok,
    /// Refused before it reached an engine: route, JSON, size, time.
    Invalid,
    Unauthenticated,
    ModelNotFound,
    /// The tenant's tokens, concurrency or queue.
    TenantLimited,
    /// The model's queue is full, or its time was over.
    QueueFull,
    /// No replica within the hold.
    NoReplica,
    /// The engine's own refusal (4xx), passed on.
    EngineRefused,
    /// The engine failed (5xx, garbage, lost before the first byte) and so did the retry.
    EngineFailed,
    /// The replica was lost after the first byte.
    StreamBroken,
    /// The client went away first.
    ClientGone,
}

impl Outcome {
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Invalid,
        Self::Unauthenticated,
        Self::ModelNotFound,
        Self::TenantLimited,
        Self::QueueFull,
        Self::NoReplica,
        Self::EngineRefused,
        Self::EngineFailed,
        Self::StreamBroken,
        Self::ClientGone,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::ModelNotFound => "model_not_found",
            Self::TenantLimited => "tenant_limited",
            Self::QueueFull => "queue_full",
            Self::NoReplica => "no_replica",
            Self::EngineRefused => "engine_refused",
            Self::EngineFailed => "engine_failed",
            Self::StreamBroken => "stream_broken",
            Self::ClientGone => "client_gone",
        }
    }
}

/// A refusal with the outcome that it counts as.
#[derive(Debug)]
pub struct Refused {
    pub outcome: Outcome,
    pub error: ApiError,
}

impl Refused {
    pub fn new(outcome: Outcome, error: ApiError) -> Self {
        Self { outcome, error }
    }

    pub fn invalid(error: ApiError) -> Self {
        Self::new(Outcome::Invalid, error)
    }
}

/// What a client is told when its request found no place.
pub fn unplaced(reason: Unplaced, deployment: &Deployment) -> Refused {
    let model = &deployment.model;
    match reason {
        Unplaced::SwitchedOff => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "no_replica",
                format!(
                    "{model} has no replica and none is wanted: its owner set replicas to 0. Ask for at least 1 (kubectl scale infd)."
                ),
                30,
            ),
        ),
        Unplaced::Deleted => Refused::new(Outcome::ModelNotFound, ApiError::model_not_found(model)),
        Unplaced::QueueFull { limit } => Refused::new(
            Outcome::QueueFull,
            ApiError::rate_limited(
                "queue_full",
                format!("{limit} requests wait for {model} already. Send fewer at once, or ask for more replicas."),
                2,
            ),
        ),
        Unplaced::TenantQueueFull { limit } => Refused::new(
            Outcome::TenantLimited,
            ApiError::rate_limited(
                "tenant_queue",
                format!(
                    "{limit} requests of your tenant wait for {model} already, as many as its quota lets wait (tokens.maxQueued)."
                ),
                2,
            ),
        ),
        Unplaced::QueueTimeout { waited } => Refused::new(
            Outcome::QueueFull,
            ApiError::unavailable("queue_timeout", format!("{model} is busy: no room within {}.", seconds(waited)), 5),
        ),
        Unplaced::HoldFull { limit } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "model_waking",
                format!("{model} has no ready replica, and {limit} requests wait for one already."),
                5,
            ),
        ),
        Unplaced::NoReplica { waited, starting: true } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "model_waking",
                format!(
                    "{model} has no ready replica; the request was held for {}. It is starting or waits for a GPU (kubectl stowage explain says which).",
                    seconds(waited)
                ),
                5,
            ),
        ),
        Unplaced::NoReplica { waited, starting: false } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "no_replica",
                format!(
                    "No replica of {model} takes requests: those it has do not answer or drain. The request was held for {}.",
                    seconds(waited)
                ),
                5,
            ),
        ),
    }
}

/// What a client is told when its tenant has used its share.
pub fn limited(reason: Limited, tenant: &str, per_minute: Option<u64>) -> Refused {
    let error = match reason {
        Limited::Tokens { retry_after } => {
            let wait = whole_seconds(retry_after);
            let limit = per_minute.unwrap_or_default();
            ApiError::rate_limited(
                "tenant_tokens",
                format!("{tenant} used its {limit} tokens per minute; enough are free in {wait} s."),
                wait,
            )
        }
        Limited::Concurrent { limit } => ApiError::rate_limited(
            "tenant_concurrency",
            format!(
                "{tenant} has {limit} requests in flight, as many as its quota allows (tokens.maxConcurrent). Wait for one to end."
            ),
            1,
        ),
    };
    Refused::new(Outcome::TenantLimited, error)
}

/// The engine was lost, and the retry with it.
pub fn engine_lost(model: &str) -> Refused {
    Refused::new(
        Outcome::EngineFailed,
        ApiError::new(
            502,
            stowage_openai_api::ErrorKind::Internal,
            "engine_lost",
            format!("The replicas of {model} that had this request were lost before they answered. Nothing was sent; ask again."),
        )
        .with_retry_after(1),
    )
}

/// The last event of a stream whose replica went away.
pub fn stream_broken(model: &str) -> ApiError {
    ApiError::new(
        502,
        stowage_openai_api::ErrorKind::Internal,
        "stream_broken",
        format!(
            "The replica of {model} that wrote this answer was lost. What was sent is valid but not complete; ask again."
        ),
    )
}

fn whole_seconds(wait: Duration) -> u32 {
    (wait.as_secs_f64().ceil() as u32).max(1)
}

fn seconds(wait: Duration) -> String {
    if wait < Duration::from_secs(1) { format!("{} ms", wait.as_millis()) } else { format!("{} s", wait.as_secs()) }
}

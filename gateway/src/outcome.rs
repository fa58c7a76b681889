//! How a request ended: the closed set that metrics count by.

use stowage_openai_api::ApiError;

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

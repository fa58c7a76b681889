//! What the watches, a static file or a test deliver, object by object and not yet judged.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::listen::credentials::KeyHash;
use crate::world::salt::SaltKey;

/// Everything observed, not yet judged.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    pub quotas: Vec<QuotaFact>,
    /// By Secret name.
    pub secrets: BTreeMap<String, SecretKeys>,
    /// `None` while no Secret holds one: then no model is shared between tenants.
    pub salt_key: Option<SaltKey>,
    pub deployments: Vec<DeploymentFact>,
    pub pods: Vec<PodFact>,
    /// UUIDs of GPUs on which no work may run.
    pub unhealthy_gpus: HashSet<String>,
}

/// The keys in a Secret of our type, each by its name there.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SecretKeys {
    pub hashes: Vec<(String, KeyHash)>,
    /// Keys whose value is no hash.
    pub unreadable: Vec<String>,
}

/// A TenantQuota, as far as the data plane reads it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct QuotaFact {
    pub name: String,
    /// Seconds since the epoch; the older object wins.
    pub created: i64,
    pub namespaces: Vec<String>,
    pub key_secrets: Vec<String>,
    /// `spec.models.from`: tenants whose shared models this one may call by their bare names.
    pub models_from: Vec<String>,
    pub limits: TokenLimits,
}

/// `TenantQuota.spec.tokens`; `None` is unlimited.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct TokenLimits {
    pub per_minute: Option<u64>,
    /// Time's worth of `per_minute` that may be used at once.
    pub burst: Option<Duration>,
    pub max_concurrent: Option<u32>,
    pub max_queued: Option<u32>,
}

/// An InferenceDeployment, as far as the data plane reads it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct DeploymentFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: i64,
    pub model: String,
    pub access: Vec<String>,
    pub hold: Option<Duration>,
    pub max_held: Option<usize>,
    /// Within which a replica starts; `None`: not measured.
    pub cold_start: Option<Duration>,
    /// No replica will be started: Manual mode with `replicas: 0`.
    pub switched_off: bool,
    /// Its deletion has begun: what runs there finishes, nothing new begins.
    pub deleting: bool,
    pub max_model_len: Option<u32>,
    /// Time to first token and between tokens; `None`: nothing is promised.
    pub objectives: Option<(Duration, Duration)>,
}

/// A pod of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct PodFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deployment: String,
    /// Uid of the owning InferenceDeployment; `None` where the source has none (static files).
    pub owner_uid: Option<String>,
    /// `None` until the pod has an address.
    pub address: Option<SocketAddr>,
    pub ready: bool,
    /// Being deleted, or annotated as draining.
    pub draining: bool,
    /// Uuids of the GPUs that it was placed on.
    pub gpus: Vec<String>,
}

//! The cluster in one answer, `GET /stowage/v1/overview`: every GPU with its slices, every deployment and tenant. The
//! operator writes it; `kubectl stowage top` and `dashboard` draw it.
//!
//! What was not measured is absent, and readings carry their age.

use serde::{Deserialize, Serialize};

use stowage_contracts::summary::Health;

/// Where the operator serves it.
pub const PATH: &str = "/stowage/v1/overview";

/// The state that the last plan was made from, and what the plan made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// When the state was looked at, milliseconds since the epoch.
    pub at_ms: u64,
    /// Why planning is paused; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// What could not be read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// By node and index.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// By namespace and name.
    #[serde(default)]
    pub deployments: Vec<Deployment>,
    /// By name.
    #[serde(default)]
    pub tenants: Vec<Tenant>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Name of the node.
    pub node: String,
    /// The driver's index.
    pub index: u32,
    /// As NVML prints it.
    pub uuid: String,
    /// Product name, as NVML prints it.
    pub product: String,
    /// Its GpuClass; empty: none selects it.
    #[serde(default)]
    pub class: String,
    /// Whether work may run on it.
    pub health: Health,
    /// Why it is not healthy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why nothing is placed here though the GPU is healthy: the node's state; empty: nothing of the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub closed: String,
    /// The GPU is simulated.
    #[serde(default)]
    pub simulated: bool,
    /// Bytes that can be promised.
    pub memory_bytes: u64,
    /// Bytes in use; absent: not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Per cent of the SMs in use; absent: not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_sm_percent: Option<u32>,
    /// Age of what is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// What is promised on it.
    #[serde(default)]
    pub slices: Vec<Slice>,
}

/// A promise on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    /// Empty: a claim that belongs to no tenant.
    #[serde(default)]
    pub tenant: String,
    /// `namespace/name` of the deployment, or of a claim that is not a replica's.
    pub owner: String,
    /// Bytes.
    pub memory_bytes: u64,
    /// Per cent.
    pub sm_percent: u32,
}

/// One InferenceDeployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Empty: none.
    #[serde(default)]
    pub tenant: String,
    /// The condition's reason, for example `OnTarget`.
    pub state: String,
    /// Whether it is as it should be, or needs nothing but time.
    pub well: bool,
    /// Replicas that are wanted.
    pub wanted: u32,
    /// Replicas that take requests.
    pub ready: u32,
    /// Most replicas that the spec allows; absent: a fixed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<u32>,
    /// Per hour, in millionths of the currency; absent: a class has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_hour_micros: Option<u64>,
    /// Of the price.
    #[serde(default)]
    pub currency: String,
    /// Requests that arrived per second, in thousandths; absent: not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals_milli: Option<u64>,
    /// Requests that run, wait, or wait for a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Predicted at the load of now, microseconds: time to first token and between tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_us: Option<(u64, u64)>,
    /// Why it is so, as one sentence.
    #[serde(default)]
    pub message: String,
}

/// Requests of one deployment at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// On replicas.
    pub running: u64,
    /// Wait for room.
    pub queued: u64,
    /// Wait for a replica.
    pub held: u64,
}

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// The TenantQuota's name.
    pub name: String,
    /// By class.
    pub usage: Vec<Usage>,
    /// Deployments that quota holds back.
    #[serde(default)]
    pub waiting: u32,
}

/// What a tenant holds of one class, in thousandths of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Usage {
    pub class: String,
    pub nominal_milli: u64,
    pub held_milli: u64,
    pub borrowed_milli: u64,
    pub pending_milli: u64,
}

// === impl Gpu ===

impl Gpu {
    /// Bytes that are promised.
    pub fn promised_bytes(&self) -> u64 {
        self.slices.iter().map(|slice| slice.memory_bytes).fold(0, u64::saturating_add)
    }

    /// Per cent of the SMs that are promised.
    pub fn promised_sm_percent(&self) -> u32 {
        self.slices.iter().map(|slice| slice.sm_percent).fold(0, u32::saturating_add)
    }
}

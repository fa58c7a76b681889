//! What the cluster has: nodes, their GPUs, what is promised on them, and the classes of GPUs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stowage_contracts::model::ModelKey;

use crate::snapshot::{MigProfile, Promise, ReplicaId, TenantId};

/// CPU, memory and pod slots of a node: what it has, or what is taken of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Resources {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub pods: u32,
}

/// How much what we know of a node may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Freshness {
    Fresh {
        age_ms: u64,
    },
    /// Older than the operator's limit: nothing is placed there and nothing there is ended for what
    /// was last read. Stale is never zero capacity.
    Stale {
        age_ms: u64,
    },
    /// No data was ever received: no GpuNode or no ResourceSlice.
    Missing,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Node {
    pub name: String,
    /// The Kubernetes `Ready` condition is `True`.
    pub ready: bool,
    /// `spec.unschedulable`.
    #[serde(default)]
    pub cordoned: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    /// Requests of **all** pods bound here, ours and the journal's included.
    #[serde(default)]
    pub used: Resources,
    /// Host ports taken by pods here.
    #[serde(default)]
    pub host_ports: Vec<u16>,
    pub freshness: Freshness,
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Model keys whose weights lie on this node (see `Deployment::model_key`).
    #[serde(default)]
    pub cached_models: Vec<ModelKey>,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Gpu {
    pub uuid: String,
    /// NVML's index: the stable order inside a node.
    pub index: u32,
    pub product: String,
    /// The GpuClass that selects this product; `None`: no class does, nothing can be placed here.
    pub class: Option<String>,
    /// As published in the ResourceSlice, that is, floored to the step.
    pub memory_bytes: u64,
    /// Requests are rounded up to a multiple of this, as the scheduler does. 0 means no rounding.
    pub memory_step_bytes: u64,
    /// As published; 100 for a whole GPU.
    pub sm_percent: u32,
    pub health: Health,
    /// NVLink island inside the node. `None`: unknown or none, the GPU is an island of its own.
    #[serde(default)]
    pub island: Option<String>,
    /// NUMA node of its PCI slot. A group prefers one; `None`: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// In MIG mode: the kinds of devices it can be cut into. `None`: it is not in MIG mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Vec<MigProfile>>,
    /// Everything promised on this GPU: allocated claims, claims of ours that the scheduler has yet
    /// to allocate, and the journal's. A slice of a terminating replica stays until its claim is gone.
    #[serde(default)]
    pub slices: Vec<Slice>,
}

/// Whether a GPU may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Health {
    Healthy,
    /// Works, but is chosen only when no healthy GPU is left.
    Degraded {
        reason: String,
    },
    /// Nothing is placed here; replicas here are replaced.
    Unhealthy {
        reason: String,
    },
}

/// A promise on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Slice {
    pub owner: SliceOwner,
    /// `None`: a claim that belongs to no tenant; every tenant counts it as another tenant's.
    pub tenant: Option<TenantId>,
    #[serde(flatten)]
    pub promise: Promise,
    /// The owner's isolation: a dedicated slice keeps others away after it was placed, too.
    #[serde(default)]
    pub isolation: Isolation,
}

/// Who holds a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum SliceOwner {
    Replica(ReplicaId),
    /// A claim on our class that is not a replica's, or whose deployment is gone: `namespace/name`.
    Foreign {
        claim: String,
    },
}

/// Who may stand beside this deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Isolation {
    /// Anyone the class allows.
    #[default]
    Shared,
    /// No slice of another deployment on its GPUs.
    #[serde(rename = "DedicatedGPU")]
    DedicatedGpu,
    /// No slice of another tenant on its node.
    DedicatedNode,
}

/// A node taint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Taint {
    pub key: String,
    #[serde(default)]
    pub value: String,
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum TaintEffect {
    NoSchedule,
    /// A wish, which placement ignores.
    PreferNoSchedule,
    NoExecute,
}

/// A GpuClass as far as placement cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Class {
    pub name: String,
    /// Whether two tenants may share one GPU of the class without MIG.
    #[serde(default)]
    pub allow_soft_sharing: bool,
    /// Price of a whole GPU in millionths of the currency; `None`: not priced.
    #[serde(default)]
    pub price_per_hour_micros: Option<u64>,
    /// Of the price.
    #[serde(default)]
    pub currency: String,
}

//! What is asked for: deployments, and the ways in which a replica may be built.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stowage_contracts::model::ModelKey;

use crate::snapshot::{
    DeploymentId, Isolation, Memory, Partition, Replica, Scaling, Signals, Slot, TaintEffect, TenantId, TimeMs,
};

/// A pod toleration; `None` matches everything in that place, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Toleration {
    pub key: Option<String>,
    /// `None` is operator `Exists`.
    pub value: Option<String>,
    pub effect: Option<TaintEffect>,
}

/// An InferenceDeployment as far as decisions need it, with its pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Deployment {
    pub id: DeploymentId,
    pub uid: String,
    /// `metadata.generation` that the rest of this struct was read at.
    pub generation: u64,
    /// The tenant that the namespace belongs to; `None` is refused with `NoTenant`.
    pub tenant: Option<TenantId>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    pub created_ms: TimeMs,
    /// Replicas asked for (`spec.replicas`) in `Manual` mode. In the other modes the count that the last
    /// plan is known to have settled on (`status.desiredReplicas`), for a rule without memory; 0: not known.
    pub wanted: u32,
    /// Who decides the number of replicas, and within which bounds.
    #[serde(default)]
    pub scaling: Scaling,
    /// What was measured since the last plan; not needed in `Manual` mode.
    #[serde(default)]
    pub signals: Signals,
    /// As the last plan returned it.
    #[serde(default)]
    pub memory: Memory,
    /// The ways in which one replica may be built. Which one is taken follows from `objective` and
    /// from what fits, never from their order.
    pub variants: Vec<Variant>,
    /// What is preferred among the variants and nodes that fit.
    #[serde(default)]
    pub objective: Objective,
    /// What the pod requests of its node besides GPUs.
    pub needs: Needs,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// Over which domains the replicas are spread, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    #[serde(default)]
    pub isolation: Isolation,
    /// Identity of the weights, compared with `Node::cached_models`; empty: unknown.
    #[serde(default)]
    pub model_key: ModelKey,
    /// Hash over all that needs a new pod when it changes.
    pub spec_hash: String,
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// What is remembered of slots whose pods are gone.
    #[serde(default)]
    pub slots: Vec<Slot>,
    /// The API server refuses new pods of the deployment: none is planned until then.
    #[serde(default)]
    pub held: Option<Hold>,
    /// The object has a deletion timestamp: drain and remove everything.
    #[serde(default)]
    pub deleting: bool,
    /// With `deleting`: remove without drain.
    #[serde(default)]
    pub force_delete: bool,
    pub drain_timeout_ms: u64,
}

/// Replicas are to be spread over the values of a node label. A preference: a replica that finds room only in a
/// domain that has more than its part is placed there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spread {
    /// The label; nodes of one value are a domain.
    pub topology_key: String,
    /// Replicas that a domain may have more than the emptiest one. At least 1.
    pub max_skew: u32,
}

/// What is preferred among the variants and nodes that fit. Healthy GPUs come before degraded ones
/// whatever is preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Objective {
    /// What leaves the cluster most useful for the replicas to be expected.
    #[default]
    Packing,
    /// The lowest price per hour of the slices, then packing. Without a price: after all that have one.
    Cost,
    /// The lowest predicted inter-token latency, then packing. Unknown: after all that are known.
    Latency,
}

/// Requests of a replica's pod that every node has, and ports that it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Needs {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    #[serde(default)]
    pub host_ports: Vec<u16>,
}

/// One way in which a replica may be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Variant {
    pub name: String,
    pub accelerator: Accelerator,
    /// Predicted inter-token latency of a replica of this variant at its planned load, in
    /// microseconds; `None`: unknown.
    #[serde(default)]
    pub itl_us: Option<u64>,
}

/// The device that a variant runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Accelerator {
    Gpu {
        class: String,
        /// GPUs of one replica (tensor parallel, inside one NVLink island). At least 1.
        count: u32,
        /// Of each GPU.
        #[serde(flatten)]
        partition: Partition,
    },
    /// Only if the user lists it. Adds to [`Deployment::needs`].
    Cpu { cpu_milli: u64, memory_bytes: u64 },
}

/// Since when a deployment has waited for room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Waiting {
    /// Which.
    pub deployment: DeploymentId,
    /// The first of its slots that waits.
    pub index: u32,
    /// When that slot was first refused. Where it is placed, or is about to be, the wait is over.
    pub since_ms: TimeMs,
}

/// A replica that was made to move so that one of another deployment fits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecentMove {
    /// When the move was decided.
    pub at_ms: TimeMs,
    /// Whose replica was to have the room.
    pub claimant: TenantId,
    /// Whose replica moved.
    pub deployment: DeploymentId,
    /// Its slot.
    pub index: u32,
}

/// New pods of a deployment are refused by the API server (a quota, a policy): an attempt now would
/// be refused again, and its place may serve another deployment meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// The next attempt.
    pub until_ms: TimeMs,
    /// What was refused, why, and what to do.
    pub message: String,
}

// === impl Accelerator ===

impl Accelerator {
    /// The GPU class; `None`: CPU only.
    pub fn class(&self) -> Option<&String> {
        match self {
            Accelerator::Gpu { class, .. } => Some(class),
            Accelerator::Cpu { .. } => None,
        }
    }
}

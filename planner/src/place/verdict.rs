//! The verdict of placement on one replica, as data.

use serde::{Deserialize, Serialize};

use crate::snapshot::{GpuShare, Placement, TenantId, TimeMs};

/// Stage three: where, for one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementVerdict {
    pub index: u32,
    pub ask: Ask,
    pub winner: Option<Winner>,
    /// Nodes that fit, best first, the winner included; at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// Number of nodes that fit, listed or not.
    pub fitting: u32,
    /// One per node that does not fit, sorted by node.
    pub refusals: Vec<NodeRefusal>,
}

pub const MAX_CANDIDATES: usize = 8;

/// What one replica asks for, after rounding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    pub variant: String,
    /// `None`: CPU only.
    pub class: Option<String>,
    pub gpus: u32,
    /// Per GPU; `None`: whole.
    pub memory_bytes: Option<u64>,
    pub sm_percent: Option<u32>,
    pub cpu_milli: u64,
    pub node_memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Winner {
    pub placement: Placement,
    /// What set it apart from the second best.
    pub because: Because,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Because {
    OnlyFit,
    /// Only it had healthy GPUs left (the others are degraded).
    Healthier,
    /// Fragments less, in milli-GPU that expected replicas could no longer use.
    FragmentsLeast {
        winner_milli: i64,
        next_node: String,
        next_milli: i64,
    },
    ModelCached,
    /// Leaves the node more evenly and tightly filled.
    TightFit {
        next_node: String,
    },
    /// Equal in all that counts; the first by name.
    StableOrder,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub node: String,
    pub gpus: Vec<GpuShare>,
    pub score: Score,
}

/// Compared in the order of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Score {
    /// A degraded GPU is taken: worse than any healthy one.
    pub degraded: bool,
    /// Bucketed gradient, more is better.
    pub bucket: i64,
    pub model_cached: bool,
    /// Lower is better, in thousandths.
    pub tightness: i64,
    /// Free milli-GPU on the node that expected replicas cannot use, before and after.
    pub frag_before_milli: i64,
    pub frag_after_milli: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRefusal {
    pub node: String,
    #[serde(flatten)]
    pub reason: Refusal,
}

/// Why a node cannot take a replica. Variant names are metric labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Refusal {
    NotReady,
    Cordoned,
    /// Nothing is placed on data this old.
    Stale {
        age_ms: u64,
    },
    NoData,
    Selector {
        key: String,
        want: String,
        have: Option<String>,
    },
    Taint {
        key: String,
        value: String,
    },
    Excluded {
        until_ms: TimeMs,
        message: String,
    },
    /// The node has no GPU of the class; these it has.
    NoSuchClass {
        have: Vec<String>,
    },
    Unhealthy {
        gpu: String,
        message: String,
    },
    /// Isolation keeps them apart: on the node, or on every GPU that had room.
    OtherTenant {
        gpu: Option<String>,
        tenant: Option<TenantId>,
        rule: IsolationRule,
    },
    /// Most free on one GPU that may be used.
    Memory {
        need_bytes: u64,
        free_bytes: u64,
        gpu: String,
    },
    Compute {
        need_percent: u32,
        free_percent: u32,
        gpu: String,
    },
    /// Enough GPUs in the node, not in one island.
    Island {
        need: u32,
        largest: u32,
    },
    NodeCpu {
        need_milli: u64,
        free_milli: u64,
    },
    NodeMemory {
        need_bytes: u64,
        free_bytes: u64,
    },
    NodePods {
        limit: u32,
    },
    HostPort {
        port: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IsolationRule {
    /// The class does not let two tenants share one GPU.
    SoftSharingNotAllowed,
    /// The asking deployment wants its GPUs or its node for itself.
    OwnIsolation,
    /// One that is already there does.
    TheirIsolation,
}

//! The verdict of placement on one replica, as data.

use serde::{Deserialize, Serialize};

use crate::snapshot::{GpuShare, Partition, Placement, Shared, TenantId, TimeMs};

/// Stage three: where, for one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct PlacementVerdict {
    pub index: u32,
    pub ask: Ask,
    pub winner: Option<Winner>,
    /// Places that fit, best first, the winner included; at most [`MAX_CANDIDATES`].
    pub candidates: Shared<Vec<Candidate>>,
    /// Number of nodes that fit with the winner's variant, listed or not.
    pub fitting: u32,
    /// Number of nodes looked at.
    pub nodes: u32,
    /// Why nodes do not fit, where none does: largest group first.
    pub refusals: Vec<RefusalGroup>,
}

/// Places listed in one verdict.
pub const MAX_CANDIDATES: usize = 8;
/// Nodes listed in one group of refusals.
pub const MAX_EXAMPLES: usize = 8;

/// What one replica asks for, after rounding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Ask {
    pub variant: String,
    /// `None`: CPU only.
    pub class: Option<String>,
    pub gpus: u32,
    /// Of each GPU.
    #[serde(flatten)]
    pub partition: Partition,
    pub cpu_milli: u64,
    pub node_memory_bytes: u64,
}

/// The place that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Winner {
    pub placement: Placement,
    /// What set it apart from the second best.
    pub because: Because,
}

/// What set the chosen place apart from the second best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Because {
    OnlyFit,
    /// The lowest price per hour (objective Cost); in millionths of the currency.
    Cheapest {
        winner_micros: u64,
        next_variant: String,
        /// `None`: not priced.
        next_micros: Option<u64>,
    },
    /// The lowest predicted inter-token latency (objective Latency); in microseconds.
    Fastest {
        winner_us: u64,
        next_variant: String,
        /// `None`: unknown.
        next_us: Option<u64>,
    },
    /// The next is a CPU variant, which is taken only where no GPU fits.
    HasGpu {
        next_variant: String,
    },
    /// Only it had healthy GPUs left (the others are degraded).
    Healthier,
    /// Fewer replicas are in its domain of the label.
    Spreads {
        topology_key: String,
        next_node: String,
        /// In the domain of the next node.
        next_replicas: u32,
    },
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

/// One place that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Candidate {
    pub node: String,
    /// Name of the variant that would be built there.
    pub variant: String,
    pub gpus: Vec<GpuShare>,
    pub score: Score,
}

/// Compared in the order of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Score {
    /// A degraded GPU is taken: worse than any healthy one.
    pub degraded: bool,
    /// Replicas that the domain would have more than its part, where replicas are to be spread.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crowding: u32,
    /// Bucketed gradient, more is better.
    pub bucket: i64,
    pub model_cached: bool,
    /// How loosely and unevenly the node would be filled; lower is better, in millionths.
    pub tightness: i64,
    /// Free milli-GPU on the node that expected replicas cannot use, before and after.
    pub frag_before_milli: i64,
    pub frag_after_milli: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Nodes refused for one kind of reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusalGroup {
    /// How many nodes.
    pub nodes: u32,
    /// Some of them, at most [`MAX_EXAMPLES`]: where a size is short those that come nearest, then by
    /// name.
    pub examples: Vec<NodeRefusal>,
}

/// One node that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct NodeRefusal {
    pub node: String,
    #[serde(flatten)]
    pub reason: Refusal,
}

/// Why a node cannot take a replica. Variant names are metric labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
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
    /// It fits, and would be borrowed; the node is kept for a replica that takes back what is its tenant's own.
    Held {
        claimant: TenantId,
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
    /// A slice or a whole GPU is asked for, and the GPU is in MIG mode.
    InMigMode {
        gpu: String,
        offered: Vec<String>,
    },
    /// No GPU of the node can be cut into such a device; `offered` is empty where the GPU is not in MIG mode.
    NoMigProfile {
        profile: String,
        gpu: String,
        offered: Vec<String>,
    },
    /// Too few memory slices are free, or not side by side where such a device may begin.
    MigSlices {
        profile: String,
        need_slices: u32,
        free_slices: u32,
        gpu: String,
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

/// Which rule keeps two tenants or deployments apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IsolationRule {
    /// The class does not let two tenants share one GPU.
    SoftSharingNotAllowed,
    /// The asking deployment wants its GPUs or its node for itself.
    OwnIsolation,
    /// One that is already there does.
    TheirIsolation,
}

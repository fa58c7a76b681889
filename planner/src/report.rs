//! Why the plan is what it is, as data.
//!
//! The one source for conditions, events, metrics, Grafana annotations and `kubectl stowage
//! explain`; prose is rendered from it in [`crate::render`]. Lists are sorted by identity, so equal
//! decisions serialize to equal bytes.

use serde::{Deserialize, Serialize};

use crate::plan::{BasedOn, CreateReason, EndReason};
use crate::snapshot::{DeploymentId, GpuShare, Overshoot, Placement, ReplicaId, TenantId, TimeMs};

#[must_use = "an unread report explains nothing"]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionReport {
    pub at: TimeMs,
    pub based_on: BasedOn,
    /// Sorted by deployment; one for each in the snapshot.
    pub deployments: Vec<DeploymentReport>,
    /// Sorted by tenant; holdings after the plan is carried out.
    pub tenants: Vec<TenantReport>,
    pub cluster: ClusterReport,
    /// What is decided now, one record per change or refusal.
    pub records: Vec<DecisionRecord>,
    /// The earliest time at which the answer changes by itself (a back-off or a deadline ends).
    pub wake_at: Option<TimeMs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentReport {
    pub deployment: DeploymentId,
    pub generation: u64,
    pub tenant: Option<TenantId>,
    pub outcome: Outcome,
    pub counts: Counts,
    pub scale: ScaleVerdict,
    pub quota: QuotaVerdict,
    /// One per replica that is wanted, allowed and not there, by slot.
    pub placements: Vec<PlacementVerdict>,
    /// Slots that must wait although there may be room.
    pub waits: Vec<Wait>,
    /// Single changes, each verified by deciding again with the change applied.
    pub counterfactuals: Vec<Counterfactual>,
    /// Oldest input of a node that this decision could have used, and the nodes that were too old.
    pub oldest_input_ms: u64,
    pub stale_nodes: Vec<String>,
    /// Why no pod of it that lives at present is Ready where it should be, one line per replica.
    pub troubles: Vec<Trouble>,
}

/// The deployment's state in one word: the condition's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// As many Ready replicas of the present spec as wanted.
    OnTarget,
    /// All wanted replicas exist; some are not Ready yet.
    Starting,
    /// Replicas are being created, replaced or ended.
    Progressing,
    /// No node fits.
    WaitingForGPU,
    /// The tenant's quota does not allow more.
    WaitingForQuota,
    /// The namespace belongs to no TenantQuota.
    NoTenant,
    /// A slot failed and waits before the next attempt.
    BackOff,
    /// Nodes that might serve it have stale data: nothing is decided on what is not known.
    StaleInput,
    /// The deployment is being deleted.
    Draining,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// By the user or the scaling rule.
    pub wanted: u32,
    /// What quota grants of it.
    pub granted: u32,
    /// Pods that count towards it: not draining, failed or terminating.
    pub current: u32,
    pub ready: u32,
    /// Ready and of the present spec.
    pub updated_ready: u32,
    /// Pods after this plan.
    pub desired: u32,
}

/// Stage one: how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ScaleVerdict {
    Manual { replicas: u32 },
    Deleting,
}

/// Stage two: may they.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum QuotaVerdict {
    /// All that is wanted.
    Granted {
        borrowed_milli: u64,
    },
    /// `granted` of `asked` replicas.
    Partial {
        granted: u32,
        asked: u32,
        limit: QuotaLimit,
    },
    NoTenant {
        namespace: String,
    },
    /// Needs no GPU.
    NotNeeded,
}

/// What stopped the next replica, in milli-GPU of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaLimit {
    pub class: String,
    /// Charge of the replica that was refused.
    pub replica_milli: u64,
    /// Held by the tenant, everything granted before it in this plan included.
    pub held_milli: u64,
    pub nominal_milli: u64,
    pub borrowing_limit_milli: Option<u64>,
    /// What the cohort had left to lend at that point.
    pub cohort_free_milli: u64,
    pub binding: QuotaBinding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum QuotaBinding {
    /// The class is not in the tenant's quota.
    ClassNotInQuota,
    /// Nominal is used and there is no cohort to borrow from.
    NominalQuota,
    BorrowingLimit,
    /// The cohort has nothing left to lend.
    CohortExhausted,
}

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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Wait {
    /// After failures in a row.
    BackOff { index: u32, until_ms: TimeMs, failures: u32 },
    /// A rollout waits: ending one more would leave too few Ready.
    Availability { index: u32, pod: String },
    /// Ended for its data being stale would be wrong; nothing happens until it is fresh.
    FreshInput { index: u32, node: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counterfactual {
    pub change: Change,
    /// Replicas more that would be placed.
    pub gains: u32,
    /// Where the first of them would go.
    pub placement: Placement,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Change {
    /// A TenantQuota that lists the namespace and has this much of the class.
    AddTenantQuota {
        namespace: String,
        class: String,
        nominal_milli: u64,
    },
    RaiseNominal {
        tenant: TenantId,
        class: String,
        to_milli: u64,
    },
    RaiseBorrowingLimit {
        tenant: TenantId,
        class: String,
        to_milli: u64,
    },
    /// Scale another deployment in, by this many replicas.
    ScaleIn {
        deployment: DeploymentId,
        by: u32,
        to: u32,
    },
    /// A foreign claim goes.
    RemoveClaim {
        claim: String,
    },
    /// The node's data are fresh again.
    NodeFresh {
        node: String,
    },
    NodeReady {
        node: String,
    },
    Uncordon {
        node: String,
    },
    Tolerate {
        node: String,
        key: String,
    },
    GpuHealthy {
        node: String,
        gpu: String,
    },
    AllowSoftSharing {
        class: String,
    },
    /// A smaller slice of this size would fit as things are.
    LowerMemory {
        to_bytes: u64,
    },
    LowerCompute {
        to_percent: u32,
    },
    /// Another node like the named one, empty.
    AddNode {
        like: String,
    },
    /// Nothing but time.
    WaitUntil {
        at: TimeMs,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    pub replica: ReplicaId,
    pub pod: String,
    pub what: TroubleKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TroubleKind {
    Unscheduled { message: String, for_ms: u64 },
    Unprepared { message: String, for_ms: u64 },
    Failed { message: String },
    Unready,
    UnhealthyGpu { gpu: String, message: String },
    NodeLost { node: String },
    Overshoot { evidence: Overshoot },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantReport {
    pub tenant: TenantId,
    /// Sorted by class.
    pub usage: Vec<ClassUsage>,
    /// Deployments that quota holds back, in the order in which they will be served.
    pub waiting: Vec<DeploymentId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassUsage {
    pub class: String,
    pub nominal_milli: u64,
    /// All that the tenant's slices are charged, after this plan.
    pub held_milli: u64,
    pub borrowed_milli: u64,
    /// Of nominal, in use by others.
    pub lent_milli: u64,
    /// Asked for and not granted.
    pub pending_milli: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterReport {
    pub gpus: u32,
    pub healthy_gpus: u32,
    pub total_milli: u64,
    pub promised_milli: u64,
    /// Free milli-GPU that expected replicas cannot use.
    pub fragmented_milli: u64,
    pub stale_nodes: u32,
}

/// One line of the decision log. `fingerprint` is equal for equal decisions whatever the time and the
/// ages, so that a decision repeated every five seconds is logged once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// Unique in one cluster: time and place in the report.
    pub id: String,
    pub time: TimeMs,
    pub kind: RecordKind,
    pub object: DeploymentId,
    pub replica: Option<ReplicaId>,
    /// What made it necessary: an enum's name, for labels.
    pub trigger: Trigger,
    /// Place, Create, Drain, Remove or Wait.
    pub action: RecordAction,
    /// One sentence: what, and why.
    pub message: String,
    pub inputs: Vec<InputAge>,
    pub counts: Counts,
    pub candidates: Vec<Candidate>,
    pub refusals: Vec<NodeRefusal>,
    pub winner: Option<Winner>,
    pub counterfactual: Option<Counterfactual>,
    pub evidence: Option<Overshoot>,
    pub fingerprint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecordKind {
    Place,
    Scale,
    Evict,
    Reclaim,
    Health,
    Rollout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecordAction {
    Create,
    Drain,
    Remove,
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Trigger {
    Created(CreateReason),
    Ended(EndReason),
    Waits(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputAge {
    /// `node/<name>`.
    pub source: String,
    pub age_ms: u64,
}

// === impl DecisionReport ===

impl DecisionReport {
    pub fn of(&self, id: &DeploymentId) -> Option<&DeploymentReport> {
        self.deployments.iter().find(|d| &d.deployment == id)
    }
}

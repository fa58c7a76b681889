//! Why the plan is what it is, as data.
//!
//! The one source for conditions, events, metrics, Grafana annotations and `kubectl stowage
//! explain`; prose is rendered from it in [`crate::explain::render`]. Lists are sorted by identity, so equal
//! decisions serialize to equal bytes.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

pub use crate::decide::capacity::CapacityAsk;
pub use crate::decide::defragment::MoveVerdict;
pub use crate::demand::{Prediction, ScaleReason, ScaleVerdict, Signal, WithdrawnFor};
pub use crate::lifecycle::{Trouble, TroubleKind, Wait};
pub use crate::place::{
    Ask, Because, Candidate, IsolationRule, MAX_CANDIDATES, MAX_EXAMPLES, NodeRefusal, PlacementVerdict, Refusal,
    RefusalGroup, Score, Winner,
};
use crate::plan::{BasedOn, CreateReason, EndReason, ResumeReason};
pub use crate::quota::{ClassUsage, QuotaBinding, QuotaLimit, QuotaVerdict, Spend};
use crate::snapshot::{
    DecayedShare, DeploymentId, Overshoot, Placement, RecentMove, ReplicaId, Shared, TenantId, TimeMs, Waiting,
};

/// Why one plan is what it is.
#[must_use = "an unread report explains nothing"]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DecisionReport {
    pub at: TimeMs,
    pub based_on: BasedOn,
    /// Sorted by deployment; one for each in the snapshot.
    pub deployments: Vec<DeploymentReport>,
    /// Sorted by tenant; holdings after the plan is carried out.
    pub tenants: Vec<TenantReport>,
    pub cluster: ClusterReport,
    /// What tenants of cohorts borrowed of late: the next snapshot's [`Snapshot::shares`](crate::Snapshot::shares).
    #[serde(default)]
    pub shares: Vec<DecayedShare>,
    /// Since when deployments have waited for room: the next snapshot's [`Snapshot::waiting`](crate::Snapshot::waiting).
    /// Sorted by deployment.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Which replicas were made to move of late, and for whom: the next snapshot's
    /// [`Snapshot::recent_moves`](crate::Snapshot::recent_moves). Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_moves: Vec<RecentMove>,
    /// What is decided now, one record per change or refusal.
    pub records: Vec<DecisionRecord>,
    /// The earliest time at which the answer changes by itself (a back-off or a deadline ends).
    pub wake_at: Option<TimeMs>,
}

/// Everything decided about one deployment, with the reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DeploymentReport {
    pub deployment: DeploymentId,
    pub generation: u64,
    pub tenant: Option<TenantId>,
    pub outcome: Outcome,
    pub counts: Counts,
    pub scale: ScaleVerdict,
    /// What clients can expect once all replicas of this plan serve.
    #[serde(default)]
    pub prediction: Prediction,
    pub quota: QuotaVerdict,
    /// One per replica that is wanted, allowed and not there, by slot.
    pub placements: Vec<PlacementVerdict>,
    /// Slots that must wait although there may be room.
    pub waits: Vec<Wait>,
    /// Whether running replicas move elsewhere for the first slot that waits for room; `None`: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<MoveVerdict>,
    /// Replicas of it for which the cluster is asked for another node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capacity: Vec<CapacityAsk>,
    /// Single changes that place more replicas, each acted out, each no larger than needed.
    pub counterfactuals: Vec<Counterfactual>,
    /// Why there is none although the deployment waits.
    pub no_counterfactual: Option<NoCounterfactual>,
    /// Oldest input of a node that this decision could have used, and the first nodes that were too old: at most
    /// [`MAX_EXAMPLES`].
    pub oldest_input_ms: u64,
    pub stale_nodes: Vec<String>,
    /// Why no pod of it that lives at present is Ready where it should be, one line per replica.
    pub troubles: Vec<Trouble>,
}

/// The deployment's state: the condition's reason.
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
    /// The API server refuses its pods.
    Refused,
    /// Nodes that might serve it have stale data: no decision uses data that old.
    StaleInput,
    /// The deployment is being deleted.
    Draining,
}

/// What keeps a deployment from as many replicas as its load or its spec asks for; a metric label and the
/// condition's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LimitedBy {
    /// The tenant's quota.
    Quota,
    /// No node has room.
    Capacity,
    /// `maxReplicas`.
    MaxReplicas,
    /// What the scaling rule needs is missing or stale.
    Signals,
}

/// Numbers of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
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

/// One change and what it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Counterfactual {
    pub change: Change,
    /// Replicas more that would be placed.
    pub gains: u32,
    /// Where the first of them would go.
    pub placement: Placement,
}

/// Why no change is named for a deployment that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum NoCounterfactual {
    /// The cluster has no GPU of the class.
    NoSuchClass { class: String },
    /// No GPU of the class is large enough, even empty.
    LargerThanAnyGpu { class: String, asked_bytes: u64, largest_bytes: u64 },
    /// No GPU of the class can be cut into such a device; `offered` is empty where none is in MIG mode.
    NoSuchProfile { class: String, profile: String, offered: Vec<String> },
    /// So many changes were tried, and none helps alone.
    NoSingleChange { tried: u32 },
    /// So many deployments wait that none was tried for this one.
    TooManyWait,
}

/// One change of the cluster, the quotas or the deployment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
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
    /// Per hour, in millionths of the currency.
    RaiseSpendLimit {
        tenant: TenantId,
        to_micros: u64,
    },
    /// Scale another deployment in, by this many replicas. `owner`: its tenant, if that is another one; messages then
    /// do not name the deployment.
    ScaleIn {
        deployment: DeploymentId,
        owner: Option<TenantId>,
        by: u32,
        to: u32,
    },
    /// The same of one whose count its rule decides: its largest count is what can be lowered, not below its least.
    LowerMaxReplicas {
        deployment: DeploymentId,
        owner: Option<TenantId>,
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
    /// A device of this smaller MIG profile would fit as things are.
    SmallerProfile {
        profile: String,
    },
    /// More nodes like the named one, empty.
    AddNode {
        like: String,
        count: u32,
    },
    /// Nothing but time.
    WaitUntil {
        at: TimeMs,
    },
}

/// What a tenant holds, and what waits of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct TenantReport {
    pub tenant: TenantId,
    /// Sorted by class.
    pub usage: Vec<ClassUsage>,
    /// Deployments that quota holds back, in the order in which they will be served.
    pub waiting: Vec<DeploymentId>,
}

/// The cluster after the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
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
#[allow(missing_docs, reason = "the names explain themselves")]
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
    pub candidates: Shared<Vec<Candidate>>,
    pub refusals: Vec<NodeRefusal>,
    pub winner: Option<Winner>,
    pub counterfactual: Option<Counterfactual>,
    pub evidence: Option<Overshoot>,
    pub fingerprint: u64,
}

/// What a record is about; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum RecordKind {
    Place,
    Scale,
    Evict,
    Reclaim,
    Health,
    Rollout,
}

/// What is done; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum RecordAction {
    Create,
    Resume,
    Drain,
    Remove,
    Wait,
}

/// What made the decision necessary; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Trigger {
    Created(CreateReason),
    Resumed(ResumeReason),
    Ended(EndReason),
    Waits(Outcome),
    /// The rule that decides the count cannot answer.
    Frozen(Signal),
}

/// The age of one input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct InputAge {
    /// `node/<name>`.
    pub source: String,
    pub age_ms: u64,
}

// === impl Outcome ===

impl Outcome {
    /// Whether the deployment is as it should be, or needs nothing but time.
    pub fn well(self) -> bool {
        match self {
            Outcome::OnTarget | Outcome::Starting | Outcome::Progressing | Outcome::Draining => true,
            Outcome::WaitingForGPU
            | Outcome::WaitingForQuota
            | Outcome::NoTenant
            | Outcome::BackOff
            | Outcome::Refused
            | Outcome::StaleInput => false,
        }
    }
}

// === impl DecisionReport ===

impl DecisionReport {
    /// The report on one deployment.
    pub fn of(&self, id: &DeploymentId) -> Option<&DeploymentReport> {
        self.deployments.iter().find(|d| &d.deployment == id)
    }

    /// The reports, to be looked up more than a few times.
    pub fn by_deployment(&self) -> HashMap<&DeploymentId, &DeploymentReport> {
        self.deployments.iter().map(|report| (&report.deployment, report)).collect()
    }
}

// === impl DeploymentReport ===

impl DeploymentReport {
    /// Nodes on which replicas that wait will start: those of the pods whose room they get, else the node that the first
    /// change that would help gives to one. `stands`: each pod's node.
    pub fn awaited_nodes<'a>(&'a self, stands: &BTreeMap<&str, &'a str>) -> Vec<&'a str> {
        let pods = self.waits.iter().flat_map(|wait| match wait {
            Wait::Ending { pod, .. } => std::slice::from_ref(pod),
            Wait::Reclaiming { pods, .. } | Wait::Moving { pods, .. } => pods.as_slice(),
            _ => &[],
        });
        let mut found: Vec<&str> = pods.filter_map(|pod| stands.get(pod.as_str()).copied()).collect();
        if found.is_empty() {
            found.extend(self.counterfactuals.first().map(|change| change.placement.node.as_str()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What keeps it from as many replicas as are asked for, if anything does.
    pub fn limited_by(&self) -> Option<LimitedBy> {
        self.rule_limited_by().or(match self.outcome {
            // As many serve as are wanted, on a node that they are to leave.
            Outcome::WaitingForGPU if self.moves() && self.counts.current >= self.counts.wanted => None,
            Outcome::WaitingForQuota => Some(LimitedBy::Quota),
            Outcome::WaitingForGPU | Outcome::StaleInput => Some(LimitedBy::Capacity),
            _ => None,
        })
    }

    /// What keeps the scaling rule from having the replicas that the load needs.
    pub fn rule_limited_by(&self) -> Option<LimitedBy> {
        match &self.scale {
            ScaleVerdict::Frozen { .. } => Some(LimitedBy::Signals),
            ScaleVerdict::Active { advice } if advice.reason == ScaleReason::Maximum => Some(LimitedBy::MaxReplicas),
            ScaleVerdict::Active { advice } => match advice.withdrawn.as_ref()?.reason {
                WithdrawnFor::Quota | WithdrawnFor::NoTenant => Some(LimitedBy::Quota),
                WithdrawnFor::Room => Some(LimitedBy::Capacity),
            },
            _ => None,
        }
    }

    /// Replicas of it are to leave a cordoned node.
    pub fn moves(&self) -> bool {
        self.waits.iter().any(|wait| matches!(wait, Wait::Cordoned { .. }))
    }
}

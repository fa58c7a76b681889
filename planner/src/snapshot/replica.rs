//! What runs: the pods of a deployment, where they are, and what is remembered of those that are gone.

use serde::{Deserialize, Serialize};

use crate::snapshot::{DeploymentId, Promise, TimeMs};

/// A pod of a deployment, or one that the journal records as created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Replica {
    pub index: u32,
    pub incarnation: u32,
    /// Pod name.
    pub name: String,
    pub spec_hash: String,
    pub phase: Phase,
    /// Where its claim points, whether or not the scheduler has bound the pod; `None`: unreadable.
    pub placement: Option<Placement>,
    pub created_ms: TimeMs,
    /// Its node is gone or unreachable beyond the operator's limit.
    #[serde(default)]
    pub node_lost: bool,
    /// Set once a process of this replica was over its promise for long enough.
    #[serde(default)]
    pub overshoot: Option<Overshoot>,
    /// Requests in flight, as the routers count them; `None`: not known. Scale-in takes the least loaded.
    #[serde(default)]
    pub in_flight: Option<u32>,
    /// It was created with [`CreateReason::Move`](crate::plan::CreateReason::Move): the Ready pod of its slot ends once
    /// this one is Ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_over: bool,
}

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Phase {
    /// `PodScheduled` is not yet true.
    Unscheduled {
        /// Of the scheduler's refusal, else of the pod's creation.
        since_ms: TimeMs,
        /// The scheduler's message; empty: it has not looked at the pod.
        #[serde(default)]
        message: String,
    },
    /// Bound, and its node cannot hand out its slice.
    Unprepared {
        since_ms: TimeMs,
        /// The node agent's message.
        message: String,
    },
    Starting,
    Ready,
    /// Was ready, is not now.
    Unready,
    /// Out of routing, finishing its work.
    Draining {
        since_ms: TimeMs,
        /// When the drain must be over; `None`: after the deployment's `drain_timeout_ms`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until_ms: Option<TimeMs>,
        /// Requests still running, by all routers' counts; `None`: not known, so wait for the deadline.
        in_flight: Option<u32>,
        /// Nothing is wrong with it: fewer were wanted, or the quota that it borrows was claimed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        may_resume: bool,
    },
    /// The pod ended or cannot start (crash, image, model).
    Failed {
        reason: String,
    },
    /// Deletion is under way. Its slice counts as taken until the claim is gone.
    Terminating {
        /// When the node ends it by force; `None`: not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until_ms: Option<TimeMs>,
    },
}

impl Phase {
    /// Deletion is under way.
    pub fn is_terminating(&self) -> bool {
        matches!(self, Phase::Terminating { .. })
    }

    /// When a replica on its way out has ended at the latest; `None`: it is not on its way out, or that is not known.
    pub fn ends_ms(&self, drain_timeout_ms: u64) -> Option<TimeMs> {
        match self {
            Phase::Draining { since_ms, until_ms, .. } => {
                Some(until_ms.unwrap_or(since_ms.saturating_add(drain_timeout_ms)))
            }
            Phase::Terminating { until_ms } => *until_ms,
            _ => None,
        }
    }
}

/// Where a replica is or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Placement {
    pub node: String,
    pub variant: String,
    /// Sorted by GPU index. Empty for a CPU variant.
    pub gpus: Vec<GpuShare>,
}

/// A promise on one GPU, after rounding to its step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct GpuShare {
    pub uuid: String,
    #[serde(flatten)]
    pub promise: Promise,
}

/// Evidence that a replica's processes use more than was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Overshoot {
    pub gpu: String,
    pub promised_bytes: u64,
    pub used_bytes: u64,
    /// Samples in a row above the margin.
    pub samples: u32,
    /// Where the figure comes from, for people: `NVML` or `engine report`.
    pub source: String,
    /// The rest of the device can bear it for a while: drain; otherwise end at once.
    pub headroom: bool,
}

/// Memory of a replica slot that outlives its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Slot {
    pub index: u32,
    /// Highest incarnation ever used here.
    pub incarnation: u32,
    /// Failures in a row; 0 again once a pod of the slot was Ready for a while.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub last_failure_ms: TimeMs,
}

/// The scheduler refused this slot on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Exclusion {
    pub deployment: DeploymentId,
    pub index: u32,
    pub node: String,
    pub until_ms: TimeMs,
    /// The scheduler's message.
    pub reason: String,
}

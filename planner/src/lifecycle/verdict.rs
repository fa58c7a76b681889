//! Why a slot waits, and what is wrong with a pod.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Overshoot, ReplicaId, TimeMs};

/// Why a slot must wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Wait {
    /// After failures in a row.
    BackOff { index: u32, until_ms: TimeMs, failures: u32 },
    /// The API server refused to create the pod.
    Refused { until_ms: TimeMs, message: String },
    /// A rollout waits: ending one more would leave too few Ready.
    Availability { index: u32, pod: String },
    /// The slot is filled once a pod that is on its way out has ended; nothing else is needed.
    Ending { index: u32, pod: String },
    /// The pod serves on a cordoned node and no other node takes its replacement.
    Cordoned { index: u32, pod: String, node: String },
    /// The slot is filled once these pods, which borrow what is the tenant's own, have ended.
    Reclaiming { index: u32, pods: Vec<String> },
    /// The slot is filled once these pods, which serve where it is to be, have been replaced elsewhere.
    Moving { index: u32, pods: Vec<String> },
    /// Ended for its data being stale would be wrong; nothing happens until it is fresh.
    FreshInput { index: u32, node: String },
}

/// What is wrong with one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Trouble {
    pub replica: ReplicaId,
    pub pod: String,
    pub what: TroubleKind,
}

/// The kinds of trouble, with their evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum TroubleKind {
    Unscheduled { message: String, since_ms: TimeMs },
    Unprepared { message: String, since_ms: TimeMs },
    Failed { message: String },
    Unready,
    UnhealthyGpu { gpu: String, message: String },
    NodeLost { node: String },
    Overshoot { evidence: Overshoot },
}

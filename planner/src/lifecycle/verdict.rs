//! Why a slot waits, and what is wrong with a pod.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Overshoot, ReplicaId, TimeMs};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Wait {
    /// After failures in a row.
    BackOff { index: u32, until_ms: TimeMs, failures: u32 },
    /// A rollout waits: ending one more would leave too few Ready.
    Availability { index: u32, pod: String },
    /// The slot is filled once a pod that is on its way out has ended; nothing else is needed.
    Ending { index: u32, pod: String },
    /// Ended for its data being stale would be wrong; nothing happens until it is fresh.
    FreshInput { index: u32, node: String },
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

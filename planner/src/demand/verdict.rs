//! The answer to "how many", with what it was made of. Figures are whole numbers, so that equal
//! decisions are equal bytes: `_milli` are thousandths, of a replica where nothing else is named.

use serde::{Deserialize, Serialize};

use crate::snapshot::{CostOrigin, ScalingMode, StartStages, TimeMs};

/// Stage one: how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum ScaleVerdict {
    /// The user, by `spec.replicas`.
    Manual {
        replicas: u32,
    },
    /// The rule.
    Active {
        advice: Box<Advice>,
    },
    /// The rule answers, the count stays.
    Advisory {
        replicas: u32,
        advice: Box<Advice>,
    },
    /// The rule cannot answer: the count stays.
    Frozen {
        mode: ScalingMode,
        replicas: u32,
        cause: Frozen,
    },
    Deleting,
}

/// An answer of the rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// Replicas to have, starting ones included, within the bounds.
    pub wanted: u32,
    /// What decided it.
    pub reason: ScaleReason,
    /// Replicas that the load needs now, before the hold window and the bounds.
    pub needed: u32,
    /// The variant of whose replicas `needed` counts, where there are several.
    pub reference: Option<String>,
    /// What the load was made into.
    pub load: LoadFigures,
    /// The hold window keeps its largest answer: no scale-in below it until this time has passed
    /// without it.
    pub hold: Option<Hold>,
    /// Fewest and most replicas that the spec allows.
    pub bounds: (u32, u32),
    /// What was measured, and how old it is.
    pub inputs: Inputs,
    /// Replicas of `wanted` that are not asked for any more, because they cannot be had.
    pub withdrawn: Option<Withdrawn>,
}

/// What decided the number; a metric label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ScaleReason {
    /// The forecast of the load.
    #[default]
    Load,
    /// A burst, taken at its height.
    Burst,
    /// Work that is late.
    Backlog,
    /// The KV caches are full.
    KvCache,
    /// The largest answer of the hold window.
    Hold,
    /// The load of the last interval, below which no scale-in goes.
    Running,
    /// `minReplicas`.
    Minimum,
    /// `maxReplicas`.
    Maximum,
    /// The last replica: a request came within the idle time, or one still runs.
    LastReplica,
    /// The last replica, idle or not: no request may wait for a cold start.
    NoColdStart,
    /// No request for longer than the idle time.
    Idle,
    /// A request waits and no replica runs.
    Wake,
    /// No request came since the deployment was scaled to zero.
    Asleep,
}

/// The load as the rule sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadFigures {
    /// Of the last interval.
    pub offered_milli: u64,
    /// Over the cold start.
    pub forecast_milli: u64,
    /// By how much the load grew then on earlier days; 1,000: not known, or it did not.
    #[serde(default)]
    pub growth_milli: u64,
    /// The burst window's load, if it is a burst.
    pub burst_milli: Option<u64>,
    /// Replicas of room for what varies.
    pub room_milli: u64,
    /// Load that one replica is planned with.
    pub per_replica_milli: u64,
    /// Work that is late.
    pub backlog_ms: u64,
}

/// The hold window's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Hold {
    pub replicas: u32,
    pub until_ms: TimeMs,
}

/// What an answer was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Inputs {
    pub ready: u32,
    pub starting: u32,
    pub gateway_age_ms: u64,
    /// Length of the interval in which the arrivals were counted.
    pub interval_ms: u64,
    pub arrivals: u64,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub mean_output_milli_tokens: u64,
    pub queued_tokens: u64,
    pub held: u64,
    /// `None`: no replica is Ready, so no engine has to report.
    pub engines_age_ms: Option<u64>,
    pub unprefilled_tokens: u64,
    pub kv_used_milli: u64,
    /// Of one replica of this variant.
    pub cost_of: String,
    /// `None`: only a request that waits was looked at.
    pub cost_origin: Option<CostOrigin>,
    pub cold_start_ms: u64,
    pub cold_start_tier: Tier,
    /// Starts that it was measured at; 0: not known.
    #[serde(default)]
    pub starts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_stages: Option<StartStages>,
}

/// What a new replica has to load; the first is the fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Nothing: an engine sleeps.
    Asleep,
    /// Weights from the node's disk.
    Cached,
    /// Weights from a registry or an object store.
    Remote,
    /// No cold start was measured: a long one is assumed.
    #[default]
    Unknown,
}

/// Replicas that are not asked for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Withdrawn {
    pub replicas: u32,
    pub reason: WithdrawnFor,
}

/// Why replicas cannot be had; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WithdrawnFor {
    /// The namespace belongs to no tenant.
    NoTenant,
    /// The tenant's quota is used up.
    Quota,
    /// No node fits.
    Room,
}

/// Why the rule cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Frozen {
    pub signal: Signal,
    pub problem: Problem,
}

/// An input of the rule; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Signal {
    /// Counts and queues of the gateways.
    Gateway,
    /// Load of the engines.
    Engines,
    /// The cost of a step.
    Cost,
    /// The objectives of the spec.
    Objectives,
    /// The load of earlier days.
    History,
}

/// What is wrong with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Problem {
    Missing,
    Stale {
        age_ms: u64,
        limit_ms: u64,
    },
    /// NaN, infinite or negative.
    NotANumber,
    /// Beyond anything that GPUs can do, or against itself.
    Absurd,
    /// The interval ends before the last one did.
    ClockBack {
        by_ms: u64,
    },
    /// From later than now.
    FromTheFuture {
        by_ms: u64,
    },
    /// The interval is empty, or so long that its mean says nothing of the present.
    Interval {
        length_ms: u64,
    },
    /// One replica alone is slower than the ITL objective, whatever the load.
    TooTight,
}

// === impl ScaleVerdict ===

impl ScaleVerdict {
    /// The number that it stands for.
    pub fn replicas(&self) -> u32 {
        match self {
            ScaleVerdict::Manual { replicas }
            | ScaleVerdict::Advisory { replicas, .. }
            | ScaleVerdict::Frozen { replicas, .. } => *replicas,
            ScaleVerdict::Active { advice } => advice.wanted,
            ScaleVerdict::Deleting => 0,
        }
    }
}

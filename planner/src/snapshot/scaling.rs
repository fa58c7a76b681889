//! What decides the number of replicas of a deployment: the spec's bounds, the measured signals, the
//! constants of the rule, and what the rule remembers from one plan to the next.
//!
//! Loads are in replicas that would be busy all the time. Everything measured carries its time; what
//! is too old, missing or not a number freezes the count and is never taken for zero.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use stowage_contracts::fit::CostFit;
use stowage_contracts::load::Coefficients;

use super::TimeMs;

/// The part of a deployment's spec that decides the number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Scaling {
    pub mode: ScalingMode,
    /// Fewest replicas; 0 allows scale to zero.
    pub min_replicas: u32,
    /// Most replicas; below `min_replicas` it counts as that.
    pub max_replicas: u32,
    /// `None`: Active and Advisory freeze the count.
    pub objectives: Option<Objectives>,
    /// Which constants are used.
    pub room: Room,
    /// Time without requests before scale to zero; `None`: learned from the gaps between requests.
    pub idle_after_ms: Option<u64>,
    /// How long a request may be held for a cold start; `None`: no request is, and a deployment whose
    /// cold start exceeds the TTFT objective is not scaled to zero.
    pub cold_start_hold_ms: Option<u64>,
}

impl Default for Scaling {
    fn default() -> Self {
        Scaling {
            mode: ScalingMode::Manual,
            min_replicas: 1,
            max_replicas: u32::MAX,
            objectives: None,
            room: Room::Standard,
            idle_after_ms: None,
            cold_start_hold_ms: None,
        }
    }
}

/// Who decides the number of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ScalingMode {
    /// [`Deployment::wanted`](super::Deployment::wanted) does.
    #[default]
    Manual,
    /// The rule answers, and the count stays as it is.
    Advisory,
    /// The rule does.
    Active,
}

/// Which constants the rule uses for a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Room {
    /// [`Rule::STANDARD`].
    #[default]
    Standard,
    /// [`Rule::TIGHT`]: a warm spare for objectives that must hold through bursts.
    Tight,
}

/// What a deployment promises its clients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// Time to first token, milliseconds.
    pub ttft_ms: f64,
    /// Mean time between two tokens, milliseconds.
    pub itl_ms: f64,
}

/// What was measured of a deployment, by source. A source that has not reported is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Signals {
    /// What the gateways counted.
    pub gateway: Option<GatewaySignals>,
    /// What the engines of the Ready replicas reported; not needed while none is Ready.
    pub engines: Option<EngineSignals>,
    /// Cost of a step on the replicas of a variant.
    pub costs: Vec<VariantCost>,
    /// From a decision to a replica that serves.
    pub cold_start: ColdStart,
    /// The load of earlier days or weeks, where it is known.
    pub history: Option<History>,
}

/// Counted by the gateways over one interval, and their queues at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct GatewaySignals {
    /// The interval of the counts. The next signals start where these end; equal signals seen in
    /// several plans are counted once.
    pub from_ms: TimeMs,
    pub to_ms: TimeMs,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Sequences that they ask for; `None`: not reported, and one each.
    pub sequences: Option<u64>,
    /// Requests that got a place on a replica; `None`: not reported, and all that arrived and do not wait.
    pub placed: Option<u64>,
    /// Their prompt tokens, and how many of those a prefix cache held.
    pub input_tokens: u64,
    pub cached_tokens: u64,
    /// Mean tokens of recent answers; 0: none is known.
    pub mean_output_tokens: f64,
    /// Requests that wait for a replica, and their prompt tokens.
    pub queued: u64,
    pub queued_tokens: u64,
    /// Of `queued`: held because no replica is Ready.
    pub held: u64,
}

/// Reported by the engines of the Ready replicas.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct EngineSignals {
    /// Time of the oldest report among them.
    pub at_ms: TimeMs,
    /// Prompt tokens accepted and not computed.
    pub unprefilled_tokens: u64,
    /// KV cache in use, in thousandths of the cache of one replica, summed up.
    pub kv_used_milli: u64,
    /// Replicas whose KV cache is more than nine tenths reserved.
    pub kv_bound: u32,
    /// Steps since the reports before, to which the cost is fitted; none where engines report their own
    /// coefficients.
    pub steps: Vec<StepSample>,
    /// Coefficients that engines report of themselves, by replica.
    pub replicas: Vec<ReplicaCost>,
}

/// What one step costs on a replica, as its engine reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicaCost {
    /// Name of its pod.
    pub replica: String,
    /// Zero is unknown.
    pub coefficients: Coefficients,
}

/// One step of an engine, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct StepSample {
    pub variant: String,
    pub decodes: u64,
    pub kv_tokens: u64,
    pub prefill_tokens: u64,
    pub millis: f64,
}

/// What one step costs on a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct VariantCost {
    pub variant: String,
    pub coefficients: Coefficients,
    pub origin: CostOrigin,
    /// When they were last brought up to date; 0: never, they are from a table.
    #[serde(default)]
    pub at_ms: TimeMs,
}

/// Where coefficients come from; the later the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CostOrigin {
    /// The reference row: only the proportions can be trusted.
    Reference,
    /// A table row of the same model or the same GPU.
    Table,
    /// Fitted to steps of replicas of this model and class.
    Fitted,
}

/// Starts from which on their p90 counts; before, it may only shorten what is assumed.
pub const ENOUGH_STARTS: u32 = 3;

/// Cold start p90 by tier, milliseconds; absent: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ColdStart {
    /// The engine sleeps, weights are in host memory.
    pub asleep_ms: Option<u64>,
    /// The weights are on the node.
    pub cached_ms: Option<u64>,
    /// The weights are in a registry or an object store.
    pub remote_ms: Option<u64>,
    /// Replicas that sleep.
    pub asleep_replicas: u32,
    /// Starts that these times are from; 0: not known.
    pub starts: u32,
    /// The parts of such a start, where they are known.
    pub stages: Option<StartStages>,
}

/// Median of each part of a start, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartStages {
    /// From the pod's creation until it is bound to its node.
    pub schedule_ms: u64,
    /// Until its container runs: the claim, the image, the model's volume.
    pub pull_ms: u64,
    /// Until it serves.
    pub load_ms: u64,
}

/// Load at the same minute of earlier days or weeks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct History {
    /// Mean at the present minute.
    pub now: f64,
    /// Mean a cold start later.
    pub ahead: f64,
    /// Days or weeks that the means are made of; fewer than two are not used.
    pub periods: u32,
}

/// Constants of the rule. Times are seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Load per replica that is planned with, as a multiple of what the ITL objective allows. It may
    /// exceed 1, because the room below comes on top.
    pub density: f64,
    /// Replicas of room per square root of the planned load: a small load varies more for its size.
    pub room: f64,
    /// Replicas of room per spread of the load around its level, as it was seen: some loads vary more than
    /// others of their size. The spread is that of means over the one window, over the other.
    pub spread: f64,
    /// As above.
    pub spread_of: f64,
    /// As above.
    pub spread_window: f64,
    /// Window whose mean is the level of the load.
    pub level_window: f64,
    /// Window that shows a burst, and the multiple of the level that makes it one.
    pub burst_window: f64,
    /// As above.
    pub burst_factor: f64,
    /// Weight of the trend, and the longest time over which it is continued.
    pub trend_weight: f64,
    /// As above.
    pub trend_limit: f64,
    /// Shortest hold window before a scale-in; longer when a cold start takes longer.
    pub hold: f64,
    /// Shortest time in which a backlog may be worked off; longer when a cold start takes longer.
    pub drain: f64,
}

impl ColdStart {
    /// What a start takes; `None`: too few were measured.
    pub fn measured_ms(&self) -> Option<u64> {
        self.remote_ms.filter(|_| self.starts >= ENOUGH_STARTS)
    }
}

impl GatewaySignals {
    /// Sequences of the requests that arrived.
    pub fn sequences(&self) -> u64 {
        self.sequences.unwrap_or(0).max(self.arrivals)
    }
}

impl Rule {
    /// What runs unless a deployment asks for more room.
    pub const STANDARD: Self = Self {
        density: 1.18,
        room: 1.0,
        spread: 2.35,
        spread_of: 10.0,
        spread_window: 120.0,
        level_window: 40.0,
        burst_window: 5.0,
        burst_factor: 2.2,
        trend_weight: 0.58,
        trend_limit: 40.0,
        hold: 45.0,
        drain: 15.0,
    };
    /// For objectives that must hold through bursts.
    pub const TIGHT: Self = Self { room: 2.0, ..Self::STANDARD };
}

/// What is remembered of a deployment from one plan to the next. A plan returns it; the caller puts it
/// into the next snapshot, and drops it when the deployment's UID changes. The default is a restart: the
/// current count then stands for the hold window, so a restart never scales in by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Replicas that the last plan settled on.
    pub(crate) target: Option<u32>,
    /// Offered load per interval, within the level window.
    pub(crate) offered: VecDeque<Offered>,
    /// Holt's level and trend of the offered load.
    pub(crate) level: Option<f64>,
    pub(crate) trend: f64,
    /// Mean square by which the load was above its level.
    pub(crate) variance: f64,
    /// Answers within the hold window: (at, replicas).
    pub(crate) answers: VecDeque<(f64, u32)>,
    /// End of the last interval that was counted, and what followed from it.
    pub(crate) last: Option<f64>,
    pub(crate) followed: Followed,
    /// Mean prompt tokens that no prefix cache held.
    pub(crate) mean_input: Option<f64>,
    /// End of the last interval in which a request came, or of the first that was seen.
    pub(crate) last_request_ms: Option<TimeMs>,
    /// End of the last interval that was looked at.
    pub(crate) seen_until_ms: Option<TimeMs>,
    pub(crate) gaps: Gaps,
    /// Costs fitted to reported steps, by variant, and the time of the last reports.
    pub(crate) fits: Vec<(String, CostFit)>,
    pub(crate) learned_ms: Option<TimeMs>,
}

/// Lengths of the gaps between requests, in buckets; a gap weighs less with each later one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gaps {
    pub(crate) weights: Vec<f64>,
}

/// The load of one interval, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offered {
    pub at: f64,
    pub interval: f64,
    pub load: f64,
}

/// What the rule makes of the load up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Followed {
    pub offered: f64,
    pub forecast: f64,
    pub burst: Option<f64>,
    pub spread: f64,
}

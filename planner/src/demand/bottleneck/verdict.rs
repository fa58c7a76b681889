//! The verdict: which stage limits, how sure the figures are, and the one change that would help most.
//!
//! Figures are whole numbers: `_milli` are thousandths, `_us` microseconds, `_percent` of a request's time where
//! nothing else is named.

use serde::{Deserialize, Serialize};
use stowage_contracts::load::Coefficients;

use super::FaultyGpus;
use super::flow::{Flow, Waits};
use super::means::Means;
use crate::demand::predict::Basis;
use crate::demand::{asked, bounds, cost};
use crate::snapshot::{Deployment, Objectives, Phase, Replica, ScalingMode, TimeMs};

/// Seconds of signals, and requests a minute, below which nothing is said.
const LEAST_SECONDS: f64 = 20.0;
const LEAST_PER_MINUTE: f64 = 20.0;
/// The last interval may end so long ago.
const STALE_MS: u64 = 15_000;
/// Signals that do not come for so long do not come.
const EARLY_MS: u64 = 60_000;
/// The objectives are for the 95th percentile; a mean above this part of one means that it is missed. Waits vary much
/// from request to request, the times between tokens little.
const MEAN_OF_P95: f64 = 0.5;
const ITL_MEAN_OF_P95: f64 = 0.8;
/// The 95th percentile misses an objective that so many requests miss.
const MISSED_PART: f64 = 0.05;
/// A replica whose steps take so many times those of the others is slow.
const SLOW: f64 = 1.2;
/// Without reports of steps: one with so many times the sequences of the others is.
const CROWDED: f64 = 1.5;
/// Load that replicas are suggested for, of what their objective allows.
const SUGGESTED_LOAD: f64 = 0.85;
/// More replicas than this are no suggestion.
const MOST_SUGGESTED: u32 = 10_000;
/// A cache is suggested with so much room for what varies.
const KV_ROOM: f64 = 1.25;

/// Where a request spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RequestStage {
    /// It waits for a replica.
    Queue,
    /// Its prompt is computed, or it waits while others' prompts are.
    Prefill,
    /// It waits for room in the KV cache.
    KvCache,
    /// Its answer is made.
    Decode,
    /// A faulty GPU makes it wait.
    GpuHealth,
}

/// What can be said at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Signals have only just begun: what was said before may still hold.
    TooEarly,
    /// Too few requests come, no cost of a step is known, or gateways or engines do not report.
    #[default]
    TooLittle,
    /// As the signals have it.
    Found(Box<Bottleneck>),
}

/// What limits a deployment, and why it is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bottleneck {
    /// `None`: the objectives are kept.
    pub stage: Option<RequestStage>,
    /// By stage.
    pub shares: Shares,
    /// What was measured.
    pub load: ServedLoad,
    /// GPUs of the deployment that are not healthy, whether or not they limit it.
    pub faulty: Vec<FaultyGpu>,
    /// What would help most; `None`: nothing limits, or nothing is known to help.
    pub suggestion: Option<Suggestion>,
}

/// Per cent of a request's time; their sum is 100, but for rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are those of the stages")]
pub struct Shares {
    pub queue: u32,
    pub prefill: u32,
    pub kv_cache: u32,
    pub decode: u32,
    pub gpu_health: u32,
}

/// Means of the last half minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedLoad {
    /// Requests per second.
    pub requests_milli: u64,
    /// Sequences on engines, and requests that wait for one.
    pub running_milli: u64,
    /// As above.
    pub waiting_milli: u64,
    /// Replicas that serve.
    pub ready_milli: u64,
    /// Mean time to first token and between two tokens, from the counts.
    pub ttft_us: u64,
    /// As above.
    pub itl_us: u64,
    /// The objectives.
    pub ttft_objective_us: u64,
    /// As above.
    pub itl_objective_us: u64,
    /// Of the prompt tokens: held by a prefix cache.
    pub prefix_hit_percent: u32,
    /// Of the KV caches: in use.
    pub kv_used_percent: u32,
    /// Of the engines' time: taken by prompts.
    pub prefill_percent: u32,
    /// Of the requests that arrived: refused, timed out or given up before they had a place.
    pub unplaced_percent: u32,
}

/// A GPU that is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct FaultyGpu {
    pub node: String,
    pub uuid: String,
    pub reason: String,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Suggestion {
    /// More of them.
    Replicas { from: u32, to: u32, mode: ScalingMode, max: u32, expected: Expected },
    /// They are on their way, and so many are enough.
    Wait { starting: u32, expected: Option<Expected> },
    /// So many times the present KV cache, in thousandths.
    KvCache { times_milli: u64, expected: Option<Expected> },
    /// One replica without any load misses an objective: a faster one, or a longer objective.
    Faster { alone: Expected },
    /// Replicas go to other GPUs.
    LeaveGpu { gpu: FaultyGpu, expected: Option<Expected> },
}

/// What clients get after a change, by the cost model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Expected {
    pub ttft_us: u64,
    pub itl_us: u64,
}

impl Means {
    /// What limits the deployment.
    pub fn verdict(&self, d: &Deployment, faulty: &FaultyGpus, now: TimeMs) -> Verdict {
        let fresh = self.sampled_ms.is_none_or(|last| now.saturating_sub(last) <= STALE_MS);
        let known = fresh && self.seen >= LEAST_SECONDS;
        if fresh && !known && now.saturating_sub(self.began_ms) < EARLY_MS {
            return Verdict::TooEarly;
        }
        let enough = known && self.mean.arrivals * 60.0 >= LEAST_PER_MINUTE && !d.deleting;
        let found = if enough { self.bottleneck(d, faulty) } else { None };
        found.map_or(Verdict::TooLittle, |found| Verdict::Found(Box::new(found)))
    }

    /// `None`: the cost of a step or the objectives are not known.
    fn bottleneck(&self, d: &Deployment, faulty: &FaultyGpus) -> Option<Bottleneck> {
        let objectives = d.scaling.objectives.filter(|o| o.ttft_ms > 0.0 && o.itl_ms > 0.0)?;
        let cost = healthy_cost(d, faulty)?;
        let flow = Flow::of(self, cost);
        let slow = slowdown(self, d, faulty, &flow);
        let found = named(self, &flow, slow, objectives);
        let faulty = faulty.under_any(d);
        Some(Bottleneck {
            stage: found,
            shares: shares(self, &flow, slow, found),
            load: served(self, &flow, objectives),
            suggestion: found.and_then(|stage| suggestion(stage, d, &flow, objectives, faulty.first())),
            faulty,
        })
    }
}

/// Cost of a step on replicas without a faulty GPU, as they report it: the one in the middle. Otherwise the
/// deployment's.
fn healthy_cost(d: &Deployment, faulty: &FaultyGpus) -> Option<Coefficients> {
    let known = cost::cost(d, &d.memory).ok().map(|cost| cost.coefficients);
    let reported = d.signals.engines.iter().flat_map(|engines| &engines.replicas);
    let healthy = |name: &str| d.replicas.iter().any(|r| r.name == name && faulty.under(r).is_none());
    let mut costs: Vec<Coefficients> =
        reported.filter(|r| healthy(&r.replica)).map(|r| cost::with_unknown_parts(r.coefficients)).collect();
    costs.sort_by(|a, b| length(*a).total_cmp(&length(*b)));
    let middle = costs.get(costs.len() / 2).copied().filter(|cost| cost.a > 0.0 && cost.p > 0.0);
    middle.or(known)
}

/// An iteration of an ordinary batch: 16 sequences with 16,000 tokens, and 500 of a prompt.
fn length(cost: Coefficients) -> f64 {
    cost.a + 16.0 * cost.d + 16.0 * cost.k + 0.5 * cost.p
}

/// How many times as long as elsewhere steps take on the slowest replica with a faulty GPU; 1: as long.
fn slowdown(means: &Means, d: &Deployment, faulty: &FaultyGpus, flow: &Flow) -> f64 {
    let reported = d.signals.engines.iter().flat_map(|engines| &engines.replicas);
    let on_faulty = |name: &str| d.replicas.iter().any(|r| r.name == name && faulty.under(r).is_some());
    let slowest = reported
        .filter(|r| on_faulty(&r.replica))
        .map(|r| length(r.coefficients.or_known(flow.cost)) / length(flow.cost))
        .fold(None, |slowest: Option<f64>, now| Some(slowest.map_or(now, |known| known.max(now))));
    let mean = &means.mean;
    let each_faulty = mean.faulty_running / mean.faulty.max(1e-9);
    let each_healthy = (mean.running - mean.faulty_running) / (mean.ready - mean.faulty).max(1e-9);
    match slowest {
        Some(slowest) => slowest,
        None if mean.faulty < 0.5 || mean.ready - mean.faulty < 0.5 => 1.0,
        None if each_faulty >= CROWDED * each_healthy.max(1.0) => each_faulty / each_healthy.max(1.0),
        None => 1.0,
    }
}

fn named(means: &Means, flow: &Flow, slow: f64, objectives: Objectives) -> Option<RequestStage> {
    let refused = flow.unplaced >= MISSED_PART;
    let late = refused || flow.ttft > MEAN_OF_P95 * objectives.ttft_ms;
    let halting = flow.itl > ITL_MEAN_OF_P95 * objectives.itl_ms;
    let on_slow = if slow >= SLOW { means.mean.faulty } else { 0.0 };
    // Of a slow replica's requests: what its steps take, weighed by how many of all requests it serves.
    let part = on_slow / slow / (on_slow / slow + (flow.ready - on_slow).max(0.0)).max(1e-9);
    let slow_halts = slow * flow.step / (1.0 - flow.prefill_part) > objectives.itl_ms && part >= MISSED_PART;
    let gpus = on_slow + flow.lost >= 0.5;
    if gpus && (late || halting || slow_halts) && flow.carried_by(flow.ready + flow.lost, objectives) {
        return Some(RequestStage::GpuHealth);
    }
    let waits = match flow.waits_for {
        Waits::Replicas => RequestStage::Queue,
        Waits::PromptTime => RequestStage::Prefill,
        Waits::KvCache => RequestStage::KvCache,
    };
    // Replicas help against everything but this, so it comes first.
    if halting && flow.cost.a >= objectives.itl_ms {
        return Some(RequestStage::Decode);
    }
    // Who got no place did not wait for a prompt of its own.
    let first = match refused || flow.waiting >= flow.prefilling {
        true => (waits, flow.waiting),
        // What is long of the own part: the prompt, or the iterations around it.
        false if flow.prompt >= 1.5 * flow.step => (RequestStage::Prefill, flow.prefilling),
        false => (RequestStage::Decode, flow.prefilling),
    };
    let between = match flow.step >= objectives.itl_ms || flow.prefill_part < 0.5 {
        true => (RequestStage::Decode, flow.decoding * (1.0 - flow.prefill_part)),
        false => (RequestStage::Prefill, flow.decoding * flow.prefill_part),
    };
    let found = [(late, first), (halting, between)].into_iter().filter(|(missed, _)| *missed);
    found.map(|(_, stage)| stage).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(stage, _)| stage)
}

fn shares(means: &Means, flow: &Flow, slow: f64, found: Option<RequestStage>) -> Shares {
    let all = flow.all().max(1e-9);
    let (mut queue, mut kv_cache, mut prefill, mut decode) =
        (0.0, 0.0, flow.prefilling + flow.decoding * flow.prefill_part, flow.decoding * (1.0 - flow.prefill_part));
    let mut gpu_health = 0.0;
    match (found, flow.waits_for) {
        (Some(RequestStage::GpuHealth), _) => {
            let slowed =
                (means.mean.faulty_running / flow.sequences * (1.0 - 1.0 / slow.max(1.0))).min(prefill + decode);
            let kept = 1.0 - slowed / (prefill + decode).max(1e-9);
            (prefill, decode) = (prefill * kept, decode * kept);
            gpu_health = flow.waiting + slowed;
        }
        (_, Waits::Replicas) => queue = flow.waiting,
        (_, Waits::PromptTime) => prefill += flow.waiting,
        (_, Waits::KvCache) => kv_cache = flow.waiting,
    }
    let percent = |part: f64| (100.0 * part / all).round() as u32;
    Shares {
        queue: percent(queue),
        prefill: percent(prefill),
        kv_cache: percent(kv_cache),
        decode: percent(decode),
        gpu_health: percent(gpu_health),
    }
}

fn served(means: &Means, flow: &Flow, objectives: Objectives) -> ServedLoad {
    let thousand = |value: f64| (value * 1000.0).round() as u64;
    let percent = |part: f64| (100.0 * part).round() as u32;
    let mean = &means.mean;
    ServedLoad {
        requests_milli: thousand(mean.arrivals),
        running_milli: thousand(mean.running),
        waiting_milli: thousand(mean.queued),
        ready_milli: thousand(mean.ready),
        ttft_us: thousand(flow.ttft),
        itl_us: thousand(flow.itl),
        ttft_objective_us: thousand(objectives.ttft_ms),
        itl_objective_us: thousand(objectives.itl_ms),
        prefix_hit_percent: percent(1.0 - mean.uncached / mean.input.max(1e-9)),
        kv_used_percent: percent(mean.kv_used),
        prefill_percent: percent(flow.prefill_part),
        unplaced_percent: percent(flow.unplaced),
    }
}

fn suggestion(
    stage: RequestStage,
    d: &Deployment,
    flow: &Flow,
    objectives: Objectives,
    faulty: Option<&FaultyGpu>,
) -> Option<Suggestion> {
    match stage {
        RequestStage::GpuHealth => {
            let replicas = (flow.ready + flow.lost).round() as u32;
            Some(Suggestion::LeaveGpu { gpu: faulty?.clone(), expected: expected(flow, replicas) })
        }
        RequestStage::KvCache if flow.carried_by(flow.ready, objectives) => Some(larger_cache(flow)),
        _ => more_replicas(d, flow, objectives),
    }
}

/// How many times the cache: the sequences that run at the same time once none waits, over those that run now.
fn larger_cache(flow: &Flow) -> Suggestion {
    let after = expected(flow, flow.ready.round() as u32);
    let seconds = after.map_or(0.0, |e| (e.ttft_us as f64 + flow.output * e.itl_us as f64) / 1e6);
    let times = KV_ROOM * flow.arrivals * seconds / flow.running.max(1.0);
    Suggestion::KvCache { times_milli: (times.max(KV_ROOM) * 1000.0).round() as u64, expected: after }
}

fn more_replicas(d: &Deployment, flow: &Flow, objectives: Objectives) -> Option<Suggestion> {
    let enough = |e: &Expected| {
        e.itl_us as f64 <= ITL_MEAN_OF_P95 * objectives.itl_ms * 1000.0
            && e.ttft_us as f64 <= MEAN_OF_P95 * objectives.ttft_ms * 1000.0
    };
    let alone = expected_at(flow, 1, 0.0)?;
    if !enough(&alone) {
        return Some(Suggestion::Faster { alone });
    }
    let count = |phases: fn(&Phase) -> bool| d.replicas.iter().filter(|r: &&Replica| phases(&r.phase)).count() as u32;
    let ready = count(|phase| *phase == Phase::Ready);
    let starting = count(|phase| matches!(phase, Phase::Starting | Phase::Unscheduled { .. }));
    let by_load = flow.load() / SUGGESTED_LOAD / (1.0 - flow.cost.a / objectives.itl_ms);
    let least = (by_load.ceil() as u32).clamp(1, MOST_SUGGESTED);
    let to = (least..=least.saturating_mul(2)).find(|n| expected(flow, *n).is_some_and(|e| enough(&e)))?;
    if starting > 0 && ready + starting >= to {
        return Some(Suggestion::Wait { starting, expected: expected(flow, ready + starting) });
    }
    // More are asked for than there are: why they are not there is said elsewhere, and more of them change nothing.
    if asked(d) > ready + starting {
        return None;
    }
    let to = to.max(ready + starting + 1);
    let expected = expected(flow, to)?;
    (to <= MOST_SUGGESTED).then_some(Suggestion::Replicas {
        from: ready + starting,
        to,
        mode: d.scaling.mode,
        max: bounds(d).1,
        expected,
    })
}

fn expected(flow: &Flow, replicas: u32) -> Option<Expected> {
    expected_at(flow, replicas, flow.load())
}

fn expected_at(flow: &Flow, replicas: u32, load: f64) -> Option<Expected> {
    let basis = Basis { cost: flow.cost, mean_input: flow.uncached, load, each: 1.0 };
    basis.latencies(replicas).map(|(ttft_us, itl_us)| Expected { ttft_us, itl_us })
}

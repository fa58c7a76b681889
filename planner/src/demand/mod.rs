//! Stage one: how many replicas.
//!
//! `Manual`: what the spec says. `Active`: what the rule ([`autoscale`]) makes of the signals, within
//! the bounds. `Advisory`: the same answer, and the count stays. Signals that are missing, stale, not a
//! number or absurd freeze the count and are reported; they are never taken for zero. Not here: whether
//! the replicas may be had, and where.

pub mod autoscale;
pub mod bottleneck;
mod cost;
mod fleet;
mod idle;
mod inputs;
pub mod mix;
mod predict;
mod verdict;

pub(crate) use fleet::Change;
pub use idle::idle_after_ms;
pub use inputs::cold_start;
pub(crate) use inputs::{ASSUMED_COLD_START_MS, Site};
pub(crate) use predict::Basis;
pub use predict::Prediction;
pub use verdict::{
    Advice, Frozen, Hold, Inputs, LoadFigures, Problem, ScaleReason, ScaleVerdict, Signal, Tier, Withdrawn,
    WithdrawnFor,
};

use crate::demand::autoscale::{Wanted, wanted};
use crate::demand::inputs::{Live, Read};
use crate::snapshot::{Deployment, GatewaySignals, Memory, Policy, Room, Rule, ScalingMode, TimeMs};

/// A clock that went back further than this was set.
const CLOCK_WAS_SET_MS: u64 = 60_000;

/// The verdict, the number it stands for, and what is to be remembered of it.
pub(crate) struct Demand {
    pub verdict: ScaleVerdict,
    pub replicas: u32,
    /// `None`: as before.
    pub memory: Option<Memory>,
    /// The load that a prediction can be made for.
    pub basis: Option<Basis>,
    /// What a start takes; `None`: nothing is known of it, and nobody decides by it.
    pub cold_start_ms: Option<u64>,
    /// Which variants are added and which go.
    pub change: Change,
}

impl Demand {
    fn fixed(verdict: ScaleVerdict) -> Self {
        let replicas = verdict.replicas();
        Demand { replicas, verdict, memory: None, basis: None, cold_start_ms: None, change: Change::default() }
    }
}

/// What is wanted of one deployment.
pub(crate) fn how_many(d: &Deployment, site: Site<'_>, policy: &Policy, now: TimeMs) -> Demand {
    if d.deleting {
        return Demand::fixed(ScaleVerdict::Deleting);
    }
    let mode = d.scaling.mode;
    let (tier, cold_start_ms) = cold_start(&d.signals.cold_start, site.cached);
    if mode == ScalingMode::Manual {
        let cold_start_ms = Some(cold_start_ms).filter(|_| tier != Tier::Unknown);
        // What the rule settled on before is not what runs when it decides again.
        let memory = Some(Memory::default()).filter(|empty| *empty != d.memory);
        return Demand { cold_start_ms, memory, ..Demand::fixed(ScaleVerdict::Manual { replicas: d.wanted }) };
    }
    let live = Live::of(d);
    let standing = standing(d, live);
    let (mut memory, mut found) = (d.memory.clone(), Found::default());
    let verdict = match advise(d, live, site, &mut memory, &mut found, policy, now) {
        Ok(advice) if mode == ScalingMode::Active => ScaleVerdict::Active { advice: Box::new(advice) },
        Ok(advice) => ScaleVerdict::Advisory { replicas: standing, advice: Box::new(advice) },
        Err(cause) => ScaleVerdict::Frozen { mode, replicas: standing, cause },
    };
    let replicas = verdict.replicas();
    memory.target = Some(replicas);
    let Found { basis, change } = found;
    Demand { verdict, replicas, memory: Some(memory), basis, cold_start_ms: Some(cold_start_ms), change }
}

/// What the rule finds besides its advice.
#[derive(Default)]
struct Found {
    basis: Option<Basis>,
    change: Change,
}

/// The count that was last asked for, whether or not quota and nodes let so many be.
fn asked(d: &Deployment) -> u32 {
    if d.scaling.mode == ScalingMode::Manual { d.wanted } else { standing(d, Live::of(d)) }
}

/// The count while the rule does not decide: what the last plan settled on, or what there is.
fn standing(d: &Deployment, live: Live) -> u32 {
    let (min, max) = bounds(d);
    d.memory.target.unwrap_or(d.wanted.max(live.count)).clamp(min, max)
}

fn bounds(d: &Deployment) -> (u32, u32) {
    (d.scaling.min_replicas, d.scaling.max_replicas.max(d.scaling.min_replicas))
}

fn advise(
    d: &Deployment,
    live: Live,
    site: Site<'_>,
    memory: &mut Memory,
    found: &mut Found,
    policy: &Policy,
    now: TimeMs,
) -> Result<Advice, Frozen> {
    let gateway = inputs::gateway(d, policy, now)?;
    memory.note_requests(gateway);
    let at_zero = live.count == 0 && memory.target.unwrap_or(d.wanted) == 0 && bounds(d).0 == 0;
    if at_zero && !waits(gateway) {
        memory.answers.clear();
        return Ok(without_load(d, live, gateway, site, now, 0, ScaleReason::Asleep));
    }
    let read = inputs::read(d, live, gateway, site, memory, policy, now);
    let answer = read.and_then(|read| {
        let answer = wanted(memory, &read.measured, read.objectives, rule(d, policy));
        // Nothing about how fast a replica is matters to one that no request came for.
        let rests = || bounds(d).0 == 0 && idle::at_rest(d, memory, gateway, &read.inputs) == ScaleReason::Idle;
        match answer {
            Err(_) if rests() => Ok(None),
            answer => Ok(Some((answer?, read))),
        }
    });
    match answer {
        Ok(None) => Ok(without_load(d, live, gateway, site, now, 0, ScaleReason::Idle)),
        Ok(Some((answer, read))) => {
            found.change = read.fleet.change(read.count, answer.replicas);
            found.basis = Some(expected(&answer, &read, &found.change));
            Ok(advice(d, at_zero, memory, gateway, &answer, read, found.change.replicas))
        }
        // Without a replica nothing about its cost can be learned: one is started to find out.
        Err(_) if at_zero && waits(gateway) => Ok(without_load(d, live, gateway, site, now, 1, ScaleReason::Wake)),
        Err(cause) => Err(cause),
    }
}

fn expected(answer: &Wanted, read: &Read, change: &Change) -> Basis {
    let measured = &read.measured;
    let each = read.fleet.carried_after(read.count, change) / f64::from(change.replicas.max(1));
    let mean_input = measured.input_tokens as f64 / measured.arrivals.max(1) as f64;
    let load = answer.forecast.max(answer.burst.unwrap_or(0.0));
    Basis { cost: measured.cost, mean_input, load, each }
}

fn rule<'a>(d: &Deployment, policy: &'a Policy) -> &'a Rule {
    match d.scaling.room {
        Room::Standard => &policy.standard_rule,
        Room::Tight => &policy.tight_rule,
    }
}

fn waits(gateway: &GatewaySignals) -> bool {
    gateway.arrivals > 0 || gateway.queued > 0
}

fn without_load(
    d: &Deployment,
    live: Live,
    gateway: &GatewaySignals,
    site: Site<'_>,
    now: TimeMs,
    replicas: u32,
    reason: ScaleReason,
) -> Advice {
    let (min, max) = bounds(d);
    let inputs = inputs::seen(d, live, gateway, site, now);
    let load = LoadFigures::default();
    let wanted = replicas.clamp(min, max);
    let (needed, bounds) = (replicas, (min, max));
    Advice { wanted, reason, needed, reference: None, load, hold: None, bounds, inputs, withdrawn: None }
}

fn advice(
    d: &Deployment,
    at_zero: bool,
    memory: &mut Memory,
    gateway: &GatewaySignals,
    answer: &Wanted,
    read: Read,
    replicas: u32,
) -> Advice {
    let (min, max) = bounds(d);
    let Read { measured, inputs, count, fleet, .. } = read;
    let kept = answer.replicas > answer.needed;
    let held = kept && answer.held.0 >= answer.replicas;
    let rest = if min == 0 { idle::at_rest(d, memory, gateway, &inputs) } else { ScaleReason::Minimum };
    let (wanted, reason) = if rest == ScaleReason::Idle {
        memory.answers.clear();
        (0, ScaleReason::Idle)
    } else if at_zero {
        (replicas.max(1).clamp(min, max), ScaleReason::Wake)
    } else {
        // Only what is idle for long enough goes to zero.
        let least = min.max(1).min(max);
        let reason = match replicas {
            more if more > max => ScaleReason::Maximum,
            fewer if fewer < least => rest,
            _ if held => ScaleReason::Hold,
            _ if kept => ScaleReason::Running,
            _ => made_of(answer),
        };
        (replicas.clamp(least, max), reason)
    };
    Advice {
        wanted,
        reason,
        needed: answer.needed,
        load: figures(answer),
        reference: fleet.is_mixed().then(|| inputs.cost_of.clone()),
        hold: held.then_some(Hold { replicas: answer.held.0, until_ms: (answer.held.1 * 1000.0) as TimeMs }),
        bounds: (min, max),
        inputs: Inputs { starting: count.saturating_sub(measured.ready), ..inputs },
        withdrawn: None,
    }
}

/// The largest part of an answer that was neither held nor bounded.
fn made_of(answer: &Wanted) -> ScaleReason {
    if answer.kv_bound {
        return ScaleReason::KvCache;
    }
    match answer.burst {
        Some(burst) if burst > answer.forecast => ScaleReason::Burst,
        _ if answer.backlog > 0.0 => ScaleReason::Backlog,
        _ => ScaleReason::Load,
    }
}

fn figures(answer: &Wanted) -> LoadFigures {
    let milli = |value: f64| (value * 1000.0).round() as u64;
    LoadFigures {
        offered_milli: milli(answer.offered),
        forecast_milli: milli(answer.forecast),
        growth_milli: milli(answer.growth),
        burst_milli: answer.burst.map(milli),
        room_milli: milli(answer.room),
        per_replica_milli: milli(answer.load_per_replica),
        backlog_ms: milli(answer.backlog),
    }
}

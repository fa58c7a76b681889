//! From signals to what the rule measures: ages, tiers and the variant whose cost counts. What is
//! missing, too old or against itself is refused here by name.

use crate::demand::autoscale::{ASSUMED_OUTPUT, Measured};
use crate::demand::cost;
use crate::demand::fleet::{Fleet, MeanRequest};
use crate::demand::verdict::{Frozen, Inputs, Problem, Signal, Tier};
use crate::snapshot::{
    ColdStart, Deployment, ENOUGH_STARTS, EngineSignals, GatewaySignals, Memory, Objectives, Phase, Policy, Replica,
    TimeMs,
};

/// Replicas that exist, by slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    /// Slots with a Ready pod.
    pub ready: u32,
    /// Slots with a pod that serves or starts.
    pub count: u32,
}

/// Weight of one interval in the mean prompt.
const INPUT_WEIGHT: f64 = 0.2;
/// Clocks of two processes may differ by this much.
const CLOCK_SKEW_MS: u64 = 5_000;
/// Cold start that is assumed until enough were measured.
pub const ASSUMED_COLD_START_MS: u64 = 120_000;
/// Prompt tokens of a request until one was seen: the mean of the public conversation trace.
const ASSUMED_INPUT: f64 = 1154.0;
/// Tokens per answer beyond which a mean is taken for a broken counter.
const ABSURD_TOKENS: f64 = 1e7;

impl Live {
    pub fn of(d: &Deployment) -> Self {
        let slots = |ready: bool| {
            let live = d.replicas.iter().filter(|r| lives(r) && (!ready || r.phase == Phase::Ready));
            let mut slots: Vec<u32> = live.map(|r| r.index).collect();
            slots.sort_unstable();
            slots.dedup();
            slots.len() as u32
        };
        Live { ready: slots(true), count: slots(false) }
    }
}

/// The replica serves or starts.
pub(super) fn lives(r: &Replica) -> bool {
    !r.node_lost && !matches!(r.phase, Phase::Draining { .. } | Phase::Failed { .. } | Phase::Terminating { .. })
}

/// What the cluster knows of a deployment besides its snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// The weights lie on a node that may take it.
    pub cached: bool,
    /// Per hour of one replica, by variant in the deployment's order.
    pub prices: &'a [Option<u64>],
}

/// The signals, read.
pub(super) struct Read {
    pub measured: Measured,
    pub inputs: Inputs,
    pub objectives: Objectives,
    pub fleet: Fleet,
    /// Replicas that serve, start or are to be made again, of whatever variant.
    pub count: u32,
}

/// The gateway's part, which alone can wake a deployment at zero.
pub(super) fn gateway<'a>(d: &'a Deployment, policy: &Policy, now: TimeMs) -> Result<&'a GatewaySignals, Frozen> {
    let refuse = |problem| Frozen { signal: Signal::Gateway, problem };
    let Some(gateway) = &d.signals.gateway else { return Err(refuse(Problem::Missing)) };
    age(Signal::Gateway, gateway.to_ms, policy, now)?;
    if gateway.to_ms <= gateway.from_ms {
        return Err(refuse(Problem::Interval { length_ms: 0 }));
    }
    if gateway.cached_tokens > gateway.input_tokens || gateway.held > gateway.queued {
        return Err(refuse(Problem::Absurd));
    }
    let output = gateway.mean_output_tokens;
    if !output.is_finite() || output < 0.0 {
        return Err(refuse(Problem::NotANumber));
    }
    if output > ABSURD_TOKENS { Err(refuse(Problem::Absurd)) } else { Ok(gateway) }
}

/// The whole picture.
pub(super) fn read(
    d: &Deployment,
    live: Live,
    gateway: &GatewaySignals,
    site: Site<'_>,
    memory: &mut Memory,
    policy: &Policy,
    now: TimeMs,
) -> Result<Read, Frozen> {
    let engines = engines(d, live, policy, now)?;
    memory.learn(d, &engines);
    memory.follow_input(gateway);
    let cost = cost::cost(d, memory)?;
    let objectives = d.scaling.objectives.ok_or(Frozen { signal: Signal::Objectives, problem: Problem::Missing })?;
    let mean = MeanRequest { input: memory.mean_input.unwrap_or(ASSUMED_INPUT), output: known_output(gateway) };
    let fleet = Fleet::new(d, memory, site.prices, objectives, &cost, mean);
    let count = live.count.max(memory.target.unwrap_or(d.wanted));
    let inputs = seen(d, live, gateway, site, now);
    let measured = Measured {
        at: gateway.to_ms as f64 / 1000.0,
        interval: (gateway.to_ms - gateway.from_ms) as f64 / 1000.0,
        arrivals: gateway.arrivals,
        sequences: gateway.sequences(),
        input_tokens: gateway.input_tokens - gateway.cached_tokens,
        mean_output_tokens: gateway.mean_output_tokens,
        queued_tokens: gateway.queued_tokens,
        unprefilled_tokens: engines.unprefilled_tokens,
        ready: live.ready,
        count: (fleet.carried(count) + 1e-9).floor() as u32,
        kv_bound: engines.kv_bound,
        kv_used: engines.kv_used_milli as f64 / 1000.0,
        cost: cost.coefficients,
        cold_start: inputs.cold_start_ms as f64 / 1000.0,
        history: d.signals.history,
    };
    let inputs = Inputs {
        engines_age_ms: (live.ready > 0).then(|| now.saturating_sub(engines.at_ms)),
        unprefilled_tokens: engines.unprefilled_tokens,
        kv_used_milli: engines.kv_used_milli,
        cost_of: cost.variant,
        cost_origin: Some(cost.origin),
        ..inputs
    };
    Ok(Read { measured, inputs, objectives, fleet, count })
}

/// What is known without the engines.
pub(super) fn seen(d: &Deployment, live: Live, gateway: &GatewaySignals, site: Site<'_>, now: TimeMs) -> Inputs {
    let (cold_start_tier, cold_start_ms) = cold_start(&d.signals.cold_start, site.cached);
    Inputs {
        ready: live.ready,
        starting: live.count - live.ready.min(live.count),
        gateway_age_ms: now.saturating_sub(gateway.to_ms),
        interval_ms: gateway.to_ms - gateway.from_ms,
        arrivals: gateway.arrivals,
        input_tokens: gateway.input_tokens,
        cached_tokens: gateway.cached_tokens,
        mean_output_milli_tokens: (gateway.mean_output_tokens * 1000.0) as u64,
        queued_tokens: gateway.queued_tokens,
        held: gateway.held,
        cold_start_ms,
        cold_start_tier,
        starts: d.signals.cold_start.starts,
        start_stages: d.signals.cold_start.stages,
        ..Inputs::default()
    }
}

impl Memory {
    /// Follows the mean prompt of these signals; they are those of one interval.
    pub(super) fn follow_input(&mut self, gateway: &GatewaySignals) {
        if gateway.arrivals == 0 || self.last == Some(gateway.to_ms as f64 / 1000.0) {
            return;
        }
        let mean = (gateway.input_tokens - gateway.cached_tokens) as f64 / gateway.arrivals as f64;
        let before = self.mean_input.unwrap_or(mean);
        self.mean_input = Some(before + INPUT_WEIGHT * (mean - before));
    }
}

fn known_output(gateway: &GatewaySignals) -> f64 {
    if gateway.mean_output_tokens > 0.0 { gateway.mean_output_tokens } else { ASSUMED_OUTPUT }
}

fn age(signal: Signal, at: TimeMs, policy: &Policy, now: TimeMs) -> Result<(), Frozen> {
    let ahead = at.saturating_sub(now);
    if ahead > CLOCK_SKEW_MS {
        return Err(Frozen { signal, problem: Problem::FromTheFuture { by_ms: ahead } });
    }
    let (age_ms, limit_ms) = (now.saturating_sub(at), policy.signals_stale_ms);
    if age_ms > limit_ms { Err(Frozen { signal, problem: Problem::Stale { age_ms, limit_ms } }) } else { Ok(()) }
}

fn engines(d: &Deployment, live: Live, policy: &Policy, now: TimeMs) -> Result<EngineSignals, Frozen> {
    if live.ready == 0 {
        return Ok(EngineSignals::default());
    }
    let refuse = |problem| Frozen { signal: Signal::Engines, problem };
    let Some(engines) = d.signals.engines.clone() else { return Err(refuse(Problem::Missing)) };
    age(Signal::Engines, engines.at_ms, policy, now)?;
    // A draining replica may still be in the sum, so twice what is Ready is no contradiction yet.
    let most = u64::from(live.count.max(live.ready)).max(d.replicas.len() as u64).saturating_mul(2_000);
    if engines.kv_used_milli > most { Err(refuse(Problem::Absurd)) } else { Ok(engines) }
}

/// The fastest tier that a new replica can have, and its time. A few starts may shorten what is assumed and not
/// lengthen it: a single one may have met a slow registry.
pub fn cold_start(known: &ColdStart, cached: bool) -> (Tier, u64) {
    let few = (1..ENOUGH_STARTS).contains(&known.starts);
    let (tier, ms) = fastest(known, cached);
    (tier, if few { ms.min(ASSUMED_COLD_START_MS) } else { ms })
}

fn fastest(known: &ColdStart, cached: bool) -> (Tier, u64) {
    let asleep = known.asleep_ms.filter(|_| known.asleep_replicas > 0).map(|ms| (Tier::Asleep, ms));
    let on_node = known.cached_ms.filter(|_| cached).map(|ms| (Tier::Cached, ms));
    // A replica whose tier was never measured takes at most as long as one from further away.
    let remote = known.remote_ms.map(|ms| (Tier::Remote, ms));
    asleep.or(on_node).or(remote).unwrap_or((Tier::Unknown, ASSUMED_COLD_START_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_starts_may_shorten_what_is_assumed_and_three_decide() {
        let assumed = ASSUMED_COLD_START_MS;
        for (starts, measured, expect) in [
            (0, None, (Tier::Unknown, assumed)),
            (0, Some(300_000), (Tier::Remote, 300_000)),
            (1, Some(9_000), (Tier::Remote, 9_000)),
            (2, Some(300_000), (Tier::Remote, assumed)),
            (3, Some(300_000), (Tier::Remote, 300_000)),
            (20, Some(9_000), (Tier::Remote, 9_000)),
        ] {
            let known = ColdStart { remote_ms: measured, starts, ..ColdStart::default() };
            assert_eq!(cold_start(&known, true), expect, "{starts} starts, {measured:?}");
        }
    }
}

//! The last half minute of a deployment's signals, as means: one moment's counts say little about a share of time.

use serde::{Deserialize, Serialize};

use super::FaultyGpus;
use crate::demand::inputs::lives;
use crate::snapshot::{Deployment, EngineSignals, GatewaySignals, Phase, Replica, TimeMs};

/// An interval's weight falls to 1/e in so many seconds.
const SECONDS: f64 = 30.0;
/// Signals that end so long before the next ones begin are of another time: the means start anew.
const GAP_MS: u64 = 10_000;
/// Longest interval that says anything of the present.
const LONGEST_MS: u64 = 60_000;

/// Means over the last intervals. Rates are per second, `kv_full` and `kv_used` shares of all Ready replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Means {
    /// Since when signals are looked for, or come again.
    pub(super) began_ms: TimeMs,
    /// End of the last interval, and of the last one in which engines reported as well.
    last_ms: Option<TimeMs>,
    pub(super) sampled_ms: Option<TimeMs>,
    /// Seconds that were taken in.
    pub(super) seen: f64,
    /// Requests that waited at the end of the last interval.
    queued: u64,
    pub(super) mean: Sample,
    /// Tokens of recent answers, as the gateways last reported them.
    pub(super) output: f64,
}

/// What one interval shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Sample {
    pub arrivals: f64,
    /// Sequences that those ask for.
    pub sequences: f64,
    /// Requests that got a place on an engine, and those that left without one: refused, timed out or given up.
    pub started: f64,
    pub unplaced: f64,
    /// Prompt tokens that came, and those of them that no prefix cache held.
    pub input: f64,
    pub uncached: f64,
    pub queued: f64,
    /// Sequences that engines have.
    pub running: f64,
    pub unprefilled: f64,
    pub kv_full: f64,
    pub kv_used: f64,
    pub ready: f64,
    /// Of the Ready replicas: those on a faulty GPU, and their sequences.
    pub faulty: f64,
    pub faulty_running: f64,
    /// Replicas that do not serve, on a faulty GPU.
    pub lost: f64,
}

// === impl Means ===

impl Means {
    /// Signals are looked for from now on.
    pub fn since(now: TimeMs) -> Self {
        Self { began_ms: now, ..Self::default() }
    }

    /// Takes in the signals of one interval; those of the same interval once.
    pub fn observe(&mut self, d: &Deployment, faulty: &FaultyGpus) {
        let Some(gateway) = d.signals.gateway.filter(credible) else { return };
        if self.last_ms.is_some_and(|last| gateway.to_ms <= last) {
            return;
        }
        let gap = self.last_ms.is_none_or(|last| gateway.from_ms.saturating_sub(last) > GAP_MS);
        if gap {
            *self = Self::since(gateway.from_ms.max(self.began_ms));
        }
        let seconds = (gateway.to_ms - gateway.from_ms) as f64 / 1000.0;
        let before = if gap { gateway.queued } else { self.queued };
        if let Some(sample) = Sample::of(d, &gateway, before, seconds, faulty) {
            self.seen += seconds;
            let weight = (1.0 - (-seconds / SECONDS).exp()).max(seconds / self.seen);
            self.mean.follow(&sample, weight);
            self.sampled_ms = Some(gateway.to_ms);
        }
        self.last_ms = Some(gateway.to_ms);
        self.queued = gateway.queued;
        if gateway.mean_output_tokens > 0.0 {
            self.output = gateway.mean_output_tokens;
        }
    }
}

/// Whether the gateways can have counted it.
fn credible(gateway: &GatewaySignals) -> bool {
    let GatewaySignals { from_ms, to_ms, input_tokens, cached_tokens, mean_output_tokens, .. } = *gateway;
    from_ms < to_ms
        && to_ms - from_ms <= LONGEST_MS
        && cached_tokens <= input_tokens
        && mean_output_tokens.is_finite()
        && mean_output_tokens >= 0.0
}

// === impl Sample ===

impl Sample {
    /// `None`: replicas serve and their engines do not report.
    fn of(
        d: &Deployment,
        gateway: &GatewaySignals,
        queued_before: u64,
        seconds: f64,
        faulty: &FaultyGpus,
    ) -> Option<Self> {
        let serves = |r: &&Replica| r.phase == Phase::Ready && !r.node_lost;
        let ready = d.replicas.iter().filter(serves).count() as f64;
        let engines = match &d.signals.engines {
            Some(engines) => engines.clone(),
            None if ready == 0.0 => EngineSignals::default(),
            None => return None,
        };
        // Those that do not wait any more.
        let left = gateway.arrivals as f64 + queued_before as f64 - gateway.queued as f64;
        let started = gateway.placed.map_or(left, |placed| placed as f64);
        let mut sample = Self {
            arrivals: gateway.arrivals as f64 / seconds,
            sequences: gateway.sequences() as f64 / seconds,
            started: started / seconds,
            unplaced: (left - started) / seconds,
            input: gateway.input_tokens as f64 / seconds,
            uncached: (gateway.input_tokens - gateway.cached_tokens) as f64 / seconds,
            queued: gateway.queued as f64,
            unprefilled: engines.unprefilled_tokens as f64,
            kv_full: f64::from(engines.kv_bound) / ready.max(1.0),
            kv_used: engines.kv_used_milli as f64 / 1000.0 / ready.max(1.0),
            ready,
            ..Self::default()
        };
        for replica in &d.replicas {
            let running = f64::from(replica.in_flight.unwrap_or(0));
            let faulty = f64::from(u8::from(faulty.under(replica).is_some()));
            if serves(&replica) {
                sample.running += running;
                sample.faulty += faulty;
                sample.faulty_running += running * faulty;
            } else if lives(replica) || matches!(replica.phase, Phase::Draining { .. }) {
                sample.lost += faulty;
            }
        }
        Some(sample)
    }

    fn follow(&mut self, sample: &Self, weight: f64) {
        let Self { arrivals, sequences, started, unplaced, input, uncached, queued, running, unprefilled, .. } = self;
        let Self { kv_full, kv_used, ready, faulty, faulty_running, lost, .. } = self;
        for (mean, now) in [
            (arrivals, sample.arrivals),
            (sequences, sample.sequences),
            (started, sample.started),
            (unplaced, sample.unplaced),
            (input, sample.input),
            (uncached, sample.uncached),
            (queued, sample.queued),
            (running, sample.running),
            (unprefilled, sample.unprefilled),
            (kv_full, sample.kv_full),
            (kv_used, sample.kv_used),
            (ready, sample.ready),
            (faulty, sample.faulty),
            (faulty_running, sample.faulty_running),
            (lost, sample.lost),
        ] {
            *mean += weight * (now - *mean);
        }
    }
}

//! Scale to zero: after how long without requests, and when it is allowed.
//!
//! An idle replica costs its price while a gap between requests lasts; without it the request that ends
//! the gap waits for a cold start. The idle time is the one that would have cost least over the gaps
//! seen, older ones counting less. Only gaps that are seen as such count: those that leave at least one
//! interval without a request.

use crate::demand::CLOCK_WAS_SET_MS;
use crate::demand::verdict::{Inputs, ScaleReason};
use crate::snapshot::{Deployment, Gaps, GatewaySignals, Memory};

/// Buckets grow by the square root of two, from four seconds to eighteen hours.
const BUCKETS: usize = 28;
const FIRST_SECONDS: f64 = 4.0;
/// Weight that a gap keeps with each later one.
const KEEP: f64 = 0.98;
/// Gaps that must have been seen before they decide.
const LEAST_GAPS: f64 = 8.0;
/// Idle time until then, and the shortest.
const DEFAULT_SECONDS: f64 = 300.0;
const LEAST_SECONDS: f64 = 60.0;
/// What a cold start costs, in times its length of an idle replica: the start itself and the wait of a
/// request, which weighs four times as much.
const COLD_START_COST: f64 = 5.0;
/// What lies between two intervals further apart than this was not seen: it is not idle time.
const UNSEEN_MS: u64 = 60_000;

/// Longest time in seconds that a gap of this bucket can have.
fn end_of(bucket: usize) -> f64 {
    FIRST_SECONDS * 2f64.powf((bucket as f64 + 1.0) / 2.0)
}

impl Gaps {
    /// Counts a gap between two requests.
    pub fn note(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        self.weights.resize(BUCKETS, 0.0);
        let bucket = (0..BUCKETS - 1).find(|bucket| seconds < end_of(*bucket)).unwrap_or(BUCKETS - 1);
        self.weights.iter_mut().for_each(|weight| *weight *= KEEP);
        self.weights[bucket] += 1.0;
    }
}

/// Milliseconds without a request after which no replica is worth its price.
pub fn idle_after_ms(gaps: &Gaps, cold_start_ms: u64) -> u64 {
    let cold_start = cold_start_ms as f64 / 1000.0;
    let enough = gaps.weights.iter().sum::<f64>() >= LEAST_GAPS;
    let seconds = if enough { cheapest(&gaps.weights, COLD_START_COST * cold_start) } else { DEFAULT_SECONDS };
    (seconds.max(LEAST_SECONDS).max(cold_start) * 1000.0) as u64
}

/// The end of the bucket with the least cost; the shorter of two equal ones.
fn cheapest(weights: &[f64], cold_start_cost: f64) -> f64 {
    let mut best = (f64::INFINITY, DEFAULT_SECONDS);
    let (mut within, mut beyond) = (0.0, weights.iter().sum::<f64>());
    for (bucket, weight) in weights.iter().enumerate() {
        let end = end_of(bucket);
        within += weight * end;
        beyond -= weight;
        let cost = within + beyond * (end + cold_start_cost);
        if cost < best.0 {
            best = (cost, end);
        }
    }
    best.1
}

impl Memory {
    /// Notes when requests came, and the gaps between them. The same signals change nothing twice.
    pub(super) fn note_requests(&mut self, gateway: &GatewaySignals) {
        let seen = self.last_request_ms.unwrap_or(gateway.to_ms);
        let unseen = self.seen_until_ms.is_some_and(|end| gateway.from_ms.saturating_sub(end) > UNSEEN_MS);
        let was_set = seen.saturating_sub(gateway.to_ms) > CLOCK_WAS_SET_MS || unseen;
        self.seen_until_ms = Some(gateway.to_ms);
        let came = gateway.arrivals > 0 || gateway.queued > 0;
        if came && !was_set {
            self.gaps.note(gateway.from_ms.saturating_sub(seen) as f64 / 1000.0);
        }
        let known = self.last_request_ms.is_some() && !was_set;
        if (came && gateway.to_ms > seen) || !known {
            self.last_request_ms = Some(gateway.to_ms);
        }
    }
}

/// Whether the deployment is to run nothing until the next request; if not, why.
pub(super) fn at_rest(d: &Deployment, memory: &Memory, gateway: &GatewaySignals, inputs: &Inputs) -> ScaleReason {
    let works = inputs.unprefilled_tokens > 0 || inputs.kv_used_milli > 0;
    let serves = d.replicas.iter().any(|r| r.in_flight.is_some_and(|requests| requests > 0));
    if !may_wait(d, inputs.cold_start_ms) {
        return ScaleReason::NoColdStart;
    }
    if gateway.arrivals > 0 || gateway.queued > 0 || works || serves {
        return ScaleReason::LastReplica;
    }
    let limit = d.scaling.idle_after_ms.unwrap_or_else(|| idle_after_ms(&memory.gaps, inputs.cold_start_ms));
    let since = memory.last_request_ms.unwrap_or(gateway.to_ms);
    if gateway.to_ms.saturating_sub(since) >= limit { ScaleReason::Idle } else { ScaleReason::LastReplica }
}

/// A request may wait for a cold start: its objective covers it, or the spec allows it.
fn may_wait(d: &Deployment, cold_start_ms: u64) -> bool {
    let covered = d.scaling.objectives.is_some_and(|o| cold_start_ms as f64 <= o.ttft_ms);
    covered || d.scaling.cold_start_hold_ms.is_some_and(|hold| cold_start_ms <= hold)
}

//! One run: a trace, a policy, the figures.

use crate::cluster::{Cluster, Gate, Observation, Setting};
use crate::engine::{MAX_SEQUENCES, Request};
use crate::policy::{Policy, Totals, work};
use crate::trace::Arrival;
use serde::Serialize;
use stowage_contracts::load::Coefficients;
use stowage_planner::snapshot::Objectives;

/// The protocol: what is the same for all policies.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// Of one replica.
    pub cost: Coefficients,
    /// What counts as kept.
    pub objective: Objectives,
    /// Tokens of a replica's KV cache.
    pub kv_capacity: u64,
    /// Seconds.
    pub cold_start: f64,
    /// Replicas that there can be.
    pub max_replicas: usize,
    /// Seconds between two decisions.
    pub tick: f64,
    /// Seconds at the start whose requests do not count for the objectives.
    pub warm_up: f64,
    /// The gateway's gate is on.
    pub gate: bool,
}

impl Protocol {
    /// The published one: Llama-3.1-70B FP8, vLLM, TP4, H100; TTFT 2 s, mean ITL 50 ms.
    pub fn published(cold_start: f64) -> Self {
        Self {
            cost: Coefficients::REFERENCE,
            objective: Objectives { ttft_ms: 2000.0, itl_ms: 50.0 },
            kv_capacity: 650_000,
            cold_start,
            max_replicas: 40,
            tick: 5.0,
            warm_up: 300.0,
            gate: true,
        }
    }

    /// Replicas that a run starts with: the mean load at 60 % each. Over less than a minute there is no mean.
    pub fn replicas_at_start(&self, trace: &[Arrival]) -> usize {
        let end = trace.last().map_or(60.0, |arrival| arrival.at_s.max(60.0));
        let load = trace.iter().map(|arrival| work(&self.cost, arrival)).sum::<f64>() / end;
        ((load / 0.6).ceil() as usize).clamp(1, self.max_replicas)
    }

    /// Requests in flight on one replica at the ITL objective.
    pub fn concurrency(&self, trace: &[Arrival]) -> f64 {
        self.concurrency_by(trace, trace)
    }

    /// The work of a request is the mean of a sample, as in the protocol; the answers are those of the trace.
    fn concurrency_by(&self, sample: &[Arrival], trace: &[Arrival]) -> f64 {
        let work = mean(sample, |arrival| work(&self.cost, arrival));
        let output = mean(trace, |arrival| f64::from(arrival.output_tokens));
        (1.0 - self.cost.a / self.objective.itl_ms) / work * output * self.objective.itl_ms / 1000.0
    }

    fn setting(&self, trace: &[Arrival]) -> Setting {
        let sample = &trace[..trace.len().min(20_000)];
        let sequences = (self.concurrency_by(sample, trace) as usize).clamp(1, MAX_SEQUENCES);
        let gate = Gate { patience: self.objective.ttft_ms / 2.0, max_sequences: sequences };
        Setting {
            cost: self.cost,
            kv_capacity: self.kv_capacity,
            cold_start: self.cold_start * 1000.0,
            max_replicas: self.max_replicas,
            gate: self.gate.then_some(gate),
        }
    }
}

fn mean(trace: &[Arrival], value: impl Fn(&Arrival) -> f64) -> f64 {
    trace.iter().map(value).sum::<f64>() / trace.len().max(1) as f64
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Requests after the warm-up.
    pub requests: usize,
    /// Of these, per cent that kept both objectives.
    pub slo_percent: f64,
    /// Replica-hours, cold starts included.
    pub replica_hours: f64,
    /// Seconds.
    pub ttft_p50: f64,
    /// Seconds.
    pub ttft_p99: f64,
    /// Most replicas at one time.
    pub peak: usize,
    /// Changes of the count.
    pub changes: usize,
    /// Of these, to more and to fewer.
    pub scale_outs: usize,
    /// As above.
    pub scale_ins: usize,
    /// Requests of the whole trace that arrived while no replica served.
    pub held: usize,
}

/// One decision of a run, as it is made.
pub struct Tick<'a> {
    /// What the policy saw.
    pub seen: &'a Observation,
    /// Replicas that serve or start, before the decision and after it.
    pub before: usize,
    /// As above.
    pub after: usize,
    /// Who decided.
    pub policy: &'a dyn Policy,
}

/// Replays the trace under the policy.
pub fn run(trace: &[Arrival], policy: &mut dyn Policy, protocol: &Protocol, ready_at_start: usize) -> Outcome {
    watched(trace, policy, protocol, ready_at_start, &mut |_| {})
}

/// [`run`], with each of its decisions shown to `watch`.
pub fn watched(
    trace: &[Arrival],
    policy: &mut dyn Policy,
    protocol: &Protocol,
    ready_at_start: usize,
    watch: &mut dyn FnMut(&Tick<'_>),
) -> Outcome {
    let totals = Totals::of(trace);
    let mut cluster = Cluster::new(protocol.setting(trace), trace.iter().map(request).collect(), ready_at_start);
    let end = trace.last().map_or(0.0, |arrival| arrival.at_s) + 1.0;
    let (mut now, mut peak, mut outs, mut ins) = (0.0, ready_at_start, 0, 0);
    while now < end {
        now += protocol.tick;
        cluster.advance(now * 1000.0);
        let (seen, before) = (cluster.observe(), cluster.count());
        cluster.apply(&policy.decide(&seen, &totals));
        let after = cluster.count();
        (peak, outs, ins) = (peak.max(after), outs + usize::from(after > before), ins + usize::from(after < before));
        watch(&Tick { seen: &seen, before, after, policy });
    }
    let replica_hours = cluster.replica_time() / 3_600_000.0;
    finish(&mut cluster, now, end);
    Outcome { scale_outs: outs, scale_ins: ins, ..outcome(&cluster, protocol, replica_hours, peak) }
}

/// Lets what is still open end, for at most an hour.
fn finish(cluster: &mut Cluster, mut now: f64, end: f64) {
    while !cluster.done() && now < end + 3600.0 {
        now += 30.0;
        cluster.advance(now * 1000.0);
        if cluster.count() == 0 {
            cluster.scale_to(1);
        }
    }
}

fn outcome(cluster: &Cluster, protocol: &Protocol, replica_hours: f64, peak: usize) -> Outcome {
    let counted = || cluster.requests().iter().filter(|request| request.arrived >= protocol.warm_up * 1000.0);
    let kept = counted().filter(|request| keeps(request, protocol.objective)).count();
    let mut ttft: Vec<f64> = counted().map(|request| request.ttft.unwrap_or(1e9) / 1000.0).collect();
    ttft.sort_by(f64::total_cmp);
    let percentile = |part: f64| ttft.get(((ttft.len().max(1) - 1) as f64 * part) as usize).copied().unwrap_or(0.0);
    Outcome {
        requests: ttft.len(),
        slo_percent: 100.0 * kept as f64 / ttft.len().max(1) as f64,
        replica_hours,
        ttft_p50: percentile(0.5),
        ttft_p99: percentile(0.99),
        peak,
        changes: cluster.changes(),
        scale_outs: 0,
        scale_ins: 0,
        held: cluster.held(),
    }
}

fn keeps(request: &Request, objective: Objectives) -> bool {
    let (Some(ttft), Some(finished)) = (request.ttft, request.finished) else { return false };
    let between = f64::from(request.output.saturating_sub(1).max(1));
    ttft <= objective.ttft_ms && (finished - request.arrived - ttft) / between <= objective.itl_ms
}

fn request(arrival: &Arrival) -> Request {
    Request {
        arrived: arrival.at_s * 1000.0,
        input: arrival.input_tokens,
        output: arrival.output_tokens,
        left: 0,
        generated: 0,
        ttft: None,
        finished: None,
    }
}

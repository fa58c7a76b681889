//! Who decides the number of replicas, besides the product (`planned`): published rules for comparison.
//!
//! They are re-implementations of their documented rules, as in the reference protocol.

use crate::cluster::{Decision, Observation};
use crate::trace::Arrival;
use std::collections::VecDeque;
use stowage_contracts::load::Coefficients;
use stowage_planner::snapshot::Objectives;

/// Arrivals of a trace, summed up so that a policy can read what arrived in an interval.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Prompt tokens of the first n requests.
    input: Vec<u64>,
    mean_output: f64,
}

/// Decides each tick.
pub trait Policy {
    /// What is to become of the replicas now.
    fn decide(&mut self, seen: &Observation, totals: &Totals) -> Decision;

    /// Why the last decision was made; `None`: the policy gives no reasons.
    fn reason(&self) -> Option<Reason> {
        None
    }
}

/// Why a decision was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// As the policy says it.
    pub text: String,
    /// The policy could not decide, and the count stays.
    pub frozen: bool,
}

// === impl Totals ===

impl Totals {
    /// Of a whole trace.
    pub fn of(trace: &[Arrival]) -> Self {
        let mut input = vec![0];
        let mut sum = 0;
        for arrival in trace {
            sum += u64::from(arrival.input_tokens);
            input.push(sum);
        }
        let output: u64 = trace.iter().map(|arrival| u64::from(arrival.output_tokens)).sum();
        Self { input, mean_output: output as f64 / trace.len().max(1) as f64 }
    }

    /// Prompt tokens of the requests from one number up to before another.
    pub fn input_between(&self, from: usize, to: usize) -> u64 {
        self.input[to.min(self.input.len() - 1)] - self.input[from.min(self.input.len() - 1)]
    }

    /// Of all answers of the trace.
    pub fn mean_output(&self) -> f64 {
        self.mean_output
    }
}

/// Always the same number.
#[derive(Debug, Clone, Copy)]
pub struct Static(
    /// Replicas.
    pub usize,
);

impl Policy for Static {
    fn decide(&mut self, _: &Observation, _: &Totals) -> Decision {
        Decision::Count(self.0)
    }
}

/// Kubernetes' horizontal pod autoscaler on the share of time in which the GPU is busy: each 15 s,
/// tolerance a tenth, up by at most 100 % or 4, down to the largest answer of 300 s.
#[derive(Debug, Clone)]
pub struct Hpa {
    target: f64,
    last: f64,
    busy: f64,
    answers: VecDeque<(f64, usize)>,
}

impl Hpa {
    /// `target` between 0 and 1.
    pub fn new(target: f64) -> Self {
        Self { target, last: -1e9, busy: 0.0, answers: VecDeque::new() }
    }
}

impl Policy for Hpa {
    fn decide(&mut self, seen: &Observation, _: &Totals) -> Decision {
        let now = seen.now / 1000.0;
        if now - self.last < 15.0 {
            return Decision::Keep;
        }
        let interval = (now - self.last).min(15.0);
        self.last = now;
        if self.answers.is_empty() {
            self.answers.push_back((now, seen.count));
        }
        let current = seen.ready.max(1) as f64;
        let ratio = (seen.busy - self.busy) / 1000.0 / interval / current / self.target;
        self.busy = seen.busy;
        let wanted = if (ratio - 1.0).abs() <= 0.1 { seen.count } else { (current * ratio).ceil() as usize };
        let held = hold(&mut self.answers, now, wanted, 300.0);
        if wanted > seen.count {
            return Decision::Count(wanted.min((2 * seen.count).max(seen.count + 4)));
        }
        Decision::Count(seen.count.min(held).max(1))
    }
}

/// Knative's pod autoscaler on requests in flight: stable window 60 s, panic window 6 s.
#[derive(Debug, Clone)]
pub struct Kpa {
    target: f64,
    cooldown: f64,
    seen: VecDeque<(f64, usize)>,
    panicked: f64,
    panic_answer: usize,
    answers: VecDeque<(f64, usize)>,
}

impl Kpa {
    /// `target` requests in flight per replica; no scale-in below the largest answer of `cooldown` seconds.
    pub fn new(target: f64, cooldown: f64) -> Self {
        Self { target, cooldown, seen: VecDeque::new(), panicked: -1e9, panic_answer: 0, answers: VecDeque::new() }
    }

    fn desired(&self, since: f64) -> usize {
        let (mut sum, mut count) = (0usize, 0usize);
        for (_, flying) in self.seen.iter().filter(|(at, _)| *at >= since) {
            (sum, count) = (sum + flying, count + 1);
        }
        (sum as f64 / count.max(1) as f64 / self.target).ceil() as usize
    }
}

impl Policy for Kpa {
    fn decide(&mut self, seen: &Observation, _: &Totals) -> Decision {
        let now = seen.now / 1000.0;
        self.seen.push_back((now, seen.running + seen.queued));
        if self.answers.is_empty() {
            self.answers.push_back((now, seen.count));
        }
        while self.seen.front().is_some_and(|(at, _)| *at < now - 60.0) {
            self.seen.pop_front();
        }
        let ready = seen.ready.max(1);
        let (stable, panic) = (self.desired(now - 60.0), self.desired(now - 6.0));
        let stable = stable.max(ready / 2).min(1000 * ready);
        if panic as f64 / ready as f64 >= 2.0 {
            self.panicked = now;
        }
        let wanted = if now - self.panicked < 60.0 {
            self.panic_answer = self.panic_answer.max(stable).max(panic);
            self.panic_answer
        } else {
            self.panic_answer = 0;
            stable
        };
        let held = hold(&mut self.answers, now, wanted, self.cooldown);
        Decision::Count(if wanted >= seen.count { wanted } else { seen.count.min(held) }.max(1))
    }
}

/// Knows all arrivals and sizes for the worst 30 s from now to a minute after a cold start. Not a bound.
#[derive(Debug, Clone)]
pub struct Oracle {
    /// Offered load per 10 s, smoothed over three.
    load: Vec<f64>,
    per_replica: f64,
    cold_start: f64,
}

impl Oracle {
    /// Plans with `margin` of the load that the ITL objective allows.
    pub fn new(trace: &[Arrival], cost: &Coefficients, objective: Objectives, cold_start: f64, margin: f64) -> Self {
        let last = trace.last().map_or(0.0, |arrival| arrival.at_s);
        let mut per_bin = vec![0.0; (last / 10.0) as usize + 60];
        for arrival in trace {
            per_bin[(arrival.at_s / 10.0) as usize] += work(cost, arrival) / 10.0;
        }
        let around = |index: usize| {
            let neighbours = [index.checked_sub(1), Some(index), Some(index + 1)];
            neighbours.into_iter().flatten().filter_map(|i| per_bin.get(i)).sum::<f64>() / 3.0
        };
        let load = (0..per_bin.len()).map(around).collect();
        Self { load, per_replica: margin * (1.0 - cost.a / objective.itl_ms), cold_start }
    }
}

impl Policy for Oracle {
    fn decide(&mut self, seen: &Observation, _: &Totals) -> Decision {
        let now = seen.now / 1000.0;
        let from = ((now / 10.0) as usize).min(self.load.len() - 1);
        let to = (((now + self.cold_start + 20.0) / 10.0) as usize + 1).min(self.load.len());
        let worst = self.load[from..to.max(from + 1)].iter().copied().fold(0.0, f64::max);
        Decision::Count(((worst / self.per_replica).ceil() as usize).max(1))
    }
}

/// Engine-seconds that a request needs.
pub fn work(cost: &Coefficients, arrival: &Arrival) -> f64 {
    let (input, output) = (f64::from(arrival.input_tokens), f64::from(arrival.output_tokens));
    (input * cost.p / 1000.0 + output * (cost.d + cost.k * (input + output / 2.0) / 1000.0)) / 1000.0
}

fn hold(answers: &mut VecDeque<(f64, usize)>, now: f64, wanted: usize, window: f64) -> usize {
    answers.push_back((now, wanted));
    while answers.front().is_some_and(|(at, _)| *at < now - window) {
        answers.pop_front();
    }
    answers.iter().map(|(_, count)| *count).max().unwrap_or(wanted)
}

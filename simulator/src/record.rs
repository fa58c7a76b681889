//! One run with what was seen and decided on the way, for people to look at.

use crate::contender::Contender;
use crate::policy::work;
use crate::run::{Outcome, Protocol, Tick, watched};
use crate::site::Subject;
use crate::trace::Arrival;
use serde::Serialize;
use stowage_planner::Policy as Constants;
use stowage_planner::snapshot::ScalingMode;

/// What a run is about, whichever policy decides.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Cost, objectives and cold start, and places for replicas.
    pub protocol: Protocol,
    /// Bounds and mode.
    pub subject: Subject,
    /// Replicas that serve at the start; `None`: the mean load at 60 % each, within the bounds.
    pub start: Option<usize>,
}

/// The state at a decision, and after it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Seconds since the start.
    pub at_s: f64,
    /// Load that arrived since the sample before, in replicas that would be busy all the time.
    pub load: f64,
    /// Replicas that serve or start.
    pub replicas: usize,
    /// Of these, those that serve.
    pub ready: usize,
    /// Requests that wait in the gateway.
    pub queued: usize,
}

/// A change of the number of replicas, or that the policy cannot decide.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// Seconds since the start.
    pub at_s: f64,
    /// Replicas that serve or start, before and after.
    pub from: usize,
    /// As above.
    pub to: usize,
    /// The policy's own words; empty: it gives none.
    pub why: String,
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The figures.
    pub outcome: Outcome,
    /// Replicas at the start.
    pub start: usize,
    /// One per decision.
    pub samples: Vec<Sample>,
    /// In order of time.
    pub decisions: Vec<Decided>,
    /// Why the policy cannot decide at the end.
    pub frozen: Option<String>,
}

impl Scenario {
    /// Replicas that serve at the start.
    pub fn replicas_at_start(&self, trace: &[Arrival]) -> usize {
        let scaling = &self.subject.scaling;
        if scaling.mode == ScalingMode::Manual {
            return self.subject.replicas as usize;
        }
        let (least, most) = (scaling.min_replicas as usize, scaling.max_replicas as usize);
        self.start.unwrap_or_else(|| self.protocol.replicas_at_start(trace)).min(most).max(least)
    }

    /// Replays the trace. `progress` gets the seconds of the trace that are done, at each decision.
    pub fn record(&self, trace: &[Arrival], contender: Contender, progress: &mut dyn FnMut(f64)) -> Recording {
        let mut policy = contender.policy(trace, &self.protocol, &self.subject, Constants::default());
        let start = contender.replicas_at_start(self.replicas_at_start(trace));
        let (mut samples, mut decisions, mut frozen) = (Vec::new(), Vec::new(), None);
        let mut arrived = 0;
        let outcome = watched(trace, &mut *policy, &self.protocol, start, &mut |tick| {
            let at_s = tick.seen.now / 1000.0;
            let came = &trace[arrived..tick.seen.arrived];
            arrived = tick.seen.arrived;
            let work: f64 = came.iter().map(|arrival| work(&self.protocol.cost, arrival)).sum();
            let (load, ready) = (work / self.protocol.tick, tick.seen.ready.min(tick.after));
            samples.push(Sample { at_s, load, replicas: tick.after, ready, queued: tick.seen.queued });
            note(tick, at_s, &mut decisions, &mut frozen);
            progress(at_s);
        });
        Recording { outcome, start, samples, decisions, frozen }
    }
}

fn note(tick: &Tick<'_>, at_s: f64, decisions: &mut Vec<Decided>, frozen: &mut Option<String>) {
    let reason = tick.policy.reason();
    let stops = reason.as_ref().is_some_and(|reason| reason.frozen) && frozen.is_none();
    *frozen = reason.as_ref().filter(|reason| reason.frozen).map(|reason| reason.text.clone());
    if tick.after != tick.before || stops {
        let why = reason.map(|reason| reason.text).unwrap_or_default();
        decisions.push(Decided { at_s, from: tick.before, to: tick.after, why });
    }
}

//! The product's own decision: each tick one [`plan`] over a snapshot of simulated nodes, as the operator
//! makes one of real ones. What the plan creates, drains and removes is done to the simulated replicas.

use crate::cluster::{Change, Decision, Observation, State};
use crate::policy::{Policy, Reason, Totals};
use crate::run::Protocol;
pub use crate::site::START_MS;
use crate::site::{Subject, position_of};
use stowage_planner::demand::ScaleVerdict;
use stowage_planner::plan::Action;
use stowage_planner::snapshot::{
    EngineSignals, GatewaySignals, Phase, Replica, ReplicaId, Room, Slice, SliceOwner, Snapshot, TenantId, TimeMs,
};
use stowage_planner::{plan, render};

/// Weight of the answers of one tick in their mean length.
const OUTPUT_WEIGHT: f64 = 0.2;

/// The planner, with the snapshot that it is asked about.
#[derive(Debug, Clone)]
pub struct Stowage {
    policy: stowage_planner::Policy,
    subject: Subject,
    snapshot: Snapshot,
    /// Of each simulated replica: the planner's slot and incarnation.
    slots: Vec<Option<(u32, u32)>>,
    /// End of the last interval, and what had been counted then.
    before: Before,
    mean_output: f64,
    /// Of the last plan.
    verdict: Option<ScaleVerdict>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Before {
    ms: TimeMs,
    arrived: usize,
    finished: usize,
    output: u64,
}

impl Stowage {
    /// Plans for the published deployment, without memory, as after a restart. `policy` holds the constants.
    pub fn new(protocol: &Protocol, room: Room, policy: stowage_planner::Policy) -> Self {
        Self::of(protocol, Subject::published(protocol, room), policy)
    }

    /// Plans for this deployment, without memory.
    pub fn of(protocol: &Protocol, subject: Subject, policy: stowage_planner::Policy) -> Self {
        Self {
            policy,
            snapshot: subject.snapshot(protocol),
            slots: vec![None; protocol.max_replicas],
            before: Before { ms: subject.starts_ms, ..Before::default() },
            mean_output: 0.0,
            verdict: None,
            subject,
        }
    }

    /// The snapshot of what is seen, before anything is decided about it.
    pub fn see(&mut self, seen: &Observation, totals: &Totals) -> &mut Snapshot {
        self.signals(seen, totals);
        self.observe(seen);
        self.snapshot.sequence += 1;
        &mut self.snapshot
    }

    fn signals(&mut self, seen: &Observation, totals: &Totals) {
        let now = self.subject.starts_ms + seen.now as TimeMs;
        let before = std::mem::replace(
            &mut self.before,
            Before { ms: now, arrived: seen.arrived, finished: seen.finished, output: seen.finished_output },
        );
        if seen.finished > before.finished {
            let mean = (seen.finished_output - before.output) as f64 / (seen.finished - before.finished) as f64;
            let weight = if self.mean_output == 0.0 { 1.0 } else { OUTPUT_WEIGHT };
            self.mean_output += weight * (mean - self.mean_output);
        }
        let signals = &mut self.snapshot.deployments[0].signals;
        signals.gateway = Some(GatewaySignals {
            from_ms: before.ms,
            to_ms: now,
            arrivals: (seen.arrived - before.arrived) as u64,
            input_tokens: totals.input_between(before.arrived, seen.arrived),
            cached_tokens: 0,
            mean_output_tokens: self.mean_output,
            queued: seen.queued as u64,
            queued_tokens: seen.queued_tokens,
            held: if seen.ready == 0 { seen.queued as u64 } else { 0 },
            ..GatewaySignals::default()
        });
        signals.engines = Some(EngineSignals {
            at_ms: now,
            unprefilled_tokens: seen.unprefilled,
            kv_used_milli: (seen.kv_used * 1000.0) as u64,
            kv_bound: seen.kv_bound as u32,
            steps: Vec::new(),
            replicas: Vec::new(),
        });
    }

    /// The simulated replicas as the watches would show them.
    fn observe(&mut self, seen: &Observation) {
        let id = self.snapshot.deployments[0].id.clone();
        let mut replicas = Vec::new();
        for (position, replica) in seen.replicas.iter().enumerate() {
            let node = &mut self.snapshot.nodes[position];
            node.gpus.iter_mut().for_each(|gpu| gpu.slices.clear());
            node.used = Default::default();
            let since_ms = self.subject.starts_ms + replica.since as TimeMs;
            let phase = match replica.state {
                State::Off => {
                    self.slots[position] = None;
                    continue;
                }
                State::Starting => Phase::Starting,
                State::Ready => Phase::Ready,
                State::Draining => {
                    let in_flight = Some(replica.running as u32);
                    Phase::Draining { since_ms, until_ms: None, in_flight, may_resume: true }
                }
            };
            // What runs from the start was not created by a plan: it takes the slot of its position.
            let (index, incarnation) = *self.slots[position].get_or_insert((position as u32, 0));
            let owner = SliceOwner::Replica(ReplicaId { deployment: id.clone(), index, incarnation });
            node.used = self.subject.taken();
            for gpu in &mut node.gpus {
                gpu.slices.push(Slice {
                    owner: owner.clone(),
                    tenant: Some(TenantId("tenant".into())),
                    promise: self.subject.promise(),
                    isolation: Default::default(),
                });
            }
            replicas.push(Replica {
                index,
                incarnation,
                name: format!("replica-{index}-{incarnation}"),
                spec_hash: "v1".into(),
                phase,
                placement: Some(self.subject.placement(position)),
                created_ms: since_ms,
                node_lost: false,
                overshoot: None,
                in_flight: Some(replica.running as u32),
                takes_over: false,
            });
        }
        self.snapshot.deployments[0].replicas = replicas;
    }

    fn change(&mut self, action: &Action) -> Option<Change> {
        match action {
            Action::Create { replica, placement, .. } => {
                let position = position_of(&placement.node)?;
                self.slots[position] = Some((replica.index, replica.incarnation));
                Some(Change::Start(position))
            }
            Action::Resume { replica, .. } => self.position(replica).map(Change::Resume),
            Action::Drain { replica, .. } | Action::Remove { replica, .. } => self.position(replica).map(Change::End),
        }
    }

    fn position(&self, replica: &ReplicaId) -> Option<usize> {
        let slot = Some((replica.index, replica.incarnation));
        self.slots.iter().position(|known| *known == slot)
    }
}

impl Policy for Stowage {
    fn decide(&mut self, seen: &Observation, totals: &Totals) -> Decision {
        self.see(seen, totals);
        let (plan, report) = plan(&self.snapshot, &self.policy, self.before.ms);
        for (_, memory) in plan.memory {
            self.snapshot.deployments[0].memory = memory;
        }
        self.verdict = report.deployments.into_iter().next().map(|d| d.scale);
        Decision::Changes(plan.actions.iter().filter_map(|action| self.change(action)).collect())
    }

    fn reason(&self) -> Option<Reason> {
        let verdict = self.verdict.as_ref()?;
        let frozen = matches!(verdict, ScaleVerdict::Frozen { .. });
        Some(Reason { text: render::why_wanted(verdict), frozen })
    }
}

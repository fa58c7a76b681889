//! The decision core of Stowage: how many replicas, may they, and where.
//!
//! [`plan()`] is a pure function from a [`Snapshot`] to a [`Plan`] and the [`DecisionReport`] that
//! explains it. It reads no clock, draws no random number and does no I/O; the same input gives
//! the same bytes, in whatever order its lists come. The operator, `kubectl stowage plan`, the
//! benchmarks and the property tests all call this one function.
//!
//! Data flows through the folders in this order: `snapshot` (what is) → `demand` (how many) → `quota`
//! (may they) → `place` (where) → `lifecycle` (what becomes of the replicas that exist) → `decide`,
//! which runs these stages → `explain` (the report, its text, what would change the answer). No
//! folder imports from a later one. Beside them: [`plan`](mod@plan) is the output, [`check`] judges a
//! finished plan without the stages, [`route`] chooses the replica that serves one request.
//!
//! What is deliberately absent: Kubernetes types (the operator translates), names of pods and claims
//! (the operator derives them from deployment UID, index and incarnation) and any I/O.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod check;
mod decide;
pub mod demand;
mod explain;
mod lifecycle;
mod place;
pub mod plan;
mod quota;
pub mod route;
pub mod snapshot;

pub use decide::prepared::Prepared;
pub use explain::report::DecisionReport;
pub use explain::{difference, overview, render, report};
pub use place::preload::nodes as preload_nodes;
pub use plan::{Action, Plan};
pub use snapshot::{Policy, Snapshot, TimeMs};

/// Decides once: what to create, drain and remove, and why everything else stays as it is.
pub fn plan(snapshot: &Snapshot, policy: &Policy, now: TimeMs) -> (Plan, DecisionReport) {
    Prepared::default().plan(snapshot, policy, now)
}

impl Prepared {
    /// The same decision as [`plan()`], sooner: what the snapshot shares with the one before is not read again.
    pub fn plan(&mut self, snapshot: &Snapshot, policy: &Policy, now: TimeMs) -> (Plan, DecisionReport) {
        let mut draft = decide::decide(snapshot, policy, now, self);
        let findings = explain::whatif::counterfactuals(&mut draft, policy);
        draft.look_back();
        draft.note_pending();
        let deployments = draft.cases.iter().map(|case| case.d);
        self.based_on = plan::BasedOn::of(snapshot.sequence, deployments, &self.based_on);
        let based_on = self.based_on.clone();
        let report = explain::assemble::report(snapshot, based_on.clone(), &mut draft, findings, now);
        let (ends, creates): (Vec<_>, Vec<_>) = draft.cases.iter().map(|c| c.actions()).unzip();
        let memory = draft.cases.iter().filter_map(|c| Some((c.d.id.clone(), c.memory()?))).collect();
        draft.finish(self);
        // What ends goes first: it frees, and a full queue of creates must not delay a drain.
        let actions = ends.into_iter().flatten().chain(creates.into_iter().flatten()).collect();
        (Plan { based_on, actions, memory }, report)
    }
}

//! The decision core of Stowage: how many replicas, may they, and where.
//!
//! [`plan()`] is a pure function from a [`Snapshot`] to a [`Plan`] and the [`DecisionReport`] that
//! explains it. It reads no clock, draws no random number and talks to nobody; the same input gives
//! the same bytes, in whatever order its lists come. The operator, `kubectl stowage plan`, the
//! benchmarks and the property tests all call this one function.
//!
//! The stages, a module each: `scale` (how many) → `quota` (may they) → `filter` and `place` (where);
//! `lifecycle` says what becomes of the replicas that exist, `decide` runs them in order, `whatif`
//! asks what would change the answer, `assemble` and `records` report, [`render`] finds the words,
//! [`check`] judges a finished plan on its own.
//!
//! What is deliberately absent: Kubernetes types (the operator translates), names of pods and claims
//! (the operator derives them from deployment UID, index and incarnation) and any I/O.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod assemble;
pub mod check;
mod decide;
mod demand;
mod filter;
pub mod frag;
mod lifecycle;
mod place;
pub mod plan;
mod quota;
mod records;
pub mod render;
pub mod report;
pub mod routing;
mod scale;
pub mod snapshot;
mod units;
mod whatif;
mod world;

pub use plan::{Action, Plan};
pub use report::DecisionReport;
pub use snapshot::{Policy, Snapshot, TimeMs};
pub use whatif::verify_change;

/// Decides once: what to create, drain and remove, and why everything else stays as it is.
pub fn plan(snapshot: &Snapshot, policy: &Policy, now: TimeMs) -> (Plan, DecisionReport) {
    let draft = decide::decide(snapshot, policy, now);
    let counterfactuals = whatif::counterfactuals(snapshot, &draft, policy, now);
    let based_on = plan::BasedOn::of(snapshot);
    let report = assemble::report(snapshot, based_on.clone(), &draft, counterfactuals, now);
    let (ends, creates): (Vec<_>, Vec<_>) = draft.cases.iter().map(|c| c.actions()).unzip();
    // What ends goes first: it frees, and a full queue of creates must not delay a drain.
    let actions = ends.into_iter().flatten().chain(creates.into_iter().flatten()).collect();
    (Plan { based_on, actions }, report)
}

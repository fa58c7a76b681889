//! The decision core of Stowage: how many replicas, may they, and where.
//!
//! [`plan()`] is a pure function from a [`Snapshot`] to a [`Plan`] and the [`DecisionReport`] that
//! explains it. It reads no clock, draws no random number and talks to nobody; the same input gives
//! the same bytes. The operator, `kubectl stowage plan`, the benchmarks and the property tests all
//! call this one function.
//!
//! What is deliberately absent: Kubernetes types (the operator translates), names of pods and claims
//! (the operator derives them from deployment UID, index and incarnation) and any I/O.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod plan;
pub mod report;
pub mod routing;
pub mod snapshot;

pub use plan::{Action, Plan};
pub use report::DecisionReport;
pub use snapshot::Snapshot;

use snapshot::{Policy, TimeMs};

/// Decides once: what to create, drain and remove, and why everything else stays as it is.
pub fn plan(snapshot: &Snapshot, _policy: &Policy, now: TimeMs) -> (Plan, DecisionReport) {
    let based_on = plan::BasedOn::of(snapshot);
    (
        Plan {
            based_on: based_on.clone(),
            actions: Vec::new(),
        },
        DecisionReport {
            at: now,
            based_on,
            deployments: Vec::new(),
            tenants: Vec::new(),
            cluster: report::ClusterReport::default(),
            records: Vec::new(),
            wake_at: None,
        },
    )
}

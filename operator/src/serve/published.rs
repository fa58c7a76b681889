//! The last plan, as the administrative port and tests see it.

use std::sync::Arc;

use serde::Serialize;
use stowage_planner::snapshot::{Policy, Snapshot};
use stowage_planner::{DecisionReport, Plan};

use crate::observe::view::View;
use crate::translate::memory::Memory;

/// The last plan and what it was made from.
#[derive(Debug, Default, Serialize)]
pub struct Published {
    pub leading: bool,
    /// Why planning is paused; `None`: it is not.
    pub frozen: Option<String>,
    pub snapshot: Option<Arc<Snapshot>>,
    pub plan: Option<Arc<Plan>>,
    pub report: Option<Arc<DecisionReport>>,
    /// What the plan checker found; a plan with violations is not carried out.
    pub violations: Vec<String>,
    /// What the snapshot was made from, for dry runs.
    #[serde(skip)]
    pub basis: Option<Arc<Basis>>,
}

/// What a snapshot and its plan are made from.
#[derive(Debug, Default)]
pub struct Basis {
    pub view: Arc<View>,
    pub memory: Memory,
    pub policy: Policy,
}

//! The input of the planner: one consistent picture of cluster, tenants and deployments.
//!
//! The picture is what the watches show **plus a journal of our own actions not yet seen there**, so
//! that plan n+1 never gives away what plan n took. Everything here is already parsed: no quantity
//! strings, no label selectors left to interpret. Units stand in the names; times are milliseconds
//! since the Unix epoch ([`TimeMs`]), durations end in `_ms`, GPU shares are thousandths of one GPU
//! (`_milli`).
//!
//! The order of the lists carries no meaning: the planner sorts by identity before it decides.

mod cluster;
mod deployment;
mod ids;
pub(crate) mod index;
mod partition;
mod policy;
mod replica;
mod scaling;
mod shared;
mod tenant;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
pub use shared::Shared;
pub use stowage_contracts::model::ModelKey;

pub use cluster::{Class, Freshness, Gpu, Health, Isolation, Node, Resources, Slice, SliceOwner, Taint, TaintEffect};
pub use deployment::{
    Accelerator, Deployment, Hold, Needs, Objective, RecentMove, Spread, Toleration, Variant, Waiting,
};
pub use ids::{DeploymentId, ReplicaId, TenantId};
pub use partition::{MigDevice, MigProfile, Partition, Promise};
pub use policy::Policy;
pub use replica::{Exclusion, GpuShare, Overshoot, Phase, Placement, Replica, Slot};
pub use scaling::{
    ColdStart, CostOrigin, ENOUGH_STARTS, EngineSignals, Gaps, GatewaySignals, History, Memory, Objectives,
    ReplicaCost, Room, Rule, Scaling, ScalingMode, Signals, StartStages, StepSample, VariantCost,
};
pub(crate) use scaling::{Followed, Offered};
pub use tenant::{DecayedShare, Money, Quota, Tenant};

/// Milliseconds since the Unix epoch.
pub type TimeMs = u64;

/// The whole input of one decision, besides the [`Policy`] and the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Snapshot {
    /// Counts the snapshots of one operator; a plan names the one that it was made from.
    pub sequence: u64,
    #[serde(default)]
    pub nodes: Vec<Shared<Node>>,
    #[serde(default)]
    pub tenants: Vec<Tenant>,
    #[serde(default)]
    pub deployments: Vec<Shared<Deployment>>,
    #[serde(default)]
    pub classes: Vec<Class>,
    /// Nodes that the scheduler (or the kubelet) refused for a replica, with back-off.
    #[serde(default)]
    pub exclusions: Vec<Exclusion>,
    /// What tenants borrowed of late, as the report on the last snapshot has it; none: as they borrow now.
    #[serde(default)]
    pub shares: Vec<DecayedShare>,
    /// Since when deployments have waited for room, as the report on the last snapshot has it; none: since now.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Which replicas were made to move of late, and for whom, as the report on the last snapshot has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_moves: Vec<RecentMove>,
}

impl Snapshot {
    /// Takes what is equal from the snapshot before, so that a plan that follows it need not read that again.
    pub fn share(&mut self, before: &Snapshot) {
        let nodes: HashMap<&str, &Shared<Node>> = before.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
        for node in &mut self.nodes {
            if let Some(same) = nodes.get(node.name.as_str())
                && **same == *node
            {
                *node = (*same).clone();
            }
        }
        let deployments: HashMap<(&DeploymentId, &str), &Shared<Deployment>> =
            before.deployments.iter().map(|d| ((&d.id, d.uid.as_str()), d)).collect();
        for d in &mut self.deployments {
            if let Some(same) = deployments.get(&(&d.id, d.uid.as_str()))
                && **same == *d
            {
                *d = (*same).clone();
            }
        }
    }
}

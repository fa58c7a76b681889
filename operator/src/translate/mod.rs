//! Translates a [`View`] into the planner's [`Snapshot`]. Pure: no client, no clock.
//!
//! [`validate`] yields the narrow types, once; [`snapshot`] puts them together with what exists;
//! [`memory`] adds what is remembered from earlier plans. What cannot be translated is not guessed: of a
//! refused deployment nothing is made (its replicas go on, their slices stay charged), and the refusal
//! becomes its condition.

pub mod known;
pub mod learned;
pub mod memory;
pub mod preloads;
pub mod proposed;
pub mod snapshot;
pub mod starts;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stowage_planner::Snapshot;
use stowage_planner::snapshot::{DeploymentId, Isolation};

use crate::observe::view::View;
use memory::Memory;
use snapshot::devices::Devices;
use snapshot::nodes::Alive;
use snapshot::owned::Owned;
use snapshot::replicas::{Trouble, millis};
use snapshot::strays::{self, Stray};
use snapshot::{deployments, nodes, promises, usage};
use validate::classes::Classes;
use validate::runtimes::Runtimes;
use validate::tenants::Tenants;
use validate::{Judged, References, Wanted};

/// The snapshot, and what was found out on the way.
#[derive(Debug)]
pub struct Built {
    pub snapshot: Snapshot,
    pub judged: Arc<BTreeMap<DeploymentId, Arc<Judged>>>,
    pub owned: Owned,
    pub devices: Arc<Devices>,
    /// Keys of node labels that deployments ask for.
    pub labels: BTreeSet<String>,
    pub tenants: Tenants,
    pub classes: Classes,
    pub runtimes: Runtimes,
    /// UIDs of deployments that were deleted with `--cascade=orphan`: what they own is to outlive them.
    pub orphaning: BTreeSet<String>,
    /// Objects that no deployment owns or takes over.
    pub unclaimed: Vec<Stray>,
    /// Those of them that have been so for long.
    pub strays: Vec<Stray>,
}

/// The snapshot of one view. `sequence` counts the snapshots of this process.
pub fn build(view: &View, memory: &Memory, sequence: u64) -> Built {
    let tenants = Tenants::read(&view.quotas);
    let classes = Classes::read(&view.classes);
    let runtimes = Runtimes::read(&view.runtimes);
    let known = memory.known();
    let devices = known.devices(view).cloned().unwrap_or_else(|| Arc::new(Devices::read(&view.slices)));
    let owned = Owned::read(view);
    let references =
        References { tenants: &tenants, classes: &classes, runtimes: &runtimes, estimates: &view.estimates };
    let judged = Arc::new(validate::deployments(view, &references, known));
    let isolation_of = |id: &DeploymentId| judged.get(id).map_or(Isolation::Shared, |judged| judged.standing.isolation);
    let alive = Alive::read(&view.nodes);
    let promises = promises::by_gpu(&view.claims, &devices, &tenants, &isolation_of, &alive);
    let taken = usage::by_node(&view.pods);
    let labels = judged.values().filter_map(|judged| judged.wanted()).flat_map(asked_labels);
    let labels: BTreeSet<String> = labels.map(str::to_owned).collect();
    let parts = nodes::Parts { devices: &devices, classes: &classes, promises, taken, labels: &labels };
    let nodes = nodes::build(view, parts, known);
    let trouble = Trouble::read(&view.agents);
    let parts = deployments::Parts { view, owned: &owned, tenants: &tenants, alive: &alive, trouble: &trouble, memory };
    let deployments = deployments::build(&judged, parts);
    let snapshot = Snapshot {
        sequence,
        nodes,
        tenants: tenants.accepted.clone(),
        deployments: deployments.into_iter().map(Into::into).collect(),
        classes: classes.for_planner(),
        exclusions: memory.exclusions(),
        shares: memory.shares(),
        waiting: memory.waiting(),
        recent_moves: memory.recent_moves(),
    };
    // One that a finalizer of its user's keeps from ending takes over nothing either.
    let ending = |id: &DeploymentId| {
        view.deployments.get(&(id.namespace.clone(), id.name.clone())).is_none_or(|stored| stored.deleting())
    };
    let accepts = |id: &DeploymentId| judged.get(id).is_some_and(|judged| judged.wanted().is_some()) && !ending(id);
    let unclaimed = strays::unclaimed(view, &accepts);
    let strays = strays::due(view, &unclaimed, &|uid| memory.unclaimed_since(uid), millis(view.now));
    let orphaning = memory.orphaning().clone();
    Built { snapshot, judged, owned, devices, labels, tenants, classes, runtimes, orphaning, unclaimed, strays }
}

/// Keys of node labels on which a deployment's place depends.
fn asked_labels(wanted: &Wanted) -> impl Iterator<Item = &str> {
    let pod = &wanted.deployment.pod;
    let spread = pod.topology_spread_constraints.iter().map(|spread| spread.topology_key.as_str());
    pod.node_selector.keys().map(String::as_str).chain(spread)
}

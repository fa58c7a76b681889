//! Translates a [`View`] into the planner's [`Snapshot`]. Pure: no client, no clock.
//!
//! Here Kubernetes' wide objects become the planner's narrow ones, once. What cannot be translated
//! is not guessed: a refused deployment is left out (its replicas go on, their slices stay charged),
//! and the refusal becomes its condition.

pub mod memory;
pub mod snapshot;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use stowage_planner::Snapshot;
use stowage_planner::snapshot::{DeploymentId, Isolation};

use crate::observe::view::View;
use crate::translate::memory::Memory;
use crate::translate::validate::{References, Verdict, isolation, validate};
use snapshot::devices::Devices;
use snapshot::owned::Owned;
use snapshot::{deployments, nodes, promises, usage};
use validate::classes::Classes;
use validate::models::Models;
use validate::tenants::Tenants;

/// The snapshot, and what was found out on the way.
#[derive(Debug)]
pub struct Built {
    pub snapshot: Snapshot,
    pub verdicts: BTreeMap<DeploymentId, Arc<Verdict>>,
    pub owned: Owned,
    pub tenants: Tenants,
    pub classes: Classes,
    /// By uuid.
    pub gpus: BTreeMap<String, KnownGpu>,
}

/// What charging a slice needs to know of its GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownGpu {
    pub memory_bytes: u64,
    /// Of the whole GPU per hour: millionths of the currency, and the currency.
    pub price: Option<(u64, String)>,
}

pub fn build(view: &View, memory: &Memory, sequence: u64) -> Built {
    let tenants = Tenants::read(&view.quotas);
    let classes = Classes::read(&view.classes);
    let devices = Devices::read(&view.slices);
    let owned = Owned::read(view);
    let references = References { view, classes: &classes, models: &Models::read(view, &tenants) };
    let verdicts: BTreeMap<DeploymentId, Arc<Verdict>> = view
        .deployments
        .values()
        .map(|stored| (DeploymentId::new(stored.namespace(), stored.name()), Arc::new(validate(stored, &references))))
        .collect();
    let isolation_of = |namespace: &str, name: &str| {
        let stored = view.deployments.get(&(namespace.to_owned(), name.to_owned()));
        stored.and_then(|stored| stored.spec.as_ref().ok()).map_or(Isolation::Shared, isolation)
    };
    let lost = |node: &str| nodes::lost(view.nodes.get(&(String::new(), node.to_owned())).map(AsRef::as_ref));
    let slices = promises::by_gpu(&view.claims, &devices, &tenants, &isolation_of, &lost);
    let taken = usage::by_node(&view.pods);
    let nodes = nodes::build(view, nodes::Parts { devices: &devices, classes: &classes, slices, taken });
    let snapshot = Snapshot {
        sequence,
        nodes,
        tenants: tenants.accepted.clone(),
        deployments: deployments::build(view, &owned, &verdicts, &tenants, memory),
        classes: classes.for_planner(),
        exclusions: memory.exclusions(),
    };
    let known = |gpu: &stowage_planner::snapshot::Gpu| KnownGpu {
        memory_bytes: gpu.memory_bytes,
        price: gpu.class.as_ref().and_then(|class| classes.price(class)).cloned(),
    };
    let gpus = snapshot.nodes.iter().flat_map(|node| &node.gpus).map(|gpu| (gpu.uuid.clone(), known(gpu))).collect();
    Built { snapshot, verdicts, owned, tenants, classes, gpus }
}

//! Which node is to hold which models ahead of need: the choice is the planner's, the lists are made here.

use std::collections::BTreeMap;

use stowage_contracts::model::ClaimModel;
use stowage_contracts::preload::{MAX_PRELOADS, MAX_PRELOADS_OF_TENANT, Preload};
use stowage_planner::preload_nodes;
use stowage_planner::report::DecisionReport;
use stowage_planner::snapshot::{Deployment, DeploymentId, Node, Snapshot};

use super::Built;

/// Deployments of one tenant whose weights are held ahead, the first by name: each looks at all nodes.
pub const MAX_DEPLOYMENTS_OF_TENANT: usize = 32;
/// Nodes to which weights are fetched for the replicas of one deployment that wait.
const MAX_AWAITED: usize = 4;

/// What becomes of one deployment's `model.preload`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Nodes that are to hold the weights.
    pub nodes: u32,
    /// Those of them that do.
    pub cached: u32,
}

/// The list of each node, and what it comes to for each deployment.
#[derive(Debug, Clone, Default)]
pub struct Preloading {
    pub lists: BTreeMap<String, Vec<Preload>>,
    pub held: BTreeMap<DeploymentId, Held>,
}

/// `report`: of the plan for this snapshot. Where replicas wait for room, their weights are fetched meanwhile.
pub fn preloading(built: &Built, report: &DecisionReport) -> Preloading {
    let mut found = Preloading::default();
    let wishes = wishes(built, report);
    for wish in &wishes {
        let kept = wish.held.iter().filter(|node| found.add(&node.name, wish));
        let (nodes, cached) = kept.fold((0, 0), |(nodes, cached), node| {
            (nodes + 1, cached + u32::from(node.cached_models.contains(&wish.d.model_key)))
        });
        if wish.count > 0 {
            found.held.insert(wish.d.id.clone(), Held { nodes, cached });
        }
    }
    for wish in &wishes {
        wish.awaited.iter().take(MAX_AWAITED).for_each(|node| {
            found.add(node, wish);
        });
    }
    found
}

impl Preloading {
    /// Whether the node's list has the wish's model now: each list is bounded, and a tenant's part of it.
    fn add(&mut self, node: &str, wish: &Wish<'_>) -> bool {
        let list = self.lists.entry(node.to_owned()).or_default();
        let preload = Preload { model: wish.model.clone(), tenant: wish.tenant.to_owned() };
        if list.contains(&preload) {
            return true;
        }
        let of_tenant = list.iter().filter(|other| other.tenant == wish.tenant).count();
        let room = of_tenant < MAX_PRELOADS_OF_TENANT && list.len() < MAX_PRELOADS;
        if room {
            list.push(preload);
        }
        room
    }
}

/// What one deployment wants ahead of need.
struct Wish<'a> {
    d: &'a Deployment,
    model: &'a ClaimModel,
    tenant: &'a str,
    /// Nodes that `model.preload` asks for.
    count: usize,
    held: Vec<&'a Node>,
    awaited: Vec<&'a str>,
}

/// Tenants take turns, so that a full node has the first models of each.
fn wishes<'a>(built: &'a Built, report: &'a DecisionReport) -> Vec<Wish<'a>> {
    let mut of_tenant: BTreeMap<&str, usize> = BTreeMap::new();
    let stands = stands(&built.snapshot);
    let mut wishes: Vec<(usize, Wish<'_>)> = Vec::new();
    let reports = report.by_deployment();
    for d in &built.snapshot.deployments {
        let Some((model, tenant, count)) = asked(built, d) else { continue };
        let awaited = reports.get(&d.id).map(|own| own.awaited_nodes(&stands)).unwrap_or_default();
        if count == 0 && awaited.is_empty() {
            continue;
        }
        let turn = of_tenant.entry(tenant).or_default();
        *turn += 1;
        if *turn <= MAX_DEPLOYMENTS_OF_TENANT {
            let held = if count > 0 { preload_nodes(&built.snapshot, d, count) } else { Vec::new() };
            wishes.push((*turn, Wish { d, model, tenant, count, held, awaited }));
        }
    }
    wishes.sort_by_key(|(turn, _)| *turn);
    wishes.into_iter().map(|(_, wish)| wish).collect()
}

/// The node of each pod.
fn stands(snapshot: &Snapshot) -> BTreeMap<&str, &str> {
    let replicas = snapshot.deployments.iter().flat_map(|d| &d.replicas);
    replicas.filter_map(|replica| Some((replica.name.as_str(), replica.placement.as_ref()?.node.as_str()))).collect()
}

/// Model, tenant and number of nodes of a deployment whose weights can be fetched ahead. One whose commit is not known yet
/// waits for its first replica: that resolves it.
fn asked<'a>(built: &'a Built, d: &Deployment) -> Option<(&'a ClaimModel, &'a str, usize)> {
    let wanted = built.judged.get(&d.id)?.wanted().filter(|_| !d.deleting)?;
    let count = wanted.deployment.preload_nodes as usize;
    let model = wanted.fetched.as_ref()?;
    let tenant = built.tenants.of(&d.id.namespace)?;
    Preload { model: model.clone(), tenant: tenant.to_owned() }.key().map(|_| (model, tenant, count))
}

//! Which node is to hold which models ahead of need: the choice is the planner's, the lists are made here.

use std::collections::BTreeMap;

use stowage_contracts::model::ClaimModel;
use stowage_contracts::preload::{MAX_PRELOADS, MAX_PRELOADS_OF_TENANT, Preload};
use stowage_planner::preload_nodes;
use stowage_planner::snapshot::{Deployment, DeploymentId};

use super::Built;

/// Deployments of one tenant whose weights are held ahead, the first by name: each looks at all nodes.
pub const MAX_DEPLOYMENTS_OF_TENANT: usize = 32;

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

pub fn preloading(built: &Built) -> Preloading {
    let mut found = Preloading::default();
    let mut of_tenant: BTreeMap<&str, usize> = BTreeMap::new();
    for d in &built.snapshot.deployments {
        let Some((model, tenant, count)) = asked(built, d) else { continue };
        let deployments = of_tenant.entry(tenant).or_default();
        *deployments += 1;
        if *deployments > MAX_DEPLOYMENTS_OF_TENANT {
            continue;
        }
        let nodes = preload_nodes(&built.snapshot, d, count);
        let cached = nodes.iter().filter(|node| node.cached_models.contains(&d.model_key)).count();
        let held = Held { nodes: nodes.len().try_into().unwrap_or(u32::MAX), cached: cached.try_into().unwrap_or(0) };
        found.held.insert(d.id.clone(), held);
        for node in nodes {
            let list = found.lists.entry(node.name.clone()).or_default();
            let preload = Preload { model: model.clone(), tenant: tenant.to_owned() };
            let same = list.iter().filter(|other| other.tenant == tenant).count();
            if !list.contains(&preload) && same < MAX_PRELOADS_OF_TENANT && list.len() < MAX_PRELOADS {
                list.push(preload);
            }
        }
    }
    found
}

/// Model, tenant and number of nodes of a deployment that wants its weights ahead. One whose commit is not known yet
/// waits for its first replica: that resolves it.
fn asked<'a>(built: &'a Built, d: &Deployment) -> Option<(&'a ClaimModel, &'a str, usize)> {
    let wanted = built.judged.get(&d.id)?.wanted().filter(|_| !d.deleting)?;
    let count = wanted.deployment.preload_nodes as usize;
    let model = wanted.fetched.as_ref().filter(|_| count > 0)?;
    let tenant = built.tenants.of(&d.id.namespace)?;
    Preload { model: model.clone(), tenant: tenant.to_owned() }.key().map(|_| (model, tenant, count))
}

//! Which nodes hold a model's weights ahead of need.
//!
//! Of the nodes on which a replica could ever stand, those that have the weights already come first; the others in an
//! order that depends on deployment and node alone, so that a choice stays while load moves, and different models go
//! to different nodes.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::place::filter::repels;
use crate::snapshot::{Accelerator, Deployment, Freshness, Health, Node, Snapshot};

/// At most `count` nodes, the best first.
pub fn nodes<'a>(snapshot: &'a Snapshot, d: &Deployment, count: usize) -> Vec<&'a Node> {
    let mut found: Vec<&Node> = snapshot.nodes.iter().map(|node| &**node).filter(|node| could_hold(node, d)).collect();
    found.sort_by_cached_key(|node| {
        let mut hasher = DefaultHasher::new();
        (&d.id, &node.name).hash(&mut hasher);
        (Reverse(node.cached_models.contains(&d.model_key)), hasher.finish(), node.name.clone())
    });
    found.truncate(count);
    found
}

/// Whether a replica could stand there if nothing else did.
fn could_hold(node: &Node, d: &Deployment) -> bool {
    let usable = node.ready && !node.cordoned && matches!(node.freshness, Freshness::Fresh { .. });
    let selected = d.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let tolerated = !node.taints.iter().any(|taint| repels(taint, &d.tolerations));
    usable && selected && tolerated && d.variants.iter().any(|variant| has_gpus(node, &variant.accelerator))
}

fn has_gpus(node: &Node, accelerator: &Accelerator) -> bool {
    let Accelerator::Gpu { class, count, .. } = accelerator else { return false };
    let healthy = |gpu: &&crate::snapshot::Gpu| gpu.class.as_ref() == Some(class) && gpu.health == Health::Healthy;
    node.gpus.iter().filter(healthy).count() >= *count as usize
}

//! Following the next snapshot: only nodes that are not the ones seen before are read again.
//!
//! What is kept gives the same plan as an index built anew. Where that would take more than replacing single
//! nodes (a node or a class came or went, or filters must look at what they ignored), the index is built anew.

use crate::snapshot::index::mig::BITS;
use crate::snapshot::index::{Index, Matters, NodeAt, Row, Size, charge};
use crate::snapshot::{Freshness, Isolation, Node, Shared, Snapshot};

/// Classes up to which each has a bit of its own in a shape; their numbers must not depend on the past beyond it.
const CLASSES: usize = 63;

impl Index {
    /// Makes this the index of another snapshot; false: it must be built anew. The undo log must be empty.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        let same = |(n, row): (&&Shared<Node>, &Row)| row.source.is(n) || n.name == row.node.name;
        let same_names =
            |nodes: &[&Shared<Node>]| nodes.len() == self.rows.len() && nodes.iter().zip(&self.rows).all(same);
        // Most often they come in the order in which they came before.
        let mut nodes: Vec<&Shared<Node>> = snapshot.nodes.iter().collect();
        if !same_names(&nodes) {
            nodes = in_order(snapshot);
        }
        if !same_names(&nodes) || snapshot.classes != self.given_classes || self.classes.len() > CLASSES {
            return false;
        }
        if !self.knows_classes(snapshot) {
            return false;
        }
        self.round += 1;
        let sizes = self.sizes();
        let mut replaced = false;
        for (at, node) in nodes.into_iter().enumerate() {
            let row = &mut self.rows[at];
            if row.source.is(node) {
                continue;
            }
            if !same_but_age(&row.source, node) {
                self.replace(at, node);
                replaced = true;
                continue;
            }
            row.source = node.clone();
            row.node = sorted(node);
        }
        if replaced && sizes != self.sizes() {
            self.class_version += 1;
        }
        if self.profiles.list.len() > BITS as usize {
            return false;
        }
        self.exclusions.clear();
        snapshot.exclusions.iter().for_each(|e| self.exclude(e.clone()));
        if self.what_matters(snapshot) != self.matters {
            return false;
        }
        self.forget_old_states();
        true
    }

    /// What is derived from classes is valid while this is equal.
    pub fn class_version(&self) -> u64 {
        self.class_version
    }

    /// Counts the snapshots followed, see [`Row::changed`](super::Row::changed).
    pub fn round(&self) -> u64 {
        self.round
    }

    fn knows_classes(&self, snapshot: &Snapshot) -> bool {
        let of_gpus = snapshot.nodes.iter().enumerate().filter(|(at, n)| {
            // Most nodes are the same in the same place, and those were read before.
            !self.rows.get(*at).is_some_and(|row| row.source.is(n))
        });
        let mut names = of_gpus.flat_map(|(_, n)| &n.gpus).filter_map(|g| g.class.as_ref());
        names.all(|name| self.class_names.contains_key(name))
    }

    fn sizes(&self) -> Vec<Vec<Size>> {
        self.classes.iter().map(|c| c.sizes.keys().copied().collect()).collect()
    }

    fn replace(&mut self, at: NodeAt, source: &Shared<Node>) {
        self.count(at, false);
        let node = sorted(source);
        let kind = self.kind(&node);
        let taken = self.taken_of(&node);
        let round = self.round;
        let row = &mut self.rows[at];
        (row.source, row.node, row.taken, row.kind, row.changed) = (source.clone(), node, taken, kind, round);
        self.count(at, true);
        self.moved(at);
    }

    /// Adds a node to what is counted over all, or takes it out.
    pub(super) fn count(&mut self, at: NodeAt, add: bool) {
        let step = |n: u32| if add { n + 1 } else { n.saturating_sub(1) };
        let row = &self.rows[at];
        for (gpu, taken) in row.node.gpus.iter().zip(&row.taken.gpus) {
            for r in &taken.residents {
                if let (Some(tenant), Some(class)) = (r.tenant, taken.class) {
                    let x = u128::from(charge(gpu, &r.promise));
                    let held = self.held.entry((tenant, class)).or_default();
                    *held = if add { *held + x } else { held.saturating_sub(x) };
                }
                match r.isolation {
                    Isolation::DedicatedGpu => self.dedicated_gpus = step(self.dedicated_gpus),
                    Isolation::DedicatedNode => self.dedicated_nodes = step(self.dedicated_nodes),
                    Isolation::Shared => {}
                }
                if let (Isolation::DedicatedGpu, Some(owner)) = (r.isolation, r.owner) {
                    let n = self.dedicated.entry(owner.deployment).or_default();
                    *n = step(*n);
                }
            }
            if let Some(class) = taken.class {
                let row = &mut self.classes[class];
                let n = row.sizes.entry(Size::new(gpu, taken.mig.as_ref().map(|m| m.number))).or_default();
                *n = if add { *n + 1 } else { n.saturating_sub(1) };
                row.gpus = if add { row.gpus + 1 } else { row.gpus.saturating_sub(1) };
                row.sizes.retain(|_, n| *n > 0);
            }
        }
        self.dedicated.retain(|_, n| *n > 0);
        for model in &row.node.cached_models {
            let nodes = self.cached.entry(model.clone()).or_default();
            match (nodes.binary_search(&at), add) {
                (Err(place), true) => nodes.insert(place, at),
                (Ok(place), false) => drop(nodes.remove(place)),
                _ => {}
            }
        }
    }

    pub(super) fn what_matters(&self, snapshot: &Snapshot) -> Matters {
        let wants = |isolation: Isolation| snapshot.deployments.iter().any(|d| d.isolation == isolation);
        Matters {
            owners: self.dedicated_gpus > 0 || wants(Isolation::DedicatedGpu),
            tenants: self.classes.iter().any(|c| !c.soft)
                || self.dedicated_nodes > 0
                || wants(Isolation::DedicatedNode),
        }
    }
}

/// The nodes by name; of two with the same name the first.
pub(super) fn in_order(snapshot: &Snapshot) -> Vec<&Shared<Node>> {
    let mut nodes: Vec<&Shared<Node>> = snapshot.nodes.iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.dedup_by(|a, b| a.name == b.name);
    nodes
}

/// The same node with its GPUs in the order of their indexes.
pub(super) fn sorted(node: &Shared<Node>) -> Shared<Node> {
    let mut node = node.clone();
    if !node.gpus.is_sorted_by(|a, b| (a.index, &a.uuid) <= (b.index, &b.uuid)) {
        node.gpus.sort_by(|a, b| (a.index, &a.uuid).cmp(&(b.index, &b.uuid)));
    }
    node
}

/// Nothing but the age of the data differs.
fn same_but_age(a: &Node, b: &Node) -> bool {
    let Node { name, ready, cordoned, labels, taints, allocatable, used, host_ports, freshness, gpus, cached_models } =
        a;
    let same_freshness = matches!(
        (freshness, &b.freshness),
        (Freshness::Fresh { .. }, Freshness::Fresh { .. })
            | (Freshness::Stale { .. }, Freshness::Stale { .. })
            | (Freshness::Missing, Freshness::Missing)
    );
    same_freshness
        && (ready, cordoned, used, allocatable) == (&b.ready, &b.cordoned, &b.used, &b.allocatable)
        && name == &b.name
        && host_ports == &b.host_ports
        && gpus == &b.gpus
        && labels == &b.labels
        && taints == &b.taints
        && cached_models == &b.cached_models
}

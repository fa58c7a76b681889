//! How crowded each node's domain would be with one more replica, where replicas are to be spread.
//!
//! A domain is a value of a node label; those count in which a node has a class that the deployment may use. The
//! replicas that hold slices are counted, leaving ones included, and not the slot that is asked for. A replica
//! without a GPU holds no slice, so it is not counted.

use std::collections::{BTreeMap, BTreeSet};

use crate::snapshot::Spread;
use crate::snapshot::index::{ClassAt, Index, NodeAt, Row};

/// Of one node with one more replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// Replicas above what the emptiest domain and the skew allow; the largest of all constraints.
    pub excess: u32,
    /// Position of that constraint.
    pub constraint: usize,
    /// Replicas in that domain now.
    pub replicas: u32,
}

/// By node; empty where nothing is to be spread.
#[derive(Debug, Default)]
pub(crate) struct Crowds(Vec<Crowd>);

/// A slot of a deployment, by its number in the index.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub deployment: usize,
    pub index: u32,
}

impl Crowds {
    /// `admits`: whether the replica's selector and tolerations let it onto a node.
    pub fn new(
        index: &Index,
        spread: &[Spread],
        slot: Slot,
        classes: &BTreeSet<ClassAt>,
        admits: &impl Fn(&Row) -> bool,
    ) -> Self {
        let mut crowds = Crowds::default();
        if spread.is_empty() {
            return crowds;
        }
        crowds.0.resize(index.rows().len(), Crowd::default());
        let held: Vec<u32> = index.rows().iter().map(|row| others(row, slot)).collect();
        let may_take = |row: &Row| may_take(row, classes) && admits(row);
        for (constraint, wanted) in spread.iter().enumerate() {
            crowds.add(index, constraint, wanted, &held, &may_take);
        }
        crowds
    }

    pub fn of(&self, node: NodeAt) -> Crowd {
        self.0.get(node).copied().unwrap_or_default()
    }

    /// The degrees of crowding, the least first, each with the nodes above it; none where nothing is to be spread.
    pub fn levels(&self) -> impl Iterator<Item = Vec<NodeAt>> {
        let distinct: BTreeSet<u32> = self.0.iter().map(|crowd| crowd.excess).collect();
        distinct.into_iter().map(|level| (0..self.0.len()).filter(|at| self.0[*at].excess > level).collect())
    }

    fn add(
        &mut self,
        index: &Index,
        constraint: usize,
        wanted: &Spread,
        held: &[u32],
        may_take: &impl Fn(&Row) -> bool,
    ) {
        let mut domains: BTreeMap<&str, u32> = BTreeMap::new();
        for (row, replicas) in index.rows().iter().zip(held) {
            if let Some(domain) = domain(row, wanted).filter(|_| may_take(row) || *replicas > 0) {
                let count = domains.entry(domain).or_default();
                *count = count.saturating_add(*replicas);
            }
        }
        let least = domains.values().min().copied().unwrap_or(0);
        for (crowd, row) in self.0.iter_mut().zip(index.rows()) {
            // A node without the label belongs to no domain, and comes after all that do.
            let replicas = domain(row, wanted).map_or(Some(u32::MAX), |domain| domains.get(domain).copied());
            let Some(replicas) = replicas else { continue };
            let excess = replicas.saturating_add(1).saturating_sub(least.saturating_add(wanted.max_skew));
            if excess > crowd.excess {
                *crowd = Crowd { excess, constraint, replicas };
            }
        }
    }
}

fn domain<'a>(row: &'a Row, wanted: &Spread) -> Option<&'a str> {
    row.node.labels.get(&wanted.topology_key).map(String::as_str)
}

/// Slots of the deployment that hold slices on the node, this one aside.
fn others(row: &Row, slot: Slot) -> u32 {
    let residents = row.taken.gpus.iter().flat_map(|gpu| &gpu.residents).filter_map(|resident| resident.owner);
    let of = residents.filter(|owner| owner.deployment == slot.deployment && owner.index != slot.index);
    of.map(|owner| owner.index).collect::<BTreeSet<u32>>().len() as u32
}

fn may_take(row: &Row, classes: &BTreeSet<ClassAt>) -> bool {
    let usable = row.node.ready && !row.node.cordoned;
    usable && row.taken.gpus.iter().any(|gpu| gpu.class.is_some_and(|class| classes.contains(&class)))
}

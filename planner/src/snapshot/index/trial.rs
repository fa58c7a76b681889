//! Changes that a plan cannot make, and undoing what a trial did.

use stowage_contracts::names::LABEL_HOSTNAME;

use crate::snapshot::index::{Index, NodeAt, Resident, Row, Taken, usability};
use crate::snapshot::{Freshness, Health, Node, Shared, Slice, SliceOwner};

/// Ends the names of what [`Index::add_like`] adds.
pub(crate) const ANOTHER: &str = "-another";

#[derive(Clone)]
pub(super) enum Undo {
    Taken {
        node: NodeAt,
        taken: Taken,
    },
    Row {
        node: NodeAt,
        row: Box<Row>,
    },
    /// The last row was not there.
    Added,
}

/// A point in the undo log.
pub(crate) struct Mark {
    undo: usize,
    recording: bool,
}

impl Index {
    /// From here on changes are recorded, until the mark is rolled back.
    pub fn mark(&mut self) -> Mark {
        let recording = std::mem::replace(&mut self.recording, true);
        Mark { undo: self.undo.len(), recording }
    }

    /// Undoes everything since the mark.
    pub fn rollback(&mut self, mark: Mark) {
        while self.undo.len() > mark.undo {
            match self.undo.pop() {
                Some(Undo::Taken { node, taken }) => {
                    self.rows[node].taken = taken;
                    self.moved(node);
                }
                Some(Undo::Row { node, row }) => {
                    let state = self.rows[node].state;
                    self.rows[node] = Row { state, ..*row };
                    self.moved(node);
                }
                Some(Undo::Added) => {
                    if let Some(row) = self.rows.pop() {
                        self.leave(self.rows.len(), row.state);
                        self.changes.push(self.rows.len());
                    }
                }
                None => break,
            }
        }
        self.recording = mark.recording;
    }

    /// Ends the slices of a foreign claim.
    pub fn remove_claim(&mut self, claim: &str) {
        for at in 0..self.rows.len() {
            let is_it = |s: &Slice| matches!(&s.owner, SliceOwner::Foreign { claim: c } if c == claim);
            if !self.rows[at].node.gpus.iter().flat_map(|g| &g.slices).any(is_it) {
                continue;
            }
            self.amend(at, |node| node.gpus.iter_mut().for_each(|g| g.slices.retain(|s| !is_it(s))));
        }
    }

    /// Changes the data of a node; what is taken of it by replicas stays.
    pub fn amend(&mut self, at: NodeAt, by: impl FnOnce(&mut Node)) {
        if self.recording {
            self.undo.push(Undo::Row { node: at, row: Box::new(self.rows[at].clone()) });
        }
        by(&mut self.rows[at].node);
        let slices: Vec<Vec<Slice>> = self.rows[at].node.gpus.iter().map(|g| g.slices.clone()).collect();
        let foreign = |s: &&Slice| matches!(s.owner, SliceOwner::Foreign { .. });
        let foreign: Vec<Vec<Resident>> =
            slices.iter().map(|of| of.iter().filter(foreign).map(|s| self.resident(s)).collect()).collect();
        // Nothing else is equal to a node that was changed.
        self.kinds += 1;
        let row = &mut self.rows[at];
        row.kind = self.kinds;
        for ((gpu, taken), foreign) in row.node.gpus.iter().zip(&mut row.taken.gpus).zip(foreign) {
            taken.residents.retain(|r| r.owner.is_some());
            taken.residents.extend(foreign);
            taken.usable = usability(gpu);
            taken.settle(gpu);
        }
        self.moved(at);
    }

    /// An empty, healthy, usable node like this one; it has no name of its own.
    pub fn add_like(&mut self, at: NodeAt) -> NodeAt {
        let mut node = Node::clone(&self.rows[at].node);
        node.name = format!("{}{ANOTHER}", node.name);
        (node.ready, node.cordoned) = (true, false);
        node.freshness = Freshness::Fresh { age_ms: 0 };
        node.used = Default::default();
        node.host_ports.clear();
        node.cached_models.clear();
        node.labels.remove(LABEL_HOSTNAME);
        node.taints.retain(|t| !t.key.starts_with("node.kubernetes.io/"));
        for gpu in &mut node.gpus {
            gpu.uuid = format!("{}{ANOTHER}", gpu.uuid);
            gpu.health = Health::Healthy;
            gpu.slices.clear();
        }
        if self.recording {
            self.undo.push(Undo::Added);
        }
        self.kinds += 1;
        let (kind, added) = (self.kinds, self.rows.len());
        let taken = self.taken_of(&node);
        let node = Shared::new(node);
        self.rows.push(Row { source: node.clone(), node, taken, kind, state: 0, changed: self.round });
        let state = self.state_of(added);
        self.rows[added].state = state;
        self.enter(added, state);
        self.changes.push(added);
        added
    }
}

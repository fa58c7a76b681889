//! Kinds and states: which nodes no filter and no score distinguishes.
//!
//! A *kind* is everything that never changes during a plan, names, ages and messages aside; a *state* is a
//! kind and what is taken of the node now.

use std::collections::{BTreeMap, BTreeSet};

use crate::snapshot::index::{Index, NodeAt, StateAt, StateFacts, Usability, charge, usability};
use crate::snapshot::{Freshness, Health, Node, Promise};

/// States that are kept beyond four for each node.
const SPARE_STATES: usize = 1024;

impl Index {
    /// The number of the node's kind.
    pub(super) fn kind(&mut self, node: &Node) -> u64 {
        let key = kind_key(node);
        if let Some(kind) = self.kind_numbers.get(&key) {
            return *kind;
        }
        self.kinds += 1;
        self.kind_numbers.insert(key, self.kinds);
        self.kinds
    }

    /// Forgets all states and gives every node one.
    pub(super) fn number_states(&mut self) {
        self.epoch += 1;
        self.states.clear();
        self.members.clear();
        self.live.clear();
        self.facts.clear();
        self.changes.clear();
        for at in 0..self.rows.len() {
            let state = self.state_of(at);
            self.rows[at].state = state;
            self.enter(at, state);
        }
    }

    pub(super) fn enter(&mut self, at: NodeAt, state: StateAt) {
        self.members[state].insert(at);
        self.live.insert(state);
    }

    pub(super) fn leave(&mut self, at: NodeAt, state: StateAt) {
        self.members[state].remove(&at);
        if self.members[state].is_empty() {
            self.live.remove(&state);
        }
    }

    /// Numbers states anew once most of them are those of no node.
    pub(super) fn forget_old_states(&mut self) {
        let limit = 4 * self.rows.len() + SPARE_STATES;
        if self.members.len() > limit || self.changes.len() > 4 * limit {
            self.number_states();
        }
    }

    pub(super) fn state_of(&mut self, at: NodeAt) -> StateAt {
        let key = self.state_key(at);
        if let Some(state) = self.states.get(&key) {
            return *state;
        }
        let state = self.members.len();
        self.states.insert(key, state);
        self.members.push(BTreeSet::new());
        self.facts.push(self.facts_of(at));
        state
    }

    /// Everything that a filter or a score reads of a node, as numbers.
    fn state_key(&self, at: NodeAt) -> Vec<u64> {
        let row = &self.rows[at];
        let ports = &row.taken.ports;
        let mut key = Vec::with_capacity(5 + ports.len() + 4 * row.taken.gpus.len());
        key.extend([row.kind, row.cpu_free(), row.memory_free(), row.has_pod_slot().into(), ports.len() as u64]);
        key.extend(ports.iter().map(|p| u64::from(*p)));
        for gpu in &row.taken.gpus {
            key.extend([gpu.free_bytes, u64::from(gpu.free_sm)]);
            key.extend(gpu.mig.as_ref().map(|m| m.taken));
            if gpu.free_bytes == 0 || gpu.free_sm == 0 {
                // More may be promised than there is, which the report counts.
                let (memory, sm) = gpu.promised();
                key.extend([1, memory, sm.into()]);
            } else {
                key.push(0);
            }
            if !self.matters.owners && !self.matters.tenants {
                continue;
            }
            let mut residents: Vec<[u64; 3]> = gpu
                .residents
                .iter()
                .map(|r| {
                    let owner = r.owner.filter(|_| self.matters.owners).map_or(0, |o| o.deployment as u64 + 1);
                    [r.tenant.map_or(0, |t| t as u64 + 1), r.isolation as u64, owner]
                })
                .collect();
            residents.sort_unstable();
            residents.dedup();
            key.push(residents.len() as u64);
            key.extend(residents.into_iter().flatten());
        }
        key
    }

    fn facts_of(&self, at: NodeAt) -> StateFacts {
        let row = &self.rows[at];
        let fresh = matches!(row.node.freshness, Freshness::Fresh { .. });
        let promised = row.node.gpus.iter().zip(&row.taken.gpus).map(|(gpu, taken)| {
            let (memory, sm) = taken.promised();
            charge(gpu, &Promise::slice(memory, sm))
        });
        StateFacts {
            gpus: row.node.gpus.len() as u32,
            healthy_gpus: row.node.gpus.iter().filter(|g| g.health == Health::Healthy).count() as u32,
            promised_milli: promised.fold(0, u64::saturating_add),
            stale: !row.node.gpus.is_empty() && !fresh,
        }
    }
}

/// Equal for nodes that differ in nothing but their names, ages, messages and what is taken of them.
fn kind_key(node: &Node) -> Vec<u8> {
    let mut key = Key(Vec::with_capacity(64 * (node.gpus.len() + 2)));
    let freshness = match node.freshness {
        Freshness::Fresh { .. } => 0,
        Freshness::Stale { .. } => 1,
        Freshness::Missing => 2,
    };
    key.number(u64::from(node.ready) + 2 * u64::from(node.cordoned) + 4 * freshness);
    key.number(node.labels.len() as u64);
    for (name, value) in &node.labels {
        key.text(name);
        key.text(value);
    }
    key.number(node.taints.len() as u64);
    for taint in &node.taints {
        key.text(&taint.key);
        key.text(&taint.value);
        key.number(taint.effect as u64);
    }
    key.number(node.allocatable.cpu_milli);
    key.number(node.allocatable.memory_bytes);
    key.number(node.allocatable.pods.into());
    let mut islands: BTreeMap<&str, u64> = BTreeMap::new();
    for gpu in &node.gpus {
        let next = islands.len() as u64;
        let island = *islands.entry(gpu.island.as_deref().unwrap_or(&gpu.uuid)).or_insert(next);
        key.number(u64::from(gpu.class.is_some()));
        key.text(gpu.class.as_deref().unwrap_or_default());
        key.text(&gpu.product);
        key.number(match usability(gpu) {
            Usability::Healthy => 0,
            Usability::Degraded => 1,
            Usability::Unhealthy => 2,
        });
        key.number(island);
        key.number(gpu.numa.map_or(0, |numa| u64::from(numa) + 1));
        key.number(gpu.memory_bytes);
        key.number(gpu.memory_step_bytes);
        key.number(gpu.sm_percent.into());
        key.number(gpu.mig.as_ref().map_or(0, |profiles| profiles.len() as u64 + 1));
        for p in gpu.mig.iter().flatten() {
            key.text(&p.name);
            let facts = [p.memory_bytes, p.sm_percent.into(), p.slices.into(), p.starts.len() as u64];
            facts.into_iter().chain(p.starts.iter().map(|s| (*s).into())).for_each(|n| key.number(n));
        }
    }
    key.0
}

struct Key(Vec<u8>);

impl Key {
    fn number(&mut self, n: u64) {
        self.0.extend(n.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
    }
}

//! Replicas for which the cluster is asked for another node, where the platform allows it ([`Policy::max_capacity_pods`]).
//!
//! A node autoscaler adds a node for a pod that no node can take. Replicas are pinned, so each of these gets a *capacity
//! pod* beside it, which asks for the same and is not pinned. Here is decided for which; the operator makes and ends the
//! pods. It is the last resort: the replica is within its quota, has waited for [`Policy::capacity_after_ms`], fits neither
//! now nor once all pods on their way out have ended, and would fit on an empty node like one that is here, which is acted
//! out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::decide::case::Case;
use crate::decide::{Attempt, Draft};
use crate::lifecycle::Open;
use crate::place::Refusal;
use crate::place::filter::{Need, could_fit, is_admitted};
use crate::place::placer::Chosen;
use crate::snapshot::index::{ANOTHER, NodeAt, Row};
use crate::snapshot::{Placement, Policy, TenantId, TimeMs};

/// A replica for which another node is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct CapacityAsk {
    /// Slot of the replica.
    pub index: u32,
    /// Where it would be if the node of that name were empty.
    pub like: Placement,
}

/// Distinct questions that are tried in vain in one plan: many may wait that no node would help.
const TRIES: usize = 64;
/// Where a node was refused for what passes by itself (its agent is silent, it was excluded for a while), the wait is this
/// many times longer.
const PATIENCE: u64 = 30;

impl<'a> Draft<'a> {
    /// Decides in the state ahead, in which what waits for time alone is not refused.
    pub(super) fn ask_for_nodes(&mut self, policy: &Policy) {
        let most = policy.max_capacity_pods as usize;
        if most == 0 {
            return;
        }
        let trial = self.begin();
        let mut added = BTreeMap::new();
        let mut asked = 0;
        // No node would help what asks the same either.
        let mut hopeless = BTreeSet::new();
        for (at, open) in self.long_refused(policy) {
            if asked == most || hopeless.len() == TRIES {
                break;
            }
            let question = self.cases[at].question();
            if hopeless.contains(&question) {
                continue;
            }
            match self.on_another_node(at, open, &mut added) {
                Some(ask) => {
                    self.cases[at].capacity.push(ask);
                    asked += 1;
                }
                None => drop(hopeless.insert(question)),
            }
        }
        self.rollback(trial);
    }

    /// Slots that no node takes: by priority; then one of each tenant, the next of each, and so on; then those that have
    /// waited longest.
    fn long_refused(&self, policy: &Policy) -> Vec<(usize, Open)> {
        let mut order: Vec<(Reverse<i32>, TimeMs, usize)> = Vec::new();
        for (at, case) in self.cases.iter().enumerate() {
            let Some(waiting) = case.waiting(self.now) else { continue };
            let patience = if passes_by_itself(case) { PATIENCE } else { 1 };
            if self.now.saturating_sub(waiting.since_ms) >= policy.capacity_after_ms.saturating_mul(patience) {
                order.push((Reverse(case.d.priority), waiting.since_ms, at));
            }
        }
        order.sort_unstable();
        let mut of_tenant: BTreeMap<(Reverse<i32>, Option<&TenantId>), usize> = BTreeMap::new();
        let mut slots: Vec<(Reverse<i32>, usize, usize, Open)> = Vec::new();
        for (priority, _, at) in order {
            let case = &self.cases[at];
            let turn = of_tenant.entry((priority, case.d.tenant.as_ref())).or_default();
            for slot in case.waiting_slots().into_iter().filter(|slot| slot.old.is_none()) {
                slots.push((priority, *turn, at, slot.open));
                *turn += 1;
            }
        }
        slots.sort_by_key(|(priority, turn, ..)| (*priority, *turn));
        slots.into_iter().map(|(.., at, open)| (at, open)).collect()
    }

    /// Places the slot on a node that was added for an earlier one, or else on an empty one like one that is here. `added`:
    /// the node that each added one is like.
    fn on_another_node(&mut self, at: usize, open: Open, added: &mut BTreeMap<NodeAt, NodeAt>) -> Option<CapacityAsk> {
        let chosen = self.on_added(at, open, added).or_else(|| {
            self.likes(&self.cases[at]).into_iter().find_map(|like| {
                let trial = self.begin();
                added.insert(self.placer.index.add_like(like), like);
                let chosen = self.on_added(at, open, added);
                if chosen.is_none() {
                    self.rollback(trial);
                }
                chosen
            })
        })?;
        self.take(at, open.index, open.incarnation, &chosen);
        let mut like = chosen.verdict.winner?.placement;
        like.node.clone_from(&self.placer.index.rows()[added[&chosen.node]].node.name);
        for gpu in &mut like.gpus {
            gpu.uuid.truncate(gpu.uuid.len().saturating_sub(ANOTHER.len()));
        }
        Some(CapacityAsk { index: open.index, like })
    }

    fn on_added(&mut self, at: usize, open: Open, added: &BTreeMap<NodeAt, NodeAt>) -> Option<Chosen> {
        match self.attempt(at, open.index) {
            Attempt::Placed(chosen) if added.contains_key(&chosen.node) => Some(*chosen),
            _ => None,
        }
    }

    /// One node of each class that the case could use: one that could take it if it were empty, else one that it may go to,
    /// else any; the first by name.
    pub fn likes(&self, case: &Case<'_>) -> Vec<NodeAt> {
        let mut likes = Vec::new();
        for alternative in case.alternatives.iter() {
            let need = self.placer.need(alternative);
            let has = |row: &Row| need.class.is_none() || row.taken.gpus.iter().any(|g| g.class == need.class);
            let index = &self.placer.index;
            // Not those that a trial added.
            let known = |at: NodeAt, row: &Row| index.at(&row.node.name) == Some(at);
            let rows = index.rows().iter().enumerate().filter(|(at, row)| has(row) && known(*at, row));
            let key =
                |at: NodeAt, row: &Row| (!could_fit(need, row), !is_admitted(need, row), !is_large(need, row), at);
            let like = rows.min_by_key(|(at, row)| key(*at, row));
            likes.extend(like.map(|(at, _)| at).filter(|like| !likes.contains(like)));
        }
        likes
    }
}

/// Whether a node was refused for what passes by itself.
fn passes_by_itself(case: &Case<'_>) -> bool {
    let examples = case.failed.iter().flat_map(|verdict| &verdict.refusals).flat_map(|group| &group.examples);
    examples.into_iter().any(|node| matches!(node.reason, Refusal::Stale { .. } | Refusal::Excluded { .. }))
}

/// Whether the empty node has as much as the replica needs.
fn is_large(need: &Need, row: &Row) -> bool {
    let memory = need.partition.memory_bytes().unwrap_or(0);
    let gpus = row
        .node
        .gpus
        .iter()
        .zip(&row.taken.gpus)
        .filter(|(gpu, g)| g.class == need.class && gpu.memory_bytes >= memory);
    let has = row.node.allocatable;
    has.cpu_milli >= need.cpu_milli && has.memory_bytes >= need.node_memory_bytes && gpus.count() >= need.gpus as usize
}

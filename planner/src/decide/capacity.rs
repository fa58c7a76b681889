//! Replicas for which the cluster is asked for another node, where the platform allows it ([`Policy::max_capacity_pods`]).
//!
//! A node autoscaler adds a node for a pod that no node can take. Replicas are pinned, so each of these gets a *capacity
//! pod* beside it, which asks for the same and is not pinned. Here is decided for which; the operator makes and ends the
//! pods. It is the last resort: the replica is within its quota, has waited for [`Policy::capacity_after_ms`], fits neither
//! now nor once all pods on their way out have ended, and would fit on an empty node like one that is here, which is acted
//! out.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decide::case::Case;
use crate::decide::{Attempt, Draft};
use crate::lifecycle::Open;
use crate::place::filter::{could_fit, is_admitted};
use crate::place::placer::Chosen;
use crate::snapshot::index::{ANOTHER, NodeAt, Row};
use crate::snapshot::{Placement, Policy, TimeMs};

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

/// Replicas that were tried, for each that may be asked for: many may wait that no node would help.
const TRIES: usize = 4;

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
        for (at, open) in self.long_refused(policy).into_iter().take(most * TRIES) {
            if asked == most {
                break;
            }
            if let Some(ask) = self.on_another_node(at, open, &mut added) {
                self.cases[at].capacity.push(ask);
                asked += 1;
            }
        }
        self.rollback(trial);
    }

    /// Slots that quota allows and no node takes: by priority, then those that have waited longest.
    fn long_refused(&self, policy: &Policy) -> Vec<(usize, Open)> {
        let mut order: Vec<(Reverse<i32>, TimeMs, usize)> = Vec::new();
        for (at, case) in self.cases.iter().enumerate() {
            let Some(waiting) = case.waiting(self.now) else { continue };
            if self.now.saturating_sub(waiting.since_ms) >= policy.capacity_after_ms {
                order.push((Reverse(case.d.priority), waiting.since_ms, at));
            }
        }
        order.sort_unstable();
        let slots = |(.., at): (Reverse<i32>, TimeMs, usize)| {
            let waiting = self.cases[at].waiting_slots().into_iter().filter(|slot| slot.old.is_none());
            waiting.map(move |slot| (at, slot.open))
        };
        order.into_iter().flat_map(slots).collect()
    }

    /// Places the slot on a node that was added for an earlier one, or else on an empty one like one that is here. `added`: the node that each added one is like.
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
            let rows = self.placer.index.rows().iter().enumerate().filter(|(_, row)| has(row));
            let like = rows.min_by_key(|(at, row)| (!could_fit(need, row), !is_admitted(need, row), *at));
            likes.extend(like.map(|(at, _)| at).filter(|like| !likes.contains(like)));
        }
        likes
    }
}

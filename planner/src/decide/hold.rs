//! Nodes that are kept for replicas that take back what is their tenant's own.
//!
//! Such a replica may need the room of several borrowed ones. They end one after another, and young ones may not be
//! reclaimed yet. If each place that becomes free were borrowed again, by the very replica that drained for the
//! claimant or by the next pod of a tenant that replaces its pods before they may be reclaimed, the claimant
//! would never be placed. So nobody borrows on the node where its room will be free first, until it is placed.
//!
//! That node is the one where it fits once pods on their way out have ended in time; otherwise the one where the
//! borrowed replicas that would make room have all run long enough first, or have ended.
//! Not here: who drains (`reclaim`). Replicas within another tenant's nominal quota are not kept away.

use crate::decide::case::Case;
use crate::decide::reclaim::{MAX_CLAIMS, Preference, Reclaimable};
use crate::decide::{Attempt, Draft};
use crate::lifecycle::Open;
use crate::place::placer::Held;
use crate::snapshot::index::NodeAt;

/// A node, and the slot that it is kept for.
#[derive(Clone)]
pub(crate) struct Hold {
    pub case: usize,
    pub slot: u32,
    node: NodeAt,
}

impl<'a> Draft<'a> {
    /// Decides which nodes are kept, after what is within nominal quota was placed and before others borrow.
    pub(super) fn hold(&mut self, someone_would_borrow: bool) {
        let renews = || self.cases.iter().any(|case| !case.life.renew.is_empty());
        let owns = |case: &Case<'_>| case.is_refused() && self.within_nominal(case);
        if !(someone_would_borrow || renews()) || !self.cases.iter().any(owns) {
            return;
        }
        let mut from = self.reclaimable(Preference::Soonest);
        let trial = self.begin();
        self.end_in_time(&from);
        let holds = self.holds_for_claimants(&mut from);
        self.rollback(trial);
        self.holds = holds;
    }

    fn holds_for_claimants(&mut self, from: &mut Reclaimable<'a>) -> Vec<Hold> {
        let mut holds: Vec<Hold> = Vec::new();
        for at in self.in_turn() {
            for open in self.claimable(at, None) {
                if holds.len() == MAX_CLAIMS || !self.within_nominal(&self.cases[at]) {
                    break;
                }
                let node = match self.attempt(at, open.index) {
                    // It is about to borrow.
                    Attempt::Placed(chosen) if self.borrows(at, &chosen) => break,
                    Attempt::Placed(chosen) => {
                        self.take(at, open.index, open.incarnation, &chosen);
                        chosen.node
                    }
                    Attempt::Refused { .. } => match self.place_later(at, open, from) {
                        Some(node) => node,
                        None => break,
                    },
                };
                holds.push(Hold { case: at, slot: open.index, node });
            }
        }
        holds
    }

    /// Places a slot where it can be first: its deployment's pods end, borrowers give way, or others' pods end.
    fn place_later(&mut self, at: usize, open: Open, from: &mut Reclaimable<'a>) -> Option<NodeAt> {
        let own = self.place_after_own(at, open, from);
        let claimed = own.or_else(|| self.claim(at, open, from).map(|(node, _)| node));
        claimed.or_else(|| self.place_after_all(at, open, from))
    }

    /// Whether nobody may borrow on this node.
    pub(super) fn is_held(&self, node: NodeAt) -> bool {
        self.holds.iter().any(|hold| hold.node == node)
    }

    /// The nodes that are kept from the alternatives of a case that would be borrowed.
    pub(super) fn held_from(&self, case: &Case<'a>) -> Vec<Held> {
        let mut all = Vec::new();
        if self.holds.is_empty() {
            return all;
        }
        let Some(tenant) = &case.tenant else { return all };
        for alternative in case.alternatives.iter() {
            let Some(class) = &alternative.ask.class else { continue };
            if self.ledger.within_nominal(tenant, class, alternative.charge) {
                continue;
            }
            let ranking = alternative.ranking();
            let kept = |hold: &Hold| {
                let claimant = self.cases[hold.case].d.tenant.clone()?;
                Some(Held { ranking, node: hold.node, claimant })
            };
            all.extend(self.holds.iter().filter_map(kept));
        }
        all
    }
}

//! Replicas that move: two pods of one replica, the old one, which serves, and the one that takes over from it.
//!
//! They stay side by side until the new one is Ready, the old one cannot go on, or the new one has taken too long. The
//! tenant is charged for one of them, until only one is left: the platform makes its replicas move.

use crate::lifecycle::{End, Moving, Pair, View};
use crate::plan::EndReason;
use crate::snapshot::index::Index;
use crate::snapshot::{Deployment, Phase, Replica};

/// Of replicas that move, the pods that their tenant is not charged for: all but the newest that stays, or but the
/// oldest where none does. `ends` are those of this plan; what a rollout ends, now or later in the plan, counts as staying.
pub(crate) fn uncharged<'a>(d: &'a Deployment, ends: &[End], index: &Index) -> Vec<&'a Replica> {
    let mut pods: Vec<&Replica> = d.replicas.iter().collect();
    pods.sort_by_key(|r| (r.index, &r.spec_hash, r.incarnation));
    let of_slot = |a: &&Replica, b: &&Replica| (a.index, &a.spec_hash) == (b.index, &b.spec_hash);
    let mut found = Vec::new();
    let moves = |old: &Replica, new: &Replica| {
        // A later pod that goes before the earlier one was given up.
        succeeds(index, old, new) || goes(new, ends) && !goes(old, ends)
    };
    for pods in pods.chunk_by(of_slot).filter(|pods| pods.windows(2).any(|two| moves(two[0], two[1]))) {
        let stays = pods.iter().rposition(|r| !goes(r, ends)).unwrap_or(0);
        found.extend(pods.iter().enumerate().filter(|(at, _)| *at != stays).map(|(_, r)| *r));
    }
    found
}

/// Whether a later pod of the slot and specification was made because the earlier one has to leave its place.
fn succeeds(index: &Index, old: &Replica, new: &Replica) -> bool {
    new.takes_over || cordoned(index, old)
}

fn goes(r: &Replica, ends: &[End]) -> bool {
    matches!(r.phase, Phase::Draining { .. } | Phase::Terminating { .. } | Phase::Failed { .. })
        || ends
            .iter()
            .filter(|e| e.reason != EndReason::Rollout)
            .any(|e| (e.replica.index, e.replica.incarnation) == (r.index, r.incarnation))
}

/// On a node that takes nothing new and is perhaps about to be drained.
pub(super) fn cordoned(index: &Index, r: &Replica) -> bool {
    let row = r.placement.as_ref().and_then(|p| index.row(&p.node));
    row.is_some_and(|row| row.node.cordoned)
}

impl<'a> View<'a> {
    /// Whether the older pod of a slot goes on beside the newer one: it serves, or moves and cannot answer for a moment.
    pub(super) fn stays_beside(&self, old: &Replica, primary: &Replica) -> bool {
        let starts = self.matches(primary) && primary.phase != Phase::Ready;
        let moves = self.matches(old) && succeeds(self.index, old, primary);
        starts && (old.phase == Phase::Ready || moves && old.phase == Phase::Unready)
    }

    /// Notes a move in progress.
    pub(super) fn move_on(&mut self, old: &Replica, new: &Replica) {
        if !self.matches(old) {
            return;
        }
        self.out.pairs.push(Pair { index: old.index, old: old.incarnation, new: new.incarnation });
        if new.takes_over && !self.cordoned(old) {
            self.out.wakes.push(self.overdue_ms(new));
            self.out.moving.push(Moving { index: old.index, incarnation: old.incarnation });
        }
    }

    /// Ends replacements that did not become Ready in time. The old pod goes on, unless it has to leave in any case.
    pub(super) fn give_up(&mut self, pods: &mut Vec<&'a Replica>) {
        let goes_on =
            |r: &&Replica| self.matches(r) && matches!(r.phase, Phase::Ready | Phase::Unready) && !self.cordoned(r);
        let Some(old) = pods.iter().copied().filter(goes_on).map(|r| r.incarnation).min() else { return };
        let overdue = |r: &&Replica| {
            let follows = r.takes_over && self.matches(r) && r.incarnation > old;
            follows && r.phase != Phase::Ready && self.now >= self.overdue_ms(r)
        };
        let (late, others): (Vec<_>, Vec<_>) = pods.iter().copied().partition(overdue);
        *pods = others;
        for r in late {
            self.end(r, EndReason::MoveTimeout);
        }
    }

    fn overdue_ms(&self, new: &Replica) -> u64 {
        new.created_ms.saturating_add(self.policy.move_patience_ms)
    }
}

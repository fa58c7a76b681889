//! What moves have cost: which pods are charged while a replica moves, and who had others move of late.

use std::collections::BTreeSet;

use crate::decide::Draft;
use crate::decide::case::Case;
use crate::lifecycle::uncharged as uncharged_pods;
use crate::snapshot::index::{Index, Owner};
use crate::snapshot::{Policy, RecentMove, Replica, Snapshot, TenantId, TimeMs};

/// Charges by tenant and class.
type Charges = Vec<(TenantId, String, u64)>;

/// The pods that their tenants are not charged for, and what these hold.
pub(super) fn uncharged(cases: &[Case<'_>], index: &Index) -> (BTreeSet<Owner>, Charges) {
    let (mut owners, mut charges) = (BTreeSet::new(), Vec::new());
    // Elsewhere each slot has one pod.
    for case in cases.iter().filter(|case| case.d.replicas.len() as u64 > u64::from(case.life.current)) {
        for r in uncharged_pods(case.d, &case.life.ends, index) {
            let owner = Owner { deployment: case.number, index: r.index, incarnation: r.incarnation };
            let node = r.placement.as_ref().and_then(|p| index.at(&p.node));
            charges.extend(node.map(|at| index.charges_of(at, owner)).unwrap_or_default());
            owners.insert(owner);
        }
    }
    (owners, charges)
}

/// The moves that count still, sorted. One of the future, for a clock that was set, is one of now.
pub(super) fn recent(snapshot: &Snapshot, policy: &Policy, now: TimeMs) -> Vec<RecentMove> {
    let counts = |m: &&RecentMove| m.at_ms.saturating_add(policy.move_window_ms) > now;
    let moves = snapshot.recent_moves.iter().filter(counts);
    let mut moves: Vec<_> = moves.map(|m| RecentMove { at_ms: m.at_ms.min(now), ..m.clone() }).collect();
    moves.sort();
    moves
}

impl<'a> Draft<'a> {
    /// This plan makes another pod for a replica that moves: its tenant is charged for that one instead.
    pub(super) fn charge_once(&mut self, at: usize, old: &Replica) {
        let deployment = self.cases[at].number;
        for (tenant, class, x) in self.charges_of(deployment, old) {
            self.ledger.refund(&tenant, &class, x);
        }
        self.uncharged.insert(Owner { deployment, index: old.index, incarnation: old.incarnation });
    }

    /// How many more may move for the tenant; if none, from when on.
    pub(super) fn budget(&self, claimant: &TenantId, policy: &Policy) -> Result<u32, TimeMs> {
        let of = self.recent_moves.iter().filter(|m| m.claimant == *claimant);
        let times: Vec<TimeMs> = of.map(|m| m.at_ms).collect();
        let most = policy.moves_per_claimant as usize;
        match times.len().checked_sub(most).and_then(|past| times.get(past)) {
            Some(oldest) => Err(oldest.saturating_add(policy.move_window_ms)),
            None => Ok(most.saturating_sub(times.len()) as u32),
        }
    }

    /// Whether this slot moved of late.
    pub(super) fn has_moved(&self, case: &Case<'a>, slot: u32) -> bool {
        self.recent_moves.iter().any(|m| m.index == slot && m.deployment == case.d.id)
    }
}

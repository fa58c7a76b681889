//! Cancelling drains: a replica that drains and is wanted again goes on, before a new one is placed.
//!
//! It holds its room and its quota until it has ended, so it needs nothing more; but what it borrows may be needed by
//! others. It goes on where that is its tenant's own, or where it may be borrowed in its turn and its node is
//! not kept for a claimant: then the one that it drained for is gone, or was placed elsewhere.

use crate::decide::Draft;
use crate::lifecycle::Resume;

impl Draft<'_> {
    /// The pod of this slot that may go on; whether what it holds is its tenant's own.
    pub(super) fn resumable(&mut self, at: usize, slot: u32) -> Option<(Resume, bool)> {
        let case = &self.cases[at];
        let resume = case.life.resumable.iter().find(|r| r.replica.index == slot)?.clone();
        let pod = case.d.replicas.iter().find(|r| r.name == resume.pod)?;
        let node = self.placer.index.at(&pod.placement.as_ref()?.node)?;
        let charges = self.charges_of(case.number, pod);
        charges.iter().for_each(|(tenant, class, x)| self.ledger.refund(tenant, class, *x));
        let own = charges.iter().all(|(tenant, class, x)| self.ledger.within_nominal(tenant, class, *x));
        let allowed = charges.iter().all(|(tenant, class, x)| self.ledger.allow(tenant, class, *x).is_ok());
        charges.iter().for_each(|(tenant, class, x)| self.ledger.charge(tenant, class, *x));
        (allowed && (own || !self.is_held(node))).then_some((resume, own))
    }
}

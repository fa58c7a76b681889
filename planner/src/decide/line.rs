//! The order in which deployments with open slots are served.
//!
//! First those within their tenant's nominal quota, by priority, then age, then name. Then those that
//! would borrow: by priority, then the lower weighted share of their tenant, then age, then name. The
//! share is looked at before each replica, so that what a cohort can lend is shared by weight and not
//! taken by the oldest deployment.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::decide::case::Case;
use crate::snapshot::{TenantId, TimeMs};

/// Cases that wait for their turn. Charges only grow while slots are filled, so a case leaves the
/// guaranteed ones at most once.
pub(crate) struct Line<'a> {
    /// Of each case: its tenant and its turn.
    cases: BTreeMap<usize, (Option<&'a TenantId>, Turn)>,
    guaranteed: BTreeSet<Turn>,
    others: BTreeMap<Option<&'a TenantId>, BTreeSet<Turn>>,
}

/// Priority, creation, position.
pub(crate) type Turn = (Reverse<i32>, TimeMs, usize);

pub(crate) fn turn(at: usize, case: &Case<'_>) -> Turn {
    (Reverse(case.d.priority), case.d.created_ms, at)
}

impl<'a> Line<'a> {
    /// These cases, by position.
    pub fn new<'b>(cases: impl Iterator<Item = (usize, &'b Case<'a>)>) -> Self
    where
        'a: 'b,
    {
        let cases: BTreeMap<_, _> = cases.map(|(at, case)| (at, (case.d.tenant.as_ref(), turn(at, case)))).collect();
        let guaranteed = cases.values().map(|(_, turn)| *turn).collect();
        Line { cases, guaranteed, others: BTreeMap::new() }
    }

    /// The case whose turn it is among those within their tenant's nominal quota.
    pub fn next_guaranteed(&mut self, within_nominal: impl Fn(usize) -> bool) -> Option<usize> {
        while let Some((.., first)) = self.guaranteed.first().copied() {
            if within_nominal(first) {
                return Some(first);
            }
            self.defer(first);
        }
        None
    }

    /// The case would borrow: its turn is among those that do. False: it was there already.
    pub fn defer(&mut self, at: usize) -> bool {
        let Some((tenant, turn)) = self.cases.get(&at) else { return false };
        let was_guaranteed = self.guaranteed.remove(turn);
        if was_guaranteed {
            self.others.entry(*tenant).or_default().insert(*turn);
        }
        was_guaranteed
    }

    /// Whether a case waits that would borrow.
    pub fn someone_would_borrow(&self) -> bool {
        self.others.values().any(|turns| !turns.is_empty())
    }

    /// The case whose turn it is among those that would borrow. `share` is the weighted share that a tenant has
    /// borrowed.
    pub fn next_borrowing(&self, share: impl Fn(&TenantId) -> u64) -> Option<usize> {
        let heads = self.others.iter().filter_map(|(tenant, turns)| Some((tenant, turns.first()?)));
        let order =
            |(tenant, turn): &(&Option<&'a TenantId>, &Turn)| (turn.0, tenant.map_or(0, &share), turn.1, turn.2);
        heads.min_by_key(order).map(|(_, turn)| turn.2)
    }

    /// The case at this position waits no longer.
    pub fn leave(&mut self, at: usize) {
        let Some((tenant, turn)) = self.cases.remove(&at) else { return };
        self.guaranteed.remove(&turn);
        if let Some(turns) = self.others.get_mut(&tenant) {
            turns.remove(&turn);
        }
    }
}

//! Who borrowed how much of late, and on which terms.
//!
//! Kueue's weighted share (KEP-1714), decayed over time (KEP-4136): a tenant that borrowed for hours comes
//! after one that has just begun, even if both borrow as much now. The past comes in with the snapshot and
//! goes out with the report; what the plan itself grants counts at once, so that one plan is fair, too.

use crate::quota::{Ledger, Terms, unsigned};
use crate::snapshot::{DecayedShare, TenantId, TimeMs};

const BILLION: u128 = 1_000_000_000;

impl Ledger {
    /// Takes the past into account. Without one, a tenant is as if it had always borrowed what it borrows now.
    pub(super) fn remember(&mut self, past: &[DecayedShare], half_life_ms: u64, now: TimeMs) {
        let tenants: Vec<TenantId> = self.terms.keys().cloned().collect();
        for tenant in tenants {
            let current = self.borrowed_part(&tenant);
            let decayed = match past.iter().find(|s| s.tenant == tenant) {
                // A clock that went back decays nothing.
                Some(s) => decayed(s.share_billionths, current, now.saturating_sub(s.at_ms), half_life_ms),
                None => current,
            };
            if let Some(terms) = self.terms.get_mut(&tenant) {
                (terms.decayed, terms.began_with) = (decayed, current);
            }
        }
    }

    /// The past for the next snapshot.
    pub fn shares(&self, now: TimeMs) -> Vec<DecayedShare> {
        let of = |(tenant, terms): (&TenantId, &Terms)| DecayedShare {
            tenant: tenant.clone(),
            share_billionths: terms.decayed,
            at_ms: now,
        };
        self.terms.iter().filter(|(_, terms)| terms.cohort.is_some()).map(of).collect()
    }

    /// The weighted share: what the tenant borrowed of late and is granted by this plan, divided by its
    /// weight. Weight 0 comes last.
    pub fn share(&self, tenant: &TenantId) -> u64 {
        let Some(terms) = self.terms.get(tenant).filter(|terms| terms.cohort.is_some()) else { return 0 };
        let changed = i128::from(self.borrowed_part(tenant)) - i128::from(terms.began_with);
        let part = (i128::from(terms.decayed) + changed).max(0);
        match terms.weight {
            0 => u64::MAX,
            weight => u64::try_from(part / i128::from(weight)).unwrap_or(u64::MAX),
        }
    }

    /// The largest part, over the classes, that what the tenant borrows is of its cohort's nominal quota.
    fn borrowed_part(&self, tenant: &TenantId) -> u64 {
        let Some(cohort) = self.cohort(tenant) else { return 0 };
        let classes = self.accounts.get(tenant).into_iter().flatten();
        let parts = classes.filter(|(_, a)| a.balance() < 0).map(|(class, a)| {
            let nominals = self.members(cohort, class).map(|(_, member)| member.nominal);
            let nominal = nominals.fold(0, i64::saturating_add);
            u128::from(unsigned(a.debt())) * BILLION / u128::from(unsigned(nominal).max(1))
        });
        u64::try_from(parts.max().unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Whether any tenant holds more than its nominal quota.
    pub fn anybody_borrows(&self) -> bool {
        self.terms.keys().any(|tenant| self.borrows(tenant))
    }

    /// Whether the tenant holds more than its nominal quota of a class.
    pub fn borrows(&self, tenant: &TenantId) -> bool {
        self.accounts.get(tenant).into_iter().flatten().any(|(_, a)| a.balance() < 0)
    }

    /// Whether the two lend to each other.
    pub fn same_cohort(&self, a: &TenantId, b: &TenantId) -> bool {
        a != b && self.cohort(a).is_some() && self.cohort(a) == self.cohort(b)
    }

    /// How long a borrowed replica of the tenant runs at least.
    pub fn min_runtime_ms(&self, tenant: &TenantId) -> u64 {
        self.terms.get(tenant).map_or(0, |terms| terms.min_runtime_ms)
    }

    /// How long a reclaimed replica of the tenant may finish its requests.
    pub fn reclaim_grace_ms(&self, tenant: &TenantId) -> u64 {
        self.terms.get(tenant).map_or(0, |terms| terms.reclaim_grace_ms)
    }
}

/// The past approaches the present by half of what is between them in each half-life.
fn decayed(past: u64, current: u64, elapsed_ms: u64, half_life_ms: u64) -> u64 {
    let kept = 0.5f64.powf(elapsed_ms as f64 / half_life_ms.max(1) as f64);
    let moved = (current as f64 - past as f64) * (1.0 - kept);
    (past as f64 + moved).round().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_approaches_the_present_by_half_in_each_half_life() {
        let check = |past, current, elapsed, want| assert_eq!(decayed(past, current, elapsed, 100), want);
        check(800, 0, 0, 800);
        check(800, 0, 100, 400);
        check(800, 0, 200, 200);
        check(0, 800, 100, 400);
        check(800, 800, 12_345, 800);
        check(u64::MAX, 0, u64::MAX, 0);
    }
}

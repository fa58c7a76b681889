//! Stage two: may they.
//!
//! Kueue's balance over one level of cohorts. For a tenant `T = nominal − held`, negative while it
//! borrows; for its cohort the sum of `min(lendingLimit, T)` of its members. One more replica of
//! charge `x` is allowed while the tenant stays within its nominal quota (that much is guaranteed,
//! also while others have borrowed it), or while `T − x ≥ −borrowingLimit` and the cohort's balance
//! stays at or above zero.
//!
//! A spend limit binds before either: money is not lent. Charges are of what is held, so a replica that
//! quota allows but no node fits blocks no other.
//! Not here: who goes first, and who gives back what was lent (`decide`).

mod share;
mod verdict;

use std::collections::BTreeMap;
use std::rc::Rc;

pub use verdict::{ClassUsage, QuotaBinding, QuotaLimit, QuotaVerdict, Spend};

use crate::snapshot::index::Index;
use crate::snapshot::{Class, Money, Policy, Snapshot, TenantId, TimeMs};

#[derive(Clone)]
pub(crate) struct Ledger {
    /// By tenant and class.
    accounts: BTreeMap<TenantId, BTreeMap<String, Account>>,
    terms: BTreeMap<TenantId, Terms>,
    /// Of a whole GPU per hour, by class.
    prices: Rc<BTreeMap<String, Money>>,
}

/// What a tenant agreed to, classes aside.
#[derive(Clone)]
struct Terms {
    cohort: Option<String>,
    weight: u32,
    min_runtime_ms: u64,
    reclaim_grace_ms: u64,
    /// Per hour.
    spend_limit: Option<Money>,
    /// What it borrowed of late, and what it borrows as the plan begins, in billionths.
    decayed: u64,
    began_with: u64,
}

#[derive(Clone, Copy, Default)]
struct Account {
    listed: bool,
    nominal: i64,
    borrowing_limit: Option<i64>,
    lending_limit: Option<i64>,
    held: i64,
    pending: i64,
}

impl Account {
    fn balance(&self) -> i64 {
        self.nominal.saturating_sub(self.held)
    }

    /// What is held beyond the nominal quota.
    fn debt(&self) -> i64 {
        self.balance().saturating_neg().max(0)
    }

    /// What others may count on: all of a debt, of a surplus no more than the lending limit.
    fn lendable(&self) -> i64 {
        self.lending_limit.map_or(self.balance(), |limit| self.balance().min(limit))
    }
}

impl Ledger {
    /// `uncharged`: what is held by pods that their tenants are not charged for.
    pub fn new(
        snapshot: &Snapshot,
        index: &Index,
        uncharged: &[(TenantId, String, u64)],
        policy: &Policy,
        now: TimeMs,
    ) -> Self {
        let price = |c: &Class| Some(Money { micros: c.price_per_hour_micros?, currency: c.currency.clone() });
        let prices = snapshot.classes.iter().filter_map(|c| Some((c.name.clone(), price(c)?))).collect();
        let mut ledger = Ledger { accounts: BTreeMap::new(), terms: BTreeMap::new(), prices: Rc::new(prices) };
        for tenant in &snapshot.tenants {
            let terms = Terms {
                cohort: tenant.cohort.clone(),
                weight: tenant.weight,
                min_runtime_ms: tenant.min_runtime_ms.unwrap_or(policy.min_runtime_ms),
                reclaim_grace_ms: tenant.reclaim_grace_ms.unwrap_or(policy.reclaim_grace_ms),
                spend_limit: tenant.spend_limit.clone(),
                decayed: 0,
                began_with: 0,
            };
            ledger.terms.insert(tenant.id.clone(), terms);
            for quota in &tenant.quotas {
                let account = ledger.account(&tenant.id, &quota.class);
                account.listed = true;
                account.nominal = milli(quota.nominal_milli);
                account.borrowing_limit = quota.borrowing_limit_milli.map(milli);
                account.lending_limit = quota.lending_limit_milli.map(milli);
            }
        }
        for (tenant, class, milli) in index.held() {
            ledger.charge(tenant, class, milli);
        }
        uncharged.iter().for_each(|(tenant, class, x)| ledger.refund(tenant, class, *x));
        ledger.remember(&snapshot.shares, policy.share_half_life_ms, now);
        ledger
    }

    pub fn charge(&mut self, tenant: &TenantId, class: &str, x: u64) {
        let account = self.account(tenant, class);
        account.held = account.held.saturating_add(milli(x));
    }

    /// A slice of this charge is gone.
    pub fn refund(&mut self, tenant: &TenantId, class: &str, x: u64) {
        let account = self.account(tenant, class);
        account.held = account.held.saturating_sub(milli(x));
    }

    pub fn held(&self, tenant: &TenantId, class: &str) -> u64 {
        unsigned(self.get(tenant, class).held)
    }

    /// The least nominal quota at which `x` more is allowed.
    pub fn least_nominal(&self, tenant: &TenantId, class: &str, x: u64) -> u64 {
        let mut trial = self.clone();
        least(self.held(tenant, class).saturating_add(x), |to| {
            trial.set_nominal(tenant, class, to);
            trial.allow(tenant, class, x).is_ok()
        })
    }

    /// The least borrowing limit at which `x` more is allowed; where none is enough, one that would
    /// be if only the limit counted.
    pub fn least_borrowing_limit(&self, tenant: &TenantId, class: &str, x: u64) -> u64 {
        let mut trial = self.clone();
        least(self.held(tenant, class).saturating_add(x), |to| {
            trial.set_borrowing_limit(tenant, class, to);
            trial.allow(tenant, class, x).is_ok()
        })
    }

    /// A trial: another nominal quota; a class that was not listed is listed.
    pub fn set_nominal(&mut self, tenant: &TenantId, class: &str, to: u64) {
        let account = self.account(tenant, class);
        (account.listed, account.nominal) = (true, milli(to));
    }

    /// A trial: another borrowing limit.
    pub fn set_borrowing_limit(&mut self, tenant: &TenantId, class: &str, to: u64) {
        self.account(tenant, class).borrowing_limit = Some(milli(to));
    }

    pub fn note_pending(&mut self, tenant: &TenantId, class: &str, x: u64) {
        let account = self.account(tenant, class);
        account.pending = account.pending.saturating_add(milli(x));
    }

    /// Whether `x` more would still be the tenant's own.
    pub fn within_nominal(&self, tenant: &TenantId, class: &str, x: u64) -> bool {
        self.get(tenant, class).balance() >= milli(x)
    }

    /// `Err`: the limit that forbids it.
    pub fn allow(&self, tenant: &TenantId, class: &str, x: u64) -> Result<(), QuotaLimit> {
        let account = self.get(tenant, class);
        let others = self.others(tenant, class);
        let after = account.balance().saturating_sub(milli(x));
        if account.listed
            && let Some((spend, binding)) = self.too_dear(tenant, class, x)
        {
            return Err(QuotaLimit { spend: Some(spend), ..self.limit(tenant, class, x, binding) });
        }
        let limit_ok = account.borrowing_limit.is_none_or(|limit| after >= -limit);
        let binding = match others {
            _ if after >= 0 => return Ok(()),
            _ if !account.listed => QuotaBinding::ClassNotInQuota,
            None => QuotaBinding::NominalQuota,
            Some(_) if !limit_ok => QuotaBinding::BorrowingLimit,
            Some(others) if others.saturating_add(after) < 0 => QuotaBinding::CohortExhausted,
            Some(_) => return Ok(()),
        };
        Err(self.limit(tenant, class, x, binding))
    }

    fn limit(&self, tenant: &TenantId, class: &str, x: u64, binding: QuotaBinding) -> QuotaLimit {
        let account = self.get(tenant, class);
        QuotaLimit {
            class: class.to_owned(),
            replica_milli: x,
            held_milli: unsigned(account.held),
            nominal_milli: unsigned(account.nominal),
            borrowing_limit_milli: account.borrowing_limit.map(unsigned),
            cohort_free_milli: unsigned(
                self.others(tenant, class).unwrap_or(0).saturating_add(account.balance().min(0)),
            ),
            spend: None,
            binding,
        }
    }

    /// What `x` more would cost, where the tenant's spend limit does not allow it.
    fn too_dear(&self, tenant: &TenantId, class: &str, x: u64) -> Option<(Spend, QuotaBinding)> {
        let Money { micros: limit_micros, currency } =
            self.terms.get(tenant)?.spend_limit.as_ref().filter(|_| x > 0)?;
        let limit_micros = *limit_micros;
        let spent_micros = self.spent_micros(tenant, currency);
        let replica_micros = self.price(class, currency).map(|price| cost(price, x));
        let binding = match replica_micros {
            None => QuotaBinding::ClassNotPriced,
            Some(more) if spent_micros.saturating_add(more) > limit_micros => QuotaBinding::SpendLimit,
            Some(_) => return None,
        };
        Some((Spend { limit_micros, spent_micros, replica_micros }, binding))
    }

    /// What all that the tenant holds costs per hour; classes without a price in the currency cost nothing.
    fn spent_micros(&self, tenant: &TenantId, currency: &str) -> u64 {
        let accounts = self.accounts.get(tenant).into_iter().flatten();
        let costs = accounts.map(|(class, a)| self.price(class, currency).map_or(0, |p| cost(p, unsigned(a.held))));
        costs.fold(0, u64::saturating_add)
    }

    fn price(&self, class: &str, currency: &str) -> Option<u64> {
        self.prices.get(class).filter(|price| price.currency == currency).map(|price| price.micros)
    }

    /// A trial: another spend limit.
    pub fn set_spend_limit(&mut self, tenant: &TenantId, to_micros: u64) {
        if let Some(limit) = self.terms.get_mut(tenant).and_then(|terms| terms.spend_limit.as_mut()) {
            limit.micros = to_micros;
        }
    }

    /// How much of what the tenant holds is above its nominal quota.
    pub fn borrowed(&self, tenant: &TenantId, class: &str) -> u64 {
        unsigned(self.get(tenant, class).debt())
    }

    pub fn usage(&self, tenant: &TenantId) -> Vec<ClassUsage> {
        let accounts = self.accounts.get(tenant).into_iter().flatten();
        accounts
            .filter(|(_, a)| a.listed || a.held > 0 || a.pending > 0)
            .map(|(class, a)| ClassUsage {
                class: class.clone(),
                nominal_milli: unsigned(a.nominal),
                held_milli: unsigned(a.held),
                borrowed_milli: unsigned(a.debt()),
                lent_milli: self.lent(tenant, class, a),
                pending_milli: unsigned(a.pending),
            })
            .collect()
    }

    /// What of a tenant's idle quota others have taken: the cohort's debts, met from all lenders in
    /// proportion to what each could lend.
    fn lent(&self, tenant: &TenantId, class: &str, account: &Account) -> u64 {
        let Some(cohort) = self.cohort(tenant) else { return 0 };
        let mut debts = 0i64;
        let mut lendable = 0i64;
        for (_, a) in self.members(cohort, class) {
            debts = debts.saturating_add(a.debt());
            lendable = lendable.saturating_add(a.lendable().max(0));
        }
        if lendable == 0 {
            return 0;
        }
        let own = account.lendable().max(0);
        let part = i128::from(debts.min(lendable)) * i128::from(own) / i128::from(lendable);
        u64::try_from(part).unwrap_or(0)
    }

    /// Balance that the rest of the cohort offers; `None` without a cohort.
    fn others(&self, tenant: &TenantId, class: &str) -> Option<i64> {
        let cohort = self.cohort(tenant)?;
        let others = self.members(cohort, class).filter(|(t, _)| *t != tenant);
        Some(others.map(|(_, a)| a.lendable()).fold(0, i64::saturating_add))
    }

    fn cohort(&self, tenant: &TenantId) -> Option<&str> {
        self.terms.get(tenant)?.cohort.as_deref()
    }

    fn members<'a>(&'a self, cohort: &'a str, class: &'a str) -> impl Iterator<Item = (&'a TenantId, &'a Account)> {
        let members = self.terms.iter().filter(move |(_, terms)| terms.cohort.as_deref() == Some(cohort));
        members.filter_map(move |(tenant, _)| Some((tenant, self.accounts.get(tenant)?.get(class)?)))
    }

    fn get(&self, tenant: &TenantId, class: &str) -> Account {
        self.accounts.get(tenant).and_then(|classes| classes.get(class)).copied().unwrap_or_default()
    }

    fn account(&mut self, tenant: &TenantId, class: &str) -> &mut Account {
        self.accounts.entry(tenant.clone()).or_default().entry(class.to_owned()).or_default()
    }
}

/// The least number up to `enough` that passes, if all above one that passes do.
fn least(enough: u64, mut passes: impl FnMut(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, enough);
    while low < high {
        let middle = low + (high - low) / 2;
        if passes(middle) { high = middle } else { low = middle + 1 }
    }
    high
}

/// Of this many thousandths of a GPU at this price.
fn cost(price_micros: u64, milli: u64) -> u64 {
    u64::try_from(u128::from(price_micros) * u128::from(milli) / 1000).unwrap_or(u64::MAX)
}

fn milli(x: u64) -> i64 {
    // No cluster has 2^40 GPUs; a quota of that size is as good as unlimited and must not overflow.
    x.min(1 << 50) as i64
}

fn unsigned(x: i64) -> u64 {
    x.max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Quota, Tenant};

    fn tenant(name: &str, cohort: Option<&str>, n: u64, b: Option<u64>, l: Option<u64>) -> Tenant {
        Tenant {
            id: TenantId(name.into()),
            namespaces: vec![name.into()],
            cohort: cohort.map(Into::into),
            weight: 1,
            quotas: vec![Quota {
                class: "h".into(),
                nominal_milli: n,
                borrowing_limit_milli: b,
                lending_limit_milli: l,
            }],
            min_runtime_ms: None,
            reclaim_grace_ms: None,
            spend_limit: None,
        }
    }

    fn ledger(tenants: &[Tenant], price: Option<u64>) -> Ledger {
        let class =
            Class { name: "h".into(), allow_soft_sharing: true, price_per_hour_micros: price, currency: "USD".into() };
        let snapshot = Snapshot { tenants: tenants.to_vec(), classes: vec![class], ..Snapshot::default() };
        Ledger::new(&snapshot, &Index::new(&snapshot), &[], &Policy::default(), 0)
    }

    /// `held` is charged in order; then the first tenant asks for `x`.
    fn check(tenants: &[Tenant], held: &[(&str, u64)], x: u64, want: Result<(), QuotaBinding>) {
        let mut ledger = ledger(tenants, None);
        for (t, milli) in held {
            ledger.charge(&TenantId((*t).into()), "h", *milli);
        }
        let got = ledger.allow(&TenantId("a".into()), "h", x).map_err(|l| l.binding);
        assert_eq!(got, want);
    }

    #[test]
    fn without_a_cohort_nominal_is_the_end() {
        let a = [tenant("a", None, 1000, None, None)];
        check(&a, &[], 1000, Ok(()));
        check(&a, &[], 1001, Err(QuotaBinding::NominalQuota));
        check(&a, &[("a", 900)], 101, Err(QuotaBinding::NominalQuota));
    }

    #[test]
    fn tenant_over_nominal_borrows_from_idle_cohort() {
        let t = [tenant("a", Some("p"), 1000, None, None), tenant("b", Some("p"), 2000, None, None)];
        check(&t, &[("a", 1000)], 2000, Ok(()));
        check(&t, &[("a", 1000)], 2001, Err(QuotaBinding::CohortExhausted));
        check(&t, &[("a", 1000), ("b", 1500)], 501, Err(QuotaBinding::CohortExhausted));
    }

    #[test]
    fn the_borrowing_limit_binds_before_the_cohort_is_empty() {
        let t = [tenant("a", Some("p"), 1000, Some(500), None), tenant("b", Some("p"), 9000, None, None)];
        check(&t, &[("a", 1000)], 500, Ok(()));
        check(&t, &[("a", 1000)], 501, Err(QuotaBinding::BorrowingLimit));
        check(&t, &[("a", 1500)], 1, Err(QuotaBinding::BorrowingLimit));
    }

    #[test]
    fn the_lending_limit_protects_the_lender() {
        let t = [tenant("a", Some("p"), 0, None, None), tenant("b", Some("p"), 2000, None, Some(300))];
        check(&t, &[], 300, Ok(()));
        check(&t, &[], 301, Err(QuotaBinding::CohortExhausted));
        check(&t, &[("b", 1700)], 300, Ok(()));
        check(&t, &[("b", 1701)], 300, Err(QuotaBinding::CohortExhausted));
    }

    #[test]
    fn nominal_is_guaranteed_even_while_others_have_borrowed_it() {
        let t = [tenant("a", Some("p"), 1000, None, None), tenant("b", Some("p"), 0, None, None)];
        check(&t, &[("b", 1000)], 1000, Ok(()));
        check(&t, &[("b", 1000)], 1001, Err(QuotaBinding::CohortExhausted));
    }

    #[test]
    fn a_class_that_is_not_listed_is_named_as_such() {
        check(&[tenant("b", None, 1, None, None)], &[], 1, Err(QuotaBinding::ClassNotInQuota));
    }

    #[test]
    fn spend_limit_binds_before_quota_and_needs_a_price() {
        let usd = |micros| Money { micros, currency: "USD".into() };
        let limited = |micros| Tenant { spend_limit: Some(usd(micros)), ..tenant("a", None, 4000, None, None) };
        let ask = |price, limit, held: u64| {
            let mut ledger = ledger(&[limited(limit)], price);
            ledger.charge(&TenantId("a".into()), "h", held);
            ledger.allow(&TenantId("a".into()), "h", 500).map_err(|l| l.binding)
        };
        assert_eq!(ask(Some(2_000_000), 3_000_000, 1000), Ok(()));
        assert_eq!(ask(Some(2_000_000), 2_999_999, 1000), Err(QuotaBinding::SpendLimit));
        assert_eq!(ask(None, 3_000_000, 0), Err(QuotaBinding::ClassNotPriced));
        assert_eq!(ask(Some(0), 0, 3600), Err(QuotaBinding::NominalQuota));
    }

    #[test]
    fn absurd_quantities_do_not_overflow() {
        let t = [
            tenant("a", Some("p"), u64::MAX, Some(u64::MAX), Some(u64::MAX)),
            tenant("b", Some("p"), u64::MAX, None, None),
        ];
        check(&t, &[("a", u64::MAX)], u64::MAX, Ok(()));
    }
}

//! A bounded resource that tenants share: bytes of request bodies, sequences of an engine.
//!
//! One tenant alone may hold most of it and never all of it, and the more others hold, the less it may
//! (the dynamic threshold of switches with a shared buffer: Choudhury and Hahne, 1998). So there is room
//! for a tenant that comes later, without a fixed quota that is idle while no other tenant asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A tenant may hold at most this many times what its claim leaves free. Alone that is three quarters
/// of the whole; two greedy tenants get three sevenths each.
const TIMES_FREE: usize = 3;

/// The resource. Units are the caller's: bytes, or sequences.
#[derive(Debug)]
pub struct SharedBudget {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// Owners that hold nothing are not in it.
    by_owner: HashMap<Box<[u8]>, usize>,
}

/// Which bound a claim exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// All owners together would hold more than there is.
    #[error("nothing is left")]
    Total,
    /// This owner would hold more than its part.
    #[error("this tenant holds its part already")]
    Part,
}

/// What one request holds on behalf of its owner. Dropping it gives everything back.
#[derive(Debug)]
pub struct Share {
    budget: Arc<SharedBudget>,
    owner: Box<[u8]>,
    amount: usize,
}

impl SharedBudget {
    /// A budget of `limit` units, of which nothing is held.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default() })
    }

    /// Units held by all owners.
    pub fn held(&self) -> usize {
        self.lock().total
    }

    /// The most that one owner can hold, reached only while no other owner holds anything. A claim larger
    /// than this can never succeed.
    pub fn most_for_one(&self) -> usize {
        (TIMES_FREE * (self.limit + 1) / (TIMES_FREE + 1)).min(self.limit)
    }

    /// An empty share for the owner, which is any name of a tenant; empty for callers without one.
    pub fn share(self: &Arc<Self>, owner: &[u8]) -> Share {
        Share { budget: self.clone(), owner: owner.into(), amount: 0 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        // The map is whole between any two statements that could panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Claims `amount` more units; on an error nothing has changed.
    pub fn grow(&mut self, amount: usize) -> Result<(), Exceeded> {
        if amount == 0 {
            return Ok(());
        }
        let mut held = self.budget.lock();
        let total = held.total.saturating_add(amount);
        if total > self.budget.limit {
            return Err(Exceeded::Total);
        }
        let own = held.by_owner.get(&self.owner).copied().unwrap_or(0) + amount;
        // One more than is free, so that the last unit of a small budget can be used at all.
        if own > TIMES_FREE.saturating_mul(self.budget.limit - total + 1) {
            return Err(Exceeded::Part);
        }
        held.total = total;
        held.by_owner.insert(self.owner.clone(), own);
        self.amount += amount;
        Ok(())
    }

    /// Units held.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.budget.lock();
        held.total -= self.amount;
        if let Some(own) = held.by_owner.get_mut(&self.owner) {
            *own -= self.amount;
            if *own == 0 {
                held.by_owner.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims one unit after the other, until the first refusal.
    fn take_all(share: &mut Share) -> (usize, Exceeded) {
        loop {
            if let Err(err) = share.grow(1) {
                return (share.amount(), err);
            }
        }
    }

    #[test]
    fn one_owner_alone_leaves_a_quarter_and_another_finds_room() {
        let budget = SharedBudget::new(320);
        let mut first = budget.share(b"a");
        assert_eq!(take_all(&mut first), (240, Exceeded::Part));
        assert_eq!(budget.most_for_one(), 240);
        let mut second = budget.share(b"b");
        assert_eq!(take_all(&mut second), (60, Exceeded::Part));
        assert_eq!(budget.held(), 300);
        assert!(budget.share(b"c").grow(1).is_ok(), "there is room for a third");
    }

    #[test]
    fn shares_of_one_owner_count_together() {
        let budget = SharedBudget::new(100);
        let mut shares: Vec<Share> = (0..10).map(|_| budget.share(b"a")).collect();
        let taken = shares.iter_mut().map(|share| usize::from(share.grow(10).is_ok())).sum::<usize>();
        assert_eq!(taken, 7, "70 of at most 75");
    }

    #[test]
    fn a_claim_beyond_the_part_changes_nothing() {
        let budget = SharedBudget::new(320);
        let mut share = budget.share(b"a");
        assert_eq!(share.grow(241), Err(Exceeded::Part));
        assert_eq!(share.grow(321), Err(Exceeded::Total));
        assert_eq!(share.grow(usize::MAX), Err(Exceeded::Total));
        assert_eq!((budget.held(), share.grow(240)), (0, Ok(())));
    }

    #[test]
    fn dropped_shares_give_back() {
        let budget = SharedBudget::new(10);
        let mut share = budget.share(b"a");
        assert_eq!(share.grow(5), Ok(()));
        drop(share);
        assert_eq!(budget.held(), 0);
        assert!(budget.lock().by_owner.is_empty());
    }

    #[test]
    fn small_budgets_can_be_used_up() {
        for limit in 1..=3 {
            let budget = SharedBudget::new(limit);
            let mut share = budget.share(b"");
            assert_eq!(take_all(&mut share).0, limit);
            assert_eq!(budget.most_for_one(), limit);
        }
    }
}

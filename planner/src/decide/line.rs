//! The order in which deployments with open slots are served.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::decide::case::Case;
use crate::snapshot::TimeMs;

/// Cases with open slots in the order in which they are served: those within their tenant's nominal
/// quota first, then by priority and age. Charges only grow while slots are filled, so a case leaves
/// the first group at most once.
pub(crate) struct Line {
    guaranteed: BTreeSet<Turn>,
    others: BTreeSet<Turn>,
}

/// Priority, creation, position.
pub(crate) type Turn = (Reverse<i32>, TimeMs, usize);

pub(crate) fn turn(at: usize, case: &Case<'_>) -> Turn {
    (Reverse(case.d.priority), case.d.created_ms, at)
}

impl Line {
    pub fn of(cases: &[Case<'_>]) -> Self {
        Self::with(cases.iter().enumerate().filter(|(_, case)| case.waits()))
    }

    /// These cases, by position.
    pub fn with<'a, 'b: 'a>(cases: impl Iterator<Item = (usize, &'a Case<'b>)>) -> Self {
        Self { guaranteed: cases.map(|(at, case)| turn(at, case)).collect(), others: BTreeSet::new() }
    }

    /// The first case, which stays the first until it leaves or its tenant's quota is used up.
    pub fn next(&mut self, within_nominal: impl Fn(usize) -> bool) -> Option<usize> {
        while let Some(first) = self.guaranteed.first().copied() {
            if within_nominal(first.2) {
                return Some(first.2);
            }
            self.guaranteed.remove(&first);
            self.others.insert(first);
        }
        self.others.first().map(|first| first.2)
    }

    /// The case at this position, which was the first, waits for nothing more.
    pub fn leave(&mut self, at: usize) {
        let line = if self.guaranteed.is_empty() { &mut self.others } else { &mut self.guaranteed };
        if line.first().is_some_and(|first| first.2 == at) {
            line.pop_first();
        }
    }
}

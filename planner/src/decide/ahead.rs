//! A look at the near future: the same cluster once every pod on its way out has ended.
//!
//! A slot that is filled then needs nothing but time, so no alarm is raised for it. What is still
//! refused then is reported with the limits and refusals of that state, and it is the state on which
//! counterfactuals are acted out: a change that is named is the least that helps in the end, not the
//! least that helps while the old pods still hold their slices.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::decide::case::{Case, Waiting};
use crate::decide::line::Line;
use crate::decide::{Attempt, Draft};
use crate::lifecycle::Open;
use crate::snapshot::{Placement, Replica};

/// What a refill placed, by position of the case: the slots, and where the first of them went.
pub(crate) type Filled = BTreeMap<usize, (Vec<u32>, Placement)>;

impl<'a> Draft<'a> {
    /// Whether anything waits that quota or room refused.
    pub fn anything_waits(&self) -> bool {
        self.cases.iter().any(Case::is_refused)
    }

    /// Decides what waits only for pods on their way out, and leaves the draft in that state until
    /// [`Draft::look_back`].
    pub(super) fn look_ahead(&mut self) {
        for case in &mut self.cases {
            case.unfilled = case.life.open.len() as u32 - case.opened();
        }
        if !self.anything_waits() {
            return self.settle_quota();
        }
        self.ahead = Some(self.begin());
        for (at, (slots, first)) in self.fill_ahead() {
            let case = &mut self.cases[at];
            (case.awaiting, case.awaited_node) = (slots, Some(first.node));
        }
        for at in 0..self.cases.len() {
            if self.cases[at].is_refused() {
                self.refuse_ahead(at);
            }
        }
        self.settle_quota();
    }

    /// Goes to that state, and fills what waits.
    pub(super) fn fill_ahead(&mut self) -> Filled {
        self.end_leaving(false, |_| true);
        self.end_moving();
        self.refill(None)
    }

    /// Ends these of the pods on their way out. `for_claimants`: what is borrowed comes after them, even if it is to be
    /// filled again.
    pub(super) fn end_leaving(&mut self, for_claimants: bool, which: impl Fn(&Replica) -> bool) {
        for at in 0..self.cases.len() {
            let leaving = self.cases[at].leaving().filter(|r| self.makes_room(at, r, for_claimants) && which(r));
            let leaving: Vec<_> = leaving.collect();
            leaving.into_iter().for_each(|replica| self.end_replica(at, replica));
        }
    }

    /// Whether others can have the room of a pod on its way out. What a slot that is tried again later will need is
    /// not free for others.
    pub(super) fn makes_room(&self, at: usize, r: &Replica, for_claimants: bool) -> bool {
        let case = &self.cases[at];
        let borrows = for_claimants && case.d.tenant.as_ref().is_some_and(|t| self.began.borrows(t));
        borrows || !case.is_held_back(r.index)
    }

    /// Ends the look ahead: the draft is as it is once the plan is carried out.
    pub fn look_back(&mut self) {
        if let Some(trial) = self.ahead.take() {
            self.rollback(trial);
        }
    }

    /// The reasons of what is still refused, in the state ahead.
    fn refuse_ahead(&mut self, at: usize) {
        let case = &mut self.cases[at];
        (case.limit, case.failed) = (None, Vec::new());
        let Some(slot) = case.waiting_slots().first().copied() else { return };
        let trial = self.begin();
        if let Some(old) = slot.old {
            self.end_replica(at, old);
        }
        if let Attempt::Refused { limit, without_room } = self.attempt(at, slot.open.index) {
            let verdicts = self.verdicts(at, slot.open.index, &without_room);
            let case = &mut self.cases[at];
            (case.limit, case.failed) = (limit, verdicts);
        }
        self.rollback(trial);
    }

    /// Tries all slots that still wait, in the order of the plan, and takes what fits. `except` is a
    /// case that wants nothing.
    pub fn refill(&mut self, except: Option<usize>) -> Filled {
        let mut filled = Filled::new();
        // What was refused is refused to others that ask the same, since room and quota only shrink.
        let mut hopeless = BTreeSet::new();
        self.refill_some(except, false, &mut hopeless, &mut filled);
        self.refill_some(except, true, &mut hopeless, &mut filled);
        filled
    }

    fn refill_some(
        &mut self,
        except: Option<usize>,
        renewals: bool,
        hopeless: &mut BTreeSet<Vec<usize>>,
        filled: &mut Filled,
    ) {
        let mut waiting: BTreeMap<usize, VecDeque<Waiting<'a>>> = BTreeMap::new();
        for (at, case) in self.cases.iter().enumerate().filter(|(at, _)| Some(*at) != except) {
            let slots: VecDeque<_> = case.waiting_slots().into_iter().filter(|s| s.old.is_some() == renewals).collect();
            if !slots.is_empty() {
                waiting.insert(at, slots);
            }
        }
        let mut line = Line::new(waiting.keys().map(|at| (*at, &self.cases[*at])));
        loop {
            let guaranteed = line.next_guaranteed(|at| self.within_nominal(&self.cases[at]));
            let Some(at) = guaranteed.or_else(|| line.next_borrowing(|t| self.ledger.share(t))) else { break };
            if guaranteed.is_some() && self.would_borrow(at, &waiting) {
                line.defer(at);
                continue;
            }
            let slots = waiting.entry(at).or_default();
            let slot = slots.pop_front();
            let last = slots.is_empty();
            let question = self.cases[at].question();
            let try_it = renewals || !hopeless.contains(&question);
            let give_up;
            if let (Some(slot), true) = (slot, try_it) {
                let index = slot.open.index;
                match self.fill_one(at, slot) {
                    Some(placement) => {
                        filled.entry(at).or_insert_with(|| (Vec::new(), placement)).0.push(index);
                        give_up = false;
                    }
                    None => {
                        let number = self.cases[at].number;
                        let excluded = self.placer.index.exclusions(number, index, self.now).next().is_some();
                        give_up = !excluded && !renewals;
                        if give_up {
                            hopeless.insert(question);
                        }
                    }
                }
            } else {
                give_up = true;
            }
            if last || give_up {
                line.leave(at);
            }
        }
    }

    /// Whether the next of these slots would be filled with what is borrowed, although its tenant has nominal quota
    /// of another class.
    fn would_borrow(&mut self, at: usize, waiting: &BTreeMap<usize, VecDeque<Waiting<'a>>>) -> bool {
        let Some(next) = waiting.get(&at).and_then(VecDeque::front) else { return false };
        // Of one variant that is its own there is nothing to choose.
        self.cases[at].alternatives.len() > 1
            && matches!(self.attempt(at, next.open.index), Attempt::Placed(chosen) if self.borrows(at, &chosen))
    }

    /// Fills one slot: of a renewal beside its old pod, or in its place.
    fn fill_one(&mut self, at: usize, slot: Waiting<'a>) -> Option<Placement> {
        let Open { index, incarnation, .. } = slot.open;
        if let Attempt::Placed(chosen) = self.attempt(at, index) {
            self.take(at, index, incarnation, &chosen);
            return chosen.verdict.winner.map(|w| w.placement);
        }
        let old = slot.old?;
        let trial = self.begin();
        self.end_replica(at, old);
        match self.attempt(at, index) {
            Attempt::Placed(chosen) => {
                self.take(at, index, incarnation, &chosen);
                chosen.verdict.winner.map(|w| w.placement)
            }
            Attempt::Refused { .. } => {
                self.rollback(trial);
                None
            }
        }
    }

    /// How much of what was not filled quota would still allow, and what is pending of it.
    fn settle_quota(&mut self) {
        for case in &mut self.cases {
            let Some(tenant) = &case.tenant else { continue };
            let fits = |n: u32| {
                case.alternatives.iter().any(|a| match &a.ask.class {
                    Some(class) => self.ledger.allow(tenant, class, a.charge.saturating_mul(n.into())).is_ok(),
                    None => true,
                })
            };
            let awaiting = case.awaiting_open();
            let left = case.unfilled.saturating_sub(awaiting);
            case.allowed = awaiting + (1..=left).take_while(|n| fits(*n)).count() as u32;
        }
    }

    /// Counts what is asked for and not granted.
    pub fn note_pending(&mut self) {
        for case in self.cases.iter().filter(|case| case.unfilled > 0) {
            if let (Some(tenant), Some(first)) = (&case.tenant, case.alternatives.first())
                && let Some(class) = &first.ask.class
            {
                self.ledger.note_pending(tenant, class, first.charge.saturating_mul(case.unfilled.into()));
            }
        }
    }
}

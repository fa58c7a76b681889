//! Taking back what was lent: who gives back, so that a tenant gets what is its own.
//!
//! A replica within its tenant's nominal quota that no node takes may reclaim room from borrowers of its
//! cohort. Victims are replicas that have run for their tenant's minimum runtime and whose tenant stays
//! at or above its nominal quota without them, of the tenant with the highest weighted share first. They
//! are named only if the claimant fits once they are gone: that is acted out before anything drains.
//! All on one node, because a replica stands on one node; as few as suffice.
//!
//! Pods on their way out count as ended where they will have within the grace period, or are the claimant's own, whose
//! place it takes over. A borrower's pod that takes longer is a candidate by the same rules, and is asked first, since
//! nobody loses a replica by it: it may go on for the grace period only.
//!
//! Not here: what fits by itself once those have ended. Nothing is reclaimed for that.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::decide::ahead::Filled;
use crate::decide::line::turn;
use crate::decide::{Attempt, Draft};
use crate::lifecycle::{End, Open, replica_id};
use crate::place::placer::Alternative;
use crate::plan::EndReason;
use crate::quota::Ledger;
use crate::snapshot::index::{NodeAt, Owner};
use crate::snapshot::{Phase, Replica, TenantId, TimeMs};

/// Slots for which one plan reclaims; the next plan goes on.
pub(super) const MAX_CLAIMS: usize = 64;

/// Searches for victims that one tenant may make in vain in one plan: each looks at all borrowers, and a tenant may
/// ask for as much that nothing can give as it likes.
const MAX_FAILED: usize = 16;

/// A replica that could give its room back.
#[derive(Clone)]
pub(super) struct Candidate<'a> {
    case: usize,
    replica: &'a Replica,
    /// The other pod of a replica that moves: both end.
    partner: Option<&'a Replica>,
    /// What its slices are charged, by class.
    charges: Vec<(String, u64)>,
    /// Weighted share of its tenant.
    share: u64,
    /// When it has run long enough: now, if it has.
    ripe_ms: TimeMs,
    /// Its tenant is charged for it.
    charged: bool,
    /// It is on its way out already, and would take longer than a claimant waits.
    leaves: bool,
}

/// By node; first those that give back first.
pub(super) type Candidates<'a> = BTreeMap<NodeAt, Vec<Candidate<'a>>>;

/// Who is to give back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Preference {
    /// Of those that have run long enough, the tenant with the highest weighted share.
    HighestShare,
    /// Those that have run long enough first, now or later.
    Soonest,
}

/// The slot that gets room, and the replicas that give it.
struct Claim<'a> {
    case: usize,
    slot: u32,
    victims: Vec<Candidate<'a>>,
}

/// Which victims are better: those that may give sooner, where that counts; none that would stay; the highest share;
/// fewer; the first node.
type Rank = (TimeMs, bool, Reverse<u64>, usize, NodeAt);

/// What claimants may still be given, in a trial in which pods that end in time have ended.
pub(super) struct Reclaimable<'a> {
    preference: Preference,
    /// What tenants keep. Running replicas give of it.
    stays: Ledger,
    /// The same with what is on its way out for longer. That gives of it.
    holds: Ledger,
    /// Pods on their way out for longer that have not ended in the trial.
    late: Vec<(usize, &'a Replica)>,
    candidates: Option<Candidates<'a>>,
    /// Searches of each tenant that found nothing.
    failed: BTreeMap<TenantId, usize>,
}

impl<'a> Draft<'a> {
    /// Decides which borrowed replicas drain, and for whom.
    pub(super) fn reclaim(&mut self) {
        if !self.ledger.anybody_borrows() || !self.anything_waits() {
            return;
        }
        let mut from = self.reclaimable(Preference::HighestShare);
        let trial = self.begin();
        self.end_in_time(&from);
        let filled = self.refill(None);
        let claims = self.claims(&filled, &mut from);
        self.rollback(trial);
        for claim in claims {
            self.drain_victims(claim);
        }
    }

    /// What replicas hold that exist and stay, and what is held by those that end late. What this plan grants is not
    /// there to be given back.
    pub(super) fn reclaimable(&self, preference: Preference) -> Reclaimable<'a> {
        let (mut stays, mut holds) = (self.began.clone(), self.began.clone());
        let mut late = Vec::new();
        for (at, case) in self.cases.iter().enumerate() {
            for r in case.leaving() {
                let is_late = self.ends_late(at, r) && self.makes_room(at, r, true);
                late.extend(is_late.then_some((at, r)));
                for (tenant, class, x) in self.charges_of(case.number, r) {
                    stays.refund(&tenant, &class, x);
                    if !is_late {
                        holds.refund(&tenant, &class, x);
                    }
                }
            }
        }
        Reclaimable { preference, stays, holds, late, candidates: None, failed: BTreeMap::new() }
    }

    /// Whether a pod that is on its way out already may take longer than a claimant has to wait.
    fn ends_late(&self, at: usize, r: &Replica) -> bool {
        let case = &self.cases[at];
        let ends = case.life.ends.iter().any(|e| (e.replica.index, e.replica.incarnation) == (r.index, r.incarnation));
        let in_time = self.now.saturating_add(self.grace_ms(at));
        !ends && r.phase.ends_ms(case.d.drain_timeout_ms).is_some_and(|end| end > in_time)
    }

    /// How long a replica of this case may take to finish where it is reclaimed.
    fn grace_ms(&self, at: usize) -> u64 {
        self.cases[at].d.tenant.as_ref().map_or(0, |t| self.ledger.reclaim_grace_ms(t))
    }

    /// Ends the pods on their way out on which a claimant can count.
    pub(super) fn end_in_time(&mut self, from: &Reclaimable<'a>) {
        let late = |r: &Replica| from.late.iter().any(|(_, l)| std::ptr::eq(*l, r));
        self.end_leaving(true, |r| !late(r));
    }

    fn claims(&mut self, filled: &Filled, from: &mut Reclaimable<'a>) -> Vec<Claim<'a>> {
        let mut claims: Vec<Claim<'a>> = Vec::new();
        for at in self.in_turn() {
            for open in self.claimable(at, filled.get(&at).map(|(slots, _)| slots.as_slice())) {
                if claims.len() == MAX_CLAIMS || !self.within_nominal(&self.cases[at]) {
                    break;
                }
                if self.place_after_own(at, open, from).is_some() {
                    continue;
                }
                let Some((_, victims)) = self.claim(at, open, from) else {
                    let matures = self.matures(at, from);
                    self.cases[at].life.wakes.extend(matures);
                    break;
                };
                claims.push(Claim { case: at, slot: open.index, victims });
            }
        }
        claims
    }

    /// Places a slot where its own deployment's pods make room, however long they take.
    pub(super) fn place_after_own(&mut self, at: usize, open: Open, from: &mut Reclaimable<'a>) -> Option<NodeAt> {
        let own = from.late.iter().filter(|(case, _)| *case == at).copied().collect();
        self.place_after(at, open, own, from)
    }

    /// Places a slot where all pods on their way out have ended.
    pub(super) fn place_after_all(&mut self, at: usize, open: Open, from: &mut Reclaimable<'a>) -> Option<NodeAt> {
        let all = from.late.clone();
        self.place_after(at, open, all, from)
    }

    fn place_after(
        &mut self,
        at: usize,
        open: Open,
        ended: Vec<(usize, &'a Replica)>,
        from: &mut Reclaimable<'a>,
    ) -> Option<NodeAt> {
        if ended.is_empty() {
            return None;
        }
        let trial = self.begin();
        ended.iter().for_each(|(case, replica)| self.end_replica(*case, replica));
        match self.attempt(at, open.index) {
            Attempt::Placed(chosen) if !self.borrows(at, &chosen) => {
                self.take(at, open.index, open.incarnation, &chosen);
                from.forget(|r| ended.iter().any(|(_, e)| std::ptr::eq(*e, r)));
                Some(chosen.node)
            }
            _ => {
                self.rollback(trial);
                None
            }
        }
    }

    pub(super) fn in_turn(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.cases.len()).collect();
        order.sort_by_key(|at| turn(*at, &self.cases[*at]));
        order
    }

    /// Open slots of a case that are not filled, neither in this trial (`done`) nor by time alone.
    pub(super) fn claimable(&self, at: usize, done: Option<&[u32]>) -> Vec<Open> {
        let open = self.cases[at].waiting_slots().into_iter().filter(|w| w.old.is_none()).map(|w| w.open);
        open.filter(|open| !done.is_some_and(|done| done.contains(&open.index))).collect()
    }

    /// Places a slot where replicas give way, which are then no longer there to be given: the node, and who gives way.
    pub(super) fn claim(
        &mut self,
        at: usize,
        open: Open,
        from: &mut Reclaimable<'a>,
    ) -> Option<(NodeAt, Vec<Candidate<'a>>)> {
        let candidates = from.candidates.take().unwrap_or_else(|| self.candidates(from));
        let victims = self.victims(at, open.index, &candidates, from);
        from.candidates = Some(candidates);
        let victims = victims?;
        let each = self.begin();
        victims.iter().for_each(|victim| self.end_candidate(victim));
        let Attempt::Placed(chosen) = self.attempt(at, open.index) else {
            self.rollback(each);
            return None;
        };
        self.take(at, open.index, open.incarnation, &chosen);
        victims.iter().for_each(|victim| self.give(victim, from));
        from.forget(|r| victims.iter().any(|v| v.pods().any(|pod| std::ptr::eq(pod, r))));
        Some((chosen.node, victims))
    }

    /// Replicas of borrowers, by node; first those that give back first.
    fn candidates(&self, from: &Reclaimable<'a>) -> Candidates<'a> {
        let soonest = from.preference == Preference::Soonest;
        let mut by_node: Candidates<'a> = BTreeMap::new();
        for (at, case) in self.cases.iter().enumerate() {
            let Some(tenant) = case.d.tenant.as_ref().filter(|t| self.began.borrows(t)) else { continue };
            let share = self.ledger.share(tenant);
            let leaving: Vec<_> = case.leaving().collect();
            for replica in &case.d.replicas {
                let leaves = from.late.iter().any(|(_, l)| std::ptr::eq(*l, replica));
                let ends = leaving.iter().any(|r| std::ptr::eq(*r, replica)) || replica.node_lost;
                if !leaves && (ends || !runs(replica)) {
                    continue;
                }
                let partner = case.partner(replica);
                let both = std::iter::once(replica).chain(partner);
                let ripe_ms = both.map(|r| self.ripe_ms(at, r)).min().unwrap_or(0).max(self.now);
                let node = replica.placement.as_ref().and_then(|p| self.placer.index.at(&p.node));
                if let (true, Some(node)) = (soonest || ripe_ms <= self.now, node) {
                    let (charges, charged) = self.gives(at, replica, partner);
                    let candidate = Candidate { case: at, replica, partner, charges, charged, share, ripe_ms, leaves };
                    let of = by_node.entry(node).or_default();
                    // Both pods of one replica on one node are one candidate.
                    if !of.iter().any(|c: &Candidate<'a>| c.partner.is_some_and(|p| std::ptr::eq(p, replica))) {
                        of.push(candidate);
                    }
                }
            }
        }
        for of in by_node.values_mut() {
            of.sort_by_key(|c| {
                let case = &self.cases[c.case];
                let ready = c.replica.phase == Phase::Ready;
                let youngest = Reverse(c.replica.created_ms);
                let name = (c.case, c.replica.index, c.replica.incarnation);
                (c.ripe_ms, !c.leaves, Reverse(c.share), case.d.priority, ready, youngest, name)
            });
        }
        by_node
    }

    /// By class: what a replica that gives way is charged; where its tenant is charged for the pod that took over from
    /// it, what it would be. Whether that is counted.
    fn gives(&self, at: usize, replica: &Replica, partner: Option<&Replica>) -> (Vec<(String, u64)>, bool) {
        let number = self.cases[at].number;
        let mut charges = self.charges_of(number, replica);
        charges.extend(partner.into_iter().flat_map(|other| self.charges_of(number, other)));
        let charged = !charges.is_empty();
        if !charged {
            let owner = Owner { deployment: number, index: replica.index, incarnation: replica.incarnation };
            charges = self.slices_of(owner, replica);
        }
        (charges.into_iter().map(|(_, class, x)| (class, x)).collect(), charged)
    }

    fn end_candidate(&mut self, candidate: &Candidate<'a>) {
        candidate.pods().for_each(|pod| self.end_replica(candidate.case, pod));
    }

    /// When a borrowed replica may be taken back: it has run long enough, or ends before.
    fn ripe_ms(&self, at: usize, r: &Replica) -> TimeMs {
        let d = self.cases[at].d;
        let min_runtime_ms = d.tenant.as_ref().map_or(0, |t| self.ledger.min_runtime_ms(t));
        let old = r.created_ms.saturating_add(min_runtime_ms);
        r.phase.ends_ms(d.drain_timeout_ms).map_or(old, |end| old.min(end))
    }

    /// When the next replica of a borrower in the claimant's cohort has run long enough to be taken back.
    fn matures(&self, claimant: usize, from: &Reclaimable<'a>) -> Option<TimeMs> {
        let claims = self.cases[claimant].d.tenant.as_ref()?;
        let borrows = |case: usize| {
            let tenant = self.cases[case].d.tenant.as_ref();
            tenant.is_some_and(|t| self.began.borrows(t) && self.began.same_cohort(claims, t))
        };
        let running = self
            .cases
            .iter()
            .enumerate()
            .flat_map(|(at, case)| case.d.replicas.iter().filter(|r| runs(r)).map(move |r| (at, r)));
        let all = running.chain(from.late.iter().copied()).filter(|(at, _)| borrows(*at));
        all.map(|(at, r)| self.ripe_ms(at, r)).filter(|at| *at > self.now).min()
    }

    /// The victims on the best node: those that are preferred, then the fewest, then by name.
    fn victims(
        &mut self,
        at: usize,
        slot: u32,
        candidates: &Candidates<'a>,
        from: &mut Reclaimable<'a>,
    ) -> Option<Vec<Candidate<'a>>> {
        let tenant = self.cases[at].d.tenant.clone()?;
        if from.failed.get(&tenant).is_some_and(|failed| *failed >= MAX_FAILED) {
            return None;
        }
        let alternatives = self.cases[at].alternatives.clone();
        let own = |a: &&Alternative| match &a.ask.class {
            Some(class) => self.ledger.within_nominal(&tenant, class, a.charge),
            None => false,
        };
        let own: Vec<Alternative> = alternatives.iter().filter(own).cloned().collect();
        let mut best: Option<(Rank, Vec<Candidate<'a>>)> = None;
        let mut searched = false;
        for (node, of) in candidates {
            if self.placer.is_excluded(&self.seeker(at, slot), *node) {
                continue;
            }
            for alternative in own.iter().filter(|a| self.placer.could_fit_on(a, *node)).collect::<Vec<_>>() {
                searched = true;
                let Some(victims) = self.victims_on(*node, at, alternative, of, from) else { continue };
                let ripe_ms = victims.iter().map(|c| c.ripe_ms).max().unwrap_or(0);
                let share = victims.iter().map(|c| c.share).min().unwrap_or(0);
                let stayed = victims.iter().any(|c| !c.leaves);
                let rank = (ripe_ms, stayed, Reverse(share), victims.len(), *node);
                if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                    best = Some((rank, victims));
                }
            }
        }
        if best.is_none() && searched {
            *from.failed.entry(tenant).or_default() += 1;
        }
        best.map(|(_, victims)| victims)
    }

    /// The first of these that suffice together, less those that turn out not to be needed.
    fn victims_on(
        &mut self,
        node: NodeAt,
        claimant: usize,
        alternative: &Alternative,
        candidates: &[Candidate<'a>],
        from: &mut Reclaimable<'a>,
    ) -> Option<Vec<Candidate<'a>>> {
        let claims = self.cases[claimant].d.tenant.as_ref()?;
        let trial = self.begin();
        let mut victims: Vec<Candidate<'a>> = Vec::new();
        let mut fits = false;
        for candidate in candidates {
            if fits {
                break;
            }
            if self.may_give(candidate, claims, from) {
                self.end_candidate(candidate);
                self.give(candidate, from);
                victims.push(candidate.clone());
                fits = self.placer.fits_on(alternative, node);
            }
        }
        self.rollback(trial);
        victims.iter().for_each(|victim| self.take_back(victim, from));
        if !fits {
            return None;
        }
        for at in (0..victims.len().saturating_sub(1)).rev() {
            let trial = self.begin();
            let others = victims.iter().enumerate().filter(|(n, _)| *n != at);
            others.for_each(|(_, v)| self.end_candidate(v));
            let enough = self.placer.fits_on(alternative, node);
            self.rollback(trial);
            if enough {
                victims.remove(at);
            }
        }
        Some(victims)
    }

    /// Whether its tenant is in the claimant's cohort and holds no less than its nominal quota without it.
    fn may_give(&self, candidate: &Candidate<'_>, claimant: &TenantId, from: &Reclaimable<'_>) -> bool {
        let of = if candidate.leaves { &from.holds } else { &from.stays };
        let tenant = self.cases[candidate.case].d.tenant.as_ref();
        let Some(tenant) = tenant.filter(|t| of.same_cohort(claimant, t)) else { return false };
        let Candidate { charges, .. } = candidate;
        !charges.is_empty() && charges.iter().all(|(class, x)| of.borrowed(tenant, class) >= *x)
    }

    fn give(&self, candidate: &Candidate<'_>, from: &mut Reclaimable<'_>) {
        let Some(tenant) = self.cases[candidate.case].d.tenant.as_ref().filter(|_| candidate.charged) else { return };
        for (class, x) in &candidate.charges {
            from.holds.refund(tenant, class, *x);
            if !candidate.leaves {
                from.stays.refund(tenant, class, *x);
            }
        }
    }

    /// Undoes [`Draft::give`].
    fn take_back(&self, candidate: &Candidate<'_>, from: &mut Reclaimable<'_>) {
        let Some(tenant) = self.cases[candidate.case].d.tenant.as_ref().filter(|_| candidate.charged) else { return };
        for (class, x) in &candidate.charges {
            from.holds.charge(tenant, class, *x);
            if !candidate.leaves {
                from.stays.charge(tenant, class, *x);
            }
        }
    }

    fn drain_victims(&mut self, claim: Claim<'a>) {
        let claimant = self.cases[claim.case].d.tenant.clone();
        let pods = claim.victims.iter().flat_map(Candidate::pods).map(|pod| pod.name.clone()).collect();
        self.cases[claim.case].reclaims.push((claim.slot, pods));
        for victim in claim.victims {
            self.drain_victim(&victim, claimant.as_ref());
        }
    }

    fn drain_victim(&mut self, victim: &Candidate<'a>, claimant: Option<&TenantId>) {
        let until_ms = self.now.saturating_add(self.grace_ms(victim.case));
        let case = &mut self.cases[victim.case];
        let index = victim.replica.index;
        // Of a slot with two pods the other one still counts.
        let is_victim = |r: &Replica| victim.pods().any(|pod| std::ptr::eq(pod, r));
        let mut of_slot = case.d.replicas.iter().filter(|r| r.index == index && !r.phase.is_terminating());
        if !victim.leaves && of_slot.all(is_victim) {
            let serves = |r: &&Replica| r.phase == Phase::Ready;
            let ready = victim.pods().any(|r| serves(&r));
            let updated = victim.pods().filter(serves).any(|r| r.spec_hash == case.d.spec_hash);
            case.life.ready = case.life.ready.saturating_sub(ready.into());
            case.life.updated_ready = case.life.updated_ready.saturating_sub(updated.into());
            case.life.current = case.life.current.saturating_sub(1);
        }
        for pod in victim.pods() {
            let finishes = victim.leaves || matches!(pod.phase, Phase::Ready | Phase::Unready);
            case.life.ends.push(End {
                replica: replica_id(case.d, pod),
                pod: pod.name.clone(),
                drain_until: finishes.then_some(until_ms),
                reason: EndReason::Reclaimed,
                exclude: None,
                claimant: claimant.cloned(),
            });
        }
    }
}

impl<'a> Candidate<'a> {
    /// The pods that end, the older one first.
    fn pods(&self) -> impl Iterator<Item = &'a Replica> + use<'a> {
        let (a, b) = (self.replica, self.partner);
        let (first, second) = match b {
            Some(b) if b.incarnation < a.incarnation => (b, Some(a)),
            _ => (a, b),
        };
        std::iter::once(first).chain(second)
    }
}

impl<'a> Reclaimable<'a> {
    /// What was given, or has ended in the trial, is not there any more.
    fn forget(&mut self, gone: impl Fn(&Replica) -> bool) {
        self.late.retain(|(_, r)| !gone(r));
        let of = self.candidates.iter_mut().flat_map(BTreeMap::values_mut);
        of.for_each(|of| of.retain(|c| !gone(c.replica)));
    }
}

/// Neither ended nor on its way out.
fn runs(replica: &Replica) -> bool {
    !matches!(replica.phase, Phase::Draining { .. } | Phase::Failed { .. } | Phase::Terminating { .. })
}

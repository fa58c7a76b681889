//! Taking back what was lent: who gives back, so that a tenant gets what is its own.
//!
//! A replica within its tenant's nominal quota that no node takes may reclaim room from borrowers of its
//! cohort. Victims are replicas that have run for their tenant's minimum runtime and whose tenant stays
//! at or above its nominal quota without them, of the tenant with the highest weighted share first. They
//! are named only if the claimant fits once they are gone: that is acted out before anything drains.
//! All on one node, because a replica stands on one node; as few as suffice.
//!
//! Not here: what fits by itself once pods on their way out have ended. Nothing is reclaimed for that.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::decide::ahead::Filled;
use crate::decide::line::turn;
use crate::decide::{Attempt, Draft};
use crate::lifecycle::{End, replica_id};
use crate::place::placer::Alternative;
use crate::plan::EndReason;
use crate::quota::Ledger;
use crate::snapshot::index::NodeAt;
use crate::snapshot::{Phase, Replica, TenantId};

/// Slots for which one plan reclaims; the next plan goes on.
const MAX_CLAIMS: usize = 64;

/// A replica that could give its room back.
#[derive(Clone)]
struct Candidate<'a> {
    case: usize,
    replica: &'a Replica,
    /// What its slices are charged, by class.
    charges: Vec<(String, u64)>,
    /// Weighted share of its tenant.
    share: u64,
}

/// The slot that gets room, and the replicas that give it.
struct Claim<'a> {
    case: usize,
    slot: u32,
    victims: Vec<Candidate<'a>>,
}

/// Which victims are better: of a higher share, then fewer, then the first node.
type Rank = (Reverse<u64>, usize, NodeAt);

impl<'a> Draft<'a> {
    /// Decides which borrowed replicas drain, and for whom.
    pub(super) fn reclaim(&mut self) {
        if !self.ledger.anybody_borrows() || !self.anything_waits() {
            return;
        }
        let kept = self.kept();
        let trial = self.begin();
        self.end_leaving();
        let filled = self.refill(None);
        let claims = self.claims(&filled, kept);
        self.rollback(trial);
        for claim in claims {
            self.drain_victims(claim);
        }
    }

    /// What replicas hold that exist and stay. What this plan grants is not there to be given back.
    fn kept(&self) -> Ledger {
        let mut kept = self.began.clone();
        for case in &self.cases {
            for (tenant, class, x) in case.leaving().flat_map(|r| self.charges_of(case.number, r)) {
                kept.refund(&tenant, &class, x);
            }
        }
        kept
    }

    fn claims(&mut self, filled: &Filled, mut kept: Ledger) -> Vec<Claim<'a>> {
        let mut order: Vec<usize> = (0..self.cases.len()).collect();
        order.sort_by_key(|at| turn(*at, &self.cases[*at]));
        let mut claims: Vec<Claim<'a>> = Vec::new();
        let mut candidates: Option<BTreeMap<NodeAt, Vec<Candidate<'a>>>> = None;
        for at in order {
            let done = |slot: u32| filled.get(&at).is_some_and(|(slots, _)| slots.contains(&slot));
            let open = self.cases[at].waiting_slots().into_iter().filter(|w| w.old.is_none()).map(|w| w.open);
            let open: Vec<_> = open.filter(|open| !done(open.index)).collect();
            for open in open {
                if claims.len() == MAX_CLAIMS || !self.within_nominal(&self.cases[at]) {
                    break;
                }
                let candidates = candidates.get_or_insert_with(|| self.candidates());
                let Some(victims) = self.victims(at, open.index, candidates, &kept) else { break };
                let each = self.begin();
                victims.iter().for_each(|victim| self.end_replica(victim.case, victim.replica));
                let Attempt::Placed(chosen) = self.attempt(at, open.index) else {
                    self.rollback(each);
                    break;
                };
                self.take(at, open.index, open.incarnation, &chosen);
                victims.iter().for_each(|victim| self.give(victim, &mut kept));
                let gone = |c: &Candidate<'_>| victims.iter().any(|v| std::ptr::eq(v.replica, c.replica));
                candidates.values_mut().for_each(|of| of.retain(|c| !gone(c)));
                claims.push(Claim { case: at, slot: open.index, victims });
            }
        }
        claims
    }

    /// Replicas of borrowers that have run long enough, by node; first those that give back first.
    fn candidates(&self) -> BTreeMap<NodeAt, Vec<Candidate<'a>>> {
        let mut by_node: BTreeMap<NodeAt, Vec<Candidate<'a>>> = BTreeMap::new();
        for (at, case) in self.cases.iter().enumerate() {
            let Some(tenant) = case.d.tenant.as_ref().filter(|t| self.began.borrows(t)) else { continue };
            let share = self.ledger.share(tenant);
            let leaving: Vec<_> = case.leaving().collect();
            for replica in &case.d.replicas {
                let runs = matches!(
                    replica.phase,
                    Phase::Unscheduled { .. }
                        | Phase::Unprepared { .. }
                        | Phase::Starting
                        | Phase::Ready
                        | Phase::Unready
                );
                let ends = leaving.iter().any(|r| std::ptr::eq(*r, replica)) || replica.node_lost;
                let old = self.now.saturating_sub(replica.created_ms) >= self.ledger.min_runtime_ms(tenant);
                let node = replica.placement.as_ref().and_then(|p| self.placer.index.at(&p.node));
                if let (true, false, true, Some(node)) = (runs, ends, old, node) {
                    let charges = self.charges_of(case.number, replica);
                    let charges = charges.into_iter().map(|(_, class, x)| (class, x)).collect();
                    by_node.entry(node).or_default().push(Candidate { case: at, replica, charges, share });
                }
            }
        }
        for of in by_node.values_mut() {
            of.sort_by_key(|c| {
                let case = &self.cases[c.case];
                let ready = c.replica.phase == Phase::Ready;
                let youngest = Reverse(c.replica.created_ms);
                (Reverse(c.share), case.d.priority, ready, youngest, c.case, c.replica.index, c.replica.incarnation)
            });
        }
        by_node
    }

    /// The victims on the best node: those of the highest shares, then the fewest, then by name.
    fn victims(
        &mut self,
        at: usize,
        slot: u32,
        candidates: &BTreeMap<NodeAt, Vec<Candidate<'a>>>,
        kept: &Ledger,
    ) -> Option<Vec<Candidate<'a>>> {
        let tenant = self.cases[at].d.tenant.clone()?;
        let alternatives = self.cases[at].alternatives.clone();
        let own = |a: &&Alternative| match &a.ask.class {
            Some(class) => self.ledger.within_nominal(&tenant, class, a.charge),
            None => false,
        };
        let own: Vec<Alternative> = alternatives.iter().filter(own).cloned().collect();
        let mut best: Option<(Rank, Vec<Candidate<'a>>)> = None;
        for (node, of) in candidates {
            if self.placer.is_excluded(&self.seeker(at, slot), *node) {
                continue;
            }
            for alternative in &own {
                let Some(victims) = self.victims_on(*node, at, alternative, of, kept) else { continue };
                let lowest = victims.iter().map(|c| c.share).min().unwrap_or(0);
                let rank = (Reverse(lowest), victims.len(), *node);
                if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                    best = Some((rank, victims));
                }
            }
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
        kept: &Ledger,
    ) -> Option<Vec<Candidate<'a>>> {
        let claims = self.cases[claimant].d.tenant.as_ref()?;
        let mut kept = kept.clone();
        let trial = self.begin();
        let mut victims: Vec<Candidate<'a>> = Vec::new();
        let mut fits = false;
        for candidate in candidates {
            if fits {
                break;
            }
            if self.may_give(candidate, claims, &kept) {
                self.end_replica(candidate.case, candidate.replica);
                self.give(candidate, &mut kept);
                victims.push(candidate.clone());
                fits = self.placer.fits_on(alternative, node);
            }
        }
        self.rollback(trial);
        if !fits {
            return None;
        }
        for at in (0..victims.len().saturating_sub(1)).rev() {
            let trial = self.begin();
            let others = victims.iter().enumerate().filter(|(n, _)| *n != at);
            others.for_each(|(_, v)| self.end_replica(v.case, v.replica));
            let enough = self.placer.fits_on(alternative, node);
            self.rollback(trial);
            if enough {
                victims.remove(at);
            }
        }
        Some(victims)
    }

    /// Whether its tenant is in the claimant's cohort and holds no less than its nominal quota without it.
    fn may_give(&self, candidate: &Candidate<'_>, claimant: &TenantId, kept: &Ledger) -> bool {
        let tenant = self.cases[candidate.case].d.tenant.as_ref();
        let Some(tenant) = tenant.filter(|t| kept.same_cohort(claimant, t)) else { return false };
        let Candidate { charges, .. } = candidate;
        !charges.is_empty() && charges.iter().all(|(class, x)| kept.borrowed(tenant, class) >= *x)
    }

    fn give(&self, candidate: &Candidate<'_>, kept: &mut Ledger) {
        let Some(tenant) = &self.cases[candidate.case].d.tenant else { return };
        candidate.charges.iter().for_each(|(class, x)| kept.refund(tenant, class, *x));
    }

    fn drain_victims(&mut self, claim: Claim<'a>) {
        let claimant = self.cases[claim.case].d.id.clone();
        let pods = claim.victims.iter().map(|v| v.replica.name.clone()).collect();
        self.cases[claim.case].reclaims.push((claim.slot, pods));
        for Candidate { case, replica, .. } in claim.victims {
            let case = &mut self.cases[case];
            let serves = matches!(replica.phase, Phase::Ready | Phase::Unready);
            let grace = case.d.tenant.as_ref().map_or(0, |t| self.ledger.reclaim_grace_ms(t));
            // Of a slot with two pods the other one still counts.
            let alone = case.d.replicas.iter().filter(|r| r.index == replica.index && r.phase != Phase::Terminating);
            if alone.count() == 1 {
                let ready = u32::from(replica.phase == Phase::Ready);
                let updated = if replica.spec_hash == case.d.spec_hash { ready } else { 0 };
                case.life.ready = case.life.ready.saturating_sub(ready);
                case.life.updated_ready = case.life.updated_ready.saturating_sub(updated);
                case.life.current = case.life.current.saturating_sub(1);
            }
            case.life.ends.push(End {
                replica: replica_id(case.d, replica),
                pod: replica.name.clone(),
                drain_until: serves.then(|| self.now.saturating_add(grace)),
                reason: EndReason::Reclaimed,
                exclude: None,
                claimant: Some(claimant.clone()),
            });
        }
    }
}

//! The stages in their order, over one snapshot.
//!
//! Endings first, since they need neither quota nor room. Then open slots, one replica at a time:
//! below nominal quota first, then by priority, weighted share, age and name (`line`). Last the renewal of outdated
//! replicas, with what is left. Where a tenant's own replica found no room, a node is kept for it before others
//! borrow (`hold`), and what is lent is reclaimed (`reclaim`). What fits nowhere then may have others move
//! (`defragment`), or the cluster is asked for a node (`capacity`). Every grant is charged and taken from the working copy before the
//! next is considered, so the order above is all that fairness rests on.
//!
//! Not here: prose, records and counterfactuals, which look at a finished [`Draft`].

pub(crate) mod ahead;
pub(crate) mod capacity;
pub(crate) mod case;
pub(crate) mod defragment;
mod hold;
mod line;
mod moved;
pub(crate) mod prepared;
mod reclaim;
mod resume;

use std::collections::BTreeSet;

use crate::decide::case::{Case, Create};
use crate::decide::hold::Hold;
use crate::decide::line::{Line, turn};
use crate::decide::prepared::{Kept, Known, Prepared, Working};
use crate::lifecycle::{End, Open, Renewal, Wait};
use crate::place::PlacementVerdict;
use crate::place::placer::{Alternative, Chosen, Placer, Seeker};
use crate::plan::{CreateReason, EndReason};
use crate::quota::{Ledger, QuotaLimit};
use crate::snapshot::index::{Mark, NodeAt, Owner, Row};
use crate::snapshot::{Exclusion, Policy, RecentMove, Replica, ReplicaId, Snapshot, TenantId, TimeMs};

/// A decided snapshot, before it is reported.
pub(crate) struct Draft<'a> {
    /// Its index is as it will be once the plan is carried out and before anything has ended.
    pub placer: Placer,
    pub ledger: Ledger,
    /// Sorted by deployment.
    pub cases: Vec<Case<'a>>,
    pub now: TimeMs,
    /// Open while the draft is looked at as it will be once pods on their way out have ended.
    ahead: Option<Trial>,
    /// What is held as the plan begins.
    began: Ledger,
    /// Nodes on which nobody borrows now.
    holds: Vec<Hold>,
    /// Pods that their tenants are not charged for: of a replica that moves one is charged.
    uncharged: BTreeSet<Owner>,
    /// Replicas that were made to move of late. Sorted.
    pub recent_moves: Vec<RecentMove>,
    /// The index as the snapshot has it.
    base: Mark,
    known: Vec<Known>,
    kept: Kept,
}

pub(crate) enum Attempt {
    Placed(Box<Chosen>),
    /// The first quota that does not allow it, and the variants that quota allows and no node takes.
    Refused {
        limit: Option<QuotaLimit>,
        without_room: Vec<usize>,
    },
}

/// What [`Draft::rollback`] restores.
pub(crate) struct Trial {
    mark: Mark,
    ledger: Ledger,
    holds: Vec<Hold>,
}

pub(crate) fn decide<'a>(snapshot: &'a Snapshot, policy: &Policy, now: TimeMs, prepared: &mut Prepared) -> Draft<'a> {
    let deployments = prepared.in_order(snapshot);
    let Working { mut placer, mut known, kept } = prepared.take(snapshot, &deployments, policy);
    let cases = deployments.into_iter().zip(&mut known);
    let cases: Vec<_> = cases.map(|(d, known)| Case::new(d, known, &placer, policy, now)).collect();
    let (uncharged, charges) = moved::uncharged(&cases, &placer.index);
    let ledger = Ledger::new(snapshot, &placer.index, &charges, policy, now);
    let base = placer.index.mark();
    let began = ledger.clone();
    let mut draft = Draft {
        placer,
        ledger,
        cases,
        now,
        ahead: None,
        began,
        holds: Vec::new(),
        uncharged,
        recent_moves: moved::recent(snapshot, policy, now),
        base,
        known,
        kept,
    };
    draft.note_waits(&snapshot.waiting);
    draft.exclude_refused_nodes();
    draft.fill();
    draft.renew();
    draft.reclaim();
    draft.defragment(policy);
    draft.look_ahead();
    draft.ask_for_nodes(policy);
    draft
}

impl<'a> Draft<'a> {
    /// A node that the scheduler refused in this very snapshot must not win again.
    fn exclude_refused_nodes(&mut self) {
        for case in &self.cases {
            for end in &case.life.ends {
                let Some(exclude) = &end.exclude else { continue };
                self.placer.index.exclude(Exclusion {
                    deployment: case.d.id.clone(),
                    index: end.replica.index,
                    node: exclude.node.clone(),
                    until_ms: exclude.until_ms,
                    reason: exclude.reason.clone(),
                });
            }
        }
    }

    fn fill(&mut self) {
        let mut line = Line::new(self.cases.iter().enumerate().filter(|(_, case)| case.waits()));
        while let Some(at) = line.next_guaranteed(|at| self.within_nominal(&self.cases[at])) {
            self.fill_next(at, &mut line);
        }
        self.hold(line.someone_would_borrow());
        while let Some(at) = line.next_borrowing(|t| self.ledger.share(t)) {
            self.fill_next(at, &mut line);
        }
    }

    fn fill_next(&mut self, at: usize, line: &mut Line<'a>) {
        let case = &self.cases[at];
        let Open { index, incarnation, reason } = case.life.open[case.next];
        if let Some((resume, own)) = self.resumable(at, index) {
            if own || !line.defer(at) {
                self.cases[at].resumes.push(resume);
                self.next_slot(at, line);
            }
            return;
        }
        let attempt = self.attempt(at, index);
        if matches!(&attempt, Attempt::Placed(chosen) if self.borrows(at, chosen)) && line.defer(at) {
            return;
        }
        match attempt {
            Attempt::Placed(chosen) => self.create(at, index, incarnation, reason, *chosen),
            Attempt::Refused { limit, without_room } => self.refuse(at, index, limit, &without_room),
        }
        self.next_slot(at, line);
    }

    fn next_slot(&mut self, at: usize, line: &mut Line<'a>) {
        self.cases[at].next += 1;
        if !self.cases[at].waits() {
            line.leave(at);
        }
    }

    /// Whether the place that was chosen would be borrowed, although another variant may be the tenant's own.
    fn borrows(&self, at: usize, chosen: &Chosen) -> bool {
        let (Some(tenant), Some(class)) = (&self.cases[at].tenant, &chosen.verdict.ask.class) else { return false };
        !self.ledger.within_nominal(tenant, class, chosen.charge)
    }

    fn within_nominal(&self, case: &Case<'_>) -> bool {
        let Some(tenant) = &case.d.tenant else { return false };
        let within = |a: &Alternative| match &a.ask.class {
            Some(class) => self.ledger.within_nominal(tenant, class, a.charge),
            None => true,
        };
        case.alternatives.iter().any(within)
    }

    /// The best place for one slot of a case, among the variants that quota allows.
    pub fn attempt(&mut self, at: usize, slot: u32) -> Attempt {
        let case = &self.cases[at];
        let Some(tenant) = &case.tenant else {
            return Attempt::Refused { limit: None, without_room: Vec::new() };
        };
        let mut first_limit = None;
        let mut allowed: Vec<usize> = Vec::new();
        for (n, alternative) in case.alternatives.iter().enumerate() {
            match &alternative.ask.class {
                Some(class) => match self.ledger.allow(tenant, class, alternative.charge) {
                    Ok(()) => allowed.push(n),
                    Err(limit) => drop(first_limit.get_or_insert(limit)),
                },
                None => allowed.push(n),
            }
        }
        let seeker = self.seeker(at, slot);
        if let Some(n) = case.preferred(slot).filter(|n| allowed.contains(n))
            && let Some(chosen) = self.placer.choose(&seeker, &[&case.alternatives[n]])
        {
            return Attempt::Placed(Box::new(chosen));
        }
        let alternatives: Vec<&Alternative> = allowed.iter().map(|n| &case.alternatives[*n]).collect();
        match self.placer.choose(&seeker, &alternatives) {
            Some(chosen) => Attempt::Placed(Box::new(chosen)),
            None => Attempt::Refused { limit: first_limit, without_room: allowed },
        }
    }

    fn seeker(&self, at: usize, slot: u32) -> Seeker<'a> {
        let case = &self.cases[at];
        let held = self.held_from(case);
        Seeker { deployment: case.d, number: case.number, tenant: case.tenant_number, slot, now: self.now, held }
    }

    /// Charges and takes what was chosen.
    pub fn take(&mut self, at: usize, slot: u32, incarnation: u32, chosen: &Chosen) {
        let case = &self.cases[at];
        if let (Some(tenant), Some(class)) = (&case.tenant, &chosen.verdict.ask.class) {
            self.ledger.charge(tenant, class, chosen.charge);
        }
        let seeker = self.seeker(at, slot);
        self.placer.take(&seeker, chosen, incarnation);
        self.holds.retain(|hold| (hold.case, hold.slot) != (at, slot));
    }

    fn create(&mut self, at: usize, index: u32, incarnation: u32, reason: CreateReason, chosen: Chosen) {
        self.take(at, index, incarnation, &chosen);
        let case = &mut self.cases[at];
        let replica = ReplicaId { deployment: case.d.id.clone(), index, incarnation };
        case.creates.push(Create { replica, reason, verdict: chosen.verdict, moved_for: None });
    }

    fn refuse(&mut self, at: usize, slot: u32, limit: Option<QuotaLimit>, without_room: &[usize]) {
        let verdicts = self.verdicts(at, slot, without_room);
        self.cases[at].refuse(limit, verdicts);
    }

    fn verdicts(&self, at: usize, slot: u32, without_room: &[usize]) -> Vec<PlacementVerdict> {
        let case = &self.cases[at];
        let seeker = self.seeker(at, slot);
        without_room.iter().map(|n| self.placer.refused(&seeker, &case.alternatives[*n])).collect()
    }

    /// New beside old where both fit. Otherwise an outdated pod goes first, if the new one will fit then and
    /// enough others are Ready; one on a cordoned node stays.
    fn renew(&mut self) {
        let mut order: Vec<usize> = (0..self.cases.len()).collect();
        order.sort_by_key(|at| turn(*at, &self.cases[*at]));
        for at in order {
            for i in 0..self.cases[at].life.renew.len() {
                self.renew_one(at, i);
            }
        }
    }

    fn renew_one(&mut self, at: usize, i: usize) {
        let renew = &self.cases[at].life.renew[i];
        let Open { index, incarnation, reason } = renew.open;
        let cordoned = match &renew.why {
            Renewal::Cordoned { node } => {
                Some(Wait::Cordoned { index, pod: renew.old_pod.clone(), node: node.clone() })
            }
            Renewal::Outdated => None,
        };
        let attempt = if cordoned.is_some() { self.attempt_move(at, i) } else { self.attempt(at, index) };
        let (limit, without_room) = match attempt {
            Attempt::Placed(chosen) => {
                self.create(at, index, incarnation, reason, *chosen);
                if let (true, Some(old)) = (cordoned.is_some(), self.renewed(at, i)) {
                    self.charge_once(at, old);
                }
                return;
            }
            Attempt::Refused { limit, without_room } => (limit, without_room),
        };
        if cordoned.is_some() || !self.fits_without_old(at, i) {
            self.cases[at].life.waits.extend(cordoned);
            self.cases[at].stuck_renewals.push(i);
            return self.refuse(at, index, limit, &without_room);
        }
        let now = self.now;
        let case = &mut self.cases[at];
        let renew = &case.life.renew[i];
        if case.life.ready < case.wanted.saturating_sub(case.unplaceable()) {
            let pod = renew.old_pod.clone();
            case.life.waits.push(Wait::Availability { index, pod });
            return;
        }
        let drain = End {
            replica: renew.old.clone(),
            pod: renew.old_pod.clone(),
            drain_until: Some(now.saturating_add(case.d.drain_timeout_ms)),
            reason: EndReason::Rollout,
            exclude: None,
            claimant: None,
        };
        case.life.ready -= 1;
        case.life.current -= 1;
        case.life.ends.push(drain);
    }

    /// The place of a replica that leaves a cordoned node. The platform makes it move, so that its tenant's quota
    /// need not cover it twice for the time of the move: what the old pod holds is not counted.
    fn attempt_move(&mut self, at: usize, i: usize) -> Attempt {
        let slot = self.cases[at].life.renew[i].open.index;
        let Some(old) = self.renewed(at, i) else { return self.attempt(at, slot) };
        let charges = self.charges_of(self.cases[at].number, old);
        charges.iter().for_each(|(tenant, class, x)| self.ledger.refund(tenant, class, *x));
        let attempt = self.attempt(at, slot);
        charges.iter().for_each(|(tenant, class, x)| self.ledger.charge(tenant, class, *x));
        attempt
    }

    /// The pod that is renewed.
    fn renewed(&self, at: usize, i: usize) -> Option<&'a Replica> {
        let case = &self.cases[at];
        let old = &case.life.renew[i].old;
        case.d.replicas.iter().find(|r| (r.index, r.incarnation) == (old.index, old.incarnation))
    }

    /// Whether the slot could be filled if its present pod were gone.
    fn fits_without_old(&mut self, at: usize, i: usize) -> bool {
        let slot = self.cases[at].life.renew[i].open.index;
        let Some(replica) = self.renewed(at, i) else { return false };
        let trial = self.begin();
        self.end_replica(at, replica);
        let fits = matches!(self.attempt(at, slot), Attempt::Placed(_));
        self.rollback(trial);
        fits
    }

    /// Undoes the plan, so that the next one can follow.
    pub fn finish(mut self, prepared: &mut Prepared) {
        self.placer.index.rollback(self.base);
        prepared.keep(Working { placer: self.placer, known: self.known, kept: self.kept });
    }

    // === trials ===

    /// From here on changes can be undone.
    pub fn begin(&mut self) -> Trial {
        Trial { mark: self.placer.index.mark(), ledger: self.ledger.clone(), holds: self.holds.clone() }
    }

    /// Undoes all changes since [`Draft::begin`]; trials end in the reverse order of their beginnings.
    pub fn rollback(&mut self, trial: Trial) {
        self.placer.index.rollback(trial.mark);
        (self.ledger, self.holds) = (trial.ledger, trial.holds);
    }

    /// The replica is gone, with all that it held: room and quota.
    pub fn end_replica(&mut self, at: usize, replica: &Replica) {
        let case = &self.cases[at];
        let owner = Owner { deployment: case.number, index: replica.index, incarnation: replica.incarnation };
        let Some(placement) = &replica.placement else { return };
        let Some(node) = self.placer.index.at(&placement.node) else { return };
        self.end_on(node, at, owner, &placement.variant);
    }

    /// Tenant, class and charge of one replica's slices, a class once; none where its tenant is not charged for it.
    pub fn charges_of(&self, deployment: usize, replica: &Replica) -> Vec<(TenantId, String, u64)> {
        let owner = Owner { deployment, index: replica.index, incarnation: replica.incarnation };
        if self.uncharged.contains(&owner) { Vec::new() } else { self.slices_of(owner, replica) }
    }

    /// The same, whether or not its tenant is charged for it.
    fn slices_of(&self, owner: Owner, replica: &Replica) -> Vec<(TenantId, String, u64)> {
        let node = replica.placement.as_ref().and_then(|p| self.placer.index.at(&p.node));
        let each = node.map(|at| self.placer.index.charges_of(at, owner)).unwrap_or_default();
        let mut sums: Vec<(TenantId, String, u64)> = Vec::new();
        for (tenant, class, x) in each {
            match sums.iter_mut().find(|(t, c, _)| *t == tenant && *c == class) {
                Some((.., sum)) => *sum = sum.saturating_add(x),
                None => sums.push((tenant, class, x)),
            }
        }
        sums
    }

    /// What one replica's slices of a class are charged.
    pub fn held_by(&self, deployment: usize, replica: &Replica, class: &str) -> u64 {
        self.charges_of(deployment, replica)
            .iter()
            .filter(|(_, c, _)| c == class)
            .map(|(.., x)| *x)
            .fold(0, u64::saturating_add)
    }

    /// A node as it would be without these replicas of it, by case.
    fn without<'b>(&self, node: NodeAt, replicas: impl Iterator<Item = (usize, &'b Replica)>) -> Row {
        let mut row = self.placer.index.rows()[node].clone();
        for (at, r) in replicas {
            let case = &self.cases[at];
            let owner = Owner { deployment: case.number, index: r.index, incarnation: r.incarnation };
            let (cpu, memory) = case.requests(r.placement.as_ref().map_or("", |p| &p.variant));
            row.release(owner, cpu, memory, &case.d.needs.host_ports);
        }
        row
    }

    fn end_on(&mut self, node: NodeAt, at: usize, owner: Owner, variant: &str) {
        if !self.uncharged.contains(&owner) {
            for (tenant, class, x) in self.placer.index.charges_of(node, owner) {
                self.ledger.refund(&tenant, &class, x);
            }
        }
        let case = &self.cases[at];
        let (cpu, memory) = case.requests(variant);
        self.placer.index.release(node, owner, cpu, memory, &case.d.needs.host_ports);
    }
}

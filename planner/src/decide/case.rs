//! One deployment on its way through the stages.

use crate::demand::{ScaleVerdict, how_many};
use crate::lifecycle::{Assessment, End, Open, Wait, assess};
use crate::place::placer::{Alternative, Placer};
use crate::place::{PlacementVerdict, Refusal};
use crate::plan::{Action, CreateReason, EndReason};
use crate::quota::QuotaLimit;
use crate::snapshot::{Accelerator, Deployment, Phase, Policy, Replica, ReplicaId, TenantId, TimeMs};

pub(crate) struct Case<'a> {
    pub d: &'a Deployment,
    /// Of the deployment, in the index.
    pub number: usize,
    pub tenant: Option<TenantId>,
    pub scale: ScaleVerdict,
    pub wanted: u32,
    pub life: Assessment,
    pub creates: Vec<Create>,
    /// Open slots that were not filled.
    pub unfilled: u32,
    /// Of those, how many quota would allow.
    pub allowed: u32,
    pub limit: Option<QuotaLimit>,
    /// Verdicts without a winner, one per distinct ask.
    pub failed: Vec<PlacementVerdict>,
    /// What one replica may be, by variant.
    pub alternatives: Vec<Alternative>,
    /// Renewals that fit neither beside the old pod nor in its place.
    pub stuck_renewals: Vec<usize>,
    /// Slots that will be filled once pods on their way out have ended.
    pub awaiting: Vec<u32>,
    /// The next open slot to try.
    pub next: usize,
    /// No further slot is tried: it would fail as the last one did.
    pub blocked: bool,
}

/// A slot that is refused.
#[derive(Clone, Copy)]
pub(crate) struct Waiting<'a> {
    pub open: Open,
    /// The outdated pod that it renews.
    pub old: Option<&'a Replica>,
}

pub(crate) struct Create {
    pub replica: ReplicaId,
    pub reason: CreateReason,
    pub verdict: PlacementVerdict,
}

impl<'a> Case<'a> {
    pub fn new(d: &'a Deployment, placer: &mut Placer, policy: &Policy, now: TimeMs) -> Self {
        let (scale, wanted) = how_many(d);
        Case {
            d,
            number: placer.index.deployment(&d.id),
            tenant: d.tenant.clone(),
            scale,
            wanted,
            life: assess(d, wanted, &placer.index, policy, now),
            creates: Vec::new(),
            unfilled: 0,
            allowed: 0,
            limit: None,
            failed: Vec::new(),
            alternatives: placer.alternatives(d),
            stuck_renewals: Vec::new(),
            awaiting: Vec::new(),
            next: 0,
            blocked: false,
        }
    }

    /// Whether a slot is open that was not tried yet and may be.
    pub fn waits(&self) -> bool {
        self.next < self.life.open.len() && !self.blocked
    }

    /// Pods that count once the plan is carried out.
    pub fn desired(&self) -> u32 {
        self.life.current + self.opened()
    }

    /// Creates that fill open slots; renewals stand beside a pod that already counts.
    pub fn opened(&self) -> u32 {
        self.creates.iter().filter(|c| !self.renews(&c.replica)).count() as u32
    }

    /// Open slots that no create fills.
    pub fn open_slots(&self) -> impl Iterator<Item = &Open> {
        let filled = |index: u32| self.creates.iter().any(|c| c.replica.index == index);
        self.life.open.iter().filter(move |open| !filled(open.index))
    }

    /// Slots that quota or room refuses, stuck renewals last, and that time alone does not fill.
    pub fn waiting_slots(&self) -> Vec<Waiting<'a>> {
        let stuck = self.stuck_renewals.iter().filter_map(|i| {
            let renew = &self.life.renew[*i];
            let is_old = |r: &&Replica| (r.index, r.incarnation) == (renew.old.index, renew.old.incarnation);
            Some(Waiting { open: renew.open, old: Some(self.d.replicas.iter().find(is_old)?) })
        });
        let open = self.open_slots().map(|open| Waiting { open: *open, old: None });
        open.chain(stuck).filter(|w| !self.awaiting.contains(&w.open.index)).collect()
    }

    pub fn is_refused(&self) -> bool {
        !self.waiting_slots().is_empty()
    }

    /// Open slots that time alone will fill.
    pub fn awaiting_open(&self) -> u32 {
        self.open_slots().filter(|o| self.awaiting.contains(&o.index)).count() as u32
    }

    /// Cases with equal questions get the same answer in the same state, exclusions aside.
    pub fn question(&self) -> Vec<usize> {
        self.alternatives.iter().map(Alternative::ranking).collect()
    }

    /// Open slots that no node takes although no pod of this deployment is about to free a place.
    pub fn unplaceable(&self) -> u32 {
        self.open_slots().count().saturating_sub(self.leaving().count()) as u32
    }

    /// Pods on their way out after this plan, except on lost nodes, where nothing comes free.
    pub fn leaving(&self) -> impl Iterator<Item = &'a Replica> {
        let leaving = |r: &Replica| {
            let ends = |e: &End| (e.replica.index, e.replica.incarnation) == (r.index, r.incarnation);
            let already = matches!(r.phase, Phase::Draining { .. } | Phase::Terminating);
            !r.node_lost && (already || self.life.ends.iter().any(ends))
        };
        self.d.replicas.iter().filter(move |r| leaving(r))
    }

    /// The slot has failed and is filled again by a later plan.
    pub fn is_held_back(&self, slot: u32) -> bool {
        let failed = |e: &End| e.replica.index == slot && matches!(e.reason, EndReason::Failed | EndReason::Overshoot);
        let backs_off = |w: &Wait| matches!(w, Wait::BackOff { index, .. } if *index == slot);
        slot < self.wanted && (self.life.ends.iter().any(failed) || self.life.waits.iter().any(backs_off))
    }

    fn renews(&self, replica: &ReplicaId) -> bool {
        self.life.renew.iter().any(|r| r.open.index == replica.index)
    }

    pub fn needs_gpu(&self) -> bool {
        self.d.variants.iter().any(|v| matches!(v.accelerator, Accelerator::Gpu { .. }))
    }

    pub fn refuse(&mut self, limit: Option<QuotaLimit>, verdicts: Vec<PlacementVerdict>) {
        // Exclusions belong to one slot: another slot of the same deployment may still fit.
        let excluded = |v: &PlacementVerdict| {
            v.refusals.iter().flat_map(|g| &g.examples).any(|r| matches!(r.reason, Refusal::Excluded { .. }))
        };
        self.blocked = !verdicts.iter().any(excluded);
        if self.limit.is_none() {
            self.limit = limit;
        }
        if self.failed.is_empty() || self.blocked {
            self.failed = verdicts;
        }
    }

    /// Actions that end, then actions that create.
    pub fn actions(&self) -> (Vec<Action>, Vec<Action>) {
        let ends = self.life.ends.iter().map(End::action).collect();
        let creates = self.creates.iter().filter_map(|c| {
            Some(Action::Create {
                replica: c.replica.clone(),
                placement: c.verdict.winner.as_ref()?.placement.clone(),
                spec_hash: self.d.spec_hash.clone(),
                generation: self.d.generation,
                reason: c.reason,
            })
        });
        (ends, creates.collect())
    }
}

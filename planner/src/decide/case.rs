//! One deployment on its way through the stages.

use std::borrow::Cow;
use std::sync::Arc;

use crate::decide::capacity::CapacityAsk;
use crate::decide::defragment::MoveVerdict;
use crate::decide::prepared::Known;
use crate::demand::{Basis, Change, Demand, Prediction, ScaleVerdict, Site, Withdrawn, WithdrawnFor, how_many};
use crate::lifecycle::{Assessment, End, Moving, Open, Resume, Wait};
use crate::place::placer::{Alternative, Placer};
use crate::place::{PlacementVerdict, Refusal};
use crate::plan::{Action, CreateReason, EndReason};
use crate::quota::QuotaLimit;
use crate::snapshot::{
    Accelerator, Deployment, Memory, Phase, Placement, Policy, Replica, ReplicaId, ScalingMode, TenantId, TimeMs,
    Waiting as SinceWhen,
};

pub(crate) struct Case<'a> {
    pub d: &'a Deployment,
    /// Of the deployment, in the index.
    pub number: usize,
    pub tenant: Option<Cow<'a, TenantId>>,
    /// Of the tenant, in the index.
    pub tenant_number: Option<usize>,
    pub scale: ScaleVerdict,
    pub wanted: u32,
    /// Of the rule, as it was when it answered.
    memory: Option<Memory>,
    basis: Option<Basis>,
    cold_start_ms: Option<u64>,
    change: Change,
    pub life: Assessment,
    pub creates: Vec<Create>,
    /// Pods whose drain is cancelled.
    pub resumes: Vec<Resume>,
    /// Open slots that were not filled.
    pub unfilled: u32,
    /// Of those, how many quota would allow.
    pub allowed: u32,
    pub limit: Option<QuotaLimit>,
    /// Verdicts without a winner, one per distinct ask.
    pub failed: Vec<PlacementVerdict>,
    /// What one replica may be, by variant.
    pub alternatives: Arc<[Alternative]>,
    /// Renewals that fit neither beside the old pod nor in its place.
    pub stuck_renewals: Vec<usize>,
    /// Slots that will be filled once pods on their way out have ended.
    pub awaiting: Vec<u32>,
    /// Slots for which borrowed replicas are reclaimed, with the pods that drain.
    pub reclaims: Vec<(u32, Vec<String>)>,
    /// Where the first of `awaiting` will be.
    pub awaited_node: Option<String>,
    /// Since when it has waited for room, as the snapshot has it.
    pub waited: Option<&'a SinceWhen>,
    /// Whether running replicas move for it.
    pub moves: Option<MoveVerdict>,
    /// Replicas for which another node is asked for.
    pub capacity: Vec<CapacityAsk>,
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
    /// Whose replica gets the room of the pod that it takes over from.
    pub moved_for: Option<TenantId>,
}

impl<'a> Case<'a> {
    pub fn new(d: &'a Deployment, known: &mut Known, placer: &Placer, policy: &Policy, now: TimeMs) -> Self {
        let alternatives = known.alternatives.clone();
        // Only the rule asks for prices.
        let asks = d.scaling.mode != ScalingMode::Manual;
        let prices: Vec<_> = alternatives.iter().filter(|_| asks).map(|a| a.price_micros).collect();
        let cached = d.signals.cold_start.cached_ms.is_some() && placer.has_weights(d);
        let site = Site { cached, prices: &prices };
        let Demand { verdict: scale, replicas: wanted, memory, basis, cold_start_ms, change } =
            how_many(d, site, policy, now);
        Case {
            d,
            number: known.number,
            tenant: d.tenant.as_ref().map(Cow::Borrowed),
            tenant_number: known.tenant,
            scale,
            wanted,
            memory,
            basis,
            cold_start_ms,
            life: known.assess(wanted, &change.end, &placer.index, policy, now),
            change,
            creates: Vec::new(),
            resumes: Vec::new(),
            unfilled: 0,
            allowed: 0,
            limit: None,
            failed: Vec::new(),
            alternatives,
            stuck_renewals: Vec::new(),
            awaiting: Vec::new(),
            reclaims: Vec::new(),
            awaited_node: None,
            waited: None,
            moves: None,
            capacity: Vec::new(),
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

    /// Open slots that are filled, by new pods or by those that drained; renewals and moves stand beside a pod that
    /// already counts.
    pub fn opened(&self) -> u32 {
        let beside = |c: &&Create| self.renews(&c.replica) || c.reason == CreateReason::Move;
        let created = self.creates.iter().filter(|c| !beside(c)).count();
        (created + self.resumes.len()) as u32
    }

    /// Open slots that nothing fills.
    pub fn open_slots(&self) -> impl Iterator<Item = &Open> {
        let filled = |index: u32| {
            let mut filling = self.creates.iter().map(|c| &c.replica).chain(self.resumes.iter().map(|r| &r.replica));
            filling.any(|replica| replica.index == index)
        };
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

    /// The slot that has waited for room, as the snapshot has it, if it waits still; and since when.
    pub fn long_waiting(&self) -> Option<(Open, TimeMs)> {
        let waited = self.waited?;
        let slot = self.waiting_slots().into_iter().find(|w| w.old.is_none() && w.open.index == waited.index)?;
        Some((slot.open, waited.since_ms.max(self.d.created_ms)))
    }

    /// What is to be remembered of its wait for room: of the first slot that time alone does not fill.
    pub fn waiting(&self, now: TimeMs) -> Option<SinceWhen> {
        let first = self.waiting_slots().into_iter().find(|w| w.old.is_none() && !self.failed.is_empty())?;
        let index = first.open.index;
        let known = self.waited.filter(|w| w.index == index && w.since_ms <= now);
        let since_ms = known.map_or(now, |w| w.since_ms.max(self.d.created_ms));
        Some(SinceWhen { deployment: self.d.id.clone(), index, since_ms })
    }

    /// CPU and memory that a replica of this variant requests of its node.
    pub fn requests(&self, variant: &str) -> (u64, u64) {
        let asked = self.alternatives.iter().map(|a| &a.ask).find(|ask| ask.variant == variant);
        let (cpu, memory) = (self.d.needs.cpu_milli, self.d.needs.memory_bytes);
        asked.map_or((cpu, memory), |ask| (ask.cpu_milli, ask.node_memory_bytes))
    }

    /// What a start of it takes; `None`: nothing is known of that.
    pub fn cold_start_ms(&self) -> Option<u64> {
        self.cold_start_ms
    }

    /// Pods that end once another has taken over, on which others may count.
    pub fn moving(&self) -> impl Iterator<Item = &'a Replica> {
        let moves = |r: &Replica| {
            let is = |m: &Moving| (m.index, m.incarnation) == (r.index, r.incarnation);
            self.life.moving.iter().any(is) && !self.leaving().any(|l| std::ptr::eq(l, r))
        };
        self.d.replicas.iter().filter(move |r| moves(r))
    }

    pub fn is_refused(&self) -> bool {
        !self.waiting_slots().is_empty()
    }

    /// Open slots that time alone will fill.
    pub fn awaiting_open(&self) -> u32 {
        self.open_slots().filter(|o| self.awaiting.contains(&o.index)).count() as u32
    }

    /// The variant that carries most for its price, for a slot that the rule opened.
    pub fn preferred(&self, slot: u32) -> Option<usize> {
        let at = self.life.open.iter().position(|open| open.index == slot)?;
        let variant = self.change.add.get(at)?;
        self.alternatives.iter().position(|a| a.ask.variant == *variant)
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
            let already = matches!(r.phase, Phase::Draining { .. } | Phase::Terminating { .. });
            let resumed = self.resumes.iter().any(|x| x.pod == r.name);
            !r.node_lost && (already && !resumed || self.life.ends.iter().any(ends))
        };
        self.d.replicas.iter().filter(move |r| leaving(r))
    }

    /// The other pod of a replica that moves.
    pub fn partner(&self, r: &Replica) -> Option<&'a Replica> {
        let pair = self
            .life
            .pairs
            .iter()
            .find(|p| p.index == r.index && (p.old == r.incarnation || p.new == r.incarnation))?;
        let other = if pair.old == r.incarnation { pair.new } else { pair.old };
        self.d.replicas.iter().find(|o| (o.index, o.incarnation) == (r.index, other))
    }

    /// The slot has failed and is filled again by a later plan.
    pub fn is_held_back(&self, slot: u32) -> bool {
        let failed = |e: &End| e.replica.index == slot && matches!(e.reason, EndReason::Failed | EndReason::Overshoot);
        let backs_off = |w: &Wait| matches!(w, Wait::BackOff { index, .. } if *index == slot);
        slot < self.wanted && (self.life.ends.iter().any(failed) || self.life.waits.iter().any(backs_off))
    }

    /// Replicas that are wanted and that quota or room refuses, with the first reason.
    pub fn withdrawn(&self) -> Option<Withdrawn> {
        let replicas = (self.open_slots().count() as u32).saturating_sub(self.awaiting_open());
        let reason = match (&self.tenant, &self.limit) {
            (None, _) => WithdrawnFor::NoTenant,
            (_, Some(_)) if self.failed.is_empty() => WithdrawnFor::Quota,
            _ => WithdrawnFor::Room,
        };
        (replicas > 0).then_some(Withdrawn { replicas, reason })
    }

    /// The verdict, with what cannot be had.
    pub fn verdict(&self) -> ScaleVerdict {
        let mut verdict = self.scale.clone();
        if let ScaleVerdict::Active { advice } = &mut verdict {
            advice.withdrawn = self.withdrawn();
        }
        verdict
    }

    /// What clients can expect once the plan is carried out and all its replicas serve.
    pub fn prediction(&self) -> Prediction {
        let latencies = self.basis.and_then(|basis| basis.latencies(self.desired()));
        Prediction {
            ttft_us: latencies.map(|(ttft, _)| ttft),
            itl_us: latencies.map(|(_, itl)| itl),
            ready_in_ms: self.cold_start_ms.filter(|_| !self.creates.is_empty()),
            price_per_hour_micros: self.price_per_hour_micros(),
        }
    }

    /// Of the pods that stay and those that are created.
    fn price_per_hour_micros(&self) -> Option<u64> {
        let stays = |r: &&Replica| {
            let ends = |e: &End| (e.replica.index, e.replica.incarnation) == (r.index, r.incarnation);
            !self.life.ends.iter().any(ends)
        };
        let stay = self.d.replicas.iter().filter(stays).map(|r| r.placement.as_ref());
        let placements = stay.chain(self.creates.iter().map(|c| c.verdict.winner.as_ref().map(|w| &w.placement)));
        let price = |placement: Option<&Placement>| {
            let variant = &placement?.variant;
            self.alternatives.iter().find(|a| a.ask.variant == *variant)?.price_micros
        };
        placements.map(price).try_fold(0u64, |sum, price| Some(sum.saturating_add(price?)))
    }

    /// What is to be remembered. An ask of the rule that cannot be had is not held on to; a count that
    /// only stays as it is, is.
    pub fn memory(&self) -> Option<Memory> {
        let decides = matches!(self.scale, ScaleVerdict::Active { .. });
        let withdrawn = self.withdrawn().filter(|_| decides).map_or(0, |w| w.replicas);
        let target = Some(self.wanted.saturating_sub(withdrawn));
        self.memory.clone().map(|memory| Memory { target, ..memory })
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

    /// Actions that end, then actions that fill slots.
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
        let resumes = self.resumes.iter().map(|r| Action::Resume { replica: r.replica.clone(), pod: r.pod.clone() });
        (ends, resumes.chain(creates).collect())
    }
}

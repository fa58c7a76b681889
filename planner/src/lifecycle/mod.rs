//! What becomes of the replicas that exist: which go, which slots are open, which await renewal.
//!
//! A *slot* is a replica index. At most one pod of it counts, its *primary*; an older incarnation
//! stays beside it only until the primary is Ready. Endings are decided here because none of them
//! needs quota or room; filling slots needs both and is left to `decide`.
//!
//! Stale data end nothing. What the user asks for (fewer replicas, another model,
//! deletion) is never stale.

mod verdict;

use std::collections::{BTreeMap, BTreeSet};

pub use verdict::{Trouble, TroubleKind, Wait};

use crate::plan::{Action, CreateReason, EndReason, Exclude};
use crate::snapshot::index::Index;
use crate::snapshot::{Deployment, Freshness, Health, Phase, Policy, Replica, ReplicaId, TenantId, TimeMs};

/// Slots of one deployment that one plan tries to fill; the next plan goes on.
const MAX_OPEN: usize = 4096;

/// Everything that one look at a deployment's pods decides.
#[derive(Default)]
pub(crate) struct Assessment {
    pub ends: Vec<End>,
    pub open: Vec<Open>,
    /// Pods whose drain can be cancelled, at most one for each slot.
    pub resumable: Vec<Resume>,
    /// Ready pods of an older specification or on a cordoned node, in the order in which they are renewed.
    pub renew: Vec<Renew>,
    /// Pods that end once the pod that takes over from them is Ready.
    pub moving: Vec<Moving>,
    pub waits: Vec<Wait>,
    pub troubles: Vec<Trouble>,
    /// Times at which the answer changes by itself.
    pub wakes: Vec<TimeMs>,
    /// Slots with a pod that counts, after `ends`.
    pub current: u32,
    /// Slots with a Ready pod, after `ends`.
    pub ready: u32,
    pub updated_ready: u32,
}

impl Assessment {
    /// Neither now nor later, while the deployment and its nodes stay as they are.
    pub fn has_nothing_to_do(&self) -> bool {
        let Assessment { ends, open, resumable, renew, moving, waits, troubles, wakes, .. } = self;
        ends.is_empty()
            && open.is_empty()
            && resumable.is_empty()
            && renew.is_empty()
            && moving.is_empty()
            && waits.is_empty()
            && troubles.is_empty()
            && wakes.is_empty()
    }
}

pub(crate) struct End {
    pub replica: ReplicaId,
    pub pod: String,
    /// `None`: remove at once.
    pub drain_until: Option<TimeMs>,
    pub reason: EndReason,
    pub exclude: Option<Exclude>,
    /// Whose replica gets the room, where it is reclaimed. Never a deployment's name: it may be another tenant's.
    pub claimant: Option<TenantId>,
}

impl End {
    pub fn action(&self) -> Action {
        let (replica, pod, reason) = (self.replica.clone(), self.pod.clone(), self.reason);
        match self.drain_until {
            Some(deadline_ms) => Action::Drain { replica, pod, deadline_ms, reason },
            None => Action::Remove { replica, pod, reason, exclude: self.exclude.clone() },
        }
    }
}

/// A pod that drains and could go on.
#[derive(Clone)]
pub(crate) struct Resume {
    pub replica: ReplicaId,
    pub pod: String,
}

/// A slot that wants a pod. Where one of it drains and could go on, that one comes first.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub index: u32,
    pub incarnation: u32,
    pub reason: CreateReason,
}

/// A slot whose Ready pod is to be replaced while it serves.
pub(crate) struct Renew {
    pub open: Open,
    pub old: ReplicaId,
    pub old_pod: String,
    pub why: Renewal,
}

/// A Ready pod with another one that takes over from it and is not Ready yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moving {
    pub index: u32,
    pub incarnation: u32,
    /// The other one has taken so long that nobody counts on it.
    pub overdue: bool,
}

/// Why a Ready pod is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It is of an older specification. Where both do not fit, the old pod goes first.
    Outdated,
    /// It is on this cordoned node. It goes on until its replacement is Ready, or the node is uncordoned.
    Cordoned { node: String },
}

/// `end` names variants whose replicas go before others, first to last.
pub(crate) fn assess(
    d: &Deployment,
    wanted: u32,
    end: &[String],
    index: &Index,
    policy: &Policy,
    now: TimeMs,
) -> Assessment {
    let mut view = View { d, end, index, policy, now, out: Assessment::default() };
    let mut live = view.sort_out();
    view.settle_slots(&mut live);
    view.scale_in(&mut live, wanted);
    view.count(&live);
    view.renewals(&live, wanted);
    view.open_slots(&live, wanted);
    view.out
}

/// The slots that scale-in ends, first to last, each with the index and incarnation of its pods.
pub(crate) fn scale_in_order(d: &Deployment, index: &Index, policy: &Policy, now: TimeMs) -> Vec<Vec<(u32, u32)>> {
    let mut view = View { d, end: &[], index, policy, now, out: Assessment::default() };
    let mut live = view.sort_out();
    view.settle_slots(&mut live);
    let order = view.scale_in_slots(&live);
    let pods = |slot| live.remove(&slot).into_iter().flatten().map(|r| (r.index, r.incarnation)).collect();
    order.into_iter().map(pods).collect()
}

struct View<'a> {
    d: &'a Deployment,
    end: &'a [String],
    index: &'a Index,
    policy: &'a Policy,
    now: TimeMs,
    out: Assessment,
}

/// Pods that may count, by slot.
type Live<'a> = BTreeMap<u32, Vec<&'a Replica>>;

/// A pod that ends within this is not ended again.
const SOON_MS: u64 = 10_000;

impl<'a> View<'a> {
    /// Ends what must end whatever is wanted, and returns the rest.
    fn sort_out(&mut self) -> Live<'a> {
        let mut replicas: Vec<_> = self.d.replicas.iter().collect();
        replicas.sort_by(|a, b| (a.index, a.incarnation, &a.name).cmp(&(b.index, b.incarnation, &b.name)));
        let mut live: Live<'a> = BTreeMap::new();
        for r in replicas {
            if self.keep(r) {
                live.entry(r.index).or_default().push(r);
            }
        }
        live
    }

    fn keep(&mut self, r: &Replica) -> bool {
        if let Phase::Terminating { until_ms } = r.phase {
            return self.hasten(r, until_ms);
        }
        if self.d.deleting && self.d.force_delete {
            return self.remove(r, EndReason::Deleted);
        }
        if r.node_lost {
            let node = r.placement.as_ref().map(|p| p.node.clone()).unwrap_or_default();
            self.trouble(r, TroubleKind::NodeLost { node });
            return self.remove(r, EndReason::NodeLost);
        }
        match &r.phase {
            Phase::Draining { since_ms, in_flight, may_resume, .. } => {
                let until = r.phase.ends_ms(self.d.drain_timeout_ms).unwrap_or(*since_ms);
                let goes_on = self.drain_on(r, *since_ms, until, *in_flight);
                if goes_on && *may_resume && self.is_as_wanted(r) {
                    self.out.resumable.push(Resume { replica: self.id(r), pod: r.name.clone() });
                }
                return false;
            }
            Phase::Failed { reason } => {
                self.trouble(r, TroubleKind::Failed { message: reason.clone() });
                return self.remove(r, EndReason::Failed);
            }
            _ if self.d.deleting => return self.end(r, EndReason::Deleted),
            Phase::Unscheduled { since_ms, message } => {
                let patience = since_ms.saturating_add(self.policy.schedule_patience_ms);
                if self.now < patience {
                    self.out.wakes.push(patience);
                } else {
                    self.trouble(r, TroubleKind::Unscheduled { message: message.clone(), since_ms: *since_ms });
                    // A scheduler that has not looked at it yet is busy or away: another pod would wait like this one.
                    if !message.is_empty() {
                        return self.go_elsewhere(r, EndReason::Unschedulable, message);
                    }
                }
            }
            Phase::Unprepared { since_ms, message } => {
                let patience = since_ms.saturating_add(self.policy.prepare_patience_ms);
                // Reported at once: the first refusal matters even if the next attempt succeeds.
                self.trouble(r, TroubleKind::Unprepared { message: message.clone(), since_ms: *since_ms });
                if self.now >= patience {
                    return self.go_elsewhere(r, EndReason::Unprepared, message);
                }
                self.out.wakes.push(patience);
            }
            Phase::Unready => self.trouble(r, TroubleKind::Unready),
            Phase::Starting | Phase::Ready | Phase::Terminating { .. } => {}
        }
        self.within_promise(r) && self.on_healthy_gpus(r)
    }

    /// A pod that is being deleted may take long to end: not while its neighbours pay for it, or by force.
    fn hasten(&mut self, r: &Replica, until: Option<TimeMs>) -> bool {
        if until.is_none_or(|until| until <= self.now.saturating_add(SOON_MS)) {
            return false;
        }
        if self.d.deleting && self.d.force_delete {
            return self.remove(r, EndReason::Deleted);
        }
        if let Some(evidence) = r.overshoot.clone().filter(|_| self.stale_node(r).is_none()) {
            self.trouble(r, TroubleKind::Overshoot { evidence });
            return self.remove(r, EndReason::Overshoot);
        }
        false
    }

    /// Whether a pod like it could be placed where it is, and would be the same.
    fn is_as_wanted(&self, r: &Replica) -> bool {
        let usable = self.stale_node(r).is_none() && self.unhealthy_gpu(r).is_none() && !self.cordoned(r);
        usable && !self.d.deleting && self.matches(r) && r.overshoot.is_none()
    }

    /// False: the drain has ended.
    fn drain_on(&mut self, r: &Replica, since: TimeMs, until: TimeMs, in_flight: Option<u32>) -> bool {
        let deadline = match &r.overshoot {
            Some(evidence) if !evidence.headroom => return self.remove(r, EndReason::Overshoot),
            Some(_) => until.min(since.saturating_add(self.policy.overshoot_drain_ms)),
            None => until,
        };
        if in_flight == Some(0) {
            return self.remove(r, EndReason::Drained);
        }
        if self.now >= deadline {
            return self.remove(r, EndReason::DrainTimeout);
        }
        self.out.wakes.push(deadline);
        true
    }

    /// Ends a pod that its node refuses, and keeps its successor away from there for a while.
    fn go_elsewhere(&mut self, r: &Replica, reason: EndReason, why: &str) -> bool {
        let failures = self.d.slots.iter().find(|s| s.index == r.index).map_or(0, |s| s.failures);
        let exclude = r.placement.as_ref().map(|p| Exclude {
            node: p.node.clone(),
            until_ms: self.now.saturating_add(back_off_ms(self.policy, failures)),
            reason: why.to_owned(),
        });
        self.out.ends.push(End {
            replica: self.id(r),
            pod: r.name.clone(),
            drain_until: None,
            reason,
            exclude,
            claimant: None,
        });
        false
    }

    fn within_promise(&mut self, r: &Replica) -> bool {
        let Some(evidence) = r.overshoot.clone() else { return true };
        if let Some(node) = self.stale_node(r) {
            self.out.waits.push(Wait::FreshInput { index: r.index, node });
            return true;
        }
        let headroom = evidence.headroom;
        self.trouble(r, TroubleKind::Overshoot { evidence });
        if headroom && matches!(r.phase, Phase::Ready | Phase::Unready) {
            let limit = self.policy.overshoot_drain_ms.min(self.d.drain_timeout_ms);
            return self.drain(r, EndReason::Overshoot, limit);
        }
        self.remove(r, EndReason::Overshoot)
    }

    fn on_healthy_gpus(&mut self, r: &Replica) -> bool {
        let Some((gpu, message)) = self.unhealthy_gpu(r) else { return true };
        if let Some(node) = self.stale_node(r) {
            self.out.waits.push(Wait::FreshInput { index: r.index, node });
            return true;
        }
        self.trouble(r, TroubleKind::UnhealthyGpu { gpu, message });
        self.end(r, EndReason::UnhealthyGpu)
    }

    fn unhealthy_gpu(&self, r: &Replica) -> Option<(String, String)> {
        let placement = r.placement.as_ref()?;
        let node = &self.index.row(&placement.node)?.node;
        placement.gpus.iter().find_map(|share| {
            let gpu = node.gpus.iter().find(|g| g.uuid == share.uuid)?;
            match &gpu.health {
                Health::Unhealthy { reason } => Some((gpu.uuid.clone(), reason.clone())),
                _ => None,
            }
        })
    }

    fn stale_node(&self, r: &Replica) -> Option<String> {
        let placement = r.placement.as_ref()?;
        let fresh =
            self.index.row(&placement.node).is_some_and(|r| matches!(r.node.freshness, Freshness::Fresh { .. }));
        (!fresh).then(|| placement.node.clone())
    }

    /// Leaves one pod per slot, or two while the newer is not Ready yet. The primary comes first: of two of the
    /// present specification the one that does not have to move.
    fn settle_slots(&mut self, live: &mut Live<'a>) {
        for pods in live.values_mut() {
            let heirs = pods.iter().filter(|r| r.takes_over && self.matches(r)).map(|r| r.incarnation);
            let heir = heirs.max().unwrap_or(0);
            let stays = |r: &Replica| r.incarnation >= heir;
            let ready = |r: &Replica| r.phase == Phase::Ready;
            let rank = |r: &Replica| (self.matches(r), !self.cordoned(r), stays(r), ready(r), r.incarnation);
            pods.sort_by_key(|r| std::cmp::Reverse(rank(r)));
            let primary = pods[0];
            let waiting = self.matches(primary) && primary.phase != Phase::Ready;
            let mut kept = vec![primary];
            for r in pods.drain(..).skip(1) {
                if waiting && r.phase == Phase::Ready && kept.len() == 1 {
                    kept.push(r);
                    self.move_on(r, primary);
                    continue;
                }
                let moved = self.matches(r) && primary.takes_over && primary.phase == Phase::Ready;
                let reason = match r.spec_hash == primary.spec_hash {
                    true if self.cordoned(r) && !self.cordoned(primary) => EndReason::NodeCordoned,
                    true if moved && r.incarnation < primary.incarnation => EndReason::Moved,
                    true => EndReason::Duplicate,
                    false => EndReason::Rollout,
                };
                self.end(r, reason);
            }
            *pods = kept;
        }
    }

    /// Notes a move in progress.
    fn move_on(&mut self, old: &Replica, heir: &Replica) {
        if !heir.takes_over || !self.matches(old) {
            return;
        }
        let until_ms = heir.created_ms.saturating_add(self.policy.move_patience_ms);
        let overdue = self.now >= until_ms;
        self.out.wakes.extend((!overdue).then_some(until_ms));
        self.out.moving.push(Moving { index: old.index, incarnation: old.incarnation, overdue });
    }

    /// The least valuable slots go: not Ready, then outdated, then on cordoned nodes or degraded
    /// GPUs, then of the variants that the rule ends first, then the least loaded, then the youngest. A load that is not known counts as the highest.
    fn scale_in(&mut self, live: &mut Live<'a>, wanted: u32) {
        let surplus = live.len().saturating_sub(wanted as usize);
        if surplus == 0 {
            return;
        }
        for index in self.scale_in_slots(live).into_iter().take(surplus) {
            for r in live.remove(&index).into_iter().flatten() {
                self.end(r, EndReason::ScaleIn);
            }
        }
    }

    fn scale_in_slots(&self, live: &Live<'a>) -> Vec<u32> {
        let mut order: Vec<u32> = live.keys().copied().collect();
        order.sort_by_key(|index| {
            let pods = &live[index];
            let ready = pods.iter().any(|r| r.phase == Phase::Ready);
            let created = pods.iter().map(|r| r.created_ms).min().unwrap_or(0);
            (
                ready,
                self.matches(pods[0]),
                !self.burdened(pods[0]),
                self.rank(pods[0]),
                pods.iter().map(|r| r.in_flight.unwrap_or(u32::MAX)).max(),
                std::cmp::Reverse(created),
                std::cmp::Reverse(*index),
            )
        });
        order
    }

    /// Where the rule says which variants go first.
    fn rank(&self, r: &Replica) -> usize {
        let variant = r.placement.as_ref().map(|p| &p.variant);
        self.end.iter().position(|name| Some(name) == variant).unwrap_or(self.end.len())
    }

    fn burdened(&self, r: &Replica) -> bool {
        let Some(placement) = &r.placement else { return false };
        let Some(node) = self.index.row(&placement.node).map(|r| &r.node) else { return true };
        let degraded =
            |uuid: &str| node.gpus.iter().any(|g| g.uuid == uuid && matches!(g.health, Health::Degraded { .. }));
        node.cordoned || placement.gpus.iter().any(|s| degraded(&s.uuid))
    }

    /// On a node that takes nothing new and is perhaps about to be drained.
    fn cordoned(&self, r: &Replica) -> bool {
        let row = r.placement.as_ref().and_then(|p| self.index.row(&p.node));
        row.is_some_and(|row| row.node.cordoned)
    }

    fn count(&mut self, live: &Live<'a>) {
        self.out.current = live.len() as u32;
        let ready = |pods: &&Vec<&Replica>| pods.iter().any(|r| r.phase == Phase::Ready);
        self.out.ready = live.values().filter(ready).count() as u32;
        let updated = |pods: &&Vec<&Replica>| pods.iter().any(|r| self.matches(r) && r.phase == Phase::Ready);
        self.out.updated_ready = live.values().filter(updated).count() as u32;
    }

    /// Outdated pods that serve nothing go at once; of those that serve, as many may be renewed as
    /// are not already in renewal, a quarter of the replicas and at least one. As many leave cordoned nodes at a
    /// time, whether or not others are Ready: a move ends nothing before its replacement serves.
    fn renewals(&mut self, live: &Live<'a>, wanted: u32) {
        let quarter = (wanted as usize / 4).max(1);
        let in_progress = live.values().filter(|p| self.matches(p[0]) && p[0].phase != Phase::Ready).count();
        let moving = live.values().filter(|p| p.len() > 1).count();
        let mut outdated = quarter.saturating_sub(in_progress);
        let mut moves = quarter.saturating_sub(moving);
        for (index, pods) in live {
            let primary = pods[0];
            let Some((why, reason)) = self.renewal(primary) else { continue };
            if primary.phase != Phase::Ready {
                self.end(primary, EndReason::Rollout);
                self.out.current -= 1;
                continue;
            }
            let budget = if why == Renewal::Outdated { &mut outdated } else { &mut moves };
            if *budget == 0 || !self.attempt_now(*index) {
                continue;
            }
            *budget -= 1;
            self.out.renew.push(Renew {
                open: Open { index: *index, incarnation: self.next_incarnation(*index), reason },
                old: self.id(primary),
                old_pod: primary.name.clone(),
                why,
            });
        }
    }

    /// Why a slot's primary is to be replaced, if it is.
    fn renewal(&self, primary: &Replica) -> Option<(Renewal, CreateReason)> {
        if !self.matches(primary) {
            return Some((Renewal::Outdated, CreateReason::Rollout));
        }
        let node = primary.placement.as_ref().filter(|_| self.cordoned(primary))?.node.clone();
        (primary.phase == Phase::Ready).then_some((Renewal::Cordoned { node }, CreateReason::Replace))
    }

    /// Slots to fill: those whose pod drains and could go on, then the lowest numbers without a pod that counts.
    fn open_slots(&mut self, live: &Live<'a>, wanted: u32) {
        let taken: BTreeSet<u32> = live
            .iter()
            .filter(|(_, p)| self.matches(p[0]) || p[0].phase == Phase::Ready)
            .map(|(index, _)| *index)
            .collect();
        let missing = (wanted as usize).saturating_sub(taken.len()).min(MAX_OPEN);
        let draining: BTreeSet<u32> = self.out.resumable.iter().map(|r| r.replica.index).collect();
        self.out.resumable.retain(|r| !taken.contains(&r.replica.index));
        let others = (0..=u32::MAX).filter(|i| !draining.contains(i));
        let free = draining.iter().copied().chain(others).filter(|i| !taken.contains(i));
        let free: Vec<u32> = free.take(missing).collect();
        for index in free {
            if !self.attempt_now(index) || self.just_failed(index) {
                continue;
            }
            let open = Open { index, incarnation: self.next_incarnation(index), reason: self.create_reason(index) };
            self.out.open.push(open);
        }
    }

    /// A failure seen in this snapshot may not be counted in its slot yet: wait for the next one.
    fn just_failed(&self, index: u32) -> bool {
        self.out
            .ends
            .iter()
            .any(|e| e.replica.index == index && matches!(e.reason, EndReason::Failed | EndReason::Overshoot))
    }

    /// False, with a wait noted, while the slot backs off.
    fn attempt_now(&mut self, index: u32) -> bool {
        if let Some(hold) = self.d.held.as_ref().filter(|hold| self.now < hold.until_ms) {
            let wait = Wait::Refused { until_ms: hold.until_ms, message: hold.message.clone() };
            if !self.out.waits.contains(&wait) {
                self.out.wakes.push(hold.until_ms);
                self.out.waits.push(wait);
            }
            return false;
        }
        let Some(slot) = self.d.slots.iter().find(|s| s.index == index) else { return true };
        // The first failure is met at once: most often the pod was killed, not broken.
        if slot.failures < 2 {
            return true;
        }
        let pause = back_off_ms(self.policy, slot.failures - 2);
        let until_ms = slot.last_failure_ms.saturating_add(pause);
        if self.now >= until_ms {
            return true;
        }
        self.out.waits.push(Wait::BackOff { index, until_ms, failures: slot.failures });
        self.out.wakes.push(until_ms);
        false
    }

    fn create_reason(&self, index: u32) -> CreateReason {
        let mut earlier = self.d.replicas.iter().filter(|r| r.index == index).peekable();
        if earlier.peek().is_some() {
            let outdated = earlier.any(|r| !self.matches(r));
            return if outdated { CreateReason::Rollout } else { CreateReason::Replace };
        }
        match self.d.slots.iter().find(|s| s.index == index) {
            Some(slot) if slot.failures > 0 => CreateReason::Replace,
            _ => CreateReason::ScaleOut,
        }
    }

    fn next_incarnation(&self, index: u32) -> u32 {
        next_incarnation(self.d, index)
    }

    fn matches(&self, r: &Replica) -> bool {
        r.spec_hash == self.d.spec_hash
    }

    fn id(&self, r: &Replica) -> ReplicaId {
        replica_id(self.d, r)
    }

    fn trouble(&mut self, r: &Replica, what: TroubleKind) {
        let replica = self.id(r);
        self.out.troubles.push(Trouble { replica, pod: r.name.clone(), what });
    }

    /// Drain what may have work, remove the rest. Always false: the pod no longer counts.
    fn end(&mut self, r: &Replica, reason: EndReason) -> bool {
        if matches!(r.phase, Phase::Ready | Phase::Unready) {
            return self.drain(r, reason, self.d.drain_timeout_ms);
        }
        self.remove(r, reason)
    }

    fn drain(&mut self, r: &Replica, reason: EndReason, limit_ms: u64) -> bool {
        let drain_until = Some(self.now.saturating_add(limit_ms));
        self.push_end(r, reason, drain_until)
    }

    fn remove(&mut self, r: &Replica, reason: EndReason) -> bool {
        self.push_end(r, reason, None)
    }

    fn push_end(&mut self, r: &Replica, reason: EndReason, drain_until: Option<TimeMs>) -> bool {
        let (replica, pod) = (self.id(r), r.name.clone());
        self.out.ends.push(End { replica, pod, drain_until, reason, exclude: None, claimant: None });
        false
    }
}

pub(crate) fn replica_id(d: &Deployment, r: &Replica) -> ReplicaId {
    ReplicaId { deployment: d.id.clone(), index: r.index, incarnation: r.incarnation }
}

/// Of the next pod of a slot.
pub(crate) fn next_incarnation(d: &Deployment, index: u32) -> u32 {
    let of_pods = d.replicas.iter().filter(|r| r.index == index).map(|r| r.incarnation);
    let of_slots = d.slots.iter().filter(|s| s.index == index).map(|s| s.incarnation);
    of_pods.chain(of_slots).max().map_or(0, |i| i.saturating_add(1))
}

/// Doubles with each failure in a row, up to the longest.
pub(crate) fn back_off_ms(policy: &Policy, doublings: u32) -> u64 {
    let factor = 1u64 << doublings.min(32);
    policy.backoff_base_ms.saturating_mul(factor).min(policy.backoff_max_ms)
}

//! The slots: one pod of each counts, some end because fewer are wanted, some are open, some await renewal.

use std::collections::BTreeSet;

use crate::lifecycle::{Live, Open, Renew, Renewal, View, Wait, back_off_ms, next_incarnation};
use crate::plan::{CreateReason, EndReason};
use crate::snapshot::{Health, Phase, Replica};

/// Slots of one deployment that one plan tries to fill; the next plan goes on.
const MAX_OPEN: usize = 4096;

impl<'a> View<'a> {
    /// Leaves one pod per slot, or two while the newer is not Ready yet. The primary comes first: of two of the
    /// present specification the one that does not have to move, of two others the one that serves.
    pub(super) fn settle_slots(&mut self, live: &mut Live<'a>) {
        for pods in live.values_mut() {
            self.give_up(pods);
            let heirs = pods.iter().filter(|r| r.takes_over && self.matches(r)).map(|r| r.incarnation);
            let heir = heirs.max().unwrap_or(0);
            let stays = |r: &Replica| r.incarnation >= heir;
            let ready = |r: &Replica| r.phase == Phase::Ready;
            let serves = |r: &Replica| !self.matches(r) && ready(r);
            let rank = |r: &Replica| (self.matches(r), serves(r), !self.cordoned(r), stays(r), ready(r), r.incarnation);
            pods.sort_by_key(|r| std::cmp::Reverse(rank(r)));
            let primary = pods[0];
            let mut kept = vec![primary];
            for r in pods.drain(..).skip(1) {
                if kept.len() == 1 && self.stays_beside(r, primary) {
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

    /// The least valuable slots go: not Ready, then outdated, then on cordoned nodes or degraded
    /// GPUs, then of the variants that the rule ends first, then the least loaded, then the youngest. A load that is not known counts as the highest.
    pub(super) fn scale_in(&mut self, live: &mut Live<'a>, wanted: u32) {
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

    pub(super) fn scale_in_slots(&self, live: &Live<'a>) -> Vec<u32> {
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

    pub(super) fn count(&mut self, live: &Live<'a>) {
        self.out.current = live.len() as u32;
        let ready = |pods: &&Vec<&Replica>| pods.iter().any(|r| r.phase == Phase::Ready);
        self.out.ready = live.values().filter(ready).count() as u32;
        let updated = |pods: &&Vec<&Replica>| pods.iter().any(|r| self.matches(r) && r.phase == Phase::Ready);
        self.out.updated_ready = live.values().filter(updated).count() as u32;
    }

    /// Outdated pods that serve nothing go at once; of those that serve, as many may be renewed as
    /// are not already in renewal, a quarter of the replicas and at least one. As many leave cordoned nodes at a
    /// time, whether or not others are Ready: a move ends nothing before its replacement serves.
    pub(super) fn renewals(&mut self, live: &Live<'a>, wanted: u32) {
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
    pub(super) fn open_slots(&mut self, live: &Live<'a>, wanted: u32) {
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
}

//! Each pod by itself: which ends whatever is wanted, for what is wrong with it or its node.
//!
//! Stale data end nothing. Not here: what follows from the number of pods that are wanted (`slots`).

use std::collections::BTreeMap;

use crate::lifecycle::{End, Live, Resume, TroubleKind, View, Wait, back_off_ms};
use crate::plan::{EndReason, Exclude};
use crate::snapshot::{Freshness, Health, Phase, Replica, TimeMs};

/// A pod that ends within this is not ended again.
const SOON_MS: u64 = 10_000;

impl<'a> View<'a> {
    /// Ends what must end whatever is wanted, and returns the rest.
    pub(super) fn sort_out(&mut self) -> Live<'a> {
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
}

//! What the operator remembers between plans and may forget in a crash: back-offs, exclusions, and
//! which pods have been Ready. Losing it costs an early retry, never a wrong object.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use stowage_planner::Plan;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::snapshot::{
    DecayedShare, DeploymentId, Exclusion, Hold, Memory as RuleMemory, Slot, Snapshot, TimeMs,
};

use super::learned::Learned;
use super::snapshot::strays::{self, Stray};
use crate::observe::identity::{controller, identity};
use crate::observe::view::{Objects, View};
use crate::translate::snapshot::replicas::condition;

/// A pod that was Ready for this long has proved that its slot works.
const PROVEN_MS: u64 = 60_000;

/// Keyed by deployment UID and slot index.
type SlotKey = (String, u32);

#[derive(Debug, Clone, Default)]
pub struct Memory {
    slots: BTreeMap<SlotKey, Slot>,
    exclusions: Vec<Exclusion>,
    was_ready: BTreeSet<String>,
    /// UIDs of deployments that were deleted with `--cascade=orphan`.
    orphaning: BTreeSet<String>,
    /// Since when no deployment claims an object of ours, by its UID.
    unclaimed: BTreeMap<String, TimeMs>,
    /// What is learned of each deployment, by its UID.
    learned: BTreeMap<String, Learned>,
    /// What the scaling rule remembers of each deployment, by its UID.
    rules: BTreeMap<String, RuleMemory>,
    /// Deployments whose creations the API server refuses.
    held: BTreeMap<DeploymentId, Hold>,
    /// What tenants borrowed of late, from the last report.
    shares: Vec<DecayedShare>,
}

impl Memory {
    /// Takes in what the pods show and drops what is over.
    pub fn observe(&mut self, view: &View, now: TimeMs) {
        let uids: BTreeSet<&str> = view.deployments.values().map(|stored| stored.uid()).collect();
        self.exclusions.retain(|exclusion| exclusion.until_ms > now);
        self.slots.retain(|(uid, _), _| uids.contains(uid.as_str()));
        self.orphaning.retain(|uid| uids.contains(uid.as_str()));
        self.learned.retain(|uid, _| uids.contains(uid.as_str()));
        self.rules.retain(|uid, _| uids.contains(uid.as_str()));
        let orphaning = view.deployments.values().filter(|stored| stored.orphaning());
        self.orphaning.extend(orphaning.map(|stored| stored.uid().to_owned()));
        let since = |stray: Stray| (stray.uid.clone(), self.unclaimed.get(&stray.uid).copied().unwrap_or(now));
        self.unclaimed = strays::unclaimed(view).into_iter().map(since).collect();
        self.observe_pods(&view.pods, now);
        self.observe_costs(view);
    }

    /// What engines reported through the gateways.
    fn observe_costs(&mut self, view: &View) {
        for pod in view.pods.values() {
            let (Some(uid), Some(owner)) = (pod.metadata.uid.as_deref(), controller(&pod.metadata)) else { continue };
            let Some(id) = identity(&pod.metadata) else { continue };
            let load = view.gateways.deployments.get(&id.replica.deployment).and_then(|load| load.replicas.get(uid));
            let engine = load.and_then(|load| load.engine.as_ref());
            let coefficients = engine.and_then(|(at, engine)| Some((*at, engine.coefficients?)));
            if let (Some((at, coefficients)), Some(placement)) = (coefficients, &id.placement) {
                let learned = self.learned.entry(owner.uid.clone()).or_default();
                learned.cost(&placement.variant, coefficients, at);
            }
        }
    }

    /// Takes in what a plan returned for the next one.
    pub fn remember(&mut self, snapshot: &Snapshot, plan: &Plan) {
        let uids: BTreeMap<&DeploymentId, &str> =
            snapshot.deployments.iter().map(|d| (&d.id, d.uid.as_str())).collect();
        for (id, memory) in &plan.memory {
            if let Some(uid) = uids.get(id) {
                self.rules.insert((*uid).to_owned(), memory.clone());
            }
        }
    }

    /// What is learned of the deployment with this UID.
    pub fn learned(&self, uid: &str) -> Option<&Learned> {
        self.learned.get(uid)
    }

    /// What the scaling rule remembers of it.
    pub fn rule(&self, uid: &str) -> RuleMemory {
        self.rules.get(uid).cloned().unwrap_or_default()
    }

    fn observe_pods(&mut self, pods: &Objects<Pod>, now: TimeMs) {
        let mut ready = BTreeSet::new();
        for pod in pods.values() {
            let (Some(uid), Some(id)) = (pod.metadata.uid.as_ref(), identity(&pod.metadata)) else { continue };
            let Some(condition) = condition(pod, "Ready") else { continue };
            if condition.status == "True"
                && !self.was_ready.contains(uid)
                && let Some(owner) = controller(&pod.metadata)
            {
                self.learned.entry(owner.uid.clone()).or_default().started(pod);
            }
            if condition.status == "True" || self.was_ready.contains(uid) {
                ready.insert(uid.clone());
            }
            let since = condition
                .last_transition_time
                .as_ref()
                .map_or(now, |time| crate::translate::snapshot::replicas::millis(time.0));
            if condition.status == "True" && now.saturating_sub(since) > PROVEN_MS {
                self.proven(pod, id.replica.index);
            }
        }
        self.was_ready = ready;
    }

    /// Takes in what was decided: failures count, exclusions stand.
    pub fn decided(&mut self, uid: &str, action: &Action, now: TimeMs) {
        let replica = action.replica();
        let slot = self.slots.entry((uid.to_owned(), replica.index)).or_insert_with(|| empty(replica.index));
        slot.incarnation = slot.incarnation.max(replica.incarnation);
        if let Action::Remove { reason, exclude, .. } = action {
            if failed(*reason) {
                slot.failures = slot.failures.saturating_add(1);
                slot.last_failure_ms = now;
            }
            if let Some(exclude) = exclude {
                self.exclude(
                    &replica.deployment,
                    replica.index,
                    exclude.node.clone(),
                    exclude.until_ms,
                    exclude.reason.clone(),
                );
            }
        }
    }

    /// Slots of one deployment, as remembered; incarnations of pods and claims that exist are added by the snapshot.
    pub fn slots(&self, uid: &str) -> BTreeMap<u32, Slot> {
        let range = self.slots.range((uid.to_owned(), 0)..=(uid.to_owned(), u32::MAX));
        range.map(|((_, index), slot)| (*index, slot.clone())).collect()
    }

    /// Takes in what the last plan reports of the past.
    pub fn borrowed(&mut self, shares: &[DecayedShare]) {
        self.shares = shares.to_vec();
    }

    pub fn shares(&self) -> Vec<DecayedShare> {
        self.shares.clone()
    }

    pub fn exclusions(&self) -> Vec<Exclusion> {
        self.exclusions.clone()
    }

    pub fn was_ready(&self, pod_uid: &str) -> bool {
        self.was_ready.contains(pod_uid)
    }

    /// UIDs of deployments that were deleted with `--cascade=orphan`.
    pub fn orphaning(&self) -> &BTreeSet<String> {
        &self.orphaning
    }

    /// Since when no deployment claims the object with this UID.
    pub fn unclaimed_since(&self, uid: &str) -> Option<TimeMs> {
        self.unclaimed.get(uid).copied()
    }

    /// Takes in which deployments' creations are refused.
    pub fn hold(&mut self, held: BTreeMap<DeploymentId, Hold>) {
        self.held = held;
    }

    /// Why nothing may be created for the deployment now.
    pub fn held(&self, deployment: &DeploymentId) -> Option<&Hold> {
        self.held.get(deployment)
    }

    fn exclude(&mut self, deployment: &DeploymentId, index: u32, node: String, until_ms: TimeMs, reason: String) {
        self.exclusions.retain(|known| (&known.deployment, known.index, &known.node) != (deployment, index, &node));
        self.exclusions.push(Exclusion { deployment: deployment.clone(), index, node, until_ms, reason });
    }

    fn proven(&mut self, pod: &Pod, index: u32) {
        for owner in pod.metadata.owner_references.iter().flatten() {
            if let Some(slot) = self.slots.get_mut(&(owner.uid.clone(), index)) {
                slot.failures = 0;
            }
        }
    }
}

/// Whether the end counts as a failure of its slot, after which the next attempt waits. The planner
/// expects the same of all who keep its slots: see `Slot::failures`.
fn failed(reason: EndReason) -> bool {
    matches!(reason, EndReason::Failed | EndReason::Overshoot | EndReason::Unschedulable | EndReason::Unprepared)
}

pub fn empty(index: u32) -> Slot {
    Slot { index, incarnation: 0, failures: 0, last_failure_ms: 0 }
}

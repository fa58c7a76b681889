//! What the operator remembers between plans and may forget in a crash: back-offs, exclusions, and
//! which pods have been Ready. Losing it costs an early retry, never a wrong object.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use stowage_planner::Plan;
use stowage_planner::demand::bottleneck::{FaultyGpus, Means, Verdict};
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::snapshot::{
    ColdStart, DecayedShare, DeploymentId, Exclusion, Hold, Memory as RuleMemory, RecentMove, ReplicaId, Slot,
    Snapshot, TimeMs, Waiting,
};

use stowage_crds::names::{ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING};
use stowage_crds::quantity::parse_duration;

use super::Built;
use super::known::Known;
use super::learned::Learned;
use super::snapshot::strays::Stray;
use super::starts::{Kind, Start, Starts, restarted};
use super::validate::{Judged, Wanted};
use crate::observe::clock::moved;
use crate::observe::identity::controller;
use crate::observe::view::{KnownPod, Objects, StoredDeployment, View};
use crate::translate::snapshot::replicas::{condition, millis};

/// A pod that was Ready for this long has proved that its slot works.
const PROVEN_MS: u64 = 60_000;

/// Keyed by deployment UID and slot index.
type SlotKey = (String, u32);

#[derive(Debug, Clone, Default)]
pub struct Memory {
    slots: BTreeMap<SlotKey, Slot>,
    exclusions: Vec<Exclusion>,
    was_ready: HashSet<String>,
    /// Since when pods are looked at.
    since: Option<TimeMs>,
    /// UIDs of deployments that were deleted with `--cascade=orphan`.
    orphaning: BTreeSet<String>,
    /// Since when no deployment claims an object of ours, by its UID.
    unclaimed: BTreeMap<String, TimeMs>,
    /// What is learned of each deployment, by its UID.
    learned: BTreeMap<String, Learned>,
    /// Pods that became Ready for the first time and are not looked at yet.
    fresh: Vec<Arc<KnownPod>>,
    /// Shared, because each plan keeps a copy of the memory that it was made with.
    starts: Arc<Starts>,
    /// What the scaling rule remembers of each deployment, by its UID.
    rules: BTreeMap<String, RuleMemory>,
    /// Where its requests were in the last half minute, by its UID.
    stages: BTreeMap<String, Means>,
    /// Deployments whose creations the API server refuses.
    held: BTreeMap<DeploymentId, Hold>,
    /// What tenants borrowed of late, from the last report.
    shares: Vec<DecayedShare>,
    /// Since when deployments have waited for room, from the last report.
    waiting: Vec<Waiting>,
    /// Which replicas were made to move of late, from the last report.
    recent_moves: Vec<RecentMove>,
    /// By how much the clock was set while a pod drains, by the pod's UID and since when it drains: a drain that is
    /// cancelled and begins again has times of its own.
    drain_shifts: BTreeMap<(String, String), DrainShift>,
    known: Arc<Known>,
}

#[derive(Debug, Clone)]
struct DrainShift {
    since_ms: i64,
    /// Of the deadline, which may be written anew.
    until_ms: i64,
    until: Option<String>,
}

impl Memory {
    /// Takes in what the pods show and drops what is over.
    pub fn observe(&mut self, view: &View, now: TimeMs) {
        let uids: BTreeSet<&str> = view.deployments.values().map(|stored| stored.uid()).collect();
        self.since.get_or_insert(now);
        self.exclusions.retain(|exclusion| exclusion.until_ms > now);
        self.slots.retain(|(uid, _), _| uids.contains(uid.as_str()));
        self.orphaning.retain(|uid| uids.contains(uid.as_str()));
        self.learned.retain(|uid, _| uids.contains(uid.as_str()));
        self.rules.retain(|uid, _| uids.contains(uid.as_str()));
        self.stages.retain(|uid, _| uids.contains(uid.as_str()));
        if self.starts.has_gone(&uids) {
            Arc::make_mut(&mut self.starts).forget_gone(&uids);
        }
        let orphaning = view.deployments.values().filter(|stored| stored.orphaning());
        self.orphaning.extend(orphaning.map(|stored| stored.uid().to_owned()));
        self.observe_pods(&view.pods, now);
        self.observe_costs(view);
    }

    /// Takes in what the snapshot of this view was made of.
    pub fn keep(&mut self, view: &Arc<View>, built: &Built) {
        self.known = Arc::new(Known::of(view, built));
    }

    /// What the last snapshot was made of.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Takes in which objects nobody claims now.
    pub fn unclaimed(&mut self, strays: &[Stray], now: TimeMs) {
        let since = |stray: &Stray| (stray.uid.clone(), self.unclaimed.get(&stray.uid).copied().unwrap_or(now));
        self.unclaimed = strays.iter().map(since).collect();
    }

    /// What engines reported through the gateways.
    fn observe_costs(&mut self, view: &View) {
        for pod in view.pods.values() {
            let (Some(uid), Some(owner)) = (pod.metadata.uid.as_deref(), controller(&pod.metadata)) else { continue };
            let Some(id) = pod.identity() else { continue };
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

    /// Takes in how long the replicas took that have become Ready, now that it is known what they run.
    pub fn learn(&mut self, judged: &BTreeMap<DeploymentId, Arc<Judged>>, stored: &Objects<StoredDeployment>) {
        let since = self.since.unwrap_or(0);
        let fresh = self.fresh.drain(..);
        let mut found: Vec<(Kind, Start)> = fresh.filter_map(|pod| measured(&pod, judged, stored, since)).collect();
        found.sort_by_key(|(_, start)| start.ready_ms);
        for (kind, start) in found {
            Arc::make_mut(&mut self.starts).note(kind, start);
        }
    }

    /// What is expected of the next start of the deployment with this UID.
    pub fn cold_start(&self, namespace: &str, uid: &str, wanted: &Wanted) -> ColdStart {
        let kinds = wanted.variants.iter().filter_map(|variant| Kind::of(namespace, uid, wanted, &variant.name));
        self.starts.cold_start(&kinds.collect::<Vec<_>>())
    }

    /// The clock was set by so many milliseconds: what it timed before moves with it.
    pub fn clock_set(&mut self, pods: &Objects<KnownPod>, by_ms: i64) {
        let shift = |pod: &Arc<KnownPod>| {
            let (since_ms, until_ms) = self.drain_shift(pod);
            let until = drain_until(pod).cloned();
            Some((drain_of(pod)?, DrainShift { since_ms: since_ms + by_ms, until_ms: until_ms + by_ms, until }))
        };
        self.drain_shifts = pods.values().filter_map(shift).collect();
        self.exclusions.iter_mut().for_each(|exclusion| exclusion.until_ms = moved(exclusion.until_ms, by_ms));
        self.slots.values_mut().for_each(|slot| slot.last_failure_ms = moved(slot.last_failure_ms, by_ms));
        self.unclaimed.values_mut().for_each(|since| *since = moved(*since, by_ms));
        self.since = self.since.map(|since| moved(since, by_ms));
        self.waiting.iter_mut().for_each(|waiting| waiting.since_ms = moved(waiting.since_ms, by_ms));
        self.recent_moves.iter_mut().for_each(|made| made.at_ms = moved(made.at_ms, by_ms));
        self.stages.clear();
    }

    /// Takes in where requests are, and says what limits each deployment.
    pub fn bottlenecks(&mut self, snapshot: &Snapshot, now: TimeMs) -> BTreeMap<DeploymentId, Verdict> {
        let faulty = FaultyGpus::of(&snapshot.nodes);
        let mut found = BTreeMap::new();
        for d in snapshot.deployments.iter().filter(|d| !d.uid.is_empty()) {
            let means = self.stages.entry(d.uid.clone()).or_insert_with(|| Means::since(now));
            means.observe(d, &faulty);
            found.insert(d.id.clone(), means.verdict(d, &faulty, now));
        }
        found
    }

    /// What is to be added to the times in a draining pod's annotations: of its beginning and of its deadline.
    pub fn drain_shift(&self, pod: &Pod) -> (i64, i64) {
        let shift = drain_of(pod).and_then(|drain| self.drain_shifts.get(&drain));
        let Some(DrainShift { since_ms, until_ms, until }) = shift else { return (0, 0) };
        (*since_ms, if until.as_ref() == drain_until(pod) { *until_ms } else { 0 })
    }

    /// What is learned of the deployment with this UID.
    pub fn learned(&self, uid: &str) -> Option<&Learned> {
        self.learned.get(uid)
    }

    /// What the scaling rule remembers of it.
    pub fn rule(&self, uid: &str) -> RuleMemory {
        self.rules.get(uid).cloned().unwrap_or_default()
    }

    fn observe_pods(&mut self, pods: &Objects<KnownPod>, now: TimeMs) {
        self.fresh.clear();
        let any_failed = self.slots.values().any(|slot| slot.failures > 0);
        let mut known = 0;
        for pod in pods.values() {
            let (Some(uid), Some(id)) = (pod.metadata.uid.as_ref(), pod.identity()) else { continue };
            let was_ready = self.was_ready.contains(uid);
            known += usize::from(was_ready);
            let Some(condition) = condition(pod, "Ready") else { continue };
            if condition.status == "True" && !was_ready {
                self.fresh.push(pod.clone());
            }
            if !any_failed {
                continue;
            }
            let since = condition.last_transition_time.as_ref().map_or(now, |time| millis(time.0));
            if condition.status == "True" && now.saturating_sub(since) > PROVEN_MS {
                self.proven(pod, &id.replica);
            }
        }
        if known < self.was_ready.len() {
            let exist: HashSet<&str> = pods.values().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
            self.was_ready.retain(|uid| exist.contains(uid.as_str()));
        }
        self.was_ready.extend(self.fresh.iter().filter_map(|pod| pod.metadata.uid.clone()));
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

    /// Takes in since when deployments have waited for room, as the last plan reports it.
    pub fn waited(&mut self, waiting: &[Waiting]) {
        self.waiting = waiting.to_vec();
    }

    pub fn waiting(&self) -> Vec<Waiting> {
        self.waiting.clone()
    }

    /// Takes in which replicas were made to move of late, as the last plan reports it.
    pub fn moved(&mut self, moves: &[RecentMove]) {
        self.recent_moves = moves.to_vec();
    }

    pub fn recent_moves(&self) -> Vec<RecentMove> {
        self.recent_moves.clone()
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

    /// One that was made before the last attempt proves nothing about that: it may be about to be replaced.
    fn proven(&mut self, pod: &Pod, replica: &ReplicaId) {
        for owner in pod.metadata.owner_references.iter().flatten() {
            if let Some(slot) = self.slots.get_mut(&(owner.uid.clone(), replica.index))
                && replica.incarnation >= slot.incarnation
            {
                slot.failures = 0;
            }
        }
    }
}

/// How long the replica took, and of what kind it is. `None`: it was made of another spec than the present one, or its
/// engine ended meanwhile.
fn measured(
    pod: &KnownPod,
    judged: &BTreeMap<DeploymentId, Arc<Judged>>,
    stored: &Objects<StoredDeployment>,
    since: TimeMs,
) -> Option<(Kind, Start)> {
    let (id, owner) = (pod.identity()?, controller(&pod.metadata)?);
    let deployment = &id.replica.deployment;
    let wanted = judged.get(deployment)?.wanted().filter(|wanted| wanted.spec_hash == id.spec_hash)?;
    let kind = Kind::of(&deployment.namespace, &owner.uid, wanted, &id.placement.as_ref()?.variant)?;
    let start = Start::of(pod).filter(|_| !restarted(pod))?;
    if pod.metadata.creation_timestamp.as_ref().is_some_and(|made| millis(made.0) >= since) {
        return Some((kind, start));
    }
    let status = stored.get(&(deployment.namespace.clone(), deployment.name.clone()))?.status.as_ref();
    let stated = status.and_then(|status| parse_duration(&status.cold_start.as_ref()?.expected).ok());
    Some((kind, start.from_before(stated)))
}

/// A pod's UID and since when it drains, as its annotation has it.
fn drain_of(pod: &Pod) -> Option<(String, String)> {
    let since = pod.metadata.annotations.as_ref()?.get(ANNOTATION_DRAINING)?;
    Some((pod.metadata.uid.clone()?, since.clone()))
}

fn drain_until(pod: &Pod) -> Option<&String> {
    pod.metadata.annotations.as_ref()?.get(ANNOTATION_DRAIN_UNTIL)
}

/// Whether the end counts as a failure of its slot, after which the next attempt waits. The planner
/// expects the same of all who keep its slots: see `Slot::failures`.
fn failed(reason: EndReason) -> bool {
    matches!(reason, EndReason::Failed | EndReason::Overshoot | EndReason::Unschedulable | EndReason::Unprepared)
}

pub fn empty(index: u32) -> Slot {
    Slot { index, incarnation: 0, failures: 0, last_failure_ms: 0 }
}

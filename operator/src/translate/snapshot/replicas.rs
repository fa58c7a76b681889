//! Pods of ours, as the planner sees them.
//!
//! An engine that ends is started again in its place by the kubelet, with the kubelet's exponential
//! back-off (10 s to 5 min): that needs no write of ours, keeps the slice, and works while the
//! operator is absent. A replica counts as failed, to be made anew elsewhere, when its pod ended as a
//! whole (evicted, refused by the kubelet), or when its engine has ended [`RESTARTS_TOO_MANY`] times
//! without ever saying that the model is at fault, for which another node would be no cure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use stowage_crds::names::{ANNOTATION_DRAINING, CLAIM_PREFIX};
use stowage_planner::snapshot::{Overshoot, Phase, Replica};

use super::nodes::{lost, millis_between};
use crate::observe::identity::identity;
use crate::observe::view::View;
use crate::translate::snapshot::startup::{Startup, startup};

/// With the kubelet's back-off this is after about five minutes.
const RESTARTS_TOO_MANY: i32 = 6;

/// The replicas that these pods are, sorted by slot and life. `was_ready`: pods (by UID) that have been Ready.
pub fn of(view: &View, pods: &[Arc<Pod>], was_ready: &dyn Fn(&str) -> bool) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = pods.iter().filter_map(|pod| replica(view, pod, was_ready)).collect();
    replicas.sort_by(|a, b| (a.index, a.incarnation, &a.name).cmp(&(b.index, b.incarnation, &b.name)));
    replicas
}

fn replica(view: &View, pod: &Pod, was_ready: &dyn Fn(&str) -> bool) -> Option<Replica> {
    let id = identity(&pod.metadata)?;
    let meta = &pod.metadata;
    let node = id.placement.as_ref().map(|placement| placement.node.clone());
    let kube_node = node.as_ref().and_then(|name| view.nodes.get(&(String::new(), name.clone())));
    let created_ms = meta.creation_timestamp.as_ref().map_or(view.now, |time| time.0);
    Some(Replica {
        index: id.replica.index,
        incarnation: id.replica.incarnation,
        name: meta.name.clone().unwrap_or_default(),
        spec_hash: id.spec_hash,
        phase: unprepared(view, pod, node.as_deref())
            .unwrap_or_else(|| phase(view.now, pod, was_ready(meta.uid.as_deref().unwrap_or_default()))),
        node_lost: node.is_some() && lost(kube_node.map(AsRef::as_ref)),
        overshoot: overshoot(view, pod, node.as_deref()),
        placement: id.placement,
        created_ms: millis(created_ms),
    })
}

/// Where the pod is in its life.
pub fn phase(now: Timestamp, pod: &Pod, was_ready: bool) -> Phase {
    if pod.metadata.deletion_timestamp.is_some() {
        return Phase::Terminating;
    }
    let status = pod.status.clone().unwrap_or_default();
    if let Some(kind @ ("Failed" | "Succeeded")) = status.phase.as_deref() {
        let words = [status.reason, status.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Phase::Failed { reason: if words.is_empty() { format!("pod {kind}") } else { words } };
    }
    if let Some(since) = pod.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_DRAINING)) {
        let since_ms = since.parse::<Timestamp>().map_or(millis(now), millis);
        // Nobody counts requests here: once gateways had time to see the annotation the pod is
        // deleted, and the engine finishes what it still runs within the pod's grace period.
        return Phase::Draining { since_ms, in_flight: Some(0) };
    }
    if condition(pod, "PodScheduled").is_none_or(|scheduled| scheduled.status != "True") {
        return unscheduled(now, pod);
    }
    if let Startup::Trouble { restarts, model_refused: false, .. } = startup(pod)
        && restarts >= RESTARTS_TOO_MANY
    {
        return Phase::Failed { reason: format!("the engine ended {restarts} times") };
    }
    if condition(pod, "Ready").is_some_and(|ready| ready.status == "True") {
        return Phase::Ready;
    }
    if was_ready { Phase::Unready } else { Phase::Starting }
}

fn unscheduled(now: Timestamp, pod: &Pod) -> Phase {
    let refusal = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False");
    let created = pod.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    Phase::Unscheduled {
        since_ms: millis(created),
        message: refusal.and_then(|scheduled| scheduled.message.clone()).unwrap_or_default(),
    }
}

/// Bound, and the node's agent says that it cannot hand out the slice (a full disk, say): no container of
/// the pod can have started. Whatever else is true of the pod (it ends, it failed) comes first.
fn unprepared(view: &View, pod: &Pod, node: Option<&str>) -> Option<Phase> {
    let node = node?;
    let claim = format!("{CLAIM_PREFIX}{}", pod.metadata.name.as_deref()?);
    let wanted = (pod.metadata.namespace.as_deref()?, claim.as_str());
    let found = view
        .agents
        .get(node)?
        .refusals
        .iter()
        .find(|found| (found.namespace.as_str(), found.claim.as_str()) == wanted)?;
    // Never against a namesake that was born after the refusals began.
    let born =
        pod.metadata.creation_timestamp.as_ref().is_some_and(|time| millis(time.0) <= millis(found.since) + 1_000);
    let starting = phase(view.now, pod, false) == Phase::Starting;
    (born && starting)
        .then(|| Phase::Unprepared { since_ms: millis(found.since), message: format!("{node}: {}", found.message) })
}

/// A pod's condition of this type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Evidence of the node's agent that this pod uses more than it was promised.
fn overshoot(view: &View, pod: &Pod, node: Option<&str>) -> Option<Overshoot> {
    let news = view.agents.get(node?)?;
    let (namespace, name) = (pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let found = news.overshoots.iter().find(|found| {
        let same = found.namespace == namespace && found.pod == name;
        // Never against a namesake that was born after the samples.
        same && (found.pod_uid.is_empty() || found.pod_uid == uid)
    })?;
    Some(found.evidence.clone())
}

pub fn millis(at: Timestamp) -> u64 {
    millis_between(Timestamp::UNIX_EPOCH, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// `pod`: in YAML. Draining and Unscheduled are told with their first words.
    fn check(name: &str, pod: &str, was_ready: bool, expect: &str) {
        let pod: Pod = serde_yaml::from_str(pod).unwrap();
        let said = format!("{:?}", phase(NOW.parse().unwrap(), &pod, was_ready));
        assert!(said.starts_with(expect), "{name}: {said}");
    }

    fn running(ready: &str, container: &str) -> String {
        format!(
            "status: {{phase: Running, conditions: [{{type: PodScheduled, status: 'True'}}, {{type: Ready, status: '{ready}'}}], \
             containerStatuses: [{{name: engine, image: i, imageID: i, ready: {}, {container}}}]}}",
            ready == "True"
        )
    }

    fn ended(times: u32, exit_code: u32) -> String {
        running(
            "False",
            &format!(
                "restartCount: {times}, state: {{waiting: {{reason: CrashLoopBackOff}}}}, \
                 lastState: {{terminated: {{exitCode: {exit_code}, reason: Error, message: why}}}}"
            ),
        )
    }

    #[test]
    fn a_pod_is_in_one_phase_of_its_life() {
        check("not yet bound", "status: {phase: Pending}", false, "Unscheduled");
        check(
            "refused by the scheduler",
            "status: {conditions: [{type: PodScheduled, status: 'False', message: m}]}",
            false,
            "Unscheduled",
        );
        check("up for the first time", &running("False", "restartCount: 0"), false, "Starting");
        check("serving", &running("True", "restartCount: 0"), false, "Ready");
        check("no longer serving", &running("False", "restartCount: 1"), true, "Unready");
        check(
            "evicted by the kubelet",
            "status: {phase: Failed, reason: Evicted, message: disk}",
            true,
            "Failed { reason: \"Evicted: disk\"",
        );
        check("ended by itself", "status: {phase: Succeeded}", true, "Failed { reason: \"pod Succeeded\"");
        let draining = "metadata: {annotations: {stowage.dev/draining: '2026-01-01T11:59:00Z'}}\n";
        check("out of routing", &format!("{draining}{}", running("True", "restartCount: 0")), true, "Draining");
        let terminating =
            "metadata: {deletionTimestamp: '2026-01-01T11:59:00Z', annotations: {stowage.dev/draining: x}}\n";
        check("being deleted", &format!("{terminating}{}", running("True", "restartCount: 0")), true, "Terminating");
    }

    #[test]
    fn an_engine_that_ends_again_and_again_is_made_anew_unless_its_model_is_at_fault() {
        check("a few times", &ended(5, 1), false, "Starting");
        check("too often", &ended(6, 1), false, "Failed { reason: \"the engine ended 6 times\"");
        check("too often, and it had served", &ended(6, 1), true, "Failed");
        // EX_CONFIG: the engine says that the model cannot be loaded, and no other node would help.
        check("a model that cannot be loaded", &ended(60, 78), false, "Starting");
    }
}

//! Pods of ours, as the planner sees them.
//!
//! An engine that ends is started again in its place by the kubelet, with the kubelet's exponential
//! back-off (10 s to 5 min): that needs no write of ours, keeps the slice, and works while the
//! operator is absent. A replica counts as failed, to be made anew elsewhere, when its pod ended as a
//! whole (evicted, refused by the kubelet), or when its engine has ended [`RESTARTS_TOO_MANY`] times
//! without ever reporting that the model is at fault, for which another node would be no cure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use stowage_crds::names::{
    ANNOTATION_DRAIN_REASON, ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING, ANNOTATION_TAKES_OVER, CLAIM_PREFIX,
};
use stowage_planner::plan::EndReason;
use stowage_planner::snapshot::{Overshoot, Phase, Replica};

use super::changed::changed;
use super::deployments::Parts;
use super::nodes::millis_between;
use crate::observe::agents::{AgentReport, FoundOvershoot};
use crate::observe::clock::moved;
use crate::observe::signals::Load;
use crate::observe::view::KnownPod;
use crate::translate::snapshot::startup::{Startup, startup};
use crate::translate::validate::Wanted;

/// With the kubelet's back-off this is after about five minutes.
const RESTARTS_TOO_MANY: i32 = 6;

/// The agents that report something about a replica on their node, by node: few of all.
#[derive(Debug)]
pub struct Trouble<'a>(HashMap<&'a str, &'a AgentReport>);

impl<'a> Trouble<'a> {
    pub fn read(agents: &'a BTreeMap<String, AgentReport>) -> Self {
        let reports = agents.iter().filter(|(_, agent)| !agent.refusals.is_empty() || !agent.overshoots.is_empty());
        Self(reports.map(|(node, agent)| (node.as_str(), agent)).collect())
    }

    fn on(&self, node: &str) -> Option<&'a AgentReport> {
        self.0.get(node).copied()
    }
}

/// The replicas that these pods are, sorted by slot and life.
pub fn of(pods: &[Arc<KnownPod>], wanted: Option<&Wanted>, load: Option<&Load>, parts: Parts<'_>) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = pods.iter().filter_map(|pod| replica(pod, wanted, load, parts)).collect();
    replicas.sort_by(|a, b| (a.index, a.incarnation, &a.name).cmp(&(b.index, b.incarnation, &b.name)));
    replicas
}

fn replica(pod: &KnownPod, wanted: Option<&Wanted>, load: Option<&Load>, parts: Parts<'_>) -> Option<Replica> {
    let id = pod.identity()?;
    let meta = &pod.metadata;
    let created_ms = meta.creation_timestamp.as_ref().map_or(parts.view.now, |time| time.0);
    Some(Replica {
        index: id.replica.index,
        incarnation: id.replica.incarnation,
        name: meta.name.clone().unwrap_or_default(),
        spec_hash: id.spec_hash.clone(),
        phase: judged_phase(pod, wanted, parts),
        node_lost: pod.node().is_some_and(|node| parts.alive.lost(node)),
        overshoot: overshoot(parts.trouble, pod),
        in_flight: load.map(|load| in_flight(load, meta.uid.as_deref().unwrap_or_default())),
        placement: id.placement.clone(),
        created_ms: millis(created_ms),
        takes_over: meta.annotations.as_ref().is_some_and(|all| all.contains_key(ANNOTATION_TAKES_OVER)),
    })
}

/// Gateways that report the deployment send nothing to a replica that they do not list: they have not seen it Ready yet.
fn in_flight(load: &Load, uid: &str) -> u32 {
    load.replicas.get(uid).map_or(0, |replica| replica.in_flight)
}

/// The pod's phase, with what its node's agent and a comparison with the spec add to it.
fn judged_phase(pod: &KnownPod, wanted: Option<&Wanted>, parts: Parts<'_>) -> Phase {
    let Parts { view, memory, trouble, .. } = parts;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let own = match phase(view.now, pod, memory.was_ready(uid)) {
        Phase::Draining { since_ms, until_ms, may_resume, .. } => {
            let (since_by, until_by) = memory.drain_shift(pod);
            let (since_ms, until_ms) = (moved(since_ms, since_by), until_ms.map(|until| moved(until, until_by)));
            let in_flight = view.gateways.drains.of(uid, since_ms).in_flight();
            Phase::Draining { since_ms, until_ms, in_flight, may_resume }
        }
        other => other,
    };
    match changed(pod, wanted) {
        Some(reason) if !own.is_terminating() => Phase::Failed { reason },
        _ => unprepared(view.now, trouble, pod).unwrap_or(own),
    }
}

/// Where the pod is in its life. What runs on a draining one, its gateways know.
pub fn phase(now: Timestamp, pod: &Pod, was_ready: bool) -> Phase {
    if let Some(end) = &pod.metadata.deletion_timestamp {
        // The API server adds the grace period to the time of the request.
        return Phase::Terminating { until_ms: Some(millis(end.0)) };
    }
    if let Some(status) = &pod.status
        && let Some(kind @ ("Failed" | "Succeeded")) = status.phase.as_deref()
    {
        let texts = [&status.reason, &status.message].into_iter().flatten().cloned().collect::<Vec<_>>().join(": ");
        return Phase::Failed { reason: if texts.is_empty() { format!("pod {kind}") } else { texts } };
    }
    let annotation = |name| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    if let Some(since) = annotation(ANNOTATION_DRAINING) {
        let since_ms = since.parse::<Timestamp>().map_or(millis(now), millis);
        let until = annotation(ANNOTATION_DRAIN_UNTIL);
        let until_ms = until.and_then(|until| until.parse::<Timestamp>().ok()).map(millis);
        // Another reason, and one that is not known, may be a fault of the pod or its place.
        let reason = annotation(ANNOTATION_DRAIN_REASON);
        let harmless = [EndReason::ScaleIn, EndReason::Reclaimed];
        let may_resume = reason.is_some_and(|text| harmless.iter().any(|reason| reason.name() == *text));
        return Phase::Draining { since_ms, until_ms, in_flight: None, may_resume };
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
    let refused = refusal.and_then(|scheduled| scheduled.last_transition_time.as_ref()).map_or(created, |time| time.0);
    let texts = refusal.map(|scheduled| [scheduled.message.clone(), scheduled.reason.clone()]);
    let message = texts.into_iter().flatten().flatten().find(|text| !text.is_empty());
    Phase::Unscheduled { since_ms: millis(refused), message: message.unwrap_or_default() }
}

/// Bound, and the node's agent reports that it cannot hand out the slice (a full disk, say): no container of
/// the pod can have started. Whatever else is true of the pod (it ends, it failed) comes first.
fn unprepared(now: Timestamp, trouble: &Trouble<'_>, pod: &KnownPod) -> Option<Phase> {
    let node = pod.node()?;
    let refusals = &trouble.on(node)?.refusals;
    let claim = format!("{CLAIM_PREFIX}{}", pod.metadata.name.as_deref()?);
    let wanted = (pod.metadata.namespace.as_deref()?, claim.as_str());
    let found = refusals.iter().find(|found| (found.namespace.as_str(), found.claim.as_str()) == wanted)?;
    // Never against a later pod of the same name.
    let existed =
        pod.metadata.creation_timestamp.as_ref().is_some_and(|time| millis(time.0) <= millis(found.since) + 1_000);
    let starting = phase(now, pod, false) == Phase::Starting;
    (existed && starting)
        .then(|| Phase::Unprepared { since_ms: millis(found.since), message: format!("{node}: {}", found.message) })
}

/// A pod's condition of this type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether it is Ready and is not being deleted.
pub fn serves(pod: &Pod) -> bool {
    let ready = condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Evidence that this pod uses more than it was promised, of the agent on the node that it is bound to: an agent is
/// trusted with its own node alone. Which node the pod's annotations name does not matter, and the UID decides where
/// the agent could find it.
fn overshoot(trouble: &Trouble<'_>, pod: &Pod) -> Option<Overshoot> {
    let uid = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty())?;
    let agent = trouble.on(pod.spec.as_ref()?.node_name.as_ref()?)?;
    let names = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let named = |found: &FoundOvershoot| names == (Some(found.namespace.as_str()), Some(found.pod.as_str()));
    let of_pod = |found: &&FoundOvershoot| if found.pod_uid.is_empty() { named(found) } else { found.pod_uid == uid };
    agent.overshoots.iter().find(of_pod).map(|found| found.evidence.clone())
}

pub fn millis(at: Timestamp) -> u64 {
    millis_between(Timestamp::UNIX_EPOCH, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::View;

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// `pod`: in YAML. `expect`: how the phase begins.
    fn check(name: &str, pod: &str, was_ready: bool, expect: &str) {
        let pod: Pod = serde_yaml::from_str(pod).unwrap();
        let found = format!("{:?}", phase(NOW.parse().unwrap(), &pod, was_ready));
        assert!(found.starts_with(expect), "{name}: {found}");
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

    fn evidence(pod: &str, uid: &str) -> FoundOvershoot {
        let evidence = Overshoot {
            gpu: "g".into(),
            promised_bytes: 1,
            used_bytes: 2,
            samples: 5,
            source: "NVML".into(),
            headroom: false,
        };
        FoundOvershoot { namespace: "a".into(), pod: pod.into(), pod_uid: uid.into(), evidence }
    }

    #[test]
    fn overshoot_is_believed_of_the_agent_on_the_pods_own_node_alone() {
        let view_of = |found: FoundOvershoot| View {
            agents: [("n1".to_owned(), AgentReport { overshoots: vec![found], ..AgentReport::default() })].into(),
            ..View::default()
        };
        let pod = |spec: &str| -> Pod {
            let meta = "{namespace: a, name: x, uid: u, annotations: {stowage.dev/placement: nonsense}}";
            serde_yaml::from_str(&format!("{{metadata: {meta}, spec: {spec}}}")).unwrap()
        };
        let (here, elsewhere) = (pod("{nodeName: n1, containers: []}"), pod("{nodeName: n2, containers: []}"));
        let unbound = pod("{containers: []}");
        for (pod, found, expect) in [
            (&here, evidence("x", "u"), true),
            (&here, evidence("other-name", "u"), true),
            (&here, evidence("x", "of-a-later-pod"), false),
            (&here, evidence("x", ""), true),
            (&elsewhere, evidence("x", "u"), false),
            (&elsewhere, evidence("x", ""), false),
            (&unbound, evidence("x", "u"), false),
        ] {
            assert_eq!(overshoot(&Trouble::read(&view_of(found.clone()).agents), pod).is_some(), expect, "{found:?}");
        }
    }

    #[test]
    fn pod_is_in_one_phase() {
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
        check(
            "being deleted",
            &format!("{terminating}{}", running("True", "restartCount: 0")),
            true,
            "Terminating { until_ms: Some(",
        );
    }

    #[test]
    fn engine_that_ends_repeatedly_is_replaced_unless_its_model_is_at_fault() {
        check("a few times", &ended(5, 1), false, "Starting");
        check("too often", &ended(6, 1), false, "Failed { reason: \"the engine ended 6 times\"");
        check("too often, and it had served", &ended(6, 1), true, "Failed");
        // EX_CONFIG: the engine reports that the model cannot be loaded, and no other node would help.
        check("a model that cannot be loaded", &ended(60, 78), false, "Starting");
    }
}

//! From what gateways report to the number of replicas and its condition, by `spec.scaling`.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use objects::view;
use serde_json::{Value, json};
use stowage_crds::deployment_status::{InferenceDeploymentStatus, MeasuredStart};
use stowage_crds::names::{ANNOTATION_DRAIN_REASON, ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING};
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::{Case, cases};
use stowage_operator::execute::status;
use stowage_operator::observe::drains::Answer;
use stowage_operator::observe::signals::{Counted, Load, ReplicaLoad};
use stowage_operator::observe::view::{KnownPod, View};
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_operator::translate::{Built, build};
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::render;
use stowage_planner::snapshot::{DeploymentId, Policy, ReplicaId};

const UID: &str = "7f1d3c1e-0000-4000-8000-000000000001";

/// What was decided about team-a/chat with one Ready replica: the number, why, and the reason of ScalingLimited.
struct Decided {
    wanted: u32,
    why: String,
    limited: String,
}

/// The cluster with one Ready replica of team-a/chat, whose pod has the UID `p`.
fn with_a_replica(scaling: &str) -> View {
    let path = format!("{}/tests/golden/quickstart.in.yaml", env!("CARGO_MANIFEST_DIR"));
    let yaml = std::fs::read_to_string(path).unwrap();
    let own = "  replicas: 1\n  scaling: {mode: Manual, drainTimeout: 30s}";
    assert!(yaml.contains(own));
    let yaml = yaml.replacen(own, &format!("  scaling: {scaling}"), 1);
    let hash = build(&view(&yaml), &Memory::default(), 1).snapshot.deployments[0].spec_hash.clone();
    let placement =
        r#"{"node":"node1","variant":"small","gpus":[{"uuid":"GPU-a","memoryBytes":314572800,"smPercent":10}]}"#;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "chat-1", "namespace": "team-a", "uid": "p",
            "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"},
            "annotations": {"stowage.dev/replica-index": "0", "stowage.dev/incarnation": "0", "stowage.dev/spec-hash": hash,
                "stowage.dev/placement": placement},
            "ownerReferences": [{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": UID, "controller": true}],
            "creationTimestamp": "2026-01-01T11:59:10Z"},
        "spec": {"nodeName": "node1", "containers": [{"name": "engine"}]},
        "status": {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:59:15Z"}]}});
    view(&format!("{yaml}\n---\n{pod}"))
}

/// `arrivals`: of prompts with 1,000 tokens in the last second; `None`: no gateway reports.
fn decide(scaling: &str, arrivals: Option<u64>) -> Decided {
    let mut view = with_a_replica(scaling);
    let now = millis(view.now);
    if let Some(arrivals) = arrivals {
        view.gateways.deployments.insert(DeploymentId::new("team-a", "chat"), load(arrivals, now));
    }
    let mut memory = Memory::default();
    memory.observe(&view, now);
    let built = build(&view, &memory, 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), now);
    assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
    let case = cases(&view, &built, &plan, &report).find(|case| case.id.name == "chat").unwrap();
    let own = report.of(&case.id).unwrap();
    let status = status::render(&case, Some(own), &[], None, view.now);
    assert_eq!(status["desiredReplicas"], own.counts.wanted);
    let limited = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "ScalingLimited");
    let limited = limited.map(|c: &Value| c["reason"].as_str().unwrap().to_owned()).unwrap_or_default();
    Decided { wanted: own.counts.wanted, why: render::why_wanted(&own.scale), limited }
}

fn load(arrivals: u64, now: u64) -> Load {
    let engine =
        serde_json::from_value(json!({"ageMs": 100, "unprefilledTokens": 0, "kvBlocksUsed": 1, "kvBlocksTotal": 100,
        "coefficients": {"a": 5.0, "d": 0.5, "k": 0.05, "p": 50.0}}));
    let replica = ReplicaLoad { in_flight: 1, engine: Some((now - 100, engine.unwrap())) };
    Load {
        uid: UID.into(),
        counted: Some(Counted {
            from_ms: now - 1_200,
            to_ms: now - 200,
            arrivals,
            input_tokens: arrivals * 1_000,
            cached_tokens: 0,
            ..Counted::default()
        }),
        mean_output_tokens: 50.0,
        replicas: [("p".to_owned(), replica)].into(),
        ..Load::default()
    }
}

/// What the plan does with a replica that has drained for ten of its thirty seconds. `counted`: by the only gateway;
/// `None`: it is silent. `step_ms`: how far the clock is set then; `known`: the operator noticed.
fn drained(counted: Option<u32>, step_ms: i64, known: bool) -> Vec<EndReason> {
    let mut view = with_a_replica("{mode: Manual, drainTimeout: 600s}");
    drains(&mut view, "2026-01-01T11:59:50Z", "2026-01-01T12:00:20Z");
    assert_eq!(view.now.to_string(), "2026-01-01T12:00:00Z");
    let answer = Answer {
        in_flight: counted.map(|count| ("p".to_owned(), count)).into_iter().collect(),
        at: millis(view.now),
        unread: counted.is_none().then(|| "silent".into()),
    };
    view.gateways.drains.gateways.insert("g".into(), answer);
    let mut memory = Memory::default();
    memory.observe(&view, millis(view.now));
    view.now = Timestamp::from_millisecond(view.now.as_millisecond() + step_ms).unwrap();
    if known {
        memory.clock_set(&view.pods, step_ms);
    }
    removed(&view, &memory)
}

/// The replica drains from then until then.
fn drains(view: &mut View, since: &str, until: &str) {
    let key = ("team-a".to_owned(), "chat-1".to_owned());
    let mut pod = Pod::clone(&view.pods[&key]);
    let annotations = pod.metadata.annotations.as_mut().unwrap();
    annotations.insert(ANNOTATION_DRAINING.into(), since.into());
    annotations.insert(ANNOTATION_DRAIN_UNTIL.into(), until.into());
    view.pods.insert(key, Arc::new(pod.into()));
}

fn removed(view: &View, memory: &Memory) -> Vec<EndReason> {
    let snapshot = build(view, memory, 1).snapshot;
    let (plan, _) = stowage_planner::plan(&snapshot, &Policy::default(), millis(view.now));
    let removed = plan.actions.iter().filter_map(|action| match action {
        Action::Remove { reason, .. } => Some(*reason),
        _ => None,
    });
    removed.collect()
}

#[test]
fn replica_that_gateways_do_not_list_yet_has_nothing_in_flight() {
    let mut view = with_a_replica("{mode: Manual}");
    let counted = |view: &View| build(view, &Memory::default(), 1).snapshot.deployments[0].replicas[0].in_flight;
    assert_eq!(counted(&view), None, "no gateway reports");
    let reported = load(1, millis(view.now));
    view.gateways.deployments.insert(DeploymentId::new("team-a", "chat"), reported.clone());
    assert_eq!(counted(&view), Some(1));
    let others = Load { replicas: BTreeMap::new(), ..reported.clone() };
    view.gateways.deployments.insert(DeploymentId::new("team-a", "chat"), others);
    assert_eq!(counted(&view), Some(0));
    let of_another = Load { uid: "deleted".into(), ..reported };
    view.gateways.deployments.insert(DeploymentId::new("team-a", "chat"), of_another);
    assert_eq!(counted(&view), None);
}

#[test]
fn draining_replica_ends_when_gateways_count_nothing_or_at_its_deadline() {
    assert_eq!(drained(Some(0), 0, false), [EndReason::Drained]);
    assert_eq!(drained(Some(1), 0, false), []);
    assert_eq!(drained(None, 0, false), [], "a silent gateway may have requests there");
    assert_eq!(drained(Some(1), 21_000, false), [EndReason::DrainTimeout], "of the drain, not of the spec");
}

/// The pods whose drain is cancelled when the replica is wanted, by why it drains; one request is in flight.
fn resumed(reason: Option<&str>) -> Vec<String> {
    let mut view = with_a_replica("{mode: Manual, drainTimeout: 600s}");
    let key = ("team-a".to_owned(), "chat-1".to_owned());
    let mut pod = Pod::clone(&view.pods[&key]);
    let annotations = pod.metadata.annotations.as_mut().unwrap();
    annotations.insert(ANNOTATION_DRAINING.into(), "2026-01-01T11:59:50Z".into());
    annotations.extend(reason.map(|reason| (ANNOTATION_DRAIN_REASON.to_owned(), reason.to_owned())));
    view.pods.insert(key, Arc::new(pod.into()));
    let answer = Answer { in_flight: [("p".to_owned(), 1)].into(), at: millis(view.now), unread: None };
    view.gateways.drains.gateways.insert("g".into(), answer);
    let built = build(&view, &Memory::default(), 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
    let case = cases(&view, &built, &plan, &report).find(|case| case.id.name == "chat").unwrap();
    prepare(&case, view.now).end.resume.into_iter().map(|target| target.name).collect()
}

#[test]
fn drain_is_cancelled_if_nothing_was_wrong_with_the_replica() {
    assert_eq!(resumed(Some("ScaleIn")), ["chat-1"]);
    assert_eq!(resumed(Some("Reclaimed")), ["chat-1"]);
    for reason in [None, Some("UnhealthyGpu"), Some("Rollout"), Some("unknown")] {
        assert_eq!(resumed(reason), [""; 0], "{reason:?}");
    }
}

#[test]
fn clock_that_is_set_ends_no_drain() {
    for step in [3_600_000, -3_600_000] {
        assert_eq!(drained(Some(1), step, true), []);
    }
    assert_eq!(drained(Some(1), 3_600_000, false), [EndReason::DrainTimeout], "unnoticed, it would");
}

/// What is written for a reclaim within thirty seconds of a pod that has these annotations, or is deleted.
fn reclaimed(annotations: &[(&str, &str)], deleted: bool, reason: EndReason) -> String {
    let mut view = with_a_replica("{mode: Manual, drainTimeout: 600s}");
    let key = ("team-a".to_owned(), "chat-1".to_owned());
    let mut pod = Pod::clone(&view.pods[&key]);
    let own = pod.metadata.annotations.as_mut().unwrap();
    own.extend(annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    pod.metadata.deletion_timestamp = deleted.then(|| Time("2026-01-01T13:00:00Z".parse().unwrap()));
    view.pods.insert(key, Arc::new(pod.into()));
    let built = build(&view, &Memory::default(), 1);
    let (mut plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    let replica = ReplicaId { deployment: DeploymentId::new("team-a", "chat"), index: 0, incarnation: 0 };
    plan.actions =
        vec![Action::Drain { replica, pod: "chat-1".into(), deadline_ms: millis(view.now) + 30_000, reason }];
    let case = cases(&view, &built, &plan, &report).find(|case| case.id.name == "chat").unwrap();
    let end = prepare(&case, view.now).end;
    let at = |ms: &u64| format!("{} s", (ms - millis(view.now)) / 1000);
    let drains = end.drain.iter().map(|(_, until, reason)| format!("drain {} {reason:?}", at(until)));
    let hastens = end.hasten.iter().map(|(_, until)| format!("hasten {}", at(until)));
    let removes = end.remove.iter().map(|(_, grace)| format!("delete {grace:?}"));
    drains.chain(hastens).chain(removes).collect::<Vec<_>>().join(", ")
}

#[test]
fn reclaim_shortens_what_is_on_its_way_out() {
    let since = (ANNOTATION_DRAINING, "2026-01-01T11:59:50Z");
    let until = |at| [since, (ANNOTATION_DRAIN_UNTIL, at)];
    assert_eq!(reclaimed(&[], false, EndReason::Reclaimed), "drain 30 s Reclaimed");
    assert_eq!(reclaimed(&[since], false, EndReason::Reclaimed), "hasten 30 s");
    assert_eq!(reclaimed(&until("2026-01-01T13:00:00Z"), false, EndReason::Reclaimed), "hasten 30 s");
    assert_eq!(reclaimed(&until("2026-01-01T12:00:20Z"), false, EndReason::Reclaimed), "", "it is sooner already");
    assert_eq!(reclaimed(&[], true, EndReason::Reclaimed), "delete Some(30)");
    assert_eq!(reclaimed(&until("2026-01-01T13:00:00Z"), true, EndReason::Reclaimed), "delete Some(30)");
    // Of an outdated plan.
    assert_eq!(reclaimed(&until("2026-01-01T13:00:00Z"), false, EndReason::ScaleIn), "");
    assert_eq!(reclaimed(&[], true, EndReason::ScaleIn), "");
}

#[test]
fn deadline_that_is_written_after_the_clock_was_set_is_not_moved() {
    let draining = |until: &str| {
        let mut view = with_a_replica("{mode: Manual, drainTimeout: 600s}");
        drains(&mut view, "2026-01-01T11:59:50Z", until);
        view
    };
    let mut memory = Memory::default();
    let mut view = draining("2026-01-01T12:10:00Z");
    memory.observe(&view, millis(view.now));
    memory.clock_set(&view.pods, 3_600_000);
    let until = |view: &View, memory: &Memory| {
        let replica = &build(view, memory, 1).snapshot.deployments[0].replicas[0];
        let left = replica.phase.ends_ms(0).unwrap() - millis(view.now);
        left / 1000
    };
    assert_eq!(until(&view, &memory), 600 + 3_600);
    view = draining("2026-01-01T12:00:30Z");
    assert_eq!(until(&view, &memory), 30);
    memory.clock_set(&view.pods, 60_000);
    assert_eq!(until(&view, &memory), 90);
}

#[test]
fn clock_that_was_set_in_a_cancelled_drain_says_nothing_of_the_next_one() {
    let (mut view, mut memory) = (with_a_replica("{mode: Manual, drainTimeout: 600s}"), Memory::default());
    let sound = view.pods.clone();
    drains(&mut view, "2026-01-01T11:59:50Z", "2026-01-01T12:09:50Z");
    memory.clock_set(&view.pods, -600_000);
    view.pods = sound;
    memory.observe(&view, millis(view.now));
    drains(&mut view, "2026-01-01T11:59:58Z", "2026-01-01T12:09:58Z");
    let silent = Answer { in_flight: BTreeMap::new(), at: 0, unread: Some("silent".into()) };
    view.gateways.drains.gateways.insert("g".into(), silent);
    assert_eq!(removed(&view, &memory), [], "its deadline has not passed");
}

const ACTIVE: &str = "{mode: Active, minReplicas: 1, maxReplicas: 3}";

#[test]
fn without_signals_the_number_stays_and_the_condition_says_so() {
    let decided = decide(ACTIVE, None);
    assert_eq!((decided.wanted, decided.limited.as_str()), (1, "Signals"), "{}", decided.why);
    assert!(decided.why.starts_with("the count stays at 1"), "{}", decided.why);
}

#[test]
fn load_decides_within_the_bounds() {
    let idle = decide(ACTIVE, Some(0));
    assert_eq!((idle.wanted, idle.limited.as_str()), (1, ""), "{}", idle.why);
    let busy = decide(ACTIVE, Some(10));
    assert!(busy.wanted > 1, "{}", busy.why);
    let flood = decide(ACTIVE, Some(500));
    assert_eq!((flood.wanted, flood.limited.as_str()), (3, "MaxReplicas"), "{}", flood.why);
}

#[test]
fn advisory_changes_nothing_and_says_what_it_would_do() {
    let decided = decide("{mode: Advisory, maxReplicas: 3}", Some(500));
    assert_eq!(decided.wanted, 1);
    assert!(decided.why.contains("Active would have 3"), "{}", decided.why);
}

#[test]
fn manual_has_no_rule_whatever_arrives() {
    let decided = decide("{mode: Manual}", Some(500));
    assert_eq!((decided.wanted, decided.limited.as_str()), (1, ""), "{}", decided.why);
}

/// The status after so many seconds in which four requests came and this many waited.
fn after_seconds(seconds: u64, queued: u64) -> Value {
    let mut view = with_a_replica("{mode: Manual}");
    let (now, mut memory, id) = (millis(view.now), Memory::default(), DeploymentId::new("team-a", "chat"));
    let mut found = BTreeMap::new();
    for second in (0..seconds).rev() {
        let now = now - second * 1_000;
        let waiting = Load { queued, waiting_tokens: queued * 1_000, ..load(4, now) };
        view.gateways.deployments.insert(id.clone(), waiting);
        memory.observe(&view, now);
        found = memory.bottlenecks(&build(&view, &memory, 1).snapshot, now);
    }
    let built = build(&view, &memory, 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), now);
    let case = cases(&view, &built, &plan, &report).find(|case| case.id == id).unwrap();
    let case = Case { bottleneck: found.remove(&id).unwrap(), ..case };
    status::render(&case, report.of(&id), &[], None, view.now)
}

#[test]
fn status_names_the_stage_that_limits_once_there_are_enough_signals() {
    let waits = after_seconds(30, 60);
    assert_eq!((&waits["bottleneck"]["stage"], &waits["load"]["requestsPerSecond"]), (&json!("Queue"), &json!("4.0")));
    assert!(waits["bottleneck"]["suggestion"].as_str().unwrap().contains("instead of 1; predicted "), "{waits}");
    let sound = after_seconds(30, 0);
    assert_eq!((&sound["bottleneck"]["stage"], &sound["load"]["waiting"]), (&json!("None"), &json!(0)));
    let early = after_seconds(10, 60);
    assert_eq!((&early["bottleneck"], &early["load"]), (&Value::Null, &Value::Null));
}

/// What is known of starts of team-a/chat, as its status and `explain` say it, after these pods have become Ready.
fn known(pods: &[(u64, u32)], spec_hash: Option<&str>) -> (Value, String) {
    let (view, built) = started(pods, spec_hash, true, None);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    let case = cases(&view, &built, &plan, &report).find(|case| case.id.name == "chat").unwrap();
    let own = report.of(&case.id).unwrap();
    let status = status::render(&case, Some(own), &[], None, view.now);
    (status["coldStart"]["expected"].clone(), render::explain(own, None, millis(view.now), &[]))
}

/// The cluster and its snapshot after these pods of team-a/chat have become Ready: by seconds from creation, and restarts
/// of the engine. `spec_hash`: instead of the present one. `seen`: the operator ran before they were made. `stated`: what
/// the status says of starts.
fn started(pods: &[(u64, u32)], spec_hash: Option<&str>, seen: bool, stated: Option<&str>) -> (View, Built) {
    let mut view = with_a_replica(ACTIVE);
    let now = millis(view.now);
    let mut load = load(1, now);
    let replica = load.replicas["p"].clone();
    load.replicas = (0..pods.len()).map(|index| (format!("p{index}"), replica.clone())).collect();
    view.gateways.deployments.insert(DeploymentId::new("team-a", "chat"), load);
    let first = view.pods[&("team-a".to_owned(), "chat-1".to_owned())].clone();
    view.pods.retain(|_, pod| pod.metadata.namespace.as_deref() != Some("team-a"));
    for (index, (seconds, restarts)) in pods.iter().enumerate() {
        let mut pod = serde_json::to_value(&**first).unwrap();
        let ready = Timestamp::from_second(view.now.as_second() - 1000 + i64::try_from(*seconds).unwrap()).unwrap();
        let created = Timestamp::from_second(view.now.as_second() - 1000).unwrap();
        (pod["metadata"]["name"], pod["metadata"]["uid"]) =
            (json!(format!("chat-{index}")), json!(format!("p{index}")));
        pod["metadata"]["creationTimestamp"] = json!(created.to_string());
        pod["metadata"]["annotations"]["stowage.dev/replica-index"] = json!(index.to_string());
        if let Some(hash) = spec_hash {
            pod["metadata"]["annotations"]["stowage.dev/spec-hash"] = json!(hash);
        }
        pod["status"]["conditions"][1]["lastTransitionTime"] = json!(ready.to_string());
        pod["status"]["containerStatuses"] = json!([{"name": "engine", "image": "i", "imageID": "", "ready": true,
            "restartCount": restarts}]);
        view.pods.insert(
            ("team-a".to_owned(), format!("chat-{index}")),
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into()),
        );
    }
    let key = ("team-a".to_owned(), "chat".to_owned());
    let mut stored = view.deployments[&key].as_ref().clone();
    let cold_start = stated.map(|expected| MeasuredStart { expected: expected.to_owned() });
    stored.status = Some(InferenceDeploymentStatus { cold_start, ..InferenceDeploymentStatus::default() });
    view.deployments.insert(key, stored.into());
    let mut memory = Memory::default();
    memory.observe(&View::default(), if seen { now - 2_000_000 } else { now });
    memory.observe(&view, now);
    memory.learn(&build(&view, &memory, 1).judged, &view.deployments);
    let built = build(&view, &memory, 2);
    (view, built)
}

#[test]
fn start_that_was_not_seen_takes_no_longer_than_the_status_says() {
    let minutes = [(2_280, 0); 3];
    let found =
        |seen, stated| started(&minutes, None, seen, stated).1.snapshot.deployments[0].signals.cold_start.measured_ms();
    assert_eq!(found(true, None), Some(2_280_000));
    assert_eq!(found(false, None), None, "a probe may have failed since");
    assert_eq!(found(false, Some("45s")), Some(45_000));
}

#[test]
fn deployment_scales_to_zero_where_its_gateways_hold_requests_for_long_enough() {
    for (seconds, holds) in [(20, 120_000), (150, 225_000), (900, 600_000)] {
        let built = started(&[(seconds, 0); 3], None, true, None).1;
        assert_eq!(built.snapshot.deployments[0].scaling.cold_start_hold_ms, Some(holds), "{seconds}");
    }
    let few = started(&[(150, 0); 2], None, true, None).1;
    assert_eq!(few.snapshot.deployments[0].scaling.cold_start_hold_ms, Some(120_000));
}

#[test]
fn starts_are_measured_and_reported_from_the_third_on() {
    let whole = |seconds: &[u64]| seconds.iter().map(|seconds| (*seconds, 0)).collect::<Vec<_>>();
    for (pods, spec_hash, status, words) in [
        (whole(&[9]), None, json!(null), "cold start 9.0 s (1 measured)"),
        (whole(&[9, 300]), None, json!(null), "cold start 2 min (2 measured)"),
        (whole(&[9, 300, 12]), None, json!("300s"), "cold start 5 min (nine of ten of the last 3 starts)"),
        (whole(&[9, 7, 41]), None, json!("41s"), "cold start 41 s (nine of ten of the last 3 starts)"),
        (whole(&[9, 7, 123]), None, json!("130s"), "cold start 2 min 3 s (nine of ten of the last 3 starts)"),
        (vec![(9, 0), (7, 0), (41, 0), (900, 1)], None, json!("41s"), "the last 3 starts"),
        (whole(&[9, 7, 41]), Some("another"), json!(null), "cold start 2 min (assumed)"),
    ] {
        let (found, explained) = known(&pods, spec_hash);
        assert_eq!(found, status, "{pods:?}");
        assert!(explained.contains(words), "{pods:?}: {explained}");
    }
}

/// Two nodes with one healthy GPU each: chat runs on one, `next` on the other, and `whole` has waited for a whole GPU.
fn in_the_way() -> View {
    let path = format!("{}/tests/golden/quickstart.in.yaml", env!("CARGO_MANIFEST_DIR"));
    let first = std::fs::read_to_string(path).unwrap();
    let second = first.replace("node1", "node2").replace("GPU-a", "GPU-c").replace("GPU-b", "GPU-d");
    let mut view = view(&first);
    let other = objects::view(&second);
    view.nodes.extend(other.nodes.iter().map(|(key, node)| (key.clone(), node.clone())));
    view.gpu_nodes.extend(other.gpu_nodes.iter().map(|(key, node)| (key.clone(), node.clone())));
    view.slices.extend(other.slices.iter().map(|(key, slice)| (key.clone(), slice.clone())));
    view.claims = Default::default();
    view.deployments.retain(|key, _| key.1 == "chat");
    let chat = view.deployments.iter().find(|(key, _)| key.1 == "chat").unwrap().1.clone();
    for (name, memory, compute) in [("next", "40Gi", 50), ("whole", "80Gi", 100)] {
        let mut one = chat.as_ref().clone();
        (one.meta.name, one.meta.uid) = (Some(name.into()), Some(format!("uid-{name}")));
        one.meta.creation_timestamp = Some(Time("2026-01-01T09:00:00Z".parse().unwrap()));
        let spec = one.spec.as_mut().unwrap();
        spec.model.name = None;
        let variant = json!([{"name": "small", "class": "h100-80g", "memory": memory, "compute": compute}]);
        spec.variants = serde_json::from_value(variant).unwrap();
        view.deployments.insert(("team-a".into(), name.into()), Arc::new(one));
    }
    let built = build(&view, &Memory::default(), 1);
    for (name, node, gpu, memory, compute) in
        [("chat", "node1", "GPU-a", 300u64 << 20, 10), ("next", "node2", "GPU-c", 40 << 30, 50)]
    {
        let d = built.snapshot.deployments.iter().find(|d| d.id.name == name).unwrap();
        let placement = json!({"node": node, "variant": "small", "gpus": [{"uuid": gpu, "memoryBytes": memory, "smPercent": compute}]});
        let meta = json!({"name": format!("{name}-1"), "namespace": "team-a", "uid": format!("pod-{name}"),
            "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": name},
            "annotations": {"stowage.dev/replica-index": "0", "stowage.dev/incarnation": "0",
                "stowage.dev/spec-hash": d.spec_hash, "stowage.dev/placement": placement.to_string()},
            "ownerReferences": [{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": name, "uid": d.uid, "controller": true}],
            "creationTimestamp": "2026-01-01T09:00:00Z"});
        let ready = "2026-01-01T09:00:05Z";
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"nodeName": node, "containers": [{"name": "engine"}]},
            "status": {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": ready},
                {"type": "Ready", "status": "True", "lastTransitionTime": ready}]}});
        let mut claim =
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": meta, "spec": {}});
        claim["metadata"]["name"] = json!(format!("stowage-{name}-1"));
        let key = |name: String| ("team-a".to_owned(), name);
        view.pods.insert(key(format!("{name}-1")), Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into()));
        let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        view.claims.insert(key(format!("stowage-{name}-1")), Arc::new(claim.into()));
    }
    view
}

#[test]
fn replica_in_the_way_is_made_elsewhere_with_a_mark_that_is_read_back() {
    let view = in_the_way();
    let now = millis(view.now);
    let mut memory = Memory::default();
    memory.observe(&view, now);
    let decide = |memory: &Memory| {
        let built = build(&view, memory, 1);
        let policy = Policy { max_moves: 4, ..Policy::default() };
        let (plan, report) = stowage_planner::plan(&built.snapshot, &policy, now);
        assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
        (built, plan, report)
    };
    let (_, plan, report) = decide(&memory);
    assert!(plan.actions.is_empty(), "it has only begun to wait: {:?}", plan.actions);
    let mut waiting = report.waiting.clone();
    assert_eq!(waiting.iter().map(|one| one.deployment.name.as_str()).collect::<Vec<_>>(), ["whole"]);
    waiting[0].since_ms = now - 7_200_000;
    memory.waited(&waiting);
    let (built, plan, report) = decide(&memory);
    let case = cases(&view, &built, &plan, &report).find(|case| case.id.name == "chat").unwrap();
    let made = prepare(&case, view.now).make.create;
    assert_eq!(made.len(), 1, "{:?}", plan.actions);
    let pod = KnownPod::from(made[0].pod.clone());
    assert_eq!(pod.placement().unwrap().node, "node2");
    let mut next = view.clone();
    next.pods.insert(("team-a".into(), "chat-2".into()), Arc::new(pod));
    let snapshot = build(&next, &memory, 2).snapshot;
    let chat = snapshot.deployments.iter().find(|d| d.id.name == "chat").unwrap();
    assert_eq!(chat.replicas.iter().map(|replica| replica.takes_over).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn replica_that_serves_proves_its_slot_only_where_it_was_made_last() {
    let mut view = with_a_replica("{mode: Manual, drainTimeout: 30s}");
    view.now = view.now.checked_add(jiff::SignedDuration::from_secs(120)).unwrap();
    let now = millis(view.now);
    for (failed, failures) in [(0, 0), (1, 1)] {
        let mut memory = Memory::default();
        let replica = ReplicaId { deployment: DeploymentId::new("team-a", "chat"), index: 0, incarnation: failed };
        let pod = String::new();
        memory.decided(UID, &Action::Remove { replica, pod, reason: EndReason::Failed, exclude: None }, now);
        memory.observe(&view, now);
        assert_eq!(memory.slots(UID)[&0].failures, failures, "the attempt {failed} failed, and 0 serves");
    }
}

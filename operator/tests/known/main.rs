//! A snapshot that takes over what is known of the last one is the snapshot that would be made without it, and what is at
//! rest would not be written to, whatever changes in between.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/objects.rs"]
mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::ToSpan;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use stowage_crds::names::DRAIN_FINALIZER;
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::rest::Rest;
use stowage_operator::execute::case::{Case, cases};
use stowage_operator::execute::status;
use stowage_operator::observe::view::{Objects, View};
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_operator::translate::validate::Judged;
use stowage_operator::translate::{Built, build};
use stowage_planner::snapshot::{DeploymentId, Policy};
use stowage_planner::{DecisionReport, Plan};

/// What is changed of which object: where, and to what, in turn.
fn changes() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("Node/node1", "/status/conditions/0/status", json!(["Unknown", "False", "True"])),
        ("Node/node1", "/metadata/labels/zone", json!(["a", "b"])),
        ("Node/node2", "/spec", json!([{"unschedulable": true}, {}])),
        ("Node/node2", "/status/allocatable/cpu", json!(["2", "8"])),
        ("GpuNode/node1", "/status/observedTime", json!(["2026-01-01T11:50:00Z", "2026-01-01T12:00:00Z"])),
        ("GpuNode/node1", "/status/devices/0/verdict/health", json!(["Unhealthy", "Healthy"])),
        ("GpuNode/node2", "/status/devices/0/uuid", json!(["GPU-a", "GPU-c"])),
        (
            "GpuNode/node2",
            "/status/cachedModels",
            json!([[{"source": "https://example.com/m.gguf", "size": "1Gi"}], []]),
        ),
        ("ResourceSlice/node1-1", "/spec/pool/generation", json!([1, 3])),
        ("ResourceSlice/node2-1", "/spec/devices/0/capacity/memory/value", json!(["40Gi", "80Gi"])),
        ("Pod/other", "/spec/containers/0/resources/requests/cpu", json!(["2", "500m"])),
        ("Pod/other", "/spec/nodeName", json!(["node2", "node1"])),
        ("Pod/chat-1", "/status/conditions/1/status", json!(["False", "True"])),
        ("ResourceClaim/foreign", "/status/allocation/devices/results/0/device", json!(["gpu-1", "gpu-0"])),
        ("ResourceClaim/foreign", "/status/allocation/devices/results/0/pool", json!(["node2", "node1"])),
        ("GpuClass/h100-80g", "/spec/selector/productNames/0", json!(["another", "NVIDIA H100 80GB HBM3"])),
        ("TenantQuota/team-a", "/spec/namespaces", json!([[], ["team-a"]])),
        ("InferenceRuntime/stowage-engine", "/spec/image", json!(["other/engine:2", "stowage/engine:0.1.0"])),
        ("InferenceDeployment/chat", "/spec/replicas", json!([3, 1])),
        ("InferenceDeployment/chat", "/spec/podTemplate", json!([{"nodeSelector": {"zone": "a"}}, {}])),
        ("InferenceDeployment/waits", "/spec/model/name", json!(["smollm2-135m-instruct", "large"])),
        (
            "InferenceDeployment/waits",
            "/metadata/creationTimestamp",
            json!(["2026-01-01T11:00:00Z", "2026-01-01T11:59:30Z"]),
        ),
        ("InferenceDeployment/chat", "/metadata/annotations", json!([{"stowage.dev/disruption-budget": "none"}, {}])),
        (
            "InferenceDeployment/broken",
            "/spec/model",
            json!([{"source": {"image": {"reference": "a:b", "path": "/m"}}}, 7]),
        ),
    ]
}

/// All documents by `Kind/name`: the quickstart's, a second node, and a replica of chat.
fn world() -> BTreeMap<String, Value> {
    let text = include_str!("../golden/quickstart.in.yaml");
    let read = |text: &str| serde_yaml::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap()).collect();
    let mut all: Vec<Value> = read(text);
    let other = text.replace("node1", "node2").replace("GPU-a", "GPU-c").replace("GPU-b", "GPU-d");
    let second: Vec<Value> = read(&other);
    all.extend(second.into_iter().take(3));
    let of = json!({"name": "chat-1", "namespace": "team-a", "uid": "p", "creationTimestamp": "2026-01-01T11:59:10Z",
        "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"},
        "annotations": {"stowage.dev/replica-index": "0", "stowage.dev/incarnation": "0", "stowage.dev/spec-hash": "h",
            "stowage.dev/placement": r#"{"node":"node1","variant":"small","gpus":[{"uuid":"GPU-a","memoryBytes":314572800,"smPercent":10}]}"#},
        "ownerReferences": [{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat",
            "uid": "7f1d3c1e-0000-4000-8000-000000000001", "controller": true}]});
    let conditions = json!([{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]);
    all.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": of,
        "spec": {"nodeName": "node1", "containers": [{"name": "engine"}]},
        "status": {"phase": "Running", "conditions": conditions}}));
    let mut claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": of,
        "spec": {"devices": {}}});
    claim["metadata"]["name"] = json!("stowage-chat-1");
    all.push(claim);
    let key = |object: &Value| {
        format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
    };
    all.into_iter().map(|object| (key(&object), object)).collect()
}

/// Changes one object, and reads only that one anew.
fn apply(view: &mut View, document: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        parent => parent[field] = value,
    }
    let one = objects::view(&document.to_string());
    macro_rules! extend { ($($kind:ident),*) => { $(view.$kind.extend(one.$kind.iter().map(|(key, object)| (key.clone(), object.clone())));)* } }
    extend!(nodes, pods, slices, claims, gpu_nodes, classes, quotas, runtimes, deployments);
}

/// Takes one object out, whatever its kind.
fn remove(view: &mut View, name: &str) {
    fn without<T>(objects: &mut Objects<T>, name: &str) {
        objects.retain(|key, _| key.1 != name);
    }
    macro_rules! without { ($($kind:ident),*) => { $(without(&mut view.$kind, name);)* } }
    without!(nodes, pods, slices, claims, gpu_nodes, classes, quotas, runtimes, deployments);
}

fn check(steps: Vec<(usize, usize, bool)>) {
    let (mut documents, changes) = (world(), changes());
    let all = documents.values().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
    let mut view = objects::view(&all);
    let (mut memory, mut blank) = (Memory::default(), Memory::default());
    for (sequence, (change, turn, removes)) in (1..).zip(steps) {
        let (key, pointer, values) = &changes[change % changes.len()];
        let value = values[turn % values.as_array().unwrap().len()].clone();
        apply(&mut view, documents.get_mut(*key).unwrap(), pointer, value);
        if removes {
            remove(&mut view, key.split_once('/').unwrap().1);
        }
        view.now = view.now.checked_add(3.seconds()).unwrap();
        let shown = Arc::new(view.clone());
        for memory in [&mut memory, &mut blank] {
            memory.observe(&shown, millis(view.now));
        }
        let (built, anew) = (build(&shown, &memory, sequence), build(&shown, &blank, sequence));
        assert_eq!(built.snapshot, anew.snapshot, "after {key} {pointer}");
        assert_eq!(format!("{:?}", built.judged), format!("{:?}", anew.judged), "after {key} {pointer}");
        memory.keep(&shown, &built);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn snapshot_is_the_same_with_and_without_what_is_known(
        steps in prop::collection::vec((any::<usize>(), any::<usize>(), prop::bool::weighted(0.1)), 1..40)
    ) {
        check(steps);
    }

    #[test]
    fn nothing_would_be_written_to_what_is_at_rest(
        steps in prop::collection::vec((any::<usize>(), any::<usize>(), prop::bool::weighted(0.1)), 1..40)
    ) {
        check_rest(steps);
    }
}

/// As [`world`], with all that was made for chat, so that nothing is left to do for it.
fn settled() -> (View, BTreeMap<String, Value>) {
    let mut documents = world();
    let view_of = |documents: &BTreeMap<String, Value>| {
        objects::view(&documents.values().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"))
    };
    let built = build(&view_of(&documents), &Memory::default(), 1);
    let hash = &built.judged[&DeploymentId::new("team-a", "chat")].wanted().unwrap().spec_hash;
    for key in ["Pod/chat-1", "ResourceClaim/stowage-chat-1"] {
        documents.get_mut(key).unwrap()["metadata"]["annotations"]["stowage.dev/spec-hash"] = json!(hash);
    }
    documents.get_mut("InferenceDeployment/chat").unwrap()["metadata"]["finalizers"] = json!([DRAIN_FINALIZER]);
    let mut view = view_of(&documents);
    let decided = decide(&view);
    let made = prepare(&decided.cases().find(|case| case.id.name == "chat").unwrap(), view.now).make;
    let key = |meta: &ObjectMeta| (meta.namespace.clone().unwrap(), meta.name.clone().unwrap());
    let (service, policy, mut budget) = (made.service.unwrap(), made.policy.unwrap(), made.budget.unwrap());
    budget.object.metadata.uid = Some("b".into());
    view.services.insert(key(&service.object.metadata), Arc::new(service.object));
    view.policies.insert(key(&policy.object.metadata), Arc::new(policy.object));
    view.budgets.insert(key(&budget.object.metadata), Arc::new(budget.object));
    (view, documents)
}

struct Decided<'a> {
    view: &'a View,
    built: Built,
    plan: Plan,
    report: DecisionReport,
}

fn decide(view: &View) -> Decided<'_> {
    let built = build(view, &Memory::default(), 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    Decided { view, built, plan, report }
}

impl Decided<'_> {
    fn cases(&self) -> impl Iterator<Item = Case> {
        cases(self.view, &self.built, &self.plan, &self.report)
    }
}

/// How many steps found chat at rest.
fn check_rest(steps: Vec<(usize, usize, bool)>) -> usize {
    let ((mut view, mut documents), changes) = (settled(), changes());
    let mut rests: BTreeMap<DeploymentId, (Rest, Value)> = BTreeMap::new();
    let (mut held, now) = (0, Instant::now());
    // Only then a deployment that was judged before is the same object still.
    let mut judged: BTreeMap<DeploymentId, (String, Arc<Judged>)> = BTreeMap::new();
    for (change, turn, removes) in steps {
        let (key, pointer, values) = &changes[change % changes.len()];
        apply(
            &mut view,
            documents.get_mut(*key).unwrap(),
            pointer,
            values[turn % values.as_array().unwrap().len()].clone(),
        );
        if removes {
            remove(&mut view, key.split_once('/').unwrap().1);
        }
        view.now = view.now.checked_add(3.seconds()).unwrap();
        let decided = decide(&view);
        for mut case in decided.cases() {
            let known =
                judged.entry(case.id.clone()).or_insert_with(|| (format!("{:?}", case.judged), case.judged.clone()));
            match known.0 == format!("{:?}", case.judged) {
                true => case.judged = known.1.clone(),
                false => *known = (format!("{:?}", case.judged), case.judged.clone()),
            }
            let report = decided.report.of(&case.id);
            let status = status::render(&case, report, &[], None, view.now);
            let prepared = prepare(&case, view.now);
            let id = case.id.clone();
            match rests.get(&id).filter(|(rest, _)| rest.holds(&case, report, now)) {
                Some((_, said)) => {
                    assert!(prepared.is_empty(), "{id} after {key} {pointer}: {prepared:?}");
                    assert_eq!(without_times(said), without_times(&status), "{id} after {key} {pointer}");
                    held += usize::from(id.name == "chat");
                }
                None if prepared.is_empty() => {
                    rests.remove(&id);
                    let rest = Rest::begin(case, report.cloned(), now);
                    rests.extend(rest.map(|rest| (id, (rest, status))));
                }
                None => drop(rests.remove(&id)),
            }
        }
    }
    held
}

/// The stored status is none here, so each rendering begins its conditions anew.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    let conditions = status["conditions"].as_array_mut().unwrap();
    conditions.iter_mut().for_each(|condition| condition["lastTransitionTime"] = Value::Null);
    status
}

#[test]
fn deployment_at_rest_is_looked_at_again_when_something_about_it_changes() {
    let other = changes().iter().position(|(key, ..)| *key == "Pod/other").unwrap();
    assert_eq!(check_rest(vec![(other, 0, false); 3]), 2);
    let replicas = changes().iter().position(|(_, pointer, _)| *pointer == "/spec/replicas").unwrap();
    assert_eq!(check_rest(vec![(other, 0, false), (replicas, 0, false)]), 0);
}

#[test]
fn objects_that_did_not_change_are_not_made_again() {
    let all = world().values().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
    let view = Arc::new(objects::view(&all));
    let mut memory = Memory::default();
    let first = build(&view, &memory, 1);
    memory.keep(&view, &first);
    let second = build(&view, &memory, 2);
    assert!(Arc::ptr_eq(&first.devices, &second.devices));
    assert!(first.snapshot.nodes.iter().zip(&second.snapshot.nodes).all(|(first, second)| first.is(second)));
    let id = first.judged.keys().find(|id| id.name == "chat").unwrap();
    assert!(Arc::ptr_eq(&first.judged[id], &second.judged[id]));
}

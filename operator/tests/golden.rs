//! From the objects of a cluster to the planner's snapshot, the plan, and the objects that carry it
//! out: `tests/golden/*.in.yaml` in, `*.out.yaml` expected. `UPDATE_GOLDEN=1` writes what came out.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stowage_operator::memory::Memory;
use stowage_operator::reconcile::build::prepare;
use stowage_operator::reconcile::case::Case;
use stowage_operator::reconcile::cluster;
use stowage_operator::reconcile::status;
use stowage_operator::snapshot::build;
use stowage_operator::snapshot::replicas::millis;
use stowage_operator::view::{Objects, Stored, View};
use stowage_planner::snapshot::Policy;

const NOW: &str = "2026-01-01T12:00:00Z";

fn view(yaml: &str) -> View {
    let mut view = View { now: NOW.parse().unwrap(), ..View::default() };
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        match object["kind"].as_str().unwrap() {
            "Node" => insert(&mut view.nodes, &object, typed),
            "Pod" => insert::<Pod>(&mut view.pods, &object, typed),
            "ResourceSlice" => insert(&mut view.slices, &object, typed),
            "ResourceClaim" => insert(&mut view.claims, &object, typed),
            "GpuNode" => insert(&mut view.gpu_nodes, &object, stored),
            "GpuClass" => insert(&mut view.classes, &object, stored),
            "TenantQuota" => insert(&mut view.quotas, &object, stored),
            "InferenceRuntime" => insert(&mut view.runtimes, &object, stored),
            "InferenceDeployment" => insert(&mut view.deployments, &object, stored),
            kind => panic!("{kind} is not known here"),
        }
    }
    view
}

fn insert<T>(objects: &mut Objects<T>, object: &Value, read: fn(&Value) -> T) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    objects.insert((text("namespace"), text("name")), Arc::new(read(object)));
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap()
}

fn stored<S: DeserializeOwned, T: DeserializeOwned>(object: &Value) -> Stored<S, T> {
    Stored::read(typed::<DynamicObject>(object))
}

fn run(view: &View) -> Value {
    let built = build(view, &Memory::default(), 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
    let mut deployments = serde_json::Map::new();
    for stored in view.deployments.values() {
        let (namespace, name) = (stored.namespace(), stored.name());
        let actions: Vec<_> =
            plan.actions.iter().filter(|action| action.replica().deployment.name == name).cloned().collect();
        let case = Case::of(view, stored, &built, actions);
        let verdict = &built.verdicts[&case.id];
        let prepared = prepare(&case, verdict.wanted(), view.now);
        let replicas: Vec<Value> =
            prepared.create.iter().map(|replica| json!({"claim": replica.claim, "pod": replica.pod})).collect();
        let entry = json!({
            "finalizer": format!("{:?}", prepared.finalizer),
            "service": prepared.service,
            "networkPolicy": prepared.policy,
            "create": replicas,
            "status": status::render(&case, verdict, report.of(&case.id), &[], &[], view.now),
        });
        deployments.insert(format!("{namespace}/{name}"), entry);
    }
    let cluster = cluster::statuses(view, &built, &report);
    let cluster: serde_json::Map<String, Value> = cluster.into_iter().map(|due| (due.key(), due.status)).collect();
    json!({"snapshot": built.snapshot, "deployments": deployments, "cluster": cluster})
}

fn check(name: &str) {
    let directory = format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"));
    let input = std::fs::read_to_string(format!("{directory}/{name}.in.yaml")).unwrap();
    let came = serde_yaml::to_string(&run(&view(&input))).unwrap();
    let path = format!("{directory}/{name}.out.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &came).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        came == expected,
        "{path} differs; look at it, and if it is right: UPDATE_GOLDEN=1 cargo test -p stowage-operator --test golden\n{came}"
    );
}

#[test]
fn quickstart_becomes_a_pinned_claim_a_restricted_pod_and_a_policy() {
    check("quickstart");
}

#[test]
fn the_same_objects_give_the_same_bytes() {
    let input =
        std::fs::read_to_string(format!("{}/tests/golden/quickstart.in.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert_eq!(run(&view(&input)), run(&view(&input)));
}

//! Pods that ask the cluster for another node: when one is made, what it asks for, and when it ends.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/objects.rs"]
mod objects;

use jiff::{SignedDuration, Timestamp};
use objects::view;
use serde_json::json;
use stowage_operator::execute::build::capacity::CapacityPod;
use stowage_operator::execute::capacity::{Capacity, Step};
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::snapshot::Policy;

/// `team-a/waits` fits on no GPU of `node1`; an empty one would take it.
const WORLD: &str = include_str!("../golden/quickstart.in.yaml");

/// A node that came, without a word of its agent.
const NEW_NODE: &str = "
---
{apiVersion: v1, kind: Node, metadata: {name: node2}, status: {allocatable: {cpu: '4', memory: 16Gi, pods: '110'},
 conditions: [{type: Ready, status: 'True'}]}}
";

/// What is to be done `after` that many seconds.
fn steps(capacity: &mut Capacity, text: &str, after: i64) -> Vec<Step> {
    let now: Timestamp = objects::NOW.parse().unwrap();
    let now = now + SignedDuration::from_secs(after);
    // The agent reports all the while.
    let mut view = view(&text.replace("2026-01-01T11:59:50Z", &now.to_string()));
    view.now = now;
    let built = build(&view, &Memory::default(), 1);
    let policy = Policy { max_capacity_pods: 1, capacity_after_ms: 0, ..Policy::default() };
    let (_, report) = stowage_planner::plan(&built.snapshot, &policy, millis(view.now));
    capacity.steps(&view, &built, &report, "pause:1")
}

fn made(steps: &[Step]) -> &CapacityPod {
    match steps {
        [Step::Make(made)] => made,
        other => panic!("{other:?}"),
    }
}

/// The pod as it would be stored, with its claim where it has one: `more` of its metadata, and its spec.
fn stored(more: &str, spec: &str, with_claim: bool) -> String {
    let name = name();
    let owner = "[{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, name: waits, controller: true,
      uid: 7f1d3c1e-0000-4000-8000-000000000003}]";
    let labels = "{app.kubernetes.io/managed-by: stowage, stowage.dev/capacity: waits}";
    let pod = format!(
        "\n---\n{{apiVersion: v1, kind: Pod, spec: {spec}, metadata: {{name: {name}, namespace: team-a, uid: p, \
         labels: {labels}, ownerReferences: {owner}{more}}}}}\n"
    );
    let claim = format!(
        "---\n{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, spec: {{}}, metadata: {{name: stowage-{name}, \
         namespace: team-a, uid: c, labels: {labels}}}}}\n"
    );
    if with_claim { pod + &claim } else { pod }
}

fn name() -> String {
    made(&steps(&mut Capacity::default(), WORLD, 0)).pod.metadata.name.clone().unwrap()
}

/// `make`, or the name of the pod that is to end.
fn words(steps: &[Step]) -> Vec<String> {
    let word = |step: &Step| match step {
        Step::Make(_) => "make".to_owned(),
        Step::Remove { namespace, target } => format!("end {namespace}/{}", target.name),
    };
    steps.iter().map(word).collect()
}

#[test]
fn capacity_pod_asks_for_what_the_replica_does_on_any_node_but_those_that_are_here() {
    let steps = steps(&mut Capacity::default(), WORLD, 0);
    let CapacityPod { pod, claim } = made(&steps);
    let (pod, claim) = (json!(pod), json!(claim));
    assert_eq!(pod["metadata"]["namespace"], "team-a");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "waits");
    let labels = json!({"app.kubernetes.io/managed-by": "stowage", "stowage.dev/capacity": "waits", "stowage.dev/tenant": "team-a"});
    assert_eq!(pod["metadata"]["labels"], labels);
    let elsewhere = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node1"]}]}]}});
    assert_eq!(pod["spec"]["affinity"], json!({"nodeAffinity": elsewhere}));
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["args"], &container["env"]),
        (&json!("pause:1"), &json!(null), &json!(null))
    );
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert!(container["resources"]["requests"]["cpu"].is_string(), "{container}");
    assert_eq!(container["resources"]["claims"], json!([{"name": "gpu"}]));
    assert_eq!(pod["spec"]["resourceClaims"][0]["resourceClaimName"], claim["metadata"]["name"]);
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
    for absent in ["volumes", "initContainers", "priorityClassName", "nodeName"] {
        assert!(pod["spec"][absent].is_null(), "{absent}");
    }
    let request = &claim["spec"]["devices"]["requests"][0]["exactly"];
    assert_eq!(request["capacity"]["requests"], json!({"memory": "75Gi", "sm": "50"}));
    let selector = "device.attributes[\"gpu.stowage.dev\"].productName in [\"NVIDIA H100 80GB HBM3\"]";
    assert_eq!(request["selectors"], json!([{"cel": {"expression": selector}}]));
    assert!(claim["metadata"]["ownerReferences"].is_null(), "the pod owns it, once it has a UID");
}

#[test]
fn capacity_pod_is_there_while_its_replica_needs_a_node_and_no_longer() {
    let end = format!("end team-a/{}", name());
    let fits = WORLD.replace("memory: 75Gi, compute: 50", "memory: 2Gi, compute: 10");
    let on = |node: &str| stored("", &format!("{{nodeName: {node}}}"), true);
    let ending = stored(", deletionTimestamp: '2026-01-01T12:00:00Z'", "{}", true);
    let orphan = stored("", "{}", true).replace("controller: true", "controller: false");
    let anothers = stored("", "{}", true).replace("kind: InferenceDeployment", "kind: ReplicaSet");
    for (why, text, expect) in [
        ("nothing is there", WORLD.to_owned(), &["make"][..]),
        ("it is there", WORLD.to_owned() + &stored("", "{}", true), &[]),
        ("its claim is missing", WORLD.to_owned() + &stored("", "{}", false), &["make"]),
        ("the replica fits meanwhile", fits.clone() + &stored("", "{}", true), &[end.as_str()]),
        ("the replica fits, nothing was asked", fits, &[]),
        ("a node came, and its agent does not report yet", WORLD.to_owned() + NEW_NODE + &on("node2"), &[]),
        ("it is on a node that reports", WORLD.to_owned() + &on("node1"), &[end.as_str()]),
        ("its node is gone", WORLD.to_owned() + &on("node9"), &[end.as_str()]),
        ("it ends", WORLD.to_owned() + &ending, &[]),
        ("it ends, and something else is asked for", WORLD.replace("75Gi, compute", "76Gi, compute") + &ending, &[]),
        (
            "something else is asked for",
            WORLD.replace("75Gi, compute", "76Gi, compute") + &stored("", "{}", true),
            &[end.as_str(), "make"],
        ),
        (
            "its deployment was deleted and left it",
            WORLD.replace("name: waits,", "name: again,") + &orphan,
            &[end.as_str(), "make"],
        ),
        ("nobody owns it", WORLD.to_owned() + &orphan, &[end.as_str()]),
        ("a label alone makes none of ours", WORLD.to_owned() + &anothers, &[]),
    ] {
        assert_eq!(words(&steps(&mut Capacity::default(), &text, 0)), expect, "{why}");
    }
}

#[test]
fn pod_that_could_not_be_made_is_tried_again_later_and_one_that_brought_nothing_much_later() {
    let mut capacity = Capacity::default();
    let mut at = |text: &str, after| words(&steps(&mut capacity, text, after));
    assert_eq!(at(WORLD, 0), ["make"]);
    assert_eq!(at(WORLD, 29), [""; 0]);
    assert_eq!(at(WORLD, 30), ["make"]);
    let bound = WORLD.to_owned() + &stored("", "{nodeName: node1}", true);
    assert_eq!(at(&bound, 61), [format!("end team-a/{}", name())]);
    assert_eq!(at(WORLD, 62), [""; 0]);
    assert_eq!(at(WORLD, 660), [""; 0]);
    assert_eq!(at(WORLD, 661), ["make"]);
}

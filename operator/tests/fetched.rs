//! Models that node agents fetch: what a claim and a pod say of them, how a revision becomes a commit, and `memory: Auto`.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::{identified, insert, view};
use serde_json::{Value, json};
use stowage_contracts::estimate::Estimate;
use stowage_contracts::preload::MAX_PRELOADS_OF_TENANT;
use stowage_crds::model::Preload;
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::cases;
use stowage_operator::execute::status;
use stowage_operator::observe::agents::AgentReport;
use stowage_operator::observe::view::View;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::preloads::{MAX_DEPLOYMENTS_OF_TENANT, Preloading, preloading};
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_operator::translate::validate::questions;
use stowage_planner::snapshot::Policy;

const FIRST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// The cluster of the quickstart, and one deployment in place of its own.
fn cluster(source: &Value, memory: &str, replicas: u32, status: &Value) -> View {
    let path = format!("{}/tests/golden/quickstart.in.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let kept: Vec<&str> = text.split("\n---\n").filter(|part| !part.contains("kind: InferenceDeployment\n")).collect();
    let deployment = json!({
        "apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment",
        "metadata": {"name": "chat", "namespace": "team-a", "uid": "7f1d3c1e-0000-4000-8000-000000000001", "generation": 1,
            "creationTimestamp": "2026-01-01T11:59:00Z"},
        "spec": {"model": {"source": source}, "replicas": replicas, "scaling": {"mode": "Manual"},
            "variants": [{"name": "small", "class": "h100-80g", "memory": memory, "compute": 10}]},
        "status": status,
    });
    view(&format!("{}\n---\n{}", kept.join("\n---\n"), serde_yaml::to_string(&deployment).unwrap()))
}

/// The replicas that are made, as (claim, pod), and the status.
fn run(view: &View) -> (Vec<(Value, Value)>, Value) {
    let built = build(view, &Memory::default(), 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    let case = cases(view, &built, &plan, &report).next().unwrap();
    let made = prepare(&case, view.now).make.create;
    let made = made.iter().map(|replica| (json!(replica.claim), json!(replica.pod))).collect();
    (made, status::render(&case, report.of(&case.id), &[], None, view.now))
}

fn hub(revision: &str) -> Value {
    json!({"huggingFace": {"repo": "o/n", "revision": revision, "tokenSecretRef": {"name": "hub"}}})
}

fn model(claim: &Value) -> &Value {
    claim.pointer("/spec/devices/config/0/opaque/parameters/model").unwrap()
}

fn reason(status: &Value, kind: &str) -> Option<String> {
    let conditions = status["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some(format!("{} {}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap()))
}

#[test]
fn token_is_mounted_into_the_container_that_waits_and_nowhere_else() {
    let (made, _) = run(&cluster(&hub(FIRST), "300Mi", 1, &json!(null)));
    let [(claim, pod)] = &made[..] else { panic!("{made:#?}") };
    let token = json!({"namespace": "team-a", "secret": "hub", "key": "token"});
    assert_eq!(*model(claim), json!({"repo": "o/n", "revision": FIRST, "token": token}));
    let (waits, engine) = (&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]);
    let mount = json!([{"name": "source-token", "mountPath": "/run/stowage/source", "readOnly": true}]);
    assert_eq!((&waits["name"], &waits["volumeMounts"]), (&json!("wait-model"), &mount));
    assert!(!engine.to_string().contains("source-token") && !engine.to_string().contains("hub"), "{engine}");
    assert!(waits.get("env").is_none(), "{waits}");
    assert!(engine["args"].as_array().unwrap().contains(&json!("/models/model")), "{engine}");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let secret = volumes.iter().find(|volume| volume["name"] == "source-token").unwrap();
    assert_eq!(secret["secret"]["secretName"], "hub");
    assert_eq!(secret["secret"]["items"], json!([{"key": "token", "path": "token"}]));
    let open = json!({"huggingFace": {"repo": "o/n", "revision": FIRST, "path": "q/m.gguf"}});
    let (made, _) = run(&cluster(&open, "300Mi", 1, &json!(null)));
    assert!(!made[0].1.to_string().contains("source-token"));
    assert!(made[0].1.to_string().contains("/models/model/m.gguf"));
}

#[test]
fn keys_of_a_store_are_mounted_into_the_container_that_waits_and_nowhere_else() {
    let s3 = |more: Value| {
        let mut s3 = json!({"bucket": "models", "key": "a/m.gguf", "sha256": "0".repeat(64), "region": "eu-west-1"});
        s3.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cluster(&json!({"s3": s3}), "300Mi", 1, &json!(null))
    };
    let (made, _) = run(&s3(json!({"secretRef": {"name": "store"}, "endpoint": "https://store.example.com"})));
    let [(claim, pod)] = &made[..] else { panic!("{made:#?}") };
    let login = json!({"region": "eu-west-1", "namespace": "team-a", "secret": "store"});
    let url = "https://store.example.com/models/a/m.gguf";
    assert_eq!(*model(claim), json!({"url": url, "sha256": "0".repeat(64), "s3": login}));
    let (waits, engine) = (&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]);
    let mount = json!([{"name": "source-token", "mountPath": "/run/stowage/source", "readOnly": true}]);
    assert_eq!((&waits["name"], &waits["volumeMounts"]), (&json!("wait-model"), &mount));
    assert!(!engine.to_string().contains("source-token") && !engine.to_string().contains("AWS"), "{engine}");
    assert!(waits.get("env").is_none(), "{waits}");
    assert!(engine["args"].as_array().unwrap().contains(&json!("/models/model.gguf")), "{engine}");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let secret = volumes.iter().find(|volume| volume["name"] == "source-token").unwrap();
    let file = |key: &str| json!({"key": key, "path": key});
    let files = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"].map(file);
    assert_eq!((&secret["secret"]["secretName"], &secret["secret"]["items"]), (&json!("store"), &json!(files)));
    assert_eq!(secret["secret"]["optional"], true);

    // What everybody may read needs no Secret; a prefix is a directory.
    let (made, _) = run(&s3(json!({"key": "a/"})));
    let [(claim, pod)] = &made[..] else { panic!("{made:#?}") };
    let url = "https://s3.eu-west-1.amazonaws.com/models/a/";
    assert_eq!(*model(claim), json!({"url": url, "sha256": "0".repeat(64)}));
    assert!(!pod.to_string().contains("source-token"));
    assert!(pod["spec"]["containers"][0]["args"].as_array().unwrap().contains(&json!("/models/model")));
}

#[test]
fn one_replica_resolves_a_branch_and_all_others_get_its_commit() {
    let mut view = cluster(&hub("main"), "300Mi", 3, &json!(null));
    let (made, status) = run(&view);
    assert_eq!((made.len(), &status["model"]), (1, &Value::Null));
    let (claim, _) = &made[0];
    assert_eq!(model(claim)["revision"], "main");

    // The agent of its node reports the commit.
    let mut claim = claim.clone();
    claim["metadata"]["uid"] = json!("claim-1");
    insert(&mut view.claims, &claim, identified);
    let report = |uid: &str| AgentReport { commits: [(uid.to_owned(), FIRST.to_owned())].into(), ..Default::default() };
    view.agents.insert("node1".into(), report("claim-of-another"));
    assert_eq!(run(&view).1["model"], Value::Null);
    view.agents.insert("node1".into(), report("claim-1"));
    let recorded = json!({"repo": "o/n", "revision": "main", "commit": FIRST});
    assert_eq!(run(&view).1["model"], recorded);

    // From then on claims have it, and another revision is resolved anew.
    let (made, status) = run(&cluster(&hub("main"), "300Mi", 3, &json!({"model": recorded})));
    assert_eq!((made.len(), &status["model"]), (3, &recorded));
    assert!(made.iter().all(|(claim, _)| model(claim)["revision"] == FIRST));
    let (made, status) = run(&cluster(&hub("v2"), "300Mi", 3, &json!({"model": recorded})));
    assert_eq!((made.len(), &status["model"]), (1, &Value::Null));
}

fn http() -> Value {
    json!({"http": {"url": "https://models.example.com/m.gguf", "sha256": "0".repeat(64)}})
}

const MIB: u64 = 1 << 20;

#[test]
fn memory_auto_waits_for_the_estimate_and_becomes_a_slice_with_its_parts() {
    let mut view = cluster(&http(), "Auto", 1, &json!(null));
    let (made, status) = run(&view);
    assert!(made.is_empty(), "{made:#?}");
    assert_eq!(reason(&status, "Accepted").unwrap(), "False EstimatingMemory");
    assert_eq!(reason(&status, "Reconciling").unwrap(), "True EstimatingMemory");
    assert_eq!(reason(&status, "Stalled"), None);
    let asked = questions(&view);
    assert_eq!(asked.len(), 1);
    let (key, tenant) = asked.keys().next().unwrap().clone();
    assert_eq!((tenant.as_str(), &asked[&(key.clone(), tenant.clone())].tenant), ("team-a", &tenant));

    let estimate = Estimate { weights: 300 * MIB, kv_cache: 200 * MIB, scratch: 12 * MIB + 1, context_len: 2048 };
    view.estimates = [(key.clone(), Ok(estimate))].into();
    let (made, status) = run(&view);
    let [(claim, _)] = &made[..] else { panic!("{status:#?}") };
    let capacity = claim.pointer("/spec/devices/requests/0/exactly/capacity/requests/memory").unwrap();
    assert_eq!(capacity, "768Mi");
    let parts = json!({"key": key, "weights": "300Mi", "kvCache": "200Mi", "scratch": "12582913", "contextLen": 2048,
        "sequences": 4, "memory": "768Mi"});
    assert_eq!(status["memoryEstimate"], parts);

    // The status remembers it: a new operator asks nothing, unless the options change.
    let mut later = cluster(&http(), "Auto", 1, &json!({"memoryEstimate": parts}));
    assert!(questions(&later).is_empty());
    assert_eq!(run(&later).0.len(), 1);
    later = cluster(
        &http(),
        "Auto",
        1,
        &json!({"memoryEstimate": {"key": "other", "weights": "1", "kvCache": "1", "scratch": "1",
        "contextLen": 1, "sequences": 4, "memory": "256Mi"}}),
    );
    assert_eq!((questions(&later).len(), run(&later).0.len()), (1, 0));
}

#[test]
fn estimate_that_fails_is_named_and_a_size_needs_none() {
    let mut view = cluster(&http(), "Auto", 1, &json!(null));
    let key = questions(&view).keys().next().unwrap().0.clone();
    view.estimates = [(key, Err("models.example.com answers 404".to_owned()))].into();
    let (made, status) = run(&view);
    assert!(made.is_empty());
    assert_eq!(reason(&status, "Accepted").unwrap(), "False EstimateFailed");
    assert_eq!(reason(&status, "Stalled").unwrap(), "True EstimateFailed");
    assert!(status.to_string().contains("answers 404"), "{status}");
    let sized = cluster(&http(), "300Mi", 1, &json!(null));
    assert!(questions(&sized).is_empty());
    assert_eq!(run(&sized).0.len(), 1);
}

fn preloaded(view: &View) -> Preloading {
    let built = build(view, &Memory::default(), 1);
    let (_, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    preloading(&built, &report)
}

#[test]
fn model_is_fetched_while_its_replica_waits_for_room() {
    let lists = |memory: &str, replicas: u32| {
        let found = preloaded(&cluster(&http(), memory, replicas, &json!(null)));
        assert!(found.held.is_empty(), "nothing is to be held when nobody asked for it");
        found.lists.into_iter().map(|(node, list)| (node, list.len())).collect::<Vec<_>>()
    };
    assert_eq!(lists("300Mi", 1), [], "it is placed at once");
    assert_eq!(lists("80Gi", 40), [("node1".to_owned(), 1)]);
    assert_eq!(lists("8000Gi", 1), [], "it can start nowhere");
}

#[test]
fn preloads_of_one_tenant_are_bounded() {
    let mut view = cluster(&http(), "1Gi", 0, &json!(null));
    let (key, one) = view.deployments.pop_first().unwrap();
    for n in 0..2 * MAX_DEPLOYMENTS_OF_TENANT {
        let mut next = one.as_ref().clone();
        let name = format!("m{n:02}");
        next.meta.name = Some(name.clone());
        next.meta.uid = Some(name.clone());
        let model = &mut next.spec.as_mut().unwrap().model;
        let url = json!({"http": {"url": format!("https://models.example.com/{n}.gguf"), "sha256": "0".repeat(64)}});
        model.source = serde_json::from_value(url).unwrap();
        model.preload = Some(Preload { nodes: 1 });
        view.deployments.insert((key.0.clone(), name), std::sync::Arc::new(next));
    }
    let found = preloaded(&view);
    assert_eq!(found.held.len(), MAX_DEPLOYMENTS_OF_TENANT);
    let of_node: Vec<usize> = found.lists.values().map(Vec::len).collect();
    assert_eq!(of_node, [MAX_PRELOADS_OF_TENANT]);
}

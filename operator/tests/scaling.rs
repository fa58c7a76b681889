//! From what gateways report to the number of replicas and its condition, by `spec.scaling`.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::view;
use serde_json::{Value, json};
use stowage_operator::execute::case::cases;
use stowage_operator::execute::status;
use stowage_operator::observe::signals::{Counted, Load, ReplicaLoad};
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::render;
use stowage_planner::snapshot::{DeploymentId, Policy};

const UID: &str = "7f1d3c1e-0000-4000-8000-000000000001";

/// What was decided about team-a/chat with one Ready replica: the number, why, and the reason of ScalingLimited.
struct Decided {
    wanted: u32,
    why: String,
    limited: String,
}

/// `arrivals`: of prompts with 1,000 tokens in the last second; `None`: no gateway reports.
fn decide(scaling: &str, arrivals: Option<u64>) -> Decided {
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
    let mut view = view(&format!("{yaml}\n---\n{pod}"));
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
        }),
        mean_output_tokens: 50.0,
        replicas: [("p".to_owned(), replica)].into(),
        ..Load::default()
    }
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

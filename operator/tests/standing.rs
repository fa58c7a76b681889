//! What runs of a refused deployment, or of none at all, goes on, ends for cause, and is there to be given back.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::view;
use serde_json::json;
use stowage_operator::observe::agents::{AgentReport, FoundOvershoot};
use stowage_operator::observe::view::View;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_operator::translate::snapshot::strays::ended_by;
use stowage_operator::translate::{Built, build};
use stowage_planner::Plan;
use stowage_planner::plan::Action;
use stowage_planner::snapshot::{Overshoot, Policy};

const UID: &str = "7f1d3c1e-0000-4000-8000-000000000001";

/// Where the replica of team-a/chat belongs.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    Accepted,
    Refused,
    OrphanBesideRefused,
    Orphan,
}

fn objects(owned: Case) -> View {
    let path = format!("{}/tests/golden/quickstart.in.yaml", env!("CARGO_MANIFEST_DIR"));
    let yaml = std::fs::read_to_string(path).unwrap();
    let hash = build(&view(&yaml), &Memory::default(), 1).snapshot.deployments[0].spec_hash.clone();
    let yaml = match owned {
        Case::Accepted => yaml,
        _ => yaml.replace("class: h100-80g, memory: 300Mi", "class: nothing, memory: 300Mi"),
    };
    let placement =
        r#"{"node":"node1","variant":"small","gpus":[{"uuid":"GPU-a","memoryBytes":314572800,"smPercent":10}]}"#;
    let owner = json!([{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": UID, "controller": true}]);
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "chat-1", "namespace": "team-a", "uid": "p",
            "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"},
            "annotations": {"stowage.dev/replica-index": "0", "stowage.dev/incarnation": "0", "stowage.dev/spec-hash": hash,
                "stowage.dev/placement": placement},
            "creationTimestamp": "2026-01-01T11:00:00Z"},
        "spec": {"nodeName": "node1", "containers": [{"name": "engine"}]},
        "status": {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:00:15Z"}]}});
    if matches!(owned, Case::Accepted | Case::Refused) {
        pod["metadata"]["ownerReferences"] = owner;
    }
    let mut view = view(&format!("{yaml}\n---\n{pod}"));
    if owned == Case::Orphan {
        view.deployments.clear();
    }
    view
}

/// Of team-a/chat alone.
fn plan(view: &View) -> (Built, Plan) {
    let built = build(view, &Memory::default(), 1);
    let (mut plan, _) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
    plan.actions.retain(|action| action.replica().deployment.name == "chat");
    (built, plan)
}

const ALL: [Case; 4] = [Case::Accepted, Case::Refused, Case::OrphanBesideRefused, Case::Orphan];

#[test]
fn replica_of_a_refused_deployment_goes_on_and_gets_no_sibling() {
    for owned in &ALL[1..] {
        let (built, plan) = plan(&objects(*owned));
        assert_eq!(plan.actions, []);
        let d = built.snapshot.deployments.iter().find(|d| d.id.name == "chat").unwrap();
        assert_eq!((d.replicas.len(), d.wanted, d.tenant.is_some()), (1, 1, true));
    }
}

#[test]
fn evidence_ends_a_replica_whatever_its_deployments_spec_says() {
    for owned in ALL {
        let mut view = objects(owned);
        let evidence = Overshoot {
            gpu: "GPU-a".into(),
            promised_bytes: 1,
            used_bytes: 2,
            samples: 5,
            source: "NVML".into(),
            headroom: false,
        };
        let found = FoundOvershoot { namespace: "team-a".into(), pod: "chat-1".into(), pod_uid: "p".into(), evidence };
        view.agents.insert("node1".into(), AgentReport { overshoots: vec![found], ..AgentReport::default() });
        let (built, plan) = plan(&view);
        let ends = plan.actions.iter().filter(|action| matches!(action, Action::Remove { pod, .. } if pod == "chat-1"));
        assert_eq!(ends.count(), 1, "{:?}", plan.actions);
        let creates = plan.actions.iter().any(|action| matches!(action, Action::Create { .. }));
        assert!(!creates || owned == Case::Accepted);
        // What nobody owns is ended by nobody's share of the plan.
        let orphan = matches!(owned, Case::Orphan | Case::OrphanBesideRefused);
        assert_eq!(ended_by(&plan, &built.unclaimed).len(), usize::from(orphan));
    }
}

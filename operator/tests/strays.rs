//! What nobody owns is ended after ten minutes and not before, in an order that frees what is still used last.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::view;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::strays::{PATIENCE_MS, due, unclaimed};
use stowage_planner::snapshot::DeploymentId;

const LABELS: &str = "labels: {app.kubernetes.io/managed-by: stowage, stowage.dev/deployment: chat}";

fn pod(extra: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: chat-1, namespace: a, uid: p, {LABELS}{extra}}}}}\n")
}

fn claim() -> String {
    format!(
        "---\n{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, spec: {{}}, \
         metadata: {{name: stowage-chat-1, namespace: a, uid: c, {LABELS}}}}}\n"
    )
}

const DEPLOYMENT: &str = "---\n{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: chat, namespace: a, uid: d}}\n";

/// Names of what is ended after a history of (objects, time since the first in ms).
fn ended(history: &[(String, u64)]) -> Vec<String> {
    ended_where(history, true)
}

/// `accepted`: whether the deployments' specs are.
fn ended_where(history: &[(String, u64)], accepted: bool) -> Vec<String> {
    let mut memory = Memory::default();
    let mut last = Vec::new();
    for (objects, at) in history {
        let (view, now) = (view(objects), 1_000_000 + at);
        let exists = |id: &DeploymentId| view.deployments.contains_key(&(id.namespace.clone(), id.name.clone()));
        let unclaimed = unclaimed(&view, &|id| accepted && exists(id));
        memory.observe(&view, now);
        last = due(&view, &unclaimed, &|uid| memory.unclaimed_since(uid), now);
        memory.unclaimed(&unclaimed, now);
    }
    last.into_iter().map(|stray| stray.name).collect()
}

#[test]
fn orphan_is_ended_after_ten_minutes_the_claim_after_its_pod() {
    let both = pod("") + &claim();
    assert_eq!(ended(&[(both.clone(), 0)]), [""; 0]);
    assert_eq!(ended(&[(both.clone(), 0), (both.clone(), PATIENCE_MS - 1)]), [""; 0]);
    assert_eq!(ended(&[(both.clone(), 0), (both.clone(), PATIENCE_MS)]), ["chat-1"]);
    // Without its pod nobody can take it over.
    assert_eq!(ended(&[(both, 0), (claim(), 1_000)]), ["stowage-chat-1"]);
}

#[test]
fn orphan_that_is_on_its_way_out_is_not_ended_again_and_counts_until_it_is_gone() {
    let ending = pod(", deletionTimestamp: '2026-01-01T00:00:00Z'");
    let all = ending + &claim();
    assert_eq!(ended(&[(all.clone(), 0), (all, PATIENCE_MS)]), [""; 0]);
}

#[test]
fn object_with_an_owner_is_no_orphan() {
    let owned = |kind: &str| {
        pod(&format!(", ownerReferences: [{{apiVersion: v1, kind: {kind}, name: chat, uid: d, controller: true}}]"))
    };
    for objects in [owned("InferenceDeployment"), owned("ReplicaSet"), pod("") + DEPLOYMENT] {
        assert_eq!(ended(&[(objects.clone(), 0), (objects, 2 * PATIENCE_MS)]), [""; 0]);
    }
    let foreign = pod("").replace("managed-by: stowage", "managed-by: helm");
    assert_eq!(ended(&[(foreign.clone(), 0), (foreign, 2 * PATIENCE_MS)]), [""; 0]);
}

#[test]
fn ten_minutes_begin_anew_when_a_deployment_of_the_name_was_there_meanwhile() {
    let adopted = pod("") + DEPLOYMENT;
    let history = |last| ended(&[(pod(""), 0), (adopted.clone(), 500_000), (pod(""), 500_001), (pod(""), last)]);
    assert_eq!(history(PATIENCE_MS), [""; 0]);
    assert_eq!(history(500_001 + PATIENCE_MS), ["chat-1"]);
}

#[test]
fn refused_deployment_of_the_name_keeps_no_orphan() {
    let both = pod("") + DEPLOYMENT;
    let history = [(both.clone(), 0), (both, PATIENCE_MS)];
    assert_eq!(ended_where(&history, true), [""; 0]);
    assert_eq!(ended_where(&history, false), ["chat-1"]);
}

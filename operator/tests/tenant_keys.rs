//! What gateways report of a tenant's keys becomes a condition of its TenantQuota.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::view;
use stowage_contracts::signals::{Fault, KeyFault};
use stowage_operator::execute::cluster;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_planner::snapshot::Policy;

/// The condition KeysUsable of tenant `a`, as `status reason: message`. `spec` and `status` are appended to the object's.
fn condition(spec: &str, status: &str, reported: Option<Vec<KeyFault>>) -> String {
    let quota = format!(
        "{{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {{name: a, uid: q, generation: 3}}, \
         spec: {{namespaces: [a]{spec}}}, status: {status}}}"
    );
    let mut view = view(&quota);
    view.gateways.keys = reported;
    let built = build(&view, &Memory::default(), 1);
    let (_, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), 1_000);
    let due = cluster::statuses(&view, &built, &report).pop().unwrap();
    let conditions = due.status["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == "KeysUsable");
    let text = |field: &str| found.map(|found| found[field].as_str().unwrap().to_owned()).unwrap_or_default();
    found.map(|_| format!("{} {}: {}", text("status"), text("reason"), text("message"))).unwrap_or_default()
}

const NAMED: &str = ", credentials: {apiKeys: [{secretName: a-keys}]}";

fn fault(tenant: &str, fault: Fault) -> KeyFault {
    KeyFault { tenant: tenant.into(), secret: format!("{tenant}-keys"), fault }
}

#[test]
fn each_fault_has_its_reason_and_the_message_names_the_secret() {
    for (found, reason, part) in [
        (Fault::NotFound, "SecretNotFound", "Secret a-keys: there is none of this name and of the type"),
        (Fault::Empty, "NoKey", "Secret a-keys: it holds no key"),
        (Fault::NotAHash { key: "ci".into() }, "KeyNotAHash", "Secret a-keys: the value of ci is no"),
        (Fault::Taken { key: "ci".into() }, "KeyTaken", "Secret a-keys: ci is a key of another tenant already"),
    ] {
        let condition = condition(NAMED, "null", Some(vec![fault("a", found), fault("b", Fault::Empty)]));
        assert!(condition.starts_with(&format!("False {reason}: ")) && condition.contains(part), "{condition}");
        assert!(condition.contains("get 401") && !condition.contains("b-keys"), "{condition}");
    }
}

#[test]
fn usable_keys_are_distinguished_from_no_keys() {
    assert_eq!(
        condition(NAMED, "null", Some(vec![fault("b", Fault::Empty)])),
        "True KeysUsable: Clients get access with every key in 1 Secrets."
    );
    assert_eq!(condition("", "null", Some(vec![])), "", "no Secret is named");
}

#[test]
fn without_a_gateway_the_condition_stays_as_it_was() {
    assert_eq!(condition(NAMED, "null", None), "");
    let status = "{conditions: [{type: KeysUsable, status: 'False', reason: NoKey, message: m, lastTransitionTime: 2026-01-01T00:00:00Z}]}";
    assert_eq!(condition(NAMED, status, None), "False NoKey: m");
}

#[test]
fn many_faults_are_counted() {
    let faults = (0..9).map(|n| fault("a", Fault::NotAHash { key: format!("k{n}") })).collect();
    let condition = condition(NAMED, "null", Some(faults));
    assert!(condition.contains("the value of k4") && condition.contains("and 4 more"), "{condition}");
}

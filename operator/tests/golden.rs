//! From the objects of a cluster to the planner's snapshot, the plan, and the objects that carry it
//! out: `tests/golden/*.in.yaml` in, `*.out.yaml` expected. `UPDATE_GOLDEN=1` writes what came out.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use objects::view;
use serde_json::{Value, json};
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::cases;
use stowage_operator::execute::cluster;
use stowage_operator::execute::status;
use stowage_operator::observe::view::View;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::snapshot::Policy;

fn run(view: &View) -> Value {
    let built = build(view, &Memory::default(), 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    assert_eq!(stowage_planner::check::check(&built.snapshot, &plan), []);
    let mut deployments = serde_json::Map::new();
    for case in cases(view, &built, &plan, &report) {
        let make = prepare(&case, view.now).make;
        let replicas: Vec<Value> =
            make.create.iter().map(|replica| json!({"claim": replica.claim, "pod": replica.pod})).collect();
        let entry = json!({
            "addFinalizer": make.guard,
            "service": make.service.map(|service| service.object),
            "networkPolicy": make.policy.map(|policy| policy.object),
            "disruptionBudget": make.budget.map(|budget| budget.object),
            "create": replicas,
            "status": status::render(&case, report.of(&case.id), &[], None, view.now),
        });
        deployments.insert(case.id.to_string(), entry);
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

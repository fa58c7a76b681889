//! `POST /stowage/v1/plan`: `dry_run/changes.yaml` on `dry_run/world.yaml`, and the text of each answer in
//! `dry_run/<name>.txt`. `UPDATE_GOLDEN=1` writes what came out.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use objects::view;
use serde::Deserialize;
use serde_json::{Value, json};
use stowage_contracts::names::{MAX_PLAN_BYTES, PATH_PLAN};
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::cases;
use stowage_operator::observe::view::View;
use stowage_operator::serve::dry_run::{self, DryRunError};
use stowage_operator::serve::overview::overview;
use stowage_operator::serve::published::{Basis, Published};
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::difference::{DryRun, DryRunRequest};
use stowage_planner::plan::Action;
use stowage_planner::render;
use stowage_planner::snapshot::{Placement, Policy};
use tokio::sync::watch;
use tower::ServiceExt;

#[derive(Deserialize)]
struct Change {
    name: String,
    manifests: Vec<Value>,
    #[serde(default)]
    delete: bool,
}

fn changes() -> Vec<Change> {
    let mut value: serde_yaml::Value = serde_yaml::from_str(include_str!("dry_run/changes.yaml")).unwrap();
    value.apply_merge().unwrap();
    serde_yaml::from_value(value).unwrap()
}

/// What the operator publishes once what it created runs.
fn world() -> Published {
    let mut world = view(include_str!("dry_run/world.yaml"));
    let published = publish(world.clone());
    run(&mut world, &published);
    publish(world)
}

fn publish(view: View) -> Published {
    let (memory, policy) = (Memory::default(), Policy::default());
    let built = build(&view, &memory, 1);
    let (plan, report) = stowage_planner::plan(&built.snapshot, &policy, millis(view.now));
    Published {
        leading: true,
        snapshot: Some(Arc::new(built.snapshot)),
        plan: Some(Arc::new(plan)),
        report: Some(Arc::new(report)),
        basis: Some(Arc::new(Basis { view: Arc::new(view), memory, policy })),
        ..Published::default()
    }
}

/// Carries the plan's creations out: the pods are bound and Ready.
fn run(view: &mut View, published: &Published) {
    let built = build(view, &Memory::default(), 1);
    let (plan, report) = (published.plan.as_ref().unwrap(), published.report.as_ref().unwrap());
    let made: Vec<_> =
        cases(view, &built, plan, report).flat_map(|case| prepare(&case, view.now).make.create).collect();
    for replica in made {
        let key =
            |name: &Option<String>, namespace: &Option<String>| (namespace.clone().unwrap(), name.clone().unwrap());
        let (claim, mut pod) = (replica.claim.unwrap(), replica.pod);
        pod.metadata.uid = pod.metadata.name.clone();
        let status = json!({"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:30:00Z"}]});
        pod.status = Some(serde_json::from_value(status).unwrap());
        view.claims.insert(key(&claim.metadata.name, &claim.metadata.namespace), Arc::new(claim.into()));
        view.pods.insert(key(&pod.metadata.name, &pod.metadata.namespace), Arc::new(pod.into()));
    }
}

fn ask(published: &Published, change: Change) -> Result<DryRun, DryRunError> {
    let Change { name: _, manifests, delete } = change;
    dry_run::dry_run(published, &DryRunRequest { manifests, delete })
}

#[test]
fn each_change_is_answered_with_where_it_goes_and_what_becomes_of_others() {
    let world = world();
    let mut expected = BTreeSet::new();
    for change in changes() {
        let path = format!("{}/tests/dry_run/{}.txt", env!("CARGO_MANIFEST_DIR"), change.name);
        let name = change.name.clone();
        let run = ask(&world, change).unwrap();
        // Over the wire and back, as the command line reads it.
        let run: DryRun = serde_json::from_value(serde_json::to_value(&run).unwrap()).unwrap();
        let came = format!("{}fits       {}\n", render::dry_run(&run), run.fits());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &came).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(came, want, "{path} differs; UPDATE_GOLDEN=1 accepts it");
        expected.insert(format!("{name}.txt"));
    }
    let folder = std::fs::read_dir(format!("{}/tests/dry_run", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let files = folder.map(|f| f.unwrap().file_name().into_string().unwrap()).filter(|f| f.ends_with(".txt"));
    assert_eq!(files.collect::<BTreeSet<_>>(), expected, "a text without a change");
}

/// Where the deployment's replicas are created.
fn places(actions: &[Action], name: &str) -> Vec<(u32, Placement)> {
    let place = |action: &Action| match action {
        Action::Create { replica, placement, .. } if replica.deployment.name == name => {
            Some((replica.index, placement.clone()))
        }
        _ => None,
    };
    let mut found: Vec<_> = actions.iter().filter_map(place).collect();
    found.sort();
    found
}

#[test]
fn what_is_applied_goes_where_the_dry_run_said() {
    let world = world();
    let change = || changes().into_iter().find(|c| c.name == "create").unwrap();
    let run = ask(&world, change()).unwrap();
    let said: Vec<_> = run.difference.deployments[0].created.iter().map(|c| (c.index, c.placement.clone())).collect();
    assert_eq!(said.len(), 2);
    // As the API server stores it: with another UID and a creation in whole seconds.
    let mut after = View::clone(&world.basis.as_ref().unwrap().view);
    let mut object = change().manifests.remove(0);
    object["metadata"]["uid"] = json!("0a1d3c1e-0000-4000-8000-000000000009");
    object["metadata"]["generation"] = json!(1);
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T12:00:00Z");
    let stored =
        |object: &Value| stowage_operator::observe::view::Stored::read(serde_json::from_value(object.clone()).unwrap());
    objects::insert(&mut after.deployments, &object, stored);
    let applied = publish(after);
    assert_eq!(places(&applied.plan.unwrap().actions, "summarise"), said);
}

#[test]
fn nothing_of_the_published_state_changes() {
    let world = world();
    let before = format!("{world:?}");
    for change in changes() {
        let _ = ask(&world, change);
    }
    assert!(before == format!("{world:?}"));
}

#[test]
fn overview_shows_each_gpu_with_its_slices_and_each_deployment_with_its_state() {
    let mut world = world();
    let found = overview(&world);
    let shown: Vec<String> = found
        .gpus
        .iter()
        .map(|g| {
            let owners: Vec<&str> = g.slices.iter().map(|s| s.owner.as_str()).collect();
            format!("{} {} {:?} {} of {}", g.node, g.uuid, owners, g.promised_bytes() >> 30, g.memory_bytes >> 30)
        })
        .collect();
    assert_eq!(shown[0], "node1 GPU-aaaa-1 [\"team-a/chat\", \"team-a/chat\", \"team-b/old\"] 76 of 80");
    assert_eq!(shown[1], "node2 GPU-bbbb-1 [\"team-b/old\"] 60 of 80");
    let chat = found.deployments.iter().find(|d| d.name == "chat").unwrap();
    assert_eq!((chat.state.as_str(), chat.well, chat.ready, chat.wanted), ("OnTarget", true, 2, 2));
    assert_eq!((chat.price_per_hour_micros, chat.currency.as_str(), chat.requests), (Some(600_000), "USD", None));
    let waits = found.deployments.iter().find(|d| d.name == "waits").unwrap();
    assert!(!waits.well && waits.message.contains("No node fits"), "{waits:?}");
    let tenants: Vec<_> = found.tenants.iter().map(|t| (t.name.as_str(), t.usage[0].held_milli)).collect();
    assert_eq!(tenants, [("team-a", 200), ("team-b", 1500)]);
    // While planning is paused, it says why.
    world.frozen = Some("no pods".to_owned());
    assert_eq!(overview(&world).paused.as_deref(), Some("no pods"));
    assert_eq!(overview(&Published::default()).paused.as_deref(), Some("no plan has been made yet"));
}

async fn post(published: Published, body: impl Into<Body>) -> (StatusCode, Value) {
    let (_keep, receiver) = watch::channel(Arc::new(published));
    let request = Request::post(PATH_PLAN).body(body.into()).unwrap();
    let answer = dry_run::router(receiver).oneshot(request).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn request_that_cannot_be_answered_says_why_as_kubernetes_does() {
    let manifest = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "metadata": {"name": "a", "namespace": "n"}});
    let good = || json!({"manifests": [manifest]}).to_string();
    let cases = [
        (world(), "{".to_owned(), 400, "cannot be read"),
        (world(), json!({"manifests": [{"apiVersion": "v1", "kind": "Pod"}]}).to_string(), 400, "manifest 1 is a Pod"),
        (world(), " ".repeat(MAX_PLAN_BYTES + 1), 413, "more than 1048576 bytes"),
        (Published::default(), good(), 503, "no plan has been made yet"),
        (Published { frozen: Some("no pods".to_owned()), ..world() }, good(), 503, "planning is paused: no pods"),
    ];
    for (published, body, code, want) in cases {
        let (status, answer) = post(published, body).await;
        assert_eq!(status.as_u16(), code, "{answer}");
        assert_eq!((answer["kind"].as_str(), answer["code"].as_u64()), (Some("Status"), Some(code.into())));
        assert!(answer["message"].as_str().unwrap().contains(want), "{answer}");
    }
    assert_eq!(post(world(), good()).await.0, StatusCode::OK);
}

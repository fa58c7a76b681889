//! The operator is killed after *every* single write of create, scale-out, rollout, scale-in and
//! delete; the next one must reach the same end, and no state in between may be wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{
    Link, Server, Summary, cluster, deployment, history_is_clean, key, nothing_left, operator, patch, serves, summary,
    until,
};

/// A change to a running deployment and how its end is known.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    before: u32,
    change: fn(&Server),
    done: fn(&Summary) -> bool,
}

fn replicas(server: &Server, count: u32) {
    patch(server, "chat", json!({"spec": {"replicas": count}}));
}

const CREATE: Scenario =
    Scenario { name: "create", before: 0, change: |server| replicas(server, 2), done: |now| serves(2)(now) };
const SCALE_OUT: Scenario =
    Scenario { name: "scale 1 → 3", before: 1, change: |server| replicas(server, 3), done: |now| serves(3)(now) };
const SCALE_IN: Scenario =
    Scenario { name: "scale 3 → 1", before: 3, change: |server| replicas(server, 1), done: |now| serves(1)(now) };
const ROLLOUT: Scenario = Scenario {
    name: "change of model",
    before: 2,
    change: |server| patch(server, "chat", json!({"spec": {"model": {"source": {"image": {"path": "/other.gguf"}}}}})),
    done: |now| serves(2)(now) && now.pods.values().flatten().all(|runs| runs.contains("other.gguf")),
};
const DELETE: Scenario = Scenario {
    name: "delete",
    before: 2,
    change: |server| drop(server.act(|store| store.delete(&key("inferencedeployments", "chat"), None).unwrap())),
    done: nothing_left,
};

/// Runs the scenario with an operator that is cut off after `writes` writes (0: never) and one that
/// takes over. Answers the end state and how many writes the first one made.
async fn run(scenario: Scenario, writes: usize) -> (Summary, usize) {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", scenario.before);
    let (settled, link) = (Link::default(), if writes == 0 { Link::default() } else { Link::cut_after(writes) });
    if scenario.before > 0 {
        let first = operator(&server, &settled).await;
        until(&server, "the state before", serves(scenario.before as usize)).await;
        first.stop().await;
    }
    (scenario.change)(&server);
    let killed = operator(&server, &link).await;
    if writes == 0 {
        until(&server, scenario.name, scenario.done).await;
        quiet(&link).await;
    } else {
        cut(&link).await;
        killed.kill();
        // Saves waiting for the lease to run out, which other tests are about.
        server.act(|store| store.remove(&("leases".into(), "stowage-system".into(), "stowage-operator".into())));
        let _second = operator(&server, &settled).await;
        until(&server, &format!("{} cut after write {writes}: {:?}", scenario.name, link.writes()), scenario.done)
            .await;
        quiet(&settled).await;
    }
    history_is_clean(&server);
    life.abort();
    (summary(&server), link.writes().len())
}

/// Waits for the cut. Statuses that come close together are written as one, so a run may make fewer
/// writes than the one that counted them: then it is cut when it has long been done.
async fn cut(link: &Link) {
    let started = std::time::Instant::now();
    while !link.is_cut() && started.elapsed() < std::time::Duration::from_secs(15) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    link.cut();
}

/// Waits until nothing is written any more: an idle system writes nothing.
async fn quiet(link: &Link) {
    for _ in 0..20 {
        let before = link.writes().len();
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        if link.writes().len() == before {
            return;
        }
    }
    panic!("it never stops writing: {:?}", link.writes());
}

async fn after_every_write(scenario: Scenario) {
    let (expect, writes) = run(scenario, 0).await;
    assert!(writes > 2, "{}: {writes} writes", scenario.name);
    let runs = (1..=writes).map(|n| tokio::spawn(async move { (n, run(scenario, n).await.0) }));
    for run in runs.collect::<Vec<_>>() {
        let (n, end) = run.await.unwrap();
        assert_eq!(end, expect, "{}: cut after write {n} of {writes}", scenario.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_survives_a_crash_after_every_write() {
    after_every_write(CREATE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_out_survives_a_crash_after_every_write() {
    after_every_write(SCALE_OUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollout_survives_a_crash_after_every_write() {
    after_every_write(ROLLOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_in_survives_a_crash_after_every_write() {
    after_every_write(SCALE_IN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_survives_a_crash_after_every_write() {
    after_every_write(DELETE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_becomes_ready_and_its_conditions_show_it() {
    let server = cluster();
    let life = server.live();
    deployment(&server, "chat", 2);
    let link = Link::default();
    let operator = operator(&server, &link).await;
    until(&server, "two replicas", serves(2)).await;
    quiet(&link).await;
    let stored = server.store().get(&key("inferencedeployments", "chat")).unwrap().clone();
    let ready = |kind: &str| {
        let conditions = stored["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == kind).map(|condition| condition["status"].clone())
    };
    for kind in ["Accepted", "QuotaReserved", "Placed", "Ready"] {
        assert_eq!(ready(kind), Some(Value::from("True")), "{kind} in {:#}", stored["status"]);
    }
    assert_eq!(ready("Stalled"), None);
    assert_eq!(stored["status"]["readyReplicas"], 2);
    operator.stop().await;
    life.abort();
}

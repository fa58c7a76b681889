//! Deletion and crashes: no request in flight is dropped, and what ends unexpectedly is replaced.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::reserved::{labelled, on};
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::load::{Load, under_way};
use crate::tools::process;
use crate::tools::world::{Tenant, Wish, World};

/// A node beside a test's own.
const OTHER: &str = "node1";

pub async fn deleting_under_load_drains_without_a_failed_request(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant_with("a", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "9"}]})).await?;
    w.deploy_ready(&tenant, "going", &Wish::default().overlay(on(w.node()?))).await?;
    w.answers(&tenant, "going").await?;
    let load = Load::start(&tenant.caller, "going", 4, 48);
    under_way(&load, 4).await?;
    w.cluster().delete("InferenceDeployment", &tenant.name, "going").await?;
    // New questions are refused once the model is gone (404); those that were accepted must end well.
    let outcome = load.finish().await;
    let lost: Vec<_> =
        outcome.failures.iter().filter(|f| !f.why.contains("404") && !f.why.contains("model_not_found")).collect();
    ensure!(lost.is_empty(), "{} requests lost: {:?}", lost.len(), &lost[..lost.len().min(3)]);
    w.gone(&tenant, "going", Duration::from_secs(60)).await?;
    // The slice is free again: a replica that needs every GPU of the node whole can be placed there.
    let mut all = on(w.node()?);
    all["variants"] = json!([{"name": "whole", "class": "h100-80g", "count": 8}]);
    w.deploy_ready(&tenant, "next", &Wish::default().overlay(all)).await
}

/// `kubectl drain` of the node with the only replica: its replacement is Ready before it ends. The
/// cordon alone, beside it, does the same.
pub async fn draining_the_node_of_the_only_replica_loses_no_request(w: World) -> anyhow::Result<()> {
    // The quota covers one replica: for the time of the move it need not cover two.
    let tenant = w.tenant_with("a", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "50m"}]})).await?;
    let node = w.node()?.to_owned();
    w.label_node(&node).await?;
    w.deploy_ready(&tenant, "single", &Wish::default().overlay(labelled(&w.label()))).await?;
    w.label_node(OTHER).await?;
    w.answers(&tenant, "single").await?;
    let load = Load::start(&tenant.caller, "single", 4, 48);
    under_way(&load, 4).await?;
    let selector = format!("--pod-selector=stowage.dev/deployment=single,stowage.dev/tenant={}", tenant.name);
    let args = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s", &selector];
    let (code, out, err) = w.env.program("kubectl", &args).await?;
    let outcome = load.finish().await;
    w.env.program("kubectl", &["uncordon", &node]).await?;
    ensure!(code == 0, "kubectl drain: {out}{err}");
    w.note(&format!(
        "{} requests, evictions that waited: {}",
        outcome.succeeded,
        err.matches("disruption budget").count()
    ));
    ensure!(outcome.failures.is_empty(), "{} requests lost: {:?}", outcome.failures.len(), outcome.failures.first());
    w.ready(&tenant, "single", 1).await?;
    let pods = w.pods(&tenant, "single").await?;
    ensure!(pods.iter().all(|pod| text(pod, "/spec/nodeName") != node), "a replica is still on {node}");
    Ok(())
}

/// Mode Active: load that one replica cannot serve within its objectives brings more, and none of it is lost.
pub async fn load_is_scaled_out_without_a_lost_request(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let active = |itl: u128| {
        Wish::default().overlay(json!({"replicas": null, "objectives": {"ttft": "500ms", "itl": format!("{itl}ms")},
            "scaling": {"mode": "Active", "minReplicas": 1, "maxReplicas": 3}}))
    };
    w.deploy_ready(&tenant, "follows", &active(30)).await?;
    w.answers(&tenant, "follows").await?;
    // One answer alone keeps the objective on any machine, a replica's whole batch does not.
    let began = std::time::Instant::now();
    let answer = tenant.caller.chat("follows", "Tell a long story.", 64).await?;
    let tokens = answer.body["usage"]["completion_tokens"].as_u64().context("no usage in the answer")?;
    let itl = (began.elapsed().as_millis() / u128::from(tokens.max(1)) * 5 / 2).max(30);
    w.deploy(&tenant, "follows", &active(itl)).await?;
    let load = Load::start(&tenant.caller, "follows", 12, 64);
    let started = std::time::Instant::now();
    let more = w
        .until(&tenant, "follows", "scaled out", Duration::from_secs(120), |o| {
            text(o, "/status/readyReplicas").parse::<u32>().is_ok_and(|ready| ready >= 2)
        })
        .await;
    w.note(&format!(
        "objective {itl} ms; a second replica took requests {:.0} s after the load began",
        started.elapsed().as_secs_f64()
    ));
    let outcome = load.finish().await;
    more?;
    ensure!(outcome.failures.is_empty(), "{} requests lost: {:?}", outcome.failures.len(), outcome.failures.first());
    Ok(())
}

/// Where the node is cordoned and no other one has room, the replica goes on, and what would help is named.
pub async fn replica_on_a_cordoned_node_stays_without_another_place(w: World) -> anyhow::Result<()> {
    let (tenant, node) = (w.tenant("a").await?, w.node()?.to_owned());
    w.deploy_ready(&tenant, "pinned", &Wish::default().overlay(on(&node))).await?;
    let pod = w.pods(&tenant, "pinned").await?.first().map(|pod| text(pod, "/metadata/uid")).context("no pod")?;
    w.env.program("kubectl", &["cordon", &node]).await?;
    let cordoned = w
        .until(&tenant, "pinned", "reported as on a cordoned node", Duration::from_secs(30), |o| {
            condition(o, "Placed").is_some_and(|(status, reason, message)| {
                let step = format!("Fits if {node} is uncordoned");
                status == "False" && reason == "NodeCordoned" && message.contains(&step)
            })
        })
        .await;
    let pods = w.pods(&tenant, "pinned").await?;
    w.env.program("kubectl", &["uncordon", &node]).await?;
    cordoned?;
    ensure!(pods.len() == 1 && text(&pods[0], "/metadata/uid") == pod, "the replica was replaced or doubled");
    w.until(&tenant, "pinned", "placed as before", Duration::from_secs(30), |o| {
        condition(o, "Placed").is_some_and(|(status, ..)| status == "True")
    })
    .await?;
    w.answers(&tenant, "pinned").await.map(|_| ())
}

/// The engine's process of a deployment's (first) pod, and the pod's name.
async fn engine_process(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<(String, i32)> {
    let pods = w.pods(tenant, name).await?;
    let pod = pods.first().context("no pod")?;
    let pids = process::of_pod(&text(pod, "/metadata/uid"), "stowage-engine");
    Ok((
        text(pod, "/metadata/name"),
        *pids.first().context("the engine's process was not found; is the cluster on this machine?")?,
    ))
}

pub async fn a_killed_engine_is_replaced_and_the_other_replica_serves(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "pair", &Wish::default().replicas(2)).await?;
    w.answers(&tenant, "pair").await?;
    let (_, pid) = engine_process(&w, &tenant, "pair").await?;
    process::signal(pid, "KILL")?;
    // Every request that begins after the death succeeds.
    let load = Load::start(&tenant.caller, "pair", 3, 16);
    under_way(&load, 12).await?;
    wait_for("the killed engine to run again", Duration::from_secs(60), || async {
        let pods = w.pods(&tenant, "pair").await?;
        let count = |p: &serde_json::Value| p.pointer("/status/containerStatuses/0/restartCount")?.as_u64();
        let restarts = pods.iter().filter_map(count).sum::<u64>();
        Ok(if restarts == 1 { Ok(()) } else { Err(format!("{restarts} restarts")) })
    })
    .await?;
    w.ready(&tenant, "pair", 2).await?;
    let outcome = load.finish().await;
    ensure!(
        outcome.failures.is_empty(),
        "{} of {} failed: {:?}",
        outcome.failures.len(),
        outcome.succeeded,
        outcome.failures.first()
    );
    Ok(())
}

/// More kills, at random moments, are in the gateway's own tests: here each meets the kubelet's back-off, which
/// doubles from ten seconds.
pub async fn with_one_replica_killed_requests_are_held_until_it_is_back(w: World) -> anyhow::Result<()> {
    const AFTER_MILLIS: [u64; 3] = [0, 37, 211];
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "single", &Wish::default()).await?;
    w.answers(&tenant, "single").await?;
    let mut killed = None;
    for after in AFTER_MILLIS {
        let (_, pid) = engine_process(&w, &tenant, "single").await?;
        ensure!(killed.replace(pid) != Some(pid), "the killed process still runs");
        let asked = (0..4).map(|_| tenant.caller.chat("single", "What is the capital of France?", 16));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(after)).await; // the moment of the kill, not a wait for something
            process::signal(pid, "KILL")
        };
        let (answers, signalled) = tokio::join!(futures::future::join_all(asked), kill);
        signalled?;
        for answer in answers {
            let answer = answer?;
            ensure!(answer.status == 200, "not held: {} {}", answer.status, answer.body);
            ensure!(answer.text() == "The capital of France is Paris.", "answer: {}", answer.text());
        }
        // A request after the kill in any case: those above may have been faster.
        w.answers(&tenant, "single").await?;
    }
    Ok(())
}

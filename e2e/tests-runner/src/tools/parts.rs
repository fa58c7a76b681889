//! Our own parts in the cluster, as the tests find, ask and replace them: agents, gateways, operators.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stowage_contracts::names;

use super::cluster::{Cluster, condition, text, wait_for};
use super::process;
use super::world::{NODES, SYSTEM, Tenant, World};

/// The agents' pods, but for those on reserved nodes: another test may be ending them.
pub async fn agents(w: &World) -> anyhow::Result<Vec<Value>> {
    let pods = w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    Ok(pods.into_iter().filter(|p| !w.env.is_reserved(&text(p, "/spec/nodeName"))).collect())
}

/// The agent's pod on a node.
pub async fn agent_pod(w: &World, node: &str) -> anyhow::Result<Value> {
    let pods = w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    pods.into_iter().find(|p| text(p, "/spec/nodeName") == node).context("no agent on the node")
}

/// The agent's process on a node.
pub async fn agent(w: &World, node: &str) -> anyhow::Result<i32> {
    let pids = process::of_pod(&text(&agent_pod(w, node).await?, "/metadata/uid"), "stowage-node-agent");
    pids.first().copied().context("the agent's process was not found; is the cluster on this machine?")
}

/// Processes of the gateways that run.
pub async fn gateways(w: &World) -> anyhow::Result<Vec<i32>> {
    gateways_on(w, None).await
}

/// As [`gateways`], of one node only when it is given.
pub async fn gateways_on(w: &World, node: Option<&str>) -> anyhow::Result<Vec<i32>> {
    let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await?;
    let here = pods.iter().filter(|p| node.is_none_or(|n| text(p, "/spec/nodeName") == n));
    let pids: Vec<i32> = here.flat_map(|p| process::of_pod(&text(p, "/metadata/uid"), "stowage-gateway")).collect();
    ensure!(!pids.is_empty(), "no gateway's process was found");
    Ok(pids)
}

/// What a gateway reports of the tenant's deployments.
async fn signals(gateway: i32, tenant: &Tenant) -> anyhow::Result<Vec<Value>> {
    let url = format!("http://127.0.0.1:{}{}", names::GATEWAY_ADMIN_PORT, names::PATH_SIGNALS);
    let (status, body) = process::ask_inside(gateway, &[&url]).await?;
    ensure!(status == 200, "the gateway's signals answered {status}");
    let signals: Value = serde_json::from_str(&body).context("parse the gateway's signals")?;
    let deployments = signals["deployments"].as_array().context("the signals name no deployments")?;
    Ok(deployments.iter().filter(|d| d["namespace"] == tenant.name.as_str()).cloned().collect())
}

/// Requests of the tenant that wait at any gateway for a replica.
pub async fn waiting(w: &World, tenant: &Tenant) -> anyhow::Result<u64> {
    let mut waiting = 0;
    for gateway in gateways(w).await? {
        let own = signals(gateway, tenant).await?;
        waiting += own.iter().flat_map(|d| [&d["queued"], &d["held"]]).filter_map(Value::as_u64).sum::<u64>();
    }
    Ok(waiting)
}

/// Whether a gateway keeps a replica out of routing.
pub async fn refused(gateway: i32, tenant: &Tenant, pod: &str) -> anyhow::Result<Result<(), String>> {
    let own = signals(gateway, tenant).await?;
    let mut replicas = own.iter().filter_map(|d| d["replicas"].as_array()).flatten();
    let routed = replicas.any(|r| r["pod"] == pod && r["refused"].is_null());
    Ok(if routed { Err("still routed to".to_owned()) } else { Ok(()) })
}

/// The reason of the condition Degraded on a node's GpuNode; "": there is none.
pub async fn agent_reports(w: &World, node: &str, reason: &str) -> anyhow::Result<()> {
    wait_for(&format!("the agent of {node} to report {reason:?}"), Duration::from_secs(60), || async {
        let object = w.cluster().get("GpuNode", "", node).await?.unwrap_or_default();
        let now = condition(&object, "Degraded").map(|(_, reason, _)| reason).unwrap_or_default();
        Ok(if now == reason { Ok(()) } else { Err(now) })
    })
    .await
}

/// Brings the cluster's gateways to this number; how many there were.
pub async fn all_gateways(w: &World, replicas: u32) -> anyhow::Result<u32> {
    let before =
        w.cluster().get("Deployment", SYSTEM, "stowage-gateway").await?.context("no Deployment of gateways")?;
    let before = before.pointer("/spec/replicas").and_then(Value::as_u64).context("spec.replicas")?;
    w.cluster().merge("Deployment", SYSTEM, "stowage-gateway", &json!({"spec": {"replicas": replicas}})).await?;
    wait_for(&format!("{replicas} gateways"), Duration::from_secs(60), || async {
        let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await?;
        let ready = pods.iter().filter(|p| condition(p, "Ready").is_some_and(|c| c.0 == "True")).count();
        Ok(if ready == replicas as usize { Ok(()) } else { Err(format!("{ready} of {} ready", pods.len())) })
    })
    .await?;
    Ok(u32::try_from(before)?)
}

/// The operator that leads: its pod and its process.
pub async fn leader(w: &World) -> anyhow::Result<(String, i32)> {
    let lease = w.cluster().get("Lease", SYSTEM, "stowage-operator").await?.context("no Lease")?;
    let holder = text(&lease, "/spec/holderIdentity");
    let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-operator").await?;
    // The identity is the pod's name and a part of the process's own.
    let pod = pods.iter().find(|p| holder.starts_with(&format!("{}_", text(p, "/metadata/name"))));
    let pod = pod.with_context(|| format!("no operator is called {holder}"))?;
    let pids = process::of_pod(&text(pod, "/metadata/uid"), "stowage-operator");
    Ok((holder, *pids.first().context("the leader's process was not found; is the cluster on this machine?")?))
}

/// How many operators the cluster has of its own.
pub async fn operators(w: &World, replicas: u32) -> anyhow::Result<()> {
    w.note_operators(replicas);
    w.cluster().merge("Deployment", SYSTEM, "stowage-operator", &json!({"spec": {"replicas": replicas}})).await?;
    wait_for(&format!("{replicas} operators"), Duration::from_secs(60), || async {
        let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-operator").await?;
        let ready = pods.iter().filter(|p| condition(p, "Ready").is_some_and(|c| c.0 == "True")).count();
        Ok(if pods.len() == replicas as usize && ready == pods.len() {
            Ok(())
        } else {
            Err(format!("{ready} of {} ready", pods.len()))
        })
    })
    .await
}

/// The cluster's own operators rest while `body` runs, which may bring others. `World` brings them back for a test
/// that ran out of time.
pub async fn without_operators(w: &World, body: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    operators(w, 0).await?;
    let result = body.await;
    let back = operators(w, 2).await;
    result.and(back)
}

/// How often the agent of a node was started again.
pub async fn agent_restarts(w: &World, node: &str) -> anyhow::Result<u64> {
    let pod = agent_pod(w, node).await?;
    pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64).context("no restart count")
}

/// Waits until every operator, gateway and agent is Ready.
pub async fn ours_ready(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("every pod of ours to be Ready", Duration::from_secs(150), || async {
        let mut pods = cluster.list("Pod", SYSTEM, "app.kubernetes.io/part-of=stowage").await?;
        pods.extend(cluster.list("Pod", NODES, "").await?);
        let waiting: Vec<_> = pods
            .iter()
            .filter(|p| condition(p, "Ready").is_none_or(|c| c.0 != "True"))
            .map(|p| text(p, "/metadata/name"))
            .collect();
        Ok(if waiting.is_empty() && pods.len() >= 6 {
            Ok(())
        } else {
            Err(format!("{} pods, not ready: {waiting:?}", pods.len()))
        })
    })
    .await
}

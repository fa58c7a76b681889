//! What befalls a whole node or its agent: crashes between two steps, a full disk, the end of the node.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::{condition, text, wait_for};
use crate::disk::Full;
use crate::history::History;
use crate::process;
use crate::scenario::OUT_OF_ROUTING;
use crate::world::{NODES, SYSTEM, Tenant, Wish, World};

const H100: i64 = 80 << 30;
const REASON: &str = "NodeCannotPrepare";

async fn agent_pod(w: &World, node: &str) -> anyhow::Result<Value> {
    let pods = w.cluster().list("Pod", NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    pods.into_iter().find(|p| text(p, "/spec/nodeName") == node).context("no agent on the node")
}

/// The agent's process on a node.
async fn agent(w: &World, node: &str) -> anyhow::Result<i32> {
    let pids = process::of_pod(&text(&agent_pod(w, node).await?, "/metadata/uid"), "stowage-node-agent");
    pids.first().copied().context("the agent's process was not found; is the cluster on this machine?")
}

/// Processes of the gateways that run, those on one node only if asked so.
pub async fn gateways(w: &World) -> anyhow::Result<Vec<i32>> {
    gateways_on(w, None).await
}

async fn gateways_on(w: &World, node: Option<&str>) -> anyhow::Result<Vec<i32>> {
    let pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await?;
    let here = pods.iter().filter(|p| node.is_none_or(|n| text(p, "/spec/nodeName") == n));
    let pids: Vec<i32> = here.flat_map(|p| process::of_pod(&text(p, "/metadata/uid"), "stowage-gateway")).collect();
    ensure!(!pids.is_empty(), "no gateway's process was found");
    Ok(pids)
}

/// Whether a gateway keeps a replica out of routing.
pub async fn refused(gateway: i32, tenant: &Tenant, pod: &str) -> anyhow::Result<Result<(), String>> {
    let (status, body) = process::ask_inside(gateway, &["http://127.0.0.1:8081/stowage/v1/signals"]).await?;
    ensure!(status == 200, "the gateway's signals answered {status}");
    let signals: Value = serde_json::from_str(&body).context("parse the gateway's signals")?;
    let models = signals["models"].as_array().into_iter().flatten();
    let mut replicas =
        models.filter(|m| m["namespace"] == tenant.name.as_str()).filter_map(|m| m["replicas"].as_array());
    let routable = replicas.any(|all| all.iter().any(|r| r["pod"] == pod && r["routable"] == true));
    Ok(if routable { Err("still routed to".to_owned()) } else { Ok(()) })
}

fn on(node: &str) -> Value {
    json!({"podTemplate": {"nodeSelector": {"kubernetes.io/hostname": node}}})
}

/// Files in a directory of the local cluster's node1 cannot be made or removed, not even by root, until this is dropped.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn cdi(w: &World) -> anyhow::Result<Self> {
        let state = w.env.state.as_ref().context("needs the local cluster's files (STOWAGE_STATE)")?;
        let frozen = Self(state.join("node1/cdi"));
        frozen.set("+i")?;
        Ok(frozen)
    }

    fn set(&self, flag: &str) -> anyhow::Result<()> {
        let status = Command::new("chattr").arg(flag).arg(&self.0).status().context("run chattr")?;
        ensure!(status.success(), "chattr {flag} {} failed", self.0.display());
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.set("-i") {
            eprintln!("the CDI folder stays frozen: {e:#}");
        }
    }
}

/// The checkpoint of node1, as it stands on its disk.
fn checkpoint(w: &World) -> anyhow::Result<Value> {
    let state = w.env.state.as_ref().context("needs the local cluster's files (STOWAGE_STATE)")?;
    let file = state.join("node1/stowage/checkpoint.json");
    serde_json::from_slice(&std::fs::read(&file).with_context(|| format!("read {}", file.display()))?)
        .context("parse the checkpoint")
}

/// The stage of each claim of a tenant.
fn stages(w: &World, tenant: &Tenant) -> anyhow::Result<Vec<String>> {
    let claims = checkpoint(w)?["claims"].as_object().cloned().unwrap_or_default();
    Ok(claims.values().filter(|c| c["namespace"] == tenant.name.as_str()).map(|c| text(c, "/stage")).collect())
}

async fn staged(w: &World, tenant: &Tenant, wanted: &[&str]) -> anyhow::Result<()> {
    wait_for(&format!("the checkpoint to say {wanted:?}"), Duration::from_secs(60), || async {
        let now = stages(w, tenant)?;
        Ok(if now == wanted { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
}

/// The crash comes after the checkpoint's first word and before the container runtime's file, and again, when the
/// claim is taken back, before that file is removed.
pub async fn an_agent_killed_between_the_steps_of_prepare_and_unprepare_resumes(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    {
        let _frozen = Frozen::cdi(&w)?;
        w.deploy(&tenant, "chat", &Wish::default().overlay(on("node1"))).await?;
        staged(&w, &tenant, &["PrepareStarted"]).await?;
        process::signal(agent(&w, "node1").await?, "KILL")?;
    }
    w.ready(&tenant, "chat", 1).await?;
    w.answers(&tenant, "chat").await?;
    staged(&w, &tenant, &["Completed"]).await?;
    let frozen = Frozen::cdi(&w)?;
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    wait_for("the pod's containers to be gone", Duration::from_secs(60), || async {
        let pods = w.pods(&tenant, "chat").await?;
        let ended = pods.iter().all(|p| p.pointer("/status/containerStatuses/0/state/terminated").is_some());
        Ok(if ended { Ok(()) } else { Err(format!("{} pods", pods.len())) })
    })
    .await?;
    ensure!(w.claims(&tenant, "chat").await?.len() == 1, "the claim went before its GPU was taken back");
    process::signal(agent(&w, "node1").await?, "KILL")?;
    drop(frozen);
    w.gone(&tenant, "chat", Duration::from_secs(150)).await?;
    staged(&w, &tenant, &[]).await
}

/// The reason of the condition Degraded on a node's GpuNode; "": there is none.
pub async fn agent_says(w: &World, node: &str, reason: &str) -> anyhow::Result<()> {
    wait_for(&format!("the agent of {node} to say {reason:?}"), Duration::from_secs(60), || async {
        let object = w.cluster().get("GpuNode", "", node).await?.unwrap_or_default();
        let said = condition(&object, "Degraded").map(|(_, reason, _)| reason).unwrap_or_default();
        Ok(if said == reason { Ok(()) } else { Err(said) })
    })
    .await
}

/// Cut off in the middle, as a crash on a file system without order would leave it.
pub async fn a_truncated_checkpoint_is_rebuilt_and_running_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default().overlay(on("node1"))).await?;
    let pod = w.pods(&tenant, "chat").await?.first().cloned().context("no pod")?;
    let lives = restarts(&w, "node1").await?;
    let file = w.env.state.as_ref().context("needs the local cluster's files (STOWAGE_STATE)")?;
    let file = file.join("node1/stowage/checkpoint.json");
    let whole = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    std::fs::write(&file, &whole[..whole.len() / 2]).with_context(|| format!("truncate {}", file.display()))?;
    process::signal(agent(&w, "node1").await?, "KILL")?;
    agent_says(&w, "node1", "CheckpointRebuilt").await?;
    staged(&w, &tenant, &["Completed"]).await?;
    // What is rebuilt is good for a new slice, and for giving the old one back.
    w.deploy_ready(&tenant, "second", &Wish::default().overlay(on("node1"))).await?;
    let after = w.pods(&tenant, "chat").await?;
    let same = |field: &str| after.first().is_some_and(|now| text(now, field) == text(&pod, field));
    ensure!(same("/metadata/uid") && same("/status/containerStatuses/0/containerID"), "the running pod was disturbed");
    w.answers(&tenant, "chat").await?;
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(60)).await?;
    let now = restarts(&w, "node1").await?;
    ensure!(now == lives + 1, "the agent started {} times after one crash", now - lives);
    Ok(())
}

/// How often the agent of a node was started again.
async fn restarts(w: &World, node: &str) -> anyhow::Result<u64> {
    let pod = agent_pod(w, node).await?;
    pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64).context("no restart count")
}

/// Where a replica would be placed, with what stands there now.
async fn favourite(w: &World, tenant: &Tenant) -> anyhow::Result<String> {
    w.deploy_ready(tenant, "chat", &Wish::default()).await?;
    let node = text(w.pods(tenant, "chat").await?.first().context("no pod")?, "/spec/nodeName");
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(tenant, "chat", Duration::from_secs(60)).await?;
    Ok(node)
}

pub async fn a_full_disk_is_told_and_the_replica_goes_to_another_node(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let node = favourite(&w, &tenant).await?;
    let full = Full::disk(agent(&w, &node).await?, "/var/lib/stowage")?;
    w.deploy(&tenant, "stays", &Wish::default().overlay(on(&node))).await?;
    w.deploy(&tenant, "moves", &Wish::default()).await?;
    let told = |o: &Value| {
        condition(o, "Ready").is_some_and(|(s, r, m)| s == "False" && r == REASON && m.contains("No space left"))
    };
    w.until(&tenant, "stays", "told that the disk is full", Duration::from_secs(40), told).await?;
    // Refused for 20 s, the one that may goes elsewhere; the other waits, and is not made again and again.
    w.ready(&tenant, "moves", 1).await?;
    let elsewhere = text(w.pods(&tenant, "moves").await?.first().context("no pod")?, "/spec/nodeName");
    ensure!(elsewhere != node, "still on {node}, whose disk is full");
    w.until(&tenant, "stays", "waits for its node", Duration::from_secs(60), |o| {
        condition(o, "Placed").is_some_and(|(s, _, m)| s == "False" && m.contains(&node))
    })
    .await?;
    drop(full);
    w.ready(&tenant, "stays", 1).await?;
    w.answers(&tenant, "stays").await?;
    Ok(())
}

/// Everything on node2 ends at once, as when its power fails.
pub async fn a_lost_node_leaves_routing_and_its_return_doubles_nothing(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let history = History::watch(w.cluster().client(), &tenant.name);
    one_replica_on_each(&w, &tenant).await?;
    let pods = w.pods(&tenant, "pair").await?;
    let lost = pods.iter().find(|p| text(p, "/spec/nodeName") == "node2").context("no replica on node2")?;
    let lost = text(lost, "/metadata/name");
    w.env.cluster_command(&["kill", "node2"]).await?;
    let result = without_node2(&w, &tenant, &lost, Instant::now()).await;
    w.env.cluster_command(&["up", "--nodes", "2"]).await.context("start node2 again")?;
    result?;
    wait_for("the lost pod to be gone and two to serve", Duration::from_secs(120), || async {
        let (pods, claims) = (w.pods(&tenant, "pair").await?, w.claims(&tenant, "pair").await?.len());
        let gone = pods.iter().all(|p| text(p, "/metadata/name") != lost);
        Ok(if pods.len() == 2 && claims == 2 && gone {
            Ok(())
        } else {
            Err(format!("{} pods, {claims} claims", pods.len()))
        })
    })
    .await?;
    w.ready(&tenant, "pair", 2).await?;
    ours_ready(&w).await?;
    history.check(H100)
}

/// Cordons steer: the first replica goes to node2, the second to node1.
async fn one_replica_on_each(w: &World, tenant: &Tenant) -> anyhow::Result<()> {
    let cordon = |node: &'static str, yes: bool| async move {
        w.cluster().merge("Node", "", node, &json!({"spec": {"unschedulable": yes}})).await
    };
    let placed = async {
        cordon("node1", true).await?;
        w.deploy_ready(tenant, "pair", &Wish::default()).await?;
        cordon("node1", false).await?;
        cordon("node2", true).await?;
        w.deploy_ready(tenant, "pair", &Wish::default().replicas(2)).await
    }
    .await;
    cordon("node1", false).await?;
    cordon("node2", false).await?;
    placed
}

/// Routing stops at once; Kubernetes gives the node up after its grace period, and the replica is placed elsewhere.
async fn without_node2(w: &World, tenant: &Tenant, lost: &str, since: Instant) -> anyhow::Result<()> {
    let gateway = *gateways_on(w, Some("node1")).await?.first().context("no gateway on node1")?;
    let left = OUT_OF_ROUTING.saturating_sub(since.elapsed());
    wait_for("the lost replica to be out of routing", left, || refused(gateway, tenant, lost)).await?;
    println!("  out of routing {:.1} s after the end of its node", since.elapsed().as_secs_f64());
    let (key, body) =
        (format!("authorization: Bearer {}", tenant.caller.key), crate::http::chat_body("pair", "Name a colour.", 8));
    for turn in 0..8 {
        let started = Instant::now();
        let url = "http://127.0.0.1:8080/v1/chat/completions";
        let ask = ["-H", "content-type: application/json", "-H", &key, "-d", &body.to_string(), url];
        let (status, answer) = process::ask_inside(gateway, &ask).await?;
        ensure!(status == 200, "request {turn}: {status} {answer}");
        ensure!(started.elapsed() < Duration::from_secs(5), "request {turn} took {:.1?}", started.elapsed());
    }
    wait_for("a second replica on node1", Duration::from_secs(150), || async {
        let pods = w.pods(tenant, "pair").await?;
        let ready = pods
            .iter()
            .filter(|p| text(p, "/spec/nodeName") == "node1" && condition(p, "Ready").is_some_and(|c| c.0 == "True"));
        let count = ready.count();
        Ok(if count == 2 { Ok(()) } else { Err(format!("{count} ready on node1")) })
    })
    .await?;
    println!("  replaced {:.0} s after the end of its node", since.elapsed().as_secs_f64());
    Ok(())
}

/// The pods of ours that lived on the node come back with it; the tests after this one need them.
async fn ours_ready(w: &World) -> anyhow::Result<()> {
    wait_for("every pod of ours to be Ready", Duration::from_secs(150), || async {
        let mut pods = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/part-of=stowage").await?;
        pods.extend(w.cluster().list("Pod", NODES, "").await?);
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

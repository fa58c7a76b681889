//! Failures of a whole node or of its agent: crashes between two steps, a full disk, the end of the node.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::reserved::{labelled, on};
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::disk::Full;
use crate::tools::history::History;
use crate::tools::parts::{agent, agent_reports, agent_restarts, gateways_on, ours_ready, refused};
use crate::tools::process;
use crate::tools::scenario::OUT_OF_ROUTING;
use crate::tools::world::{Tenant, Wish, World};

const H100: i64 = 80 << 30;
const REASON: &str = "NodeCannotPrepare";
/// A node that is not reserved.
const OTHER: &str = "node1";

/// A deployment on the test's own node.
fn here(w: &World) -> anyhow::Result<Wish> {
    Ok(Wish::default().overlay(on(w.node()?)))
}

/// A file or folder of the test's own node, as the machine sees it.
fn file(w: &World, path: &str) -> anyhow::Result<std::path::PathBuf> {
    let state = w.env.state.as_ref().context("needs the local cluster's files (STOWAGE_STATE)")?;
    Ok(state.join(w.node()?).join(path))
}

/// Files in the CDI folder of the test's node cannot be made or removed, not even by root, until this is dropped.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn cdi(w: &World) -> anyhow::Result<Self> {
        let frozen = Self(file(w, "cdi")?);
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

/// The checkpoint of the test's node, as it stands on its disk.
fn checkpoint(w: &World) -> anyhow::Result<Value> {
    let file = file(w, "stowage/checkpoint.json")?;
    serde_json::from_slice(&std::fs::read(&file).with_context(|| format!("read {}", file.display()))?)
        .context("parse the checkpoint")
}

/// The stage of each claim of a tenant.
fn stages(w: &World, tenant: &Tenant) -> anyhow::Result<Vec<String>> {
    let claims = checkpoint(w)?["claims"].as_object().cloned().unwrap_or_default();
    Ok(claims.values().filter(|c| c["namespace"] == tenant.name.as_str()).map(|c| text(c, "/stage")).collect())
}

async fn staged(w: &World, tenant: &Tenant, wanted: &[&str]) -> anyhow::Result<()> {
    wait_for(&format!("the checkpoint to have the stages {wanted:?}"), Duration::from_secs(60), || async {
        let now = stages(w, tenant)?;
        Ok(if now == wanted { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
}

/// The crash comes after the checkpoint's first entry and before the container runtime's file, and again, when the
/// claim is taken back, before that file is removed.
pub async fn an_agent_killed_between_the_steps_of_prepare_and_unprepare_resumes(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    {
        let _frozen = Frozen::cdi(&w)?;
        w.deploy(&tenant, "chat", &here(&w)?).await?;
        staged(&w, &tenant, &["PrepareStarted"]).await?;
        process::signal(agent(&w, w.node()?).await?, "KILL")?;
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
    process::signal(agent(&w, w.node()?).await?, "KILL")?;
    drop(frozen);
    w.gone(&tenant, "chat", Duration::from_secs(150)).await?;
    staged(&w, &tenant, &[]).await
}

/// Cut off in the middle, as a crash on a file system without order would leave it.
pub async fn a_truncated_checkpoint_is_rebuilt_and_running_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &here(&w)?).await?;
    let pod = w.pods(&tenant, "chat").await?.first().cloned().context("no pod")?;
    let lives = agent_restarts(&w, w.node()?).await?;
    let file = file(&w, "stowage/checkpoint.json")?;
    let whole = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    std::fs::write(&file, &whole[..whole.len() / 2]).with_context(|| format!("truncate {}", file.display()))?;
    process::signal(agent(&w, w.node()?).await?, "KILL")?;
    agent_reports(&w, w.node()?, "CheckpointRebuilt").await?;
    staged(&w, &tenant, &["Completed"]).await?;
    // What is rebuilt is good for a new slice, and for giving the old one back.
    w.deploy_ready(&tenant, "second", &here(&w)?).await?;
    let after = w.pods(&tenant, "chat").await?;
    let same = |field: &str| after.first().is_some_and(|now| text(now, field) == text(&pod, field));
    ensure!(same("/metadata/uid") && same("/status/containerStatuses/0/containerID"), "the running pod was disturbed");
    w.answers(&tenant, "chat").await?;
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(60)).await?;
    let now = agent_restarts(&w, w.node()?).await?;
    ensure!(now == lives + 1, "the agent started {} times after one crash", now - lives);
    Ok(())
}

pub async fn a_full_disk_is_reported_and_the_replica_goes_to_another_node(w: World) -> anyhow::Result<()> {
    let (tenant, node) = (w.tenant("a").await?, w.node()?);
    let full = Full::disk(agent(&w, node).await?, "/var/lib/stowage")?;
    // The label admits one deployment to this node, and later to another one.
    w.label_node(node).await?;
    w.deploy(&tenant, "stays", &here(&w)?).await?;
    w.deploy(&tenant, "moves", &Wish::default().overlay(labelled(&w.label()))).await?;
    let reported = |o: &Value| {
        condition(o, "Ready").is_some_and(|(s, r, m)| s == "False" && r == REASON && m.contains("No space left"))
    };
    for name in ["stays", "moves"] {
        w.until(&tenant, name, "report the full disk", Duration::from_secs(40), reported).await?;
    }
    w.label_node(OTHER).await?;
    // Refused for 20 s, the one that may goes elsewhere; the other waits, and is not made again and again.
    w.ready(&tenant, "moves", 1).await?;
    let elsewhere = text(w.pods(&tenant, "moves").await?.first().context("no pod")?, "/spec/nodeName");
    ensure!(elsewhere == OTHER, "on {elsewhere}, and only {OTHER} has room on its disk");
    w.until(&tenant, "stays", "waits for its node", Duration::from_secs(60), |o| {
        condition(o, "Placed").is_some_and(|(s, _, m)| s == "False" && m.contains(node))
    })
    .await?;
    drop(full);
    w.ready(&tenant, "stays", 1).await?;
    w.answers(&tenant, "stays").await?;
    Ok(())
}

/// Everything on the test's node ends at once, as when its power fails.
pub async fn a_lost_node_leaves_routing_and_its_return_doubles_nothing(w: World) -> anyhow::Result<()> {
    let (tenant, node) = (w.tenant("a").await?, w.node()?);
    let history = History::watch(w.cluster().client(), &tenant.name);
    one_replica_on_each(&w, &tenant).await?;
    let pods = w.pods(&tenant, "pair").await?;
    let lost = pods.iter().find(|p| text(p, "/spec/nodeName") == node).context("no replica on the test's node")?;
    let lost = text(lost, "/metadata/name");
    w.env.cluster_command(&["kill", node]).await?;
    let result = without_the_node(&w, &tenant, &lost, Instant::now()).await;
    w.env.cluster_up().await.context("start the node again")?;
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
    ours_ready(w.cluster()).await?;
    history.check(H100)
}

/// The label steers: the first replica goes to the test's node, the second to another one.
async fn one_replica_on_each(w: &World, tenant: &Tenant) -> anyhow::Result<()> {
    let wish = |replicas| Wish::default().replicas(replicas).overlay(labelled(&w.label()));
    w.label_node(w.node()?).await?;
    w.deploy_ready(tenant, "pair", &wish(1)).await?;
    w.label_node(OTHER).await?;
    let unlabelled = json!({"metadata": {"labels": {w.label(): null}}});
    w.cluster().merge("Node", "", w.node()?, &unlabelled).await?;
    w.deploy_ready(tenant, "pair", &wish(2)).await?;
    w.label_node(w.node()?).await
}

/// Routing stops at once; Kubernetes gives the node up after its grace period, and the replica is placed elsewhere.
async fn without_the_node(w: &World, tenant: &Tenant, lost: &str, since: Instant) -> anyhow::Result<()> {
    let gateway = *gateways_on(w, Some(OTHER)).await?.first().context("no gateway on the other node")?;
    let left = OUT_OF_ROUTING.saturating_sub(since.elapsed());
    wait_for("the lost replica to be out of routing", left, || refused(gateway, tenant, lost)).await?;
    w.note(&format!("out of routing {:.1} s after the end of its node", since.elapsed().as_secs_f64()));
    let (key, body) = (
        format!("authorization: Bearer {}", tenant.caller.key),
        crate::tools::http::chat_body("pair", "Name a colour.", 8),
    );
    for turn in 0..8 {
        let started = Instant::now();
        let url = "http://127.0.0.1:8080/v1/chat/completions";
        let ask = ["-H", "content-type: application/json", "-H", &key, "-d", &body.to_string(), url];
        let (status, answer) = process::ask_inside(gateway, &ask).await?;
        ensure!(status == 200, "request {turn}: {status} {answer}");
        ensure!(started.elapsed() < Duration::from_secs(5), "request {turn} took {:.1?}", started.elapsed());
    }
    wait_for("a second replica on the other node", Duration::from_secs(150), || async {
        let pods = w.pods(tenant, "pair").await?;
        let ready = pods
            .iter()
            .filter(|p| text(p, "/spec/nodeName") == OTHER && condition(p, "Ready").is_some_and(|c| c.0 == "True"));
        let count = ready.count();
        Ok(if count == 2 { Ok(()) } else { Err(format!("{count} ready on {OTHER}")) })
    })
    .await?;
    w.note(&format!("replaced {:.0} s after the end of its node", since.elapsed().as_secs_f64()));
    Ok(())
}

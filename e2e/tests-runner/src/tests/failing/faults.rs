//! Engines, gateways and agents end or hang; requests go on.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::tools::cluster::{text, wait_for};
use crate::tools::http::Caller;
use crate::tools::load::Load;
use crate::tools::parts::agents;
use crate::tools::process;
use crate::tools::scenario::OUT_OF_ROUTING;
use crate::tools::world::{SYSTEM, Wish, World};

pub async fn a_hung_engine_leaves_routing_and_its_neighbour_serves(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "pair", &Wish::default().replicas(2)).await?;
    w.answers(&tenant, "pair").await?;
    let pod = w.pods(&tenant, "pair").await?.first().cloned().context("no pod")?;
    let pid = *process::of_pod(&text(&pod, "/metadata/uid"), "stowage-engine").first().context("no engine process")?;
    process::signal(pid, "STOP")?;
    let stopped = Instant::now();
    let result = async {
        tokio::time::sleep(OUT_OF_ROUTING).await; // what is promised is a time: after it, no request waits on the hung one
        for turn in 0..8 {
            let started = Instant::now();
            let answer = tenant.caller.chat("pair", &format!("Question {turn}: name a colour."), 8).await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
            ensure!(
                started.elapsed() < Duration::from_secs(5),
                "request {turn} took {:.1} s, {:.1} s after the hang",
                started.elapsed().as_secs_f64(),
                stopped.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }
    .await;
    process::signal(pid, "CONT").ok(); // the liveness probe may have ended it already
    result
}

pub async fn a_killed_gateway_ends_only_its_own_streams(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let gateways = w.cluster().list("Pod", SYSTEM, "app.kubernetes.io/name=stowage-gateway").await?;
    ensure!(gateways.len() == 2, "{} gateways", gateways.len());
    let pid = *process::of_pod(&text(&gateways[0], "/metadata/uid"), "stowage-gateway")
        .first()
        .context("no gateway process")?;
    let to = format!("{}:8080", text(&gateways[1], "/status/podIP"));
    let url = w.env.cluster_command(&["forward", "--name", "e2e-survivor", "--to", &to]).await?;
    let beside = Load::start(&Caller::new(&url, &tenant.caller.key)?, "chat", 2, 32);
    let load = Load::start(&tenant.caller, "chat", 4, 32);
    wait_for("the load to be under way", Duration::from_secs(60), || async {
        let (one, two) = (load.succeeded(), beside.succeeded());
        Ok(if one >= 4 && two >= 2 { Ok(()) } else { Err(format!("{one}, {two}")) })
    })
    .await?;
    process::signal(pid, "KILL")?;
    let killed = Instant::now();
    // Until Kubernetes has withdrawn it (or it is back), some new connections still go to its closed port.
    wait_for("the dead gateway to be withdrawn or back", Duration::from_secs(10), || async {
        withdrawn_or_back(&w, &text(&gateways[0], "/metadata/name")).await
    })
    .await?;
    let settled = Instant::now() + KUBE_PROXY;
    let at = load.succeeded();
    wait_for("service after the death", Duration::from_secs(60), || async {
        let (done, long) = (load.succeeded(), Instant::now() > settled);
        Ok(if done >= at + 12 && long { Ok(()) } else { Err(done.to_string()) })
    })
    .await?;
    let survivor = beside.finish().await;
    let outcome = load.finish().await;
    ensure!(survivor.failures.is_empty(), "the other gateway lost {:?}", survivor.failures.first());
    let lost: Vec<_> = outcome.failures.iter().filter(|f| f.began < killed).collect();
    for client in 0..4 {
        let mine = lost.iter().filter(|f| f.client == client).count();
        ensure!(mine <= 1, "client {client} lost {mine} requests, and had one on the dead gateway: {lost:?}");
    }
    let late = outcome.failures.iter().find(|f| f.began > settled);
    ensure!(late.is_none(), "a request that began after the dead gateway was withdrawn failed: {late:?}");
    Ok(())
}

/// What kube-proxy takes to follow an EndpointSlice.
const KUBE_PROXY: Duration = Duration::from_secs(1);

async fn withdrawn_or_back(w: &World, gateway: &str) -> anyhow::Result<Result<(), String>> {
    let slices = w.cluster().list("EndpointSlice", SYSTEM, "kubernetes.io/service-name=stowage-gateway").await?;
    let endpoints = slices.iter().filter_map(|s| s["endpoints"].as_array()).flatten();
    let mut of_it = endpoints.filter(|e| e["targetRef"]["name"] == gateway);
    if !of_it.any(|e| e["conditions"]["ready"] == true) {
        return Ok(Ok(()));
    }
    let pod = w.cluster().get("Pod", SYSTEM, gateway).await?.unwrap_or_default();
    let restarted = pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64) > Some(0);
    let ready = crate::tools::cluster::condition(&pod, "Ready").is_some_and(|c| c.0 == "True");
    Ok(if restarted && ready { Ok(()) } else { Err(pod["status"]["containerStatuses"].to_string()) })
}

pub async fn deleted_resource_slices_come_back_and_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let before = text(w.pods(&tenant, "chat").await?.first().context("no pod")?, "/metadata/uid");
    let ours = |mut slices: Vec<Value>| {
        slices.retain(|s| text(s, "/spec/driver") == stowage_contracts::names::DRIVER);
        slices.retain(|s| !w.env.is_reserved(&text(s, "/spec/nodeName")));
        slices
    };
    let slices = ours(w.cluster().list("ResourceSlice", "", "").await?);
    for slice in &slices {
        w.cluster().delete("ResourceSlice", "", &text(slice, "/metadata/name")).await?;
    }
    wait_for("the slices to be back", Duration::from_secs(20), || async {
        let now = ours(w.cluster().list("ResourceSlice", "", "").await?).len();
        Ok(if now == slices.len() { Ok(()) } else { Err(format!("{now} of {}", slices.len())) })
    })
    .await?;
    let after = w.pods(&tenant, "chat").await?;
    ensure!(after.len() == 1 && text(&after[0], "/metadata/uid") == before, "the pod was disturbed");
    Ok(())
}

pub async fn a_killed_agent_resumes_and_running_pods_stay(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let before = text(w.pods(&tenant, "chat").await?.first().context("no pod")?, "/metadata/uid");
    for agent in agents(&w).await? {
        for pid in process::of_pod(&text(&agent, "/metadata/uid"), "stowage-node-agent") {
            process::signal(pid, "KILL")?;
        }
    }
    // A new replica needs a prepare by the agents' next life, a deletion an unprepare of what the last one prepared.
    w.deploy_ready(&tenant, "second", &Wish::default()).await?;
    let after = w.pods(&tenant, "chat").await?;
    ensure!(after.len() == 1 && text(&after[0], "/metadata/uid") == before, "the running pod was disturbed");
    w.cluster().delete("InferenceDeployment", &tenant.name, "chat").await?;
    w.gone(&tenant, "chat", Duration::from_secs(150)).await
}

//! A replica that fits on no node asks the cluster for another one, where the platform allows it
//! (`operator.maxCapacityPods`). The node that comes is a simulated one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use stowage_contracts::names::LABEL_CAPACITY;

use crate::reserved::{labelled, nodes as all_nodes, reservation};
use crate::scale::kubelet::Kubelets;
use crate::scale::nodes;
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::operator::{Operator, SHORT_LEASE, between};
use crate::tools::parts::without_operators;
use crate::tools::proxy::Fault;
use crate::tools::world::{Tenant, Wish, World};

/// `Policy::capacity_after_ms`, and what the scheduler and two plans take.
const LIMIT: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(1);

pub async fn a_replica_that_fits_nowhere_asks_for_a_node_and_gets_it(w: World) -> anyhow::Result<()> {
    let all = all_nodes(w.cluster()).await?;
    let Some(here) = all.last() else { anyhow::bail!("there is no node") };
    let quota = json!({"gpus": [{"class": "h100-80g", "nominalQuota": "9"}]});
    let tenant = w.tenant_with("a", quota).await?;
    w.label_node(here).await?;
    let mut spec = labelled(&w.label());
    // An operator that runs here cannot ask the gateways what is in flight, so a drain ends at its deadline.
    spec["scaling"] = json!({"drainTimeout": "5s"});
    let gpus = |count: u32| json!([{"name": "whole", "class": "h100-80g", "count": count}]);
    spec["variants"] = gpus(8);
    w.deploy_ready(&tenant, "full", &Wish::default().overlay(spec.clone())).await?;
    spec["variants"] = gpus(1);
    without_operators(&w, asks(&w, &tenant, here, &Wish::default().overlay(spec))).await
}

async fn asks(w: &World, tenant: &Tenant, here: &str, wish: &Wish) -> anyhow::Result<()> {
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start_with(w, &proxy, SHORT_LEASE, &["--max-capacity-pods", "1"])?;
    w.deploy(tenant, "more", wish).await?;
    let pod = wait_for("a pod that no node takes", LIMIT, || async {
        let pods = asking(w, tenant).await?;
        let waits = |pod: &&Value| condition(pod, "PodScheduled").is_some_and(|(status, ..)| status == "False");
        Ok(pods.iter().find(waits).cloned().ok_or_else(|| format!("{pods:?}")))
    })
    .await?;
    let why = condition(&pod, "PodScheduled").unwrap_or_default();
    ensure!(why.1 == "Unschedulable", "{why:?}");
    let stored = w.cluster().get("InferenceDeployment", &tenant.name, "more").await?.unwrap_or_default();
    let says = stored["status"]["conditions"].to_string();
    ensure!(says.contains(&format!("to add a node like {here}")), "{says}");
    let joined = Instant::now();
    let groups = ["system:masters", "system:nodes", "system:authenticated"];
    let simulator = w.cluster().impersonate("stowage-node-simulator", &groups).await?;
    let _kubelets = Kubelets::start(&simulator, START);
    let name = nodes::name(0);
    w.also_remove("Node", "", &name);
    let node = json!({"metadata": {"labels": {w.label(): "yes"}}, "spec": {"taints": [reservation()]}});
    nodes::join_with(&simulator, 1, &node).await?;
    let _heartbeats = nodes::keep_alive(&simulator, 1);
    w.ready(tenant, "more", 1).await?;
    w.note(&format!("Ready {:.1} s after the node came", joined.elapsed().as_secs_f64()));
    let pods = w.pods(tenant, "more").await?;
    ensure!(pods.len() == 1 && text(&pods[0], "/spec/nodeName") == name, "{pods:?}");
    wait_for("the pod that asked, and its claim, to be gone", LIMIT, || async {
        let left = asking(w, tenant).await?.len();
        let claims = w.cluster().list("ResourceClaim", &tenant.name, LABEL_CAPACITY).await?.len();
        Ok(if left + claims == 0 { Ok(()) } else { Err(format!("{left} pods and {claims} claims")) })
    })
    .await?;
    w.cluster().delete("InferenceDeployment", &tenant.name, "more").await?;
    w.gone(tenant, "more", LIMIT).await?;
    w.cluster().delete("Node", "", &name).await?;
    operator.kill().await
}

async fn asking(w: &World, tenant: &Tenant) -> anyhow::Result<Vec<Value>> {
    w.cluster().list("Pod", &tenant.name, LABEL_CAPACITY).await
}

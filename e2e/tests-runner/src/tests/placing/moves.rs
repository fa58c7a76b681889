//! Running replicas move so that one that waits fits, where the platform allows it (`operator.maxMoves`).

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::reserved::{labelled, nodes};
use crate::tests::serving::follow::none_lost;
use crate::tools::cluster::{text, wait_for};
use crate::tools::load::{Load, under_way};
use crate::tools::operator::{Operator, SHORT_LEASE, between};
use crate::tools::parts::without_operators;
use crate::tools::proxy::Fault;
use crate::tools::world::{Tenant, Wish, World};

/// `Policy::move_after_ms`, the start of the replica that moves, and its drain.
const LIMIT: Duration = Duration::from_secs(150);

/// A small replica on each of two nodes, and one that asks for all GPUs of a node: one of the small ones moves to the other.
pub async fn a_replica_moves_so_that_another_fits_and_no_request_is_lost(w: World) -> anyhow::Result<()> {
    let all = nodes(w.cluster()).await?;
    let [.., first, second] = all.as_slice() else { anyhow::bail!("{} nodes, two are needed", all.len()) };
    let quota = json!({"gpus": [{"class": "h100-80g", "nominalQuota": "9"}], "minRuntime": "1s"});
    let tenant = w.tenant_with("a", quota).await?;
    let label = w.label();
    let lets = |node: &str, on: Value| {
        let (w, node, patch) = (w.clone(), node.to_owned(), json!({"metadata": {"labels": {label.clone(): on}}}));
        async move { w.cluster().merge("Node", "", &node, &patch).await }
    };
    // An operator that runs here cannot ask the gateways what is in flight, so a drain ends at its deadline.
    let mut spec = labelled(&label);
    spec["scaling"] = json!({"drainTimeout": "10s"});
    w.label_node(first).await?;
    w.deploy_ready(&tenant, "one", &Wish::default().overlay(spec.clone())).await?;
    w.label_node(second).await?;
    lets(first, Value::Null).await?;
    w.deploy_ready(&tenant, "two", &Wish::default().overlay(spec.clone())).await?;
    lets(first, json!("yes")).await?;
    let before = (node_of(&w, &tenant, "one").await?, node_of(&w, &tenant, "two").await?);
    ensure!(before == (first.clone(), second.clone()), "the small replicas are on {before:?}");
    spec["variants"] = json!([{"name": "node", "class": "h100-80g", "count": 8}]);
    without_operators(&w, moves(&w, &tenant, &Wish::default().overlay(spec))).await
}

async fn moves(w: &World, tenant: &Tenant, claimant: &Wish) -> anyhow::Result<()> {
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start_with(w, &proxy, SHORT_LEASE, &["--max-moves", "1"])?;
    let loads = ["one", "two"].map(|name| Load::start(&tenant.caller, name, 2, 32));
    for load in &loads {
        under_way(load, 2).await?;
    }
    let asked = Instant::now();
    w.deploy(tenant, "node", claimant).await?;
    let node = wait_for("a whole node to be free and taken", LIMIT, || async {
        Ok(node_of(w, tenant, "node").await.map_err(|err| err.to_string()))
    })
    .await?;
    w.note(&format!(
        "a replica moved, and the one that waited was bound {:.1} s after it was asked for",
        asked.elapsed().as_secs_f64()
    ));
    let (one, two) = (node_of(w, tenant, "one").await?, node_of(w, tenant, "two").await?);
    ensure!(one == two && one != node, "the small replicas are on {one} and {two}, the large one on {node}");
    for load in loads {
        none_lost(&load.finish().await)?;
    }
    operator.kill().await
}

/// Where the deployment's only pod is bound.
async fn node_of(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<String> {
    let pods = w.pods(tenant, name).await?;
    let [pod] = pods.as_slice() else { anyhow::bail!("{} pods of {name}", pods.len()) };
    Some(text(pod, "/spec/nodeName")).filter(|node| !node.is_empty()).context("the pod is bound to no node")
}

//! Nodes that are reserved for tests that need one for themselves: all but the first two. A taint keeps other
//! tests' replicas away from them; operators and gateways that ran there move to the other nodes.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::tools::cluster::{Cluster, text};
use crate::tools::parts::ours_ready;
use crate::tools::world::{Env, SYSTEM};

/// The taint's key; [`on`] tolerates it.
const RESERVED: &str = "e2e.stowage.dev/reserved";

/// The part of a spec that pins a deployment to a node, a reserved one too.
pub fn on(node: &str) -> Value {
    let mut spec = tolerant();
    spec["podTemplate"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    spec
}

/// The part of a spec that admits a deployment to reserved nodes.
fn tolerant() -> Value {
    json!({"podTemplate": {"tolerations": [{"key": RESERVED, "operator": "Exists"}]}})
}

/// The part of a spec that admits a deployment to the nodes with this label.
pub fn labelled(label: &str) -> Value {
    let mut spec = tolerant();
    spec["podTemplate"]["nodeSelector"] = json!({label: "yes"});
    spec
}

/// Names of the cluster's nodes, in order.
pub async fn nodes(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> =
        cluster.list("Node", "", "").await?.iter().map(|n| text(n, "/metadata/name")).collect();
    names.sort();
    Ok(names)
}

/// Reserves the nodes that `env` names.
pub async fn reserve(env: &Env) -> anyhow::Result<()> {
    for node in &env.reserved {
        taint(&env.cluster, node, true).await?;
        for pod in env.cluster.list("Pod", SYSTEM, "").await? {
            if text(&pod, "/spec/nodeName") == *node {
                env.cluster.delete("Pod", SYSTEM, &text(&pod, "/metadata/name")).await?;
            }
        }
    }
    ours_ready(&env.cluster).await
}

/// Removes the taint again.
pub async fn release(env: &Env) -> anyhow::Result<()> {
    for node in &env.reserved {
        taint(&env.cluster, node, false).await?;
    }
    Ok(())
}

/// The taint.
pub fn reservation() -> Value {
    json!({"key": RESERVED, "effect": "NoSchedule"})
}

async fn taint(cluster: &Cluster, node: &str, reserve: bool) -> anyhow::Result<()> {
    let object = cluster.get("Node", "", node).await?.unwrap_or_default();
    ensure!(object.is_object(), "node {node} is gone");
    let mut taints = object.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
    taints.retain(|t| t["key"] != RESERVED);
    if reserve {
        taints.push(reservation());
    }
    cluster.merge("Node", "", node, &json!({"spec": {"taints": taints}})).await
}

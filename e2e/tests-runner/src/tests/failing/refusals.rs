//! What the API server refuses for ever costs it next to nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::tools::cluster::{condition, wait_for};
use crate::tools::world::{Wish, World};

/// Deployments whose pods are refused.
const REFUSED: usize = 50;
/// More revisions a minute than an idle cluster makes.
const MORE: f64 = 20.0;
const MINUTE: Duration = Duration::from_secs(60);
/// Minutes until the steady state (pauses have grown to a minute and more), and those that count.
const SETTLES: usize = 3;
const COUNTED: usize = 3;

/// A ResourceQuota without pods refuses every replica of fifty deployments. Each change of any object is one
/// revision of etcd, by any writer.
pub async fn fifty_refused_deployments_cost_few_revisions(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let none = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": tenant.name},
        "spec": {"hard": {"pods": "0"}}});
    w.cluster().apply_value(&tenant.name, &none).await?;
    let idle = per_minute(&w, COUNTED).await?;
    let refused = |n: usize| {
        let (w, tenant) = (w.clone(), tenant.clone());
        async move { w.deploy(&tenant, &format!("refused-{n}"), &Wish::default()).await }
    };
    try_join_all((0..REFUSED).map(refused)).await?;
    wait_for("every deployment to name the refusal", Duration::from_secs(60), || async {
        let all = w.cluster().list("InferenceDeployment", &tenant.name, "").await?;
        let named = |o: &&serde_json::Value| {
            condition(o, "Ready")
                .is_some_and(|(_, reason, message)| reason == "ApiRefused" && message.contains("quota"))
        };
        let count = all.iter().filter(named).count();
        Ok(if count == REFUSED { Ok(()) } else { Err(format!("{count} of {REFUSED}")) })
    })
    .await?;
    let settling = per_minute(&w, SETTLES).await?;
    let steady = per_minute(&w, COUNTED).await?;
    let more = mean(&steady) - mean(&idle);
    w.note(
        &json!({"refused": REFUSED, "idle_per_minute": idle, "settling_per_minute": settling,
        "steady_per_minute": steady, "more_per_minute": more})
        .to_string(),
    );
    ensure!(more <= MORE, "{more:.1} revisions a minute more than when idle (idle {idle:?}, refused {steady:?})");
    Ok(())
}

/// Revisions in each of so many minutes.
async fn per_minute(w: &World, minutes: usize) -> anyhow::Result<Vec<u64>> {
    let mut counts = Vec::new();
    let mut before = revision(w).await?;
    for _ in 0..minutes {
        tokio::time::sleep(MINUTE).await; // what is measured is a time
        let now = revision(w).await?;
        counts.push(now - before);
        before = now;
    }
    Ok(counts)
}

/// The present revision of etcd: a consistent list carries it.
async fn revision(w: &World) -> anyhow::Result<u64> {
    let api: Api<ConfigMap> = Api::namespaced(w.cluster().client().clone(), "default");
    let list = api.list(&ListParams::default()).await.context("list ConfigMaps")?;
    let version = list.metadata.resource_version.context("a list without a version")?;
    version.parse().with_context(|| format!("resourceVersion {version}"))
}

fn mean(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64
}

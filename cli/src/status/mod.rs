//! `status`: what is. Gathers; [`one`](mod@one) and [`list`](mod@list) render.

mod list;
mod one;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use stowage_crds::{GpuNode, InferenceDeployment, TenantQuota, names};

use crate::Answer;
use crate::cluster::{Cluster, ClusterError};
use crate::out::{self, Format, Paint};

/// Everything that `status NAME` shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    pub deployment: InferenceDeployment,
    pub pods: Vec<Pod>,
    pub gpu_nodes: Vec<GpuNode>,
    /// The TenantQuota that lists the namespace.
    pub tenant_quota: Option<TenantQuota>,
}

pub(crate) async fn one(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, ClusterError> {
    let kind = format!("InferenceDeployment {namespace}");
    let deployment: InferenceDeployment = cluster.get(cluster.within(namespace), &kind, name).await?;
    let labels = format!("{}={name}", names::LABEL_DEPLOYMENT);
    let pods = cluster.list(cluster.within::<Pod>(namespace), "pods", &labels).await?;
    let gpu_nodes = cluster.list(cluster.all::<GpuNode>(), "GpuNodes", "").await?;
    let quotas = cluster.list(cluster.all::<TenantQuota>(), "TenantQuotas", "").await?;
    let view = View { tenant_quota: owner_of(namespace, quotas), deployment, pods, gpu_nodes };
    let yes = ready(&view.deployment);
    let text = match out::machine(format, &view) {
        Some(text) => text,
        None => one::render(&view, format == Some(Format::Wide), jiff::Timestamp::now(), paint),
    };
    Ok(Answer { text, yes })
}

pub(crate) async fn list(
    cluster: &Cluster,
    namespace: Option<&str>,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, ClusterError> {
    let api = match namespace {
        Some(ns) => cluster.within::<InferenceDeployment>(ns),
        None => cluster.all::<InferenceDeployment>(),
    };
    let mut all = cluster.list(api, "InferenceDeployments", "").await?;
    all.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
    let text = match out::machine(format, &all) {
        Some(text) => text,
        None => list::render(&all, namespace, format == Some(Format::Wide), jiff::Timestamp::now(), paint),
    };
    Ok(Answer { text, yes: all.iter().all(ready) })
}

/// The older TenantQuota keeps a namespace that two list.
fn owner_of(namespace: &str, quotas: Vec<TenantQuota>) -> Option<TenantQuota> {
    quotas
        .into_iter()
        .filter(|q| q.spec.namespaces.iter().any(|n| n == namespace))
        .min_by_key(|q| (q.metadata.creation_timestamp.clone(), q.metadata.name.clone()))
}

/// Ready, or nothing is wanted.
fn ready(d: &InferenceDeployment) -> bool {
    use stowage_crds::conditions::{reasons, types};
    let conditions = d.status.iter().flat_map(|s| &s.conditions);
    let mut ready = conditions.filter(|c| c.type_ == types::READY);
    ready.any(|c| c.status == "True" || c.reason == reasons::SCALED_TO_ZERO)
}

/// Age as `kubectl` shows it.
pub(crate) fn short_age(since: Option<jiff::Timestamp>, now: jiff::Timestamp) -> String {
    let Some(since) = since else { return String::new() };
    let s = now.duration_since(since).as_secs().max(0);
    match s {
        0..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

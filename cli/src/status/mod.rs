//! `status`: the state of deployments. Gathers; [`one`](mod@one) and [`list`](mod@list) render.
//!
//! Only the deployment itself must be readable. Who has rights in one namespace alone gets the rest without GPU
//! sizes and budget, and a line that names what could not be read.

mod list;
mod one;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use stowage_crds::{GpuNode, InferenceDeployment, TenantQuota, names};

use crate::Answer;
use crate::cluster::{Cluster, ClusterError, Read};
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
    /// What this account could not read, and the server's message.
    pub unread: Vec<Unread>,
}

/// Objects that were not read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unread {
    /// For example `GpuNodes`.
    pub kinds: &'static str,
    /// What is missing in the output because of it.
    pub missing: &'static str,
    pub message: String,
}

/// What was read; what was not becomes an entry of `unread`.
fn readable<T>(read: Read<Vec<T>>, kinds: &'static str, missing: &'static str, unread: &mut Vec<Unread>) -> Vec<T> {
    match read {
        Read::Got(list) => list,
        Read::Absent => {
            unread.push(Unread { kinds, missing, message: "the kind is not installed".to_owned() });
            Vec::new()
        }
        Read::Failed(why) => {
            unread.push(Unread { kinds, missing, message: why.message });
            Vec::new()
        }
    }
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
    let mut unread = Vec::new();
    let pods = cluster.read_labelled(cluster.within::<Pod>(namespace), &labels).await;
    let pods = readable(pods, "pods", "the state of each replica", &mut unread);
    let gpu_nodes = cluster.read_all(cluster.all::<GpuNode>()).await;
    let gpu_nodes = readable(gpu_nodes, "GpuNodes", "the size of the GPUs and whether they are simulated", &mut unread);
    let quotas = cluster.read_all(cluster.all::<TenantQuota>()).await;
    let quotas = readable(quotas, "TenantQuotas", "the tenant's budget", &mut unread);
    let view = View { tenant_quota: owner_of(namespace, quotas), deployment, pods, gpu_nodes, unread };
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
    let all = cluster.list(api, "InferenceDeployments", "").await;
    let mut all = all.map_err(|e| match namespace {
        None if e.forbidden() => e.with_advice("name a namespace of yours with -n instead of -A"),
        _ => e,
    })?;
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

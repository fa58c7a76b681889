//! `doctor`: whether this installation works. Gathers [`Facts`]; the checks are functions from facts to what was
//! found, what follows from it and the command that fixes it. They stand in the order in which things depend on each
//! other, so the first failure is the one to look at.

mod check;
mod helm;
mod installation;
mod nodes;
mod users;

use std::fmt::Write as _;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_crds::{GpuClass, GpuNode, InferenceDeployment, InferenceRuntime, TenantQuota, names};

use crate::Answer;
use crate::cluster::{Cluster, ClusterError, Read};
use crate::out::{self, Format, Paint, Tone};
use check::{Check, Finding};

/// Everything that the checks look at. A read that failed is a fact too.
pub(crate) struct Facts {
    pub version: (u32, u32, String),
    pub dra: Read<bool>,
    pub crds: Read<Vec<CustomResourceDefinition>>,
    pub device_class: Read<DeviceClass>,
    pub policies: Read<Vec<ValidatingAdmissionPolicy>>,
    pub bindings: Read<Vec<ValidatingAdmissionPolicyBinding>>,
    pub lease: Read<Lease>,
    pub operator: Read<Deployment>,
    pub gateway: Read<Deployment>,
    pub agents: Read<Vec<DaemonSet>>,
    pub agent_pods: Read<Vec<Pod>>,
    pub slices: Read<Vec<ResourceSlice>>,
    pub nodes: Read<Vec<GpuNode>>,
    pub classes: Read<Vec<GpuClass>>,
    pub runtimes: Read<Vec<InferenceRuntime>>,
    pub quotas: Read<Vec<TenantQuota>>,
    pub deployments: Read<Vec<InferenceDeployment>>,
    /// Everything that the operator created.
    pub owned: Read<Vec<Owned>>,
}

/// An object that the operator created.
pub(crate) struct Owned {
    /// As `kubectl` names it.
    pub kind: &'static str,
    pub meta: ObjectMeta,
}

fn all(f: &Facts, now: jiff::Timestamp) -> Vec<Check> {
    vec![
        installation::kubernetes(f),
        installation::dra(f),
        installation::crds(f),
        installation::device_class(f),
        installation::policies(f),
        installation::leader(f, now),
        installation::operator(f),
        nodes::agents(f),
        nodes::gpu_nodes(f, now),
        nodes::gpus(f),
        nodes::slices(f),
        nodes::classes(f),
        users::runtimes(f),
        installation::gateway(f),
        users::tenants(f),
        users::keys(f),
        users::leftovers(f),
    ]
}

pub(crate) async fn run(cluster: &Cluster, format: Option<Format>, paint: Paint) -> Result<Answer, ClusterError> {
    let facts = gather(cluster).await?;
    let checks = all(&facts, jiff::Timestamp::now());
    let yes = checks.iter().all(|c| matches!(c.finding, Finding::Ok | Finding::Warn));
    let text = match out::machine(format, &checks) {
        Some(text) => text,
        None => render(&checks, paint),
    };
    Ok(Answer { text, yes })
}

/// Only the version must be readable: without it there is no cluster to examine.
async fn gather(c: &Cluster) -> Result<Facts, ClusterError> {
    let version = c.version().await?;
    let system = names::SYSTEM_NAMESPACE;
    let node = names::NODE_NAMESPACE;
    Ok(Facts {
        version,
        dra: c.serves("resource.k8s.io", "v1").await,
        crds: c.read_all(c.all()).await,
        device_class: c.read(c.all(), names::DEVICE_CLASS).await,
        policies: c.read_all(c.all()).await,
        bindings: c.read_all(c.all()).await,
        lease: c.read(c.within(system), names::LEASE).await,
        operator: c.read(c.within(system), "stowage-operator").await,
        gateway: c.read(c.within(system), names::GATEWAY_SERVICE).await,
        agents: c.read_all(c.within(node)).await,
        agent_pods: c.read_all(c.within(node)).await,
        slices: c.read_all(c.all()).await,
        nodes: c.read_all(c.all()).await,
        classes: c.read_all(c.all()).await,
        runtimes: c.read_all(c.all()).await,
        quotas: c.read_all(c.all()).await,
        deployments: c.read_all(c.all()).await,
        owned: owned(c).await,
    })
}

async fn owned(c: &Cluster) -> Read<Vec<Owned>> {
    let mut all = Vec::new();
    let lists = [
        created::<Pod>(c, "pod").await,
        created::<ResourceClaim>(c, "resourceclaim").await,
        created::<Service>(c, "service").await,
        created::<NetworkPolicy>(c, "networkpolicy").await,
        created::<PodDisruptionBudget>(c, "poddisruptionbudget").await,
    ];
    for list in lists {
        match list {
            Read::Got(list) => all.extend(list),
            Read::Absent => return Read::Absent,
            Read::Failed(why) => return Read::Failed(why),
        }
    }
    Read::Got(all)
}

/// Objects of one kind that carry the labels of a deployment of ours.
async fn created<K>(c: &Cluster, kind: &'static str) -> Read<Vec<Owned>>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let labels = format!("{}={},{}", names::LABEL_MANAGED_BY, names::MANAGED_BY, names::LABEL_DEPLOYMENT);
    match c.read_labelled(c.all::<K>(), &labels).await {
        Read::Got(list) => Read::Got(list.iter().map(|o| Owned { kind, meta: o.meta().clone() }).collect()),
        Read::Absent => Read::Absent,
        Read::Failed(why) => Read::Failed(why),
    }
}

fn render(checks: &[Check], paint: Paint) -> String {
    let mut out = String::new();
    let width = checks.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    for c in checks {
        let (word, tone) = match c.finding {
            Finding::Ok => ("ok  ", Tone::Good),
            Finding::Warn => ("warn", Tone::Warn),
            Finding::Fail => ("FAIL", Tone::Bad),
            Finding::Unknown => ("?   ", Tone::Warn),
        };
        let _ = writeln!(out, "{}  {:width$}  {}", paint.paint(tone, word), c.name, c.found);
        let indent = " ".repeat(width + 8);
        if let Some(means) = &c.means {
            let _ = writeln!(out, "{indent}means  {means}");
        }
        if let Some(fix) = &c.fix {
            let _ = writeln!(out, "{indent}fix    {}", paint.paint(Tone::Strong, fix));
        }
    }
    let failed = checks.iter().filter(|c| c.finding == Finding::Fail).count();
    let warned = checks.iter().filter(|c| c.finding == Finding::Warn).count();
    let unknown = checks.iter().filter(|c| c.finding == Finding::Unknown).count();
    let _ =
        writeln!(out, "{} checks: {failed} failed, {warned} with warnings, {unknown} could not be made", checks.len());
    out
}

#[cfg(test)]
mod tests;

//! Checks of the cluster and of what the charts install.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use stowage_crds::{all_crds, names};
use stowage_planner::render::age;

use super::check::{Check, ago, join};
use super::{Facts, helm};
use crate::cluster::Read;

pub(super) fn kubernetes(f: &Facts) -> Check {
    let (major, minor, version) = &f.version;
    match (major, minor) {
        (1, ..=33) | (0, _) => Check::fail(
            "kubernetes",
            version,
            "below 1.34 there is no stable device API to place GPUs by",
            "upgrade the cluster to 1.36 or later",
        ),
        (1, 34) => Check::warn(
            "kubernetes",
            version,
            "whole GPUs work; models in images (source.image) need 1.35 or the feature gate ImageVolume, fractions of a GPU 1.36",
            "upgrade the cluster to 1.36 or later",
        ),
        (1, 35) => Check::warn(
            "kubernetes",
            version,
            "whole GPUs work; fractions of a GPU need 1.36",
            "upgrade the cluster to 1.36 or later",
        ),
        _ => Check::ok("kubernetes", version),
    }
}

pub(super) fn dra(f: &Facts) -> Check {
    match &f.dra {
        Read::Got(true) => Check::ok("device API", "resource.k8s.io/v1 is served"),
        Read::Got(false) | Read::Absent => Check::fail(
            "device API",
            "resource.k8s.io/v1 is not served",
            "no claim can be made on a GPU",
            "start the API server with --runtime-config=resource.k8s.io/v1=true",
        ),
        Read::Failed(why) => Check::unknown("device API", why),
    }
}

pub(super) fn crds(f: &Facts) -> Check {
    let installed = match &f.crds {
        Read::Got(list) => list,
        Read::Absent => return Check::absent("CRDs", "the API server serves no CustomResourceDefinitions"),
        Read::Failed(why) => return Check::unknown("CRDs", why),
    };
    let established = |name: &str| {
        let crd = installed.iter().find(|c| c.metadata.name.as_deref() == Some(name));
        let conditions = crd.and_then(|c| c.status.as_ref()).and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Established" && c.status == "True"))
    };
    let wanted: Vec<String> = all_crds().into_iter().filter_map(|c| c.metadata.name).collect();
    let missing: Vec<&String> = wanted.iter().filter(|n| !established(n)).collect();
    if missing.is_empty() {
        return Check::ok("CRDs", format!("{} of {} established", wanted.len(), wanted.len()));
    }
    Check::fail(
        "CRDs",
        format!("not established: {}", join(missing)),
        "objects of these kinds cannot be stored",
        helm::crds(installed),
    )
}

pub(super) fn device_class(f: &Facts) -> Check {
    match &f.device_class {
        Read::Got(_) => Check::ok("DeviceClass", format!("{} exists", names::DEVICE_CLASS)),
        Read::Absent => Check::fail(
            "DeviceClass",
            format!("{} does not exist", names::DEVICE_CLASS),
            "the scheduler cannot allocate a slice, so no replica starts",
            helm::chart(f),
        ),
        Read::Failed(why) => Check::unknown("DeviceClass", why),
    }
}

/// The chart's admission policies; a test compares them with the chart.
pub(super) const POLICIES: &[&str] = &[
    "stowage-agent-own-node",
    "stowage-agent-own-slices",
    "stowage-claims",
    "stowage-claim-templates",
    "stowage-claims-unchanged",
    "stowage-pods",
    "stowage-pods-unchanged",
    "stowage-shared",
];

/// A policy without a binding does nothing.
pub(super) fn policies(f: &Facts) -> Check {
    let (policies, bindings) = match (&f.policies, &f.bindings) {
        (Read::Got(p), Read::Got(b)) => (p, b),
        (Read::Failed(why), _) | (_, Read::Failed(why)) => return Check::unknown("policies", why),
        _ => return Check::absent("policies", "the API server serves no admission policies"),
    };
    let in_force = |name: &&str| {
        policies.iter().any(|p| p.metadata.name.as_deref() == Some(*name))
            && bindings.iter().any(|b| b.spec.policy_name == **name)
    };
    let missing: Vec<&str> = POLICIES.iter().filter(|n| !in_force(n)).copied().collect();
    if missing.is_empty() {
        return Check::ok("policies", format!("in force: {}", join(POLICIES)));
    }
    Check::fail(
        "policies",
        format!("missing or without a binding: {}", join(missing)),
        "any account that creates pods could use GPUs that belong to replicas, or another tenant's slice",
        helm::chart(f),
    )
}

pub(super) fn leader(f: &Facts, now: Timestamp) -> Check {
    let fix = "kubectl -n stowage-system logs -l app.kubernetes.io/name=stowage-operator --tail=50";
    let means = "no decision is carried out; what runs keeps running";
    let lease = match &f.lease {
        Read::Got(lease) => lease.spec.clone().unwrap_or_default(),
        Read::Absent => return Check::fail("leader", "no Lease", means, fix),
        Read::Failed(why) => return Check::unknown("leader", why),
    };
    let holder = lease.holder_identity.unwrap_or_default();
    let renewed = lease.renew_time.map(|t| ago(t.0, now));
    let valid_ms = lease.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(15) * 1000;
    match renewed {
        Some(ms) if ms <= valid_ms && !holder.is_empty() => {
            Check::ok("leader", format!("{holder}, renewed {} ago", age(ms)))
        }
        Some(ms) => Check::fail(
            "leader",
            format!("{holder} renewed the Lease {} ago, it is valid for {}", age(ms), age(valid_ms)),
            means,
            fix,
        ),
        None => Check::fail("leader", "the Lease was never renewed", means, fix),
    }
}

pub(super) fn operator(f: &Facts) -> Check {
    workload(f, "operator", &f.operator, "no decision is carried out; what runs keeps running")
}

pub(super) fn gateway(f: &Facts) -> Check {
    workload(f, "gateway", &f.gateway, "clients get no answer")
}

fn workload(f: &Facts, name: &'static str, read: &Read<Deployment>, means: &'static str) -> Check {
    let deployment = match read {
        Read::Got(d) => d,
        Read::Absent => return Check::fail(name, "not installed", means, helm::chart(f)),
        Read::Failed(why) => return Check::unknown(name, why),
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let found = format!("{ready} of {wanted} pods ready");
    let fix = format!("kubectl -n {} describe pods -l app.kubernetes.io/name=stowage-{name}", names::SYSTEM_NAMESPACE);
    match ready {
        0 => Check::fail(name, found, means, fix),
        n if n < wanted => Check::warn(name, found, "if the remaining pods fail as well, it stops", fix),
        _ => Check::ok(name, found),
    }
}

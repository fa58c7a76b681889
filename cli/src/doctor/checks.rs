//! The checks: each a function from facts to a finding with what it means and the command that
//! mends it. In the order in which things depend on each other, so the first failure is the one to
//! look at.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde::Serialize;
use stowage_crds::gpu_node::{GpuDevice, Health};
use stowage_crds::quantity::parse_bytes;
use stowage_crds::{GpuClass, GpuNode, all_crds, names};
use stowage_planner::render::{age, short_uuid};

use super::Facts;
use crate::cluster::Read;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Finding {
    Ok,
    Warn,
    Fail,
    /// The check could not be made.
    Unknown,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    pub name: &'static str,
    pub finding: Finding,
    pub found: String,
    pub means: Option<String>,
    pub mend: Option<String>,
}

/// Beyond this the agent is silent: it writes its GpuNode once a minute at least.
const GPU_NODE_SILENCE_MS: u64 = 180_000;
const INSTALL: &str = "helm upgrade --install stowage charts/stowage -n stowage-system --create-namespace";

pub(crate) fn all(f: &Facts, now: Timestamp) -> Vec<Check> {
    vec![
        kubernetes(f),
        dra(f),
        crds(f),
        device_class(f),
        policies(f),
        leader(f, now),
        workload("operator", &f.operator, "no decision is carried out; what runs keeps running"),
        agents(f),
        gpu_nodes(f, now),
        gpus(f),
        slices(f),
        classes(f),
        runtimes(f),
        workload("gateway", &f.gateway, "clients get no answer"),
        tenants(f),
    ]
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, finding: Finding::Ok, found: found.into(), means: None, mend: None }
    }

    fn bad(
        name: &'static str,
        finding: Finding,
        found: impl Into<String>,
        means: impl Into<String>,
        mend: impl Into<String>,
    ) -> Check {
        let (found, means, mend) = (found.into(), Some(means.into()), Some(mend.into()));
        Check { name, finding, found, means, mend }
    }

    fn fail(name: &'static str, found: impl Into<String>, means: impl Into<String>, mend: impl Into<String>) -> Check {
        Check::bad(name, Finding::Fail, found, means, mend)
    }

    fn warn(name: &'static str, found: impl Into<String>, means: impl Into<String>, mend: impl Into<String>) -> Check {
        Check::bad(name, Finding::Warn, found, means, mend)
    }

    fn unknown(name: &'static str, why: &str) -> Check {
        Check::bad(
            name,
            Finding::Unknown,
            "could not be read",
            why,
            "ask for read access, or run as a cluster administrator",
        )
    }
}

fn kubernetes(f: &Facts) -> Check {
    let (major, minor, version) = &f.version;
    match (major, minor) {
        (1, ..=33) | (0, _) => Check::fail(
            "kubernetes",
            version,
            "below 1.34 there is no stable device API to place GPUs by",
            "upgrade the cluster to 1.36 or later",
        ),
        (1, 34..=35) => Check::warn(
            "kubernetes",
            version,
            "fractions of a GPU need 1.36; whole GPUs work",
            "upgrade the cluster to 1.36 or later",
        ),
        _ => Check::ok("kubernetes", version),
    }
}

fn dra(f: &Facts) -> Check {
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

fn crds(f: &Facts) -> Check {
    let installed = match &f.crds {
        Read::Got(list) => list,
        Read::Absent => return Check::unknown("CRDs", "the API server serves no CustomResourceDefinitions"),
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
        "helm upgrade --install stowage-crds charts/stowage-crds",
    )
}

fn device_class(f: &Facts) -> Check {
    match &f.device_class {
        Read::Got(_) => Check::ok("DeviceClass", format!("{} exists", names::DEVICE_CLASS)),
        Read::Absent => Check::fail(
            "DeviceClass",
            format!("{} does not exist", names::DEVICE_CLASS),
            "the scheduler cannot allocate a slice, so no replica starts",
            INSTALL,
        ),
        Read::Failed(why) => Check::unknown("DeviceClass", why),
    }
}

/// Without these a stranger reaches our GPUs.
const POLICIES: [&str; 3] = ["stowage-claims", "stowage-claim-templates", "stowage-pods"];

/// A policy without a binding does nothing.
fn policies(f: &Facts) -> Check {
    let (policies, bindings) = match (&f.policies, &f.bindings) {
        (Read::Got(p), Read::Got(b)) => (p, b),
        (Read::Failed(why), _) | (_, Read::Failed(why)) => return Check::unknown("policies", why),
        _ => return Check::unknown("policies", "the API server serves no admission policies"),
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
        "others could claim our GPUs, or join a claim and use a neighbour's slice",
        INSTALL,
    )
}

fn leader(f: &Facts, now: Timestamp) -> Check {
    let mend = "kubectl -n stowage-system logs -l app.kubernetes.io/name=stowage-operator --tail=50";
    let means = "no decision is carried out; what runs keeps running";
    let lease = match &f.lease {
        Read::Got(lease) => lease.spec.clone().unwrap_or_default(),
        Read::Absent => return Check::fail("leader", "no Lease", means, mend),
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
            mend,
        ),
        None => Check::fail("leader", "the Lease was never renewed", means, mend),
    }
}

fn workload(name: &'static str, read: &Read<Deployment>, means: &'static str) -> Check {
    let deployment = match read {
        Read::Got(d) => d,
        Read::Absent => return Check::fail(name, "not installed", means, INSTALL),
        Read::Failed(why) => return Check::unknown(name, why),
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let found = format!("{ready} of {wanted} pods ready");
    let mend = format!("kubectl -n {} describe pods -l app.kubernetes.io/name=stowage-{name}", names::SYSTEM_NAMESPACE);
    match ready {
        0 => Check::fail(name, found, means, mend),
        n if n < wanted => Check::warn(name, found, "one more failure and it is gone", mend),
        _ => Check::ok(name, found),
    }
}

fn agents(f: &Facts) -> Check {
    let sets = match &f.agents {
        Read::Got(sets) => sets,
        Read::Absent => return Check::fail("node agents", "no DaemonSet", AGENTS_MEAN, INSTALL),
        Read::Failed(why) => return Check::unknown("node agents", why),
    };
    let sum = |of: fn(&k8s_openapi::api::apps::v1::DaemonSetStatus) -> i32| -> i32 {
        sets.iter().filter_map(|d| d.status.as_ref()).map(of).sum()
    };
    let (wanted, ready) = (sum(|s| s.desired_number_scheduled), sum(|s| s.number_ready));
    if sets.is_empty() {
        return Check::fail("node agents", format!("no DaemonSet in {}", names::NODE_NAMESPACE), AGENTS_MEAN, INSTALL);
    }
    if wanted == 0 {
        return Check::fail(
            "node agents",
            "no node is selected",
            AGENTS_MEAN,
            "label the GPU nodes as the chart's nodeAgent.nodeSelector asks",
        );
    }
    if ready >= wanted {
        return Check::ok("node agents", format!("{ready} of {wanted} ready"));
    }
    let pods = f.agent_pods.got().map(Vec::as_slice).unwrap_or_default();
    let silent: Vec<&str> = pods
        .iter()
        .filter(|p| {
            let conditions = p.status.as_ref().and_then(|s| s.conditions.as_ref());
            !conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        })
        .filter_map(|p| p.spec.as_ref()?.node_name.as_deref())
        .collect();
    Check::fail(
        "node agents",
        format!("{ready} of {wanted} ready; not on {}", join(silent)),
        AGENTS_MEAN,
        format!("kubectl -n {} get pods -o wide, then logs of those not ready", names::NODE_NAMESPACE),
    )
}

const AGENTS_MEAN: &str = "on these nodes nothing is placed and no slice is prepared; running pods keep running";

fn gpu_nodes(f: &Facts, now: Timestamp) -> Check {
    let nodes = match read_list("GpuNodes", &f.nodes) {
        Ok(nodes) => nodes,
        Err(check) => return check,
    };
    if nodes.is_empty() {
        return Check::fail(
            "GpuNodes",
            "none",
            "no agent has reported a GPU, so nothing can be placed",
            format!("kubectl -n {} logs -l app.kubernetes.io/name=stowage-node-agent --tail=50", names::NODE_NAMESPACE),
        );
    }
    let silent: Vec<String> = nodes
        .iter()
        .filter_map(|n| {
            let name = n.metadata.name.clone().unwrap_or_default();
            match n.status.as_ref().and_then(|s| s.observed_time.as_ref()) {
                None => Some(format!("{name} (never)")),
                Some(t) => {
                    let ms = ago(t.0, now);
                    (ms > GPU_NODE_SILENCE_MS).then(|| format!("{name} ({} ago)", age(ms)))
                }
            }
        })
        .collect();
    if !silent.is_empty() {
        return Check::fail(
            "GpuNodes",
            format!("silent: {}", silent.join(", ")),
            "what is known of these nodes is stale: nothing is placed there and nothing there is ended",
            format!("kubectl -n {} get pods -o wide", names::NODE_NAMESPACE),
        );
    }
    let simulated = nodes.iter().filter(|n| n.status.as_ref().is_some_and(|s| s.simulated)).count();
    let note = match simulated {
        0 => String::new(),
        n if n == nodes.len() => ", all simulated".to_owned(),
        n => format!(", {n} simulated"),
    };
    Check::ok("GpuNodes", format!("{} reporting{note}", nodes.len()))
}

fn devices(nodes: &[GpuNode]) -> impl Iterator<Item = (&str, bool, &GpuDevice)> {
    nodes.iter().flat_map(|n| {
        let name = n.metadata.name.as_deref().unwrap_or_default();
        let status = n.status.as_ref();
        let simulated = status.is_some_and(|s| s.simulated);
        status.into_iter().flat_map(|s| &s.devices).map(move |d| (name, simulated, d))
    })
}

fn gpus(f: &Facts) -> Check {
    let nodes = match read_list("GPUs", &f.nodes) {
        Ok(nodes) => nodes,
        Err(check) => return check,
    };
    let total = devices(nodes).count();
    let simulated = devices(nodes).filter(|(_, simulated, _)| *simulated).count();
    let sick: Vec<String> = devices(nodes)
        .filter(|(_, _, d)| d.verdict.health != Health::Healthy)
        .map(|(node, _, d)| {
            let why = d.verdict.reason.as_deref().unwrap_or("no reason given");
            format!("{node} {} {:?}: {why}", short_uuid(&d.uuid), d.verdict.health)
        })
        .collect();
    let note = if simulated > 0 { format!(", {simulated} of them simulated") } else { String::new() };
    match (total, sick.len()) {
        (0, _) => Check::fail("GPUs", "none found", "nothing can be placed", "kubectl get gpun -o yaml"),
        (_, 0) => Check::ok("GPUs", format!("{total} healthy{note}")),
        (_, n) => Check::warn(
            "GPUs",
            format!("{n} of {total} not healthy{note}: {}", sick.join("; ")),
            "replicas leave an unhealthy GPU, and nothing is placed there",
            "kubectl get gpun -o yaml (verdicts say what to do); reset or replace the GPU",
        ),
    }
}

fn slices(f: &Facts) -> Check {
    let (slices, nodes) = match (read_list("ResourceSlices", &f.slices), read_list("ResourceSlices", &f.nodes)) {
        (Ok(slices), Ok(nodes)) => (slices, nodes),
        (Err(check), _) | (_, Err(check)) => return check,
    };
    let published =
        |node: &str| slices.iter().any(|s| s.spec.driver == names::DRIVER && s.spec.node_name.as_deref() == Some(node));
    let missing: Vec<&str> =
        nodes.iter().filter_map(|n| n.metadata.name.as_deref()).filter(|n| !published(n)).collect();
    if missing.is_empty() {
        return Check::ok("ResourceSlices", format!("published for every GpuNode ({})", nodes.len()));
    }
    Check::fail(
        "ResourceSlices",
        format!("missing for {}", join(missing)),
        "the scheduler sees no GPU there; the node agent publishes them again by itself",
        format!("kubectl -n {} logs -l app.kubernetes.io/name=stowage-node-agent --tail=50", names::NODE_NAMESPACE),
    )
}

fn classes(f: &Facts) -> Check {
    let (classes, nodes) = match (read_list("GpuClasses", &f.classes), read_list("GpuClasses", &f.nodes)) {
        (Ok(classes), Ok(nodes)) => (classes, nodes),
        (Err(check), _) | (_, Err(check)) => return check,
    };
    let mut unclassed: Vec<&str> = devices(nodes)
        .filter(|(_, _, d)| !classes.iter().any(|c| selects(c, d)))
        .map(|(_, _, d)| d.product.as_str())
        .collect();
    unclassed.sort_unstable();
    unclassed.dedup();
    if unclassed.is_empty() && !classes.is_empty() {
        let all: Vec<&str> = classes.iter().filter_map(|c| c.metadata.name.as_deref()).collect();
        return Check::ok("GpuClasses", format!("every GPU has one: {}", join(all)));
    }
    Check::fail(
        "GpuClasses",
        if classes.is_empty() { "none".to_owned() } else { format!("no class selects: {}", unclassed.join(", ")) },
        "nothing is ever placed on a GPU without a class",
        format!("create a GpuClass with selector.productNames: [{}]", unclassed.join(", ")),
    )
}

fn selects(class: &GpuClass, d: &GpuDevice) -> bool {
    let s = &class.spec.selector;
    let product = s.product_names.is_empty() || s.product_names.contains(&d.product);
    let architecture =
        s.architectures.is_empty() || d.architecture.as_ref().is_some_and(|a| s.architectures.contains(a));
    let memory = match &s.min_memory {
        None => true,
        Some(min) => matches!((parse_bytes(min), parse_bytes(&d.memory)), (Ok(min), Ok(has)) if has >= min),
    };
    product && architecture && memory
}

fn runtimes(f: &Facts) -> Check {
    let runtimes = match read_list("runtimes", &f.runtimes) {
        Ok(runtimes) => runtimes,
        Err(check) => return check,
    };
    let exists = |name: &str| runtimes.iter().any(|r| r.metadata.name.as_deref() == Some(name));
    let used = f.deployments.got().map(Vec::as_slice).unwrap_or_default();
    let mut missing: Vec<&str> = used
        .iter()
        .map(|d| d.spec.runtime.r#ref.as_str())
        .chain(runtimes.is_empty().then_some(names::DEFAULT_RUNTIME))
        .filter(|r| !exists(r))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        let all: Vec<&str> = runtimes.iter().filter_map(|r| r.metadata.name.as_deref()).collect();
        return Check::ok("runtimes", join(all));
    }
    Check::fail(
        "runtimes",
        format!("no InferenceRuntime {}", join(missing)),
        "deployments that name it are not accepted",
        INSTALL,
    )
}

fn tenants(f: &Facts) -> Check {
    let (quotas, deployments) = match (read_list("tenants", &f.quotas), read_list("tenants", &f.deployments)) {
        (Ok(quotas), Ok(deployments)) => (quotas, deployments),
        (Err(check), _) | (_, Err(check)) => return check,
    };
    let mut homeless: Vec<&str> = deployments
        .iter()
        .filter_map(|d| d.metadata.namespace.as_deref())
        .filter(|ns| !quotas.iter().any(|q| q.spec.namespaces.iter().any(|n| n == ns)))
        .collect();
    homeless.sort_unstable();
    homeless.dedup();
    let refused: Vec<&str> = quotas
        .iter()
        .filter(|q| {
            let conditions = q.status.iter().flat_map(|s| &s.conditions);
            conditions.into_iter().any(|c| c.type_ == "Accepted" && c.status == "False")
        })
        .filter_map(|q| q.metadata.name.as_deref())
        .collect();
    if !refused.is_empty() {
        return Check::fail(
            "tenants",
            format!("not accepted: {}", join(&refused)),
            "its budget is not in force",
            format!("kubectl get tq {} -o yaml (condition Accepted says why)", refused[0]),
        );
    }
    if !homeless.is_empty() {
        return Check::warn(
            "tenants",
            format!("namespaces without a TenantQuota: {}", join(&homeless)),
            "deployments there are refused with NoTenant",
            format!("add {} to spec.namespaces of a TenantQuota", homeless[0]),
        );
    }
    Check::ok("tenants", format!("{} accepted", quotas.len()))
}

fn read_list<'a, T>(name: &'static str, read: &'a Read<Vec<T>>) -> Result<&'a [T], Check> {
    match read {
        Read::Got(list) => Ok(list),
        Read::Absent => Err(Check::unknown(name, "the kind is not installed")),
        Read::Failed(why) => Err(Check::unknown(name, why)),
    }
}

fn ago(t: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(t).as_millis()).unwrap_or(0)
}

fn join<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let all: Vec<String> = items.into_iter().map(|s| s.as_ref().to_owned()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

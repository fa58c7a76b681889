//! Checks of the node agents and of the GPUs that they report.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use stowage_crds::gpu_node::{GpuDevice, Health};
use stowage_crds::quantity::parse_bytes;
use stowage_crds::validate::validate_class;
use stowage_crds::{GpuClass, GpuNode, names};
use stowage_planner::render::{age, short_uuid};

use super::check::{Check, ago, join, read_list};
use super::{Facts, helm};
use crate::cluster::Read;

/// Label of the agents' pods.
const AGENT_PODS: &str = "app.kubernetes.io/name=stowage-node-agent";

pub(super) fn agents(f: &Facts) -> Check {
    let sets = match &f.agents {
        Read::Got(sets) => sets,
        Read::Absent => return Check::fail("node agents", "no DaemonSet", AGENTS_MEAN, helm::chart(f)),
        Read::Failed(why) => return Check::unknown("node agents", why),
    };
    let sum = |of: fn(&k8s_openapi::api::apps::v1::DaemonSetStatus) -> i32| -> i32 {
        sets.iter().filter_map(|d| d.status.as_ref()).map(of).sum()
    };
    let (wanted, ready) = (sum(|s| s.desired_number_scheduled), sum(|s| s.number_ready));
    if sets.is_empty() {
        return Check::fail(
            "node agents",
            format!("no DaemonSet in {}", names::NODE_NAMESPACE),
            AGENTS_MEAN,
            helm::chart(f),
        );
    }
    if wanted == 0 {
        return Check::fail("node agents", "no node is selected", AGENTS_MEAN, label_nodes(sets));
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
        format!("kubectl -n {} describe pods -l {AGENT_PODS}", names::NODE_NAMESPACE),
    )
}

/// The labels that the DaemonSets ask for.
fn label_nodes(sets: &[DaemonSet]) -> String {
    let selector = |set: &DaemonSet| set.spec.as_ref()?.template.spec.as_ref()?.node_selector.clone();
    let labels: Vec<String> =
        sets.iter().filter_map(selector).flatten().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() {
        return "check with kubectl get nodes that there are nodes without taints of effect NoExecute".to_owned();
    }
    format!("kubectl label node NODE {}, for each node with GPUs", labels.join(" "))
}

const AGENTS_MEAN: &str = "on these nodes nothing is placed and no slice is prepared; running pods keep running";

pub(super) fn gpu_nodes(f: &Facts, now: Timestamp) -> Check {
    let nodes = match read_list("GpuNodes", &f.nodes) {
        Ok(nodes) => nodes,
        Err(check) => return check,
    };
    if nodes.is_empty() {
        return Check::fail(
            "GpuNodes",
            "none",
            "no agent has reported a GPU, so nothing can be placed",
            format!("kubectl -n {} logs -l {AGENT_PODS} --tail=50", names::NODE_NAMESPACE),
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
                    (ms > names::GPU_NODE_STALE_AFTER_MS).then(|| format!("{name} ({} ago)", age(ms)))
                }
            }
        })
        .collect();
    if !silent.is_empty() {
        return Check::fail(
            "GpuNodes",
            format!("silent: {}", silent.join(", ")),
            "what is known of these nodes is stale: nothing is placed there and nothing there is ended",
            format!("kubectl -n {} get pods -o wide -l {AGENT_PODS}", names::NODE_NAMESPACE),
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

pub(super) fn gpus(f: &Facts) -> Check {
    let nodes = match read_list("GPUs", &f.nodes) {
        Ok(nodes) => nodes,
        Err(check) => return check,
    };
    let total = devices(nodes).count();
    let simulated = devices(nodes).filter(|(_, simulated, _)| *simulated).count();
    let unhealthy: Vec<String> = devices(nodes)
        .filter(|(_, _, d)| d.verdict.health != Health::Healthy)
        .map(|(node, _, d)| {
            let why = d.verdict.reason.as_deref().unwrap_or("no reason given");
            format!("{node} {} {:?}: {why}", short_uuid(&d.uuid), d.verdict.health)
        })
        .collect();
    let note = if simulated > 0 { format!(", {simulated} of them simulated") } else { String::new() };
    match (total, unhealthy.len()) {
        (0, _) => Check::fail("GPUs", "none found", "nothing can be placed", "kubectl get gpun -o yaml"),
        (_, 0) => Check::ok("GPUs", format!("{total} healthy{note}")),
        (_, n) => Check::warn(
            "GPUs",
            format!("{n} of {total} not healthy{note}: {}", unhealthy.join("; ")),
            "replicas leave an unhealthy GPU, and nothing is placed there",
            "kubectl get gpun -o yaml shows each verdict; reset or replace the GPU",
        ),
    }
}

pub(super) fn slices(f: &Facts) -> Check {
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
        format!("kubectl -n {} logs -l {AGENT_PODS} --tail=50", names::NODE_NAMESPACE),
    )
}

pub(super) fn classes(f: &Facts) -> Check {
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
        match unclassed.first() {
            Some(product) => create_class(product),
            None => "kubectl get gpun: without a GPU there is nothing to classify; see GpuNodes".to_owned(),
        },
    )
}

/// A command that creates the class; its name is the product's, as far as an object's name can be.
fn create_class(product: &str) -> String {
    let letters = product.to_ascii_lowercase().replace("nvidia ", "");
    let letters: String = letters.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let class = serde_json::json!({
        "apiVersion": names::API_VERSION, "kind": "GpuClass", "metadata": {"name": letters.trim_matches('-')},
        "spec": {"selector": {"productNames": [product]}},
    });
    format!("echo '{class}' | kubectl apply -f -")
}

/// As the operator decides it: a class that it refuses selects nothing.
fn selects(class: &GpuClass, d: &GpuDevice) -> bool {
    let bytes = parse_bytes(&d.memory).unwrap_or(0);
    validate_class(&class.spec).is_ok_and(|accepted| accepted.selects(d, bytes))
}

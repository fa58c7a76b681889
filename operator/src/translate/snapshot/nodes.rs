//! Nodes with their GPUs, as the planner wants them: a Node, its GpuNode and its ResourceSlices.
//!
//! What the agent publishes may be older than what is true. Its age is computed here; a node whose
//! slices vanished (the kubelet deletes them 30 s after the agent's socket dies) is *stale* and keeps
//! the capacity that its GpuNode last showed, so that its replicas are never taken for unplaced.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as KubeNode, Taint as KubeTaint};
use stowage_crds::gpu_node::{GpuDevice, GpuNodeStatus, Health as Verdict};
use stowage_crds::names::{GPU_NODE_STALE_AFTER_MS, MEMORY_STEP_BYTES};
use stowage_crds::quantity::{parse_bytes, parse_milli};
use stowage_planner::snapshot::{Freshness, Gpu, Health, ModelKey, Node, Resources, Shared, Taint, TaintEffect};

use super::devices::Devices;
use super::promises::Promised;
use crate::observe::agents::AgentReport;
use crate::observe::parsed::needs::Taken;
use crate::observe::source::Key;
use crate::observe::view::{Objects, View};
use crate::translate::known::{Ascending, Known};
use crate::translate::validate::classes::Classes;

/// Ages of fresh nodes are rounded up to a multiple of this: the heartbeat of agents.
const FRESH_STEP_MS: u64 = 10_000;
/// An agent that has reported is stale after three missed heartbeats.
const STREAM_LIMIT_MS: u64 = 35_000;

/// Taints that repeat `cordoned` and `ready`.
const STATE_TAINTS: [&str; 3] =
    ["node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// What nodes are made of besides the view.
pub struct Parts<'a> {
    pub devices: &'a Devices,
    pub classes: &'a Classes,
    /// By GPU uuid.
    pub promises: HashMap<&'a str, Vec<Promised<'a>>>,
    /// By node.
    pub taken: HashMap<&'a str, Taken>,
    /// Labels that some deployment asks for. The others make nodes differ that are equal to every decision: each node
    /// has its own name as a label.
    pub labels: &'a BTreeSet<String>,
}

pub fn build(view: &View, mut parts: Parts<'_>, known: &Known) -> Vec<Shared<Node>> {
    let same = known.has_classes(view) && known.devices(view).is_some() && known.labels() == parts.labels;
    let (mut gpu_nodes, mut agents) = (Ascending::new(view.gpu_nodes.iter()), Ascending::new(view.agents.iter()));
    let mut known = known.nodes();
    let node = |(key, node): (&Key, &Arc<KubeNode>)| {
        let name = key.1.as_str();
        let gpu_node = gpu_nodes.find(|(at, _)| (*at).cmp(key)).map(|(_, found)| found);
        let agent = agents.find(|(at, _)| at.as_str().cmp(name)).map(|(_, found)| found);
        let status = gpu_node.and_then(|stored| stored.status.as_ref());
        let taken = parts.taken.remove(name).unwrap_or_default();
        let freshness = freshness(view, name, status, agent, parts.devices);
        let before = if same { known.get(key, node, gpu_node) } else { None };
        let before = before.filter(|before| again(before, &taken, &mut parts));
        match before.cloned() {
            Some(mut before) => {
                if before.freshness != freshness {
                    before.freshness = freshness;
                }
                before
            }
            None => one(node, status, freshness, taken, &mut parts).into(),
        }
    };
    view.nodes.iter().map(node).collect()
}

/// Whether a node of the same objects holds what it held; its promises are taken out of the parts then.
fn again(before: &Node, taken: &Taken, parts: &mut Parts<'_>) -> bool {
    let promised = |gpu: &Gpu| parts.promises.get(gpu.uuid.as_str()).map(Vec::as_slice).unwrap_or_default();
    let unchanged = |gpu: &Gpu| {
        let promised = promised(gpu);
        gpu.slices.len() == promised.len()
            && gpu.slices.iter().zip(promised).all(|(slice, promised)| promised.is(slice))
    };
    let same =
        before.used == taken.resources && before.host_ports == taken.host_ports && before.gpus.iter().all(unchanged);
    if same {
        before.gpus.iter().for_each(|gpu| drop(parts.promises.remove(gpu.uuid.as_str())));
    }
    same
}

fn one(
    node: &KubeNode,
    status: Option<&GpuNodeStatus>,
    freshness: Freshness,
    taken: Taken,
    parts: &mut Parts<'_>,
) -> Node {
    let spec = node.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.iter().flatten();
    let owned = |(key, value): (&String, &String)| (key.clone(), value.clone());
    let gpus = status.map(|status| gpus(status, parts)).unwrap_or_default();
    Node {
        ready: ready(node),
        cordoned: spec.unschedulable.unwrap_or(false),
        labels: labels.filter(|(key, _)| parts.labels.contains(key.as_str())).map(owned).collect(),
        taints: spec.taints.iter().flatten().filter_map(taint).collect(),
        allocatable: allocatable(node),
        used: taken.resources,
        host_ports: taken.host_ports,
        freshness,
        gpus,
        cached_models: status
            .iter()
            .flat_map(|status| &status.cached_models)
            .map(|model| ModelKey::read(&model.source))
            .collect(),
        name: node.metadata.name.clone().unwrap_or_default(),
    }
}

fn freshness(
    view: &View,
    name: &str,
    status: Option<&GpuNodeStatus>,
    agent: Option<&AgentReport>,
    devices: &Devices,
) -> Freshness {
    let Some(status) = status else { return Freshness::Missing };
    let observed_ms = status.observed_time.as_ref().map_or(0, |at| millis_between(at.0, view.now));
    let (age_ms, limit_ms) = match agent {
        // Unreachable since its last summary, unless its GpuNode is newer: nothing new is placed where no agent could prepare it.
        Some(agent) if agent.broken && agent.age_ms <= observed_ms => return Freshness::Stale { age_ms: agent.age_ms },
        Some(agent) if agent.age_ms < observed_ms || agent.age_ms < STREAM_LIMIT_MS => (agent.age_ms, STREAM_LIMIT_MS),
        _ => (observed_ms, GPU_NODE_STALE_AFTER_MS),
    };
    let published = devices.of_node(name);
    let all_published = status.devices.iter().all(|device| published.is_some_and(|uuids| uuids.contains(&device.uuid)));
    if age_ms > limit_ms || !all_published {
        return Freshness::Stale { age_ms };
    }
    // Within a heartbeat all are of one age: a node that said nothing new is the node that it was.
    Freshness::Fresh { age_ms: age_ms.div_ceil(FRESH_STEP_MS).max(1) * FRESH_STEP_MS }
}

fn gpus(status: &GpuNodeStatus, parts: &mut Parts<'_>) -> Vec<Gpu> {
    let mut gpus: Vec<Gpu> = status.devices.iter().map(|device| gpu(device, parts)).collect();
    gpus.sort_by(|a, b| (a.index, &a.uuid).cmp(&(b.index, &b.uuid)));
    gpus
}

fn gpu(device: &GpuDevice, parts: &mut Parts<'_>) -> Gpu {
    let published = parts.devices.with_uuid(&device.uuid);
    // The slice is what the scheduler allocates from; the GpuNode's figure stands in while there is none.
    let promised = parts.promises.remove(device.uuid.as_str());
    let memory_bytes = published.map_or_else(|| parse_bytes(&device.memory).unwrap_or(0), |found| found.memory_bytes);
    Gpu {
        uuid: device.uuid.clone(),
        index: device.index,
        product: device.product.clone(),
        class: parts.classes.of(device, memory_bytes).map(str::to_owned),
        memory_bytes,
        memory_step_bytes: published.map_or(MEMORY_STEP_BYTES, |found| found.step_bytes),
        sm_percent: published.map_or(100, |found| found.sm_percent),
        health: health(device),
        island: device.island.map(|island| island.to_string()),
        numa: device.numa_node,
        // The agent does not publish GPUs in MIG mode.
        mig: None,
        slices: promised.unwrap_or_default().iter().map(Promised::slice).collect(),
    }
}

fn health(device: &GpuDevice) -> Health {
    let verdict = &device.verdict;
    let texts = [verdict.reason.as_deref(), verdict.message.as_deref()];
    let reason = texts.into_iter().flatten().collect::<Vec<_>>().join(": ");
    match verdict.health {
        Verdict::Healthy => Health::Healthy,
        Verdict::Degraded => Health::Degraded { reason },
        Verdict::Unhealthy => Health::Unhealthy { reason },
    }
}

fn ready(node: &KubeNode) -> bool {
    ready_status(node).is_some_and(|(status, _)| status == "True")
}

/// Whether the node's pods must be given up: the node object is gone, or the control plane has not
/// received anything of the kubelet for its whole grace period (`Unknown`). `False` is a kubelet that still reports.
fn lost(node: &KubeNode) -> bool {
    ready_status(node).is_some_and(|(status, _)| status == "Unknown")
}

/// Names of the nodes whose pods need not be given up.
#[derive(Debug)]
pub struct Alive<'a>(HashSet<&'a str>);

impl<'a> Alive<'a> {
    pub fn read(nodes: &'a Objects<KubeNode>) -> Self {
        let alive = nodes.iter().filter(|(_, node)| !lost(node));
        Self(alive.map(|((_, name), _)| name.as_str()).collect())
    }

    pub fn lost(&self, node: &str) -> bool {
        !self.0.contains(node)
    }
}

fn ready_status(node: &KubeNode) -> Option<(&str, Option<jiff::Timestamp>)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((&ready.status, ready.last_transition_time.as_ref().map(|time| time.0)))
}

fn allocatable(node: &KubeNode) -> Resources {
    let map = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let get = |name: &str| map.and_then(|map| map.get(name));
    Resources {
        cpu_milli: get("cpu").and_then(|quantity| parse_milli(quantity).ok()).unwrap_or(0),
        memory_bytes: get("memory").and_then(|quantity| parse_bytes(quantity).ok()).unwrap_or(0),
        pods: get("pods")
            .and_then(|quantity| parse_milli(quantity).ok())
            .map_or(0, |milli| u32::try_from(milli / 1000).unwrap_or(u32::MAX)),
    }
}

/// `None` also for what Kubernetes itself writes for a state that [`Node`] has a field for: it ends with that state.
fn taint(taint: &KubeTaint) -> Option<Taint> {
    if STATE_TAINTS.contains(&taint.key.as_str()) {
        return None;
    }
    let effect = match taint.effect.as_str() {
        "NoSchedule" => TaintEffect::NoSchedule,
        "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
        "NoExecute" => TaintEffect::NoExecute,
        _ => return None,
    };
    Some(Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
}

/// Milliseconds from the earlier to the later; 0 where clocks disagree.
pub fn millis_between(earlier: jiff::Timestamp, later: jiff::Timestamp) -> u64 {
    u64::try_from(later.as_millisecond() - earlier.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_that_end_with_the_nodes_state_are_no_taints_of_their_own() {
        let of = |key: &str| {
            taint(&KubeTaint { key: key.into(), effect: "NoSchedule".into(), ..KubeTaint::default() }).map(|t| t.key)
        };
        assert_eq!(of("example.com/team").as_deref(), Some("example.com/team"));
        assert_eq!(of("node.kubernetes.io/unschedulable"), None);
        assert_eq!(of("node.kubernetes.io/not-ready"), None);
        assert_eq!(of("node.kubernetes.io/disk-pressure").as_deref(), Some("node.kubernetes.io/disk-pressure"));
    }
}

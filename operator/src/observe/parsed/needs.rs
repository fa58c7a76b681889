//! What a pod takes of its node, as kube-scheduler counts it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stowage_crds::quantity::{ParseError, parse_bytes, parse_milli};
use stowage_planner::snapshot::Resources;

use super::trim::ours;

/// What is taken on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    pub resources: Resources,
    pub host_ports: Vec<u16>,
}

/// What the pod takes; `None`: nothing, because it has ended, or is neither bound nor ours, so that no node is decided.
pub fn taken(pod: &Pod) -> Option<Taken> {
    let decided = |spec: &&PodSpec| spec.node_name.is_some() || ours(&pod.metadata);
    let spec = pod.spec.as_ref().filter(|_| !finished(pod)).filter(decided)?;
    let (cpu_milli, memory_bytes) = requests(spec);
    Some(Taken { resources: Resources { cpu_milli, memory_bytes, pods: 1 }, host_ports: ports(spec).collect() })
}

/// A pod that ended takes nothing any more.
fn finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Milli-CPU and bytes: the larger of all containers together and the largest request during
/// initialisation, plus overhead. Sidecars (init containers that restart always) count with both.
fn requests(spec: &PodSpec) -> (u64, u64) {
    let main = sum(spec.containers.iter());
    let (mut sidecars, mut peak) = ((0, 0), (0, 0));
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = plus(sidecars, own);
            peak = max(peak, sidecars);
        } else {
            peak = max(peak, plus(sidecars, own));
        }
    }
    let overhead = spec.overhead.as_ref().map_or((0, 0), amounts);
    let all = max(plus(main, sidecars), peak);
    plus(of_the_pod(spec, all), overhead)
}

/// What the pod as a whole requests takes the place of its containers' sum.
fn of_the_pod(spec: &PodSpec, (cpu, memory): (u64, u64)) -> (u64, u64) {
    let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) else {
        return (cpu, memory);
    };
    let (own_cpu, own_memory) = amounts(requests);
    let or = |name: &str, own: u64, sum: u64| if requests.contains_key(name) { own } else { sum };
    (or("cpu", own_cpu, cpu), or("memory", own_memory, memory))
}

fn sum<'a>(containers: impl Iterator<Item = &'a Container>) -> (u64, u64) {
    containers.map(of).fold((0, 0), plus)
}

fn of(container: &Container) -> (u64, u64) {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.map_or((0, 0), amounts)
}

fn amounts(map: &BTreeMap<String, Quantity>) -> (u64, u64) {
    let amount = |name: &str, parse: fn(&Quantity) -> Result<u64, ParseError>| match map.get(name).map(parse) {
        Some(Ok(amount)) => amount,
        // Kubernetes takes larger numbers than we count with, and the node has less.
        Some(Err(ParseError::TooLarge(_))) => u64::MAX,
        // The API server refuses what is no quantity, so there is none.
        Some(Err(_)) | None => 0,
    };
    (amount("cpu", parse_milli), amount("memory", parse_bytes))
}

fn plus(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

fn max(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0.max(b.0), a.1.max(b.1))
}

fn ports(spec: &PodSpec) -> impl Iterator<Item = u16> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| u16::try_from(port.host_port?).ok()).filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str, expect: (u64, u64)) {
        let spec: PodSpec = serde_yaml::from_str(spec).unwrap();
        assert_eq!(requests(&spec), expect);
    }

    #[test]
    fn containers_add_up_and_a_larger_init_container_counts_alone() {
        check(
            "containers: [{name: a, resources: {requests: {cpu: 500m, memory: 1Gi}}}, {name: b, resources: {requests: {cpu: '1'}}}]",
            (1500, 1 << 30),
        );
        check(
            "{containers: [{name: a, resources: {requests: {cpu: 500m}}}], initContainers: [{name: i, resources: {requests: {cpu: '2'}}}]}",
            (2000, 0),
        );
    }

    #[test]
    fn request_of_the_pod_as_a_whole_takes_the_place_of_its_containers() {
        check(
            "{resources: {requests: {cpu: '60'}}, overhead: {cpu: 10m}, containers: [{name: a, resources: {requests: {cpu: '1', memory: 1Gi}}}, {name: b}]}",
            (60_010, 1 << 30),
        );
    }

    #[test]
    fn a_sidecar_counts_beside_the_containers() {
        check(
            "{containers: [{name: a, resources: {requests: {cpu: 500m}}}], initContainers: [{name: i, restartPolicy: Always, resources: {requests: {cpu: 100m}}}], overhead: {cpu: 10m}}",
            (610, 0),
        );
    }
}

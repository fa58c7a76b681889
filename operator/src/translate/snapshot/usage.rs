//! What pods take of their nodes.

use std::collections::HashMap;

use stowage_planner::snapshot::Resources;

use crate::observe::parsed::needs::Taken;
use crate::observe::view::{KnownPod, Objects};

/// By node: all pods that are bound there, and ours that are pinned there.
pub fn by_node(pods: &Objects<KnownPod>) -> HashMap<&str, Taken> {
    let mut nodes: HashMap<&str, Taken> = HashMap::new();
    for pod in pods.values() {
        let (Some(node), Some(own)) = (pod.node(), pod.facts()) else { continue };
        let taken = nodes.entry(node).or_default();
        // Any editor may write a request as large as a quantity can be, in as many pods as it likes.
        let Resources { cpu_milli, memory_bytes, pods } = taken.resources;
        taken.resources = Resources {
            cpu_milli: cpu_milli.saturating_add(own.resources.cpu_milli),
            memory_bytes: memory_bytes.saturating_add(own.resources.memory_bytes),
            pods: pods.saturating_add(own.resources.pods),
        };
        taken.host_ports.extend(&own.host_ports);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn sum_of_absurd_requests_fills_the_node_and_no_other() {
        let absurd = "{spec: {nodeName: n, containers: [{name: a, resources: {requests: {cpu: '9223372036854775', memory: '9223372036854775807'}}}]}}";
        let pod = |text: &str| std::sync::Arc::new(KnownPod::from(serde_yaml::from_str::<Pod>(text).unwrap()));
        let named = |name: &str| (String::from("a"), name.to_owned());
        let pods = BTreeMap::from([
            (named("p"), pod(absurd)),
            (named("q"), pod(absurd)),
            (named("r"), pod(absurd)),
            (named("s"), pod("{spec: {nodeName: m, containers: [{name: a, resources: {requests: {cpu: 1}}}]}}")),
        ]);
        let pods = pods.into();
        let taken = by_node(&pods);
        let of = |node: &str| taken[node].resources;
        assert_eq!(of("n"), Resources { cpu_milli: u64::MAX, memory_bytes: u64::MAX, pods: 3 });
        assert_eq!(of("m"), Resources { cpu_milli: 1000, memory_bytes: 0, pods: 1 });
    }
}

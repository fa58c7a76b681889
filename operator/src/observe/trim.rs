//! What is kept of an object: a cluster has many pods, and most of each is of no interest here.

use k8s_openapi::api::core::v1::{Container, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus};
use kube::Resource;
use stowage_crds::names::{LABEL_MANAGED_BY, MANAGED_BY, NODE_NAMESPACE, SYSTEM_NAMESPACE};

/// All but the book-keeping of field managers.
pub fn plain<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// Pods of ours, of the node agents and of the gateways whole, others only as far as they take room on a node.
pub fn pod(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_MANAGED_BY));
    let ours = label.is_some_and(|value| value == MANAGED_BY)
        || matches!(pod.metadata.namespace.as_deref(), Some(NODE_NAMESPACE | SYSTEM_NAMESPACE));
    if ours {
        return pod;
    }
    pod.metadata.annotations = None;
    pod.metadata.labels = None;
    pod.metadata.owner_references = None;
    pod.spec = pod.spec.map(|spec| PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|all| all.into_iter().map(container).collect()),
        overhead: spec.overhead,
        ..PodSpec::default()
    });
    pod.status = pod.status.map(|status| PodStatus { phase: status.phase, ..PodStatus::default() });
    pod
}

fn container(container: Container) -> Container {
    let Container { name, resources, ports, restart_policy, .. } = container;
    Container { name, resources, ports, restart_policy, ..Container::default() }
}

/// Labels, taints, allocatable and conditions.
pub fn node(mut node: Node) -> Node {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.spec = node.spec.map(|spec| NodeSpec {
        taints: spec.taints,
        unschedulable: spec.unschedulable,
        ..NodeSpec::default()
    });
    node.status = node.status.map(|status| NodeStatus {
        allocatable: status.allocatable,
        conditions: status.conditions,
        ..NodeStatus::default()
    });
    node
}

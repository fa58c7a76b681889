//! What is kept of an object: a cluster has many pods, and most of each is of no interest here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Service,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClaim, ResourceClaim, ResourceClaimSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use stowage_crds::names::{
    ANNOTATION_DISRUPTION_BUDGET, ANNOTATION_DRAIN_REASON, ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING,
    ANNOTATION_INCARNATION, ANNOTATION_PLACEMENT, ANNOTATION_REPLICA_INDEX, ANNOTATION_SPEC_HASH,
    ANNOTATION_TAKES_OVER, ANNOTATION_WOKEN, DRAIN_FINALIZER, ENGINE_CONTAINER, FORCE_DELETE_ANNOTATION,
    LABEL_CAPACITY, LABEL_DEPLOYMENT, LABEL_MANAGED_BY, LABEL_NAME, LABEL_TENANT, MANAGED_BY, NODE_NAMESPACE,
    ORPHAN_FINALIZER, SYSTEM_NAMESPACE,
};

use crate::observe::source::{Kept, unversioned};

const LABELS: [&str; 5] = [LABEL_MANAGED_BY, LABEL_DEPLOYMENT, LABEL_TENANT, LABEL_CAPACITY, LABEL_NAME];
const ANNOTATIONS: [&str; 11] = [
    FORCE_DELETE_ANNOTATION,
    ANNOTATION_DISRUPTION_BUDGET,
    ANNOTATION_DRAINING,
    ANNOTATION_DRAIN_UNTIL,
    ANNOTATION_DRAIN_REASON,
    ANNOTATION_INCARNATION,
    ANNOTATION_REPLICA_INDEX,
    ANNOTATION_SPEC_HASH,
    ANNOTATION_PLACEMENT,
    ANNOTATION_TAKES_OVER,
    ANNOTATION_WOKEN,
];
const FINALIZERS: [&str; 2] = [DRAIN_FINALIZER, ORPHAN_FINALIZER];
/// More bytes of one value are not kept; the placement on eight GPUs is one kilobyte.
const LONGEST: usize = 16 << 10;

/// What a claim takes of GPUs is parsed when it is taken in. Of claims of ours there is left whose they are and what they say
/// of a model; of others the name.
fn claim(mut claim: ResourceClaim) -> ResourceClaim {
    let ours = ours(&claim.metadata);
    meta(&mut claim.metadata);
    claim.status = None;
    let config = claim.spec.devices.and_then(|devices| devices.config).filter(|_| ours);
    let devices = config.map(|config| DeviceClaim { config: Some(config), ..DeviceClaim::default() });
    claim.spec = ResourceClaimSpec { devices };
    if !ours {
        bare(&mut claim.metadata);
    }
    claim
}

/// Name and identity alone.
fn bare(meta: &mut ObjectMeta) {
    (meta.annotations, meta.labels, meta.owner_references, meta.finalizers) = (None, None, None, None);
}

/// What is read of metadata: an editor may write a megabyte of the rest on each of as many objects as it likes.
pub fn meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    retain(&mut meta.labels, &LABELS);
    retain(&mut meta.annotations, &ANNOTATIONS);
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|name| FINALIZERS.contains(&name.as_str()));
    }
    if let Some(owners) = &mut meta.owner_references {
        owners.retain(|owner| owner.controller == Some(true));
    }
}

/// Whether an annotation of this key and length is kept.
pub fn keeps_annotation(key: &str, value: &str) -> bool {
    ANNOTATIONS.contains(&key) && value.len() <= LONGEST
}

fn retain(map: &mut Option<BTreeMap<String, String>>, keys: &[&str]) {
    if let Some(map) = map {
        map.retain(|key, value| keys.contains(&key.as_str()) && value.len() <= LONGEST);
    }
}

/// Whether it says that it was made by us.
pub fn ours(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().and_then(|labels| labels.get(LABEL_MANAGED_BY)).is_some_and(|value| value == MANAGED_BY)
}

/// What a pod takes of its node is parsed when it is taken in. Of pods of ours, of the node agents and of the gateways there
/// is left where they are, how they do and the engine's image; of others, where they are. A whole pod of ours is some 20 KB
/// in memory, and one of an editor's may have 20,000 containers.
fn pod(mut pod: Pod) -> Pod {
    meta(&mut pod.metadata);
    let ours =
        ours(&pod.metadata) || matches!(pod.metadata.namespace.as_deref(), Some(NODE_NAMESPACE | SYSTEM_NAMESPACE));
    if ours {
        pod.spec = pod.spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            containers: spec.containers.into_iter().filter_map(engine).collect(),
            ephemeral_containers: spec.ephemeral_containers.map(|all| all.into_iter().map(added).collect()),
            ..PodSpec::default()
        });
        pod.status = pod.status.map(|status| PodStatus {
            phase: status.phase,
            reason: status.reason,
            message: status.message,
            conditions: status.conditions,
            pod_ip: status.pod_ip,
            container_statuses: status.container_statuses,
            init_container_statuses: status.init_container_statuses,
            ..PodStatus::default()
        });
        return pod;
    }
    bare(&mut pod.metadata);
    pod.spec = pod.spec.map(|spec| PodSpec { node_name: spec.node_name, ..PodSpec::default() });
    pod.status = pod.status.map(|status| PodStatus { phase: status.phase, ..PodStatus::default() });
    pod
}

fn engine(container: Container) -> Option<Container> {
    let Container { name, image, .. } = container;
    (name == ENGINE_CONTAINER).then(|| Container { name, image, ..Container::default() })
}

fn added(container: EphemeralContainer) -> EphemeralContainer {
    let EphemeralContainer { name, image, .. } = container;
    EphemeralContainer { name, image, ..EphemeralContainer::default() }
}

/// Labels, taints, allocatable and conditions.
fn node(mut node: Node) -> Node {
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

macro_rules! kept {
    ($($kind:ty: $trim:expr),*) => {
        $(impl Kept for $kind {
            fn trimmed(self) -> Self {
                $trim(self)
            }

            fn still(&self) -> Self {
                let mut still = self.clone();
                unversioned(still.meta_mut());
                still
            }
        })*
    };
}
kept!(Pod: pod, ResourceClaim: claim, Service: plain, NetworkPolicy: plain, PodDisruptionBudget: plain);

/// All but what only others read.
fn plain<K: Resource>(mut object: K) -> K {
    meta(object.meta_mut());
    object
}

impl Kept for Node {
    fn trimmed(self) -> Self {
        node(self)
    }

    /// Without the time of the last heartbeat.
    fn still(&self) -> Self {
        let mut still = self.clone();
        unversioned(still.meta_mut());
        let conditions = still.status.iter_mut().filter_map(|status| status.conditions.as_mut());
        conditions.flatten().for_each(|condition| condition.last_heartbeat_time = None);
        still
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::KnownPod;
    use serde_json::{Value, json};

    /// What is kept of an object with this metadata and much of everything else, in JSON.
    fn kept<K: Kept + serde::de::DeserializeOwned + serde::Serialize>(meta: Value, rest: Value) -> Value {
        let mut object = rest;
        object["metadata"] = meta;
        for key in ["example.org/note", "app.kubernetes.io/note", "stowage.dev/note", "stowage.dev/woken"] {
            object["metadata"]["annotations"][key] = json!("x".repeat(60_000));
        }
        for key in ["example.org/team", "app.kubernetes.io/team", "stowage.dev/team"] {
            object["metadata"]["labels"][key] = json!("web");
        }
        object["metadata"]["finalizers"] = json!(["stowage.dev/drain", format!("example.org/{}", "x".repeat(60_000))]);
        serde_json::to_value(serde_json::from_value::<K>(object).unwrap().trimmed()).unwrap()
    }

    #[test]
    fn what_others_wrote_is_not_kept() {
        let foreign = || json!({"name": "n", "namespace": "a", "uid": "u", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "o"}]});
        let ours = || {
            json!({"name": "n", "namespace": "a", "uid": "u",
                "labels": {"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"},
                "annotations": {"stowage.dev/placement": "{}"}})
        };
        let spec = json!({"spec": {"devices": {"config": [{"opaque": {"driver": "d", "parameters": {"k": "x".repeat(250_000)}}}]}},
            "status": {"allocation": {"devices": {"results": [{"driver": "d", "pool": "p", "device": "g", "request": "r"}]}}}});
        let size = |object: &Value| object.to_string().len();
        let claim_of_others = kept::<ResourceClaim>(foreign(), spec.clone());
        assert!(size(&claim_of_others) < 2_000, "{} bytes", size(&claim_of_others));
        assert_eq!(claim_of_others["metadata"], json!({"name": "n", "namespace": "a", "uid": "u"}));
        let service = kept::<Service>(ours(), json!({"spec": {"clusterIP": "None"}}));
        assert!(size(&service) < 2_000, "{} bytes", size(&service));
        assert_eq!(service["spec"]["clusterIP"], "None");
        for object in
            [service, kept::<ResourceClaim>(ours(), spec), kept::<Pod>(ours(), json!({"spec": {"containers": []}}))]
        {
            assert_eq!(object["metadata"]["annotations"], json!({"stowage.dev/placement": "{}"}));
            let labels = json!({"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"});
            assert_eq!(object["metadata"]["labels"], labels);
            assert_eq!(object["metadata"]["finalizers"], json!(["stowage.dev/drain"]));
        }
    }

    #[test]
    fn of_an_editors_pod_its_node_and_what_it_takes_there_are_kept() {
        let container = |n: u16| {
            json!({"name": format!("c{n}"), "image": "i", "ports": [{"containerPort": 1, "hostPort": n}],
                "resources": {"requests": {"cpu": "1m"}}})
        };
        let containers: Vec<Value> = (1..=2_000).map(container).collect();
        let pod = |node: Value| -> KnownPod {
            let spec = json!({"nodeName": node, "containers": containers, "initContainers": containers});
            serde_json::from_value::<Pod>(json!({"metadata": {"name": "n", "namespace": "a"}, "spec": spec}))
                .unwrap()
                .into()
        };
        let (bound, unbound) = (pod(json!("n1")), pod(Value::Null));
        let taken = bound.facts().clone().unwrap();
        assert_eq!((taken.resources.cpu_milli, taken.host_ports.len()), (2_000, 2_000));
        assert_eq!(*unbound.facts(), None, "no node is decided");
        for kept in [bound, unbound] {
            let spec = kept.spec.as_ref().unwrap();
            assert!(spec.containers.is_empty() && spec.init_containers.is_none(), "{spec:?}");
        }
    }

    #[test]
    fn heartbeat_of_a_node_or_of_its_agent_is_no_change() {
        let node = |ready: &str, at: &str, version: &str| {
            let conditions = json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": at}]);
            let node: Node = serde_json::from_value(
                json!({"metadata": {"name": "n", "resourceVersion": version}, "status": {"conditions": conditions}}),
            )
            .unwrap();
            node
        };
        let before = node("True", "2026-01-01T12:00:00Z", "1").still();
        assert_eq!(node("True", "2026-01-01T12:00:10Z", "2").still(), before);
        assert_ne!(node("False", "2026-01-01T12:00:10Z", "2").still(), before);
        let gpu_node = |health: &str, at: &str| {
            let device = json!({"uuid": "GPU-a", "index": 0, "product": "H100", "memory": "80Gi", "smCount": 132, "verdict": {"health": health}});
            let object = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": "n", "resourceVersion": at},
                "spec": {}, "status": {"simulated": true, "observedTime": at, "devices": [device]}});
            crate::observe::view::StoredGpuNode::read(serde_json::from_value(object).unwrap())
        };
        let before = gpu_node("Healthy", "2026-01-01T12:00:00Z").still();
        assert_eq!(gpu_node("Healthy", "2026-01-01T12:01:00Z").still(), before);
        assert_ne!(gpu_node("Unhealthy", "2026-01-01T12:01:00Z").still(), before);
    }
}

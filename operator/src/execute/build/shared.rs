//! What all replicas of a deployment share: its Service, its NetworkPolicy, its PodDisruptionBudget.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stowage_crds::names::{ENGINE_PORT, GATEWAY_SERVICE, HTTP_PORT_NAME, LABEL_NAME, SYSTEM_NAMESPACE};

use super::Owner;

/// Headless: names the ready pods for people and tools. Gateways watch the pods themselves.
pub fn service(owner: &Owner<'_>) -> Service {
    Service {
        metadata: owner.meta(),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(owner.selector()),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT_NAME.into()),
                port: i32::from(ENGINE_PORT),
                target_port: Some(IntOrString::String(HTTP_PORT_NAME.into())),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Only gateways reach engines (kubelets' probes come from the node and are not subject to policies), and those
/// that read metrics; engines reach nobody: the model is a mounted image, and no name has to be resolved.
pub fn policy(owner: &Owner<'_>, port: u16, scrapers: &[NetworkPolicyPeer]) -> NetworkPolicy {
    let selector = |labels: [(&str, &str); 1]| LabelSelector {
        match_labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        ..LabelSelector::default()
    };
    let gateways = NetworkPolicyPeer {
        namespace_selector: Some(selector([("kubernetes.io/metadata.name", SYSTEM_NAMESPACE)])),
        pod_selector: Some(selector([(LABEL_NAME, GATEWAY_SERVICE)])),
        ip_block: None,
    };
    let from = std::iter::once(gateways).chain(scrapers.iter().cloned()).collect();
    let serving = NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".into()),
        end_port: None,
    };
    NetworkPolicy {
        metadata: owner.meta(),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(owner.selector()), ..LabelSelector::default() }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule { from: Some(from), ports: Some(vec![serving]) }]),
            egress: None,
        }),
    }
}

/// Voluntary disruptions (a node drained by `kubectl drain`) end no replica before its replacement is Ready: an
/// eviction is refused while no more than the wanted replicas serve, and the cordon makes the planner move them.
/// A number and not `maxUnavailable`: that is counted from `spec.replicas`, which is not what a scaling rule wants.
pub fn budget(owner: &Owner<'_>, replicas: u32) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: owner.meta(),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(replicas).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector { match_labels: Some(owner.selector()), ..LabelSelector::default() }),
            // A replica that does not serve is not worth keeping a node for.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

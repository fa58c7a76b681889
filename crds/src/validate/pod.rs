//! `spec.podTemplate`, narrow.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Refusals, unique};
use crate::names::{LABEL_MANAGED_BY, RESERVED_ENV_PREFIX, RESERVED_KEY_PREFIX};
use crate::pod_template::{EnvVar, PodTemplate, PullSecret, Resources, Toleration, TolerationOperator, TopologySpread};
use crate::quantity::{parse_bytes, parse_milli};
use crate::rules::pod as rules;
use crate::syntax::{is_dns_subdomain, is_env_name, is_label_value, is_qualified_name};

/// What the pod carries beyond what the operator sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcceptedPod {
    /// Valid labels without the operator's keys.
    pub labels: BTreeMap<String, String>,
    /// Valid annotations without the operator's keys.
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that do not matter.
    pub tolerations: Vec<Toleration>,
    /// Over which domains the replicas are spread; each label once.
    pub topology_spread_constraints: Vec<TopologySpread>,
    /// `None`: the cluster's default.
    pub priority_class_name: Option<String>,
    /// Secrets in the deployment's namespace.
    pub image_pull_secrets: Vec<String>,
    /// `None`: `default`.
    pub service_account_name: Option<String>,
    /// Of the engine container; empty: the runtime's.
    pub resources: AcceptedResources,
    /// Valid names without the operator's prefix, each once.
    pub env: Vec<EnvVar>,
}

/// A container's resources; keys are `cpu`, `memory` and `ephemeral-storage`, values parse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcceptedResources {
    /// What the scheduler sets aside; at most the limits.
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may not exceed.
    pub limits: BTreeMap<String, Quantity>,
}

impl AcceptedResources {
    /// Requested milli-CPU, 0 when absent. A limit without a request is the request, as in Kubernetes.
    pub fn cpu_milli(&self) -> u64 {
        self.requested("cpu").and_then(|quantity| parse_milli(quantity).ok()).unwrap_or(0)
    }

    /// Requested bytes of host memory, 0 when absent.
    pub fn memory_bytes(&self) -> u64 {
        self.requested("memory").and_then(|quantity| parse_bytes(quantity).ok()).unwrap_or(0)
    }

    fn requested(&self, key: &str) -> Option<&Quantity> {
        self.requests.get(key).or_else(|| self.limits.get(key))
    }
}

/// Parses and checks a pod template.
pub(super) fn accepted(refusals: &mut Refusals, template: &PodTemplate) -> AcceptedPod {
    let PodTemplate {
        labels,
        annotations,
        node_selector,
        tolerations,
        topology_spread_constraints: spread,
        priority_class_name,
        image_pull_secrets,
        service_account_name,
        resources: wanted,
        env,
    } = template;
    let at = |field: &str| format!("spec.podTemplate.{field}");
    let ours = |key: &String| key.starts_with(RESERVED_KEY_PREFIX);
    refusals.require(!labels.keys().any(|key| ours(key) || key == LABEL_MANAGED_BY), at("labels"), &rules::LABELS);
    refusals.require(!annotations.keys().any(ours), at("annotations"), &rules::ANNOTATIONS);
    let keys_sound = |map: &BTreeMap<String, String>| map.keys().all(|key| is_qualified_name(key));
    let values_sound = |map: &BTreeMap<String, String>| map.values().all(|value| is_label_value(value));
    refusals.require(keys_sound(labels), at("labels"), &rules::LABEL_KEYS);
    refusals.require(values_sound(labels), at("labels"), &rules::LABEL_VALUES);
    let annotated = annotations.keys().all(|key| is_qualified_name(&key.to_ascii_lowercase()));
    refusals.require(annotated, at("annotations"), &rules::ANNOTATION_KEYS);
    let selectable = keys_sound(node_selector) && values_sound(node_selector);
    refusals.require(selectable, at("nodeSelector"), &rules::NODE_SELECTOR);
    let reserved = env.iter().any(|entry| entry.name.starts_with(RESERVED_ENV_PREFIX));
    refusals.require(!reserved, at("env"), &rules::ENV);
    env_names(refusals, &at("env"), env);
    for (index, toleration) in tolerations.iter().enumerate() {
        tolerated(refusals, at(&format!("tolerations[{index}]")), toleration);
    }
    for (index, TopologySpread { topology_key, max_skew: _ }) in spread.iter().enumerate() {
        let at = at(&format!("topologySpreadConstraints[{index}].topologyKey"));
        refusals.require(is_qualified_name(topology_key), at, &rules::TOPOLOGY_KEY);
    }
    unique(refusals, &at("topologySpreadConstraints"), spread.iter().map(|s| s.topology_key.as_str()));
    let secrets = image_pull_secrets.iter().map(|PullSecret { name }| ("imagePullSecrets", name));
    let named = priority_class_name.iter().map(|name| ("priorityClassName", name));
    let account = service_account_name.iter().map(|name| ("serviceAccountName", name));
    for (field, name) in named.chain(account).chain(secrets) {
        refusals.require(is_dns_subdomain(name), at(field), &rules::OBJECT_NAME);
    }
    AcceptedPod {
        labels: labels.clone(),
        annotations: annotations.clone(),
        node_selector: node_selector.clone(),
        tolerations: tolerations.clone(),
        topology_spread_constraints: spread.clone(),
        priority_class_name: priority_class_name.clone(),
        image_pull_secrets: image_pull_secrets.iter().map(|PullSecret { name }| name.clone()).collect(),
        service_account_name: service_account_name.clone(),
        resources: resources(refusals, "spec.podTemplate.resources", wanted.as_ref()),
        env: env.clone(),
    }
}

fn tolerated(refusals: &mut Refusals, at: String, toleration: &Toleration) {
    let Toleration { key, operator, value, effect: _ } = toleration;
    let exists = *operator == Some(TolerationOperator::Exists);
    let complete = !(exists && value.is_some()) && (key.is_some() || exists);
    refusals.require(complete, at.clone(), &rules::TOLERATION);
    let key_sound = key.as_ref().is_none_or(|key| is_qualified_name(key));
    let value_sound = value.as_ref().is_none_or(|value| is_label_value(value));
    refusals.require(key_sound && value_sound, at, &rules::TOLERATION_TAINT);
}

/// Names of environment variables, each once.
pub(super) fn env_names(refusals: &mut Refusals, at: &str, env: &[EnvVar]) {
    for (index, EnvVar { name, value: _ }) in env.iter().enumerate() {
        refusals.require(is_env_name(name), format!("{at}[{index}].name"), &rules::ENV_NAME);
    }
    unique(refusals, at, env.iter().map(|entry| entry.name.as_str()));
}

/// Resources of a container: known keys, values that parse, no request above its limit.
pub(super) fn resources(refusals: &mut Refusals, at: &str, wanted: Option<&Resources>) -> AcceptedResources {
    let Some(Resources { requests, limits }) = wanted else { return AcceptedResources::default() };
    for (kind, map) in [("requests", requests), ("limits", limits)] {
        for (key, quantity) in map {
            let known = matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage");
            refusals.require(known, format!("{at}.{kind}"), &rules::RESOURCES);
            refusals.parsed(format!("{at}.{kind}.{key}"), parse_milli(quantity));
        }
    }
    let above = requests.iter().any(|(key, request)| {
        let limit = limits.get(key).and_then(|limit| parse_milli(limit).ok());
        limit.zip(parse_milli(request).ok()).is_some_and(|(limit, request)| request > limit)
    });
    refusals.require(!above, at, &rules::REQUESTS_OVER_LIMITS);
    AcceptedResources { requests: requests.clone(), limits: limits.clone() }
}

//! `spec.podTemplate` of an InferenceDeployment: what its pods carry beyond what the operator sets.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::rules;

/// What the pods carry beyond what the operator sets; merged last, where that is safe.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::pod::LABELS.cel())]
#[x_kube(validation = rules::pod::LABEL_KEYS.cel())]
#[x_kube(validation = rules::pod::LABEL_VALUES.cel())]
#[x_kube(validation = rules::pod::ANNOTATIONS.cel())]
#[x_kube(validation = rules::pod::ANNOTATION_KEYS.cel())]
#[x_kube(validation = rules::pod::NODE_SELECTOR.cel())]
#[x_kube(validation = rules::pod::ENV.cel())]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Further labels; keys of stowage.dev and app.kubernetes.io/managed-by are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::label_map")]
    pub labels: BTreeMap<String, String>,
    /// Further annotations; keys of stowage.dev are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::text_map")]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::label_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that do not keep the pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Even spread over zones or nodes, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["topologyKey".into()]))]
    pub topology_spread_constraints: Vec<TopologySpread>,
    /// Name of a PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::pod::OBJECT_NAME.cel())]
    pub priority_class_name: Option<String>,
    /// Secrets of the namespace for pulling the images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<PullSecret>,
    /// ServiceAccount of the pods; its token is not mounted. Absent: default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::pod::OBJECT_NAME.cel())]
    pub service_account_name: Option<String>,
    /// CPU and host memory of the engine container. Absent: the runtime's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Further environment of the engine container; names that begin with STOWAGE_ are the operator's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
}

/// A taint that does not keep the pods away.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::pod::TOLERATION.cel())]
#[x_kube(validation = rules::pod::TOLERATION_TAINT.cel())]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Taint key. Absent with operator Exists: every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 316))]
    pub key: Option<String>,
    /// How value is compared. Absent: Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Taint value, with Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Which effect is tolerated. Absent: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum TolerationOperator {
    Equal,
    Exists,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// Even spread of replicas over a topology: a preference, as with whenUnsatisfiable ScheduleAnyway of a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpread {
    /// Node label whose values are the domains.
    #[schemars(length(min = 1, max = 316))]
    #[x_kube(validation = rules::pod::TOPOLOGY_KEY.cel())]
    pub topology_key: String,
    /// Replicas that a domain may have more than the emptiest one.
    #[schemars(range(min = 1, max = 1000))]
    pub max_skew: u32,
}

/// A Secret for pulling images.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::pod::OBJECT_NAME.cel())]
    pub name: String,
}

/// CPU and host memory.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::pod::RESOURCES.cel())]
#[x_kube(validation = rules::pod::RESOURCE_VALUES.cel())]
#[x_kube(validation = rules::pod::REQUESTS_OVER_LIMITS.cel())]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantity_map")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may not exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantity_map")]
    pub limits: BTreeMap<String, Quantity>,
}

/// An environment variable.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = rules::pod::ENV_NAME.cel())]
    pub name: String,
    /// Value, taken literally. Absent: empty.
    // No default in the schema, as for a variant's accelerator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub value: String,
}

//! What the operator reports about an InferenceDeployment.
//!
//! Written on material change only. `decision`, `bottleneck` and `cost` change at most every 30 s.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Status of an InferenceDeployment.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceDeploymentStatus {
    /// The generation that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Replicas that exist, draining ones excluded.
    #[serde(default)]
    pub replicas: u32,
    /// Replicas that take requests.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Replicas that should exist.
    #[serde(default)]
    pub desired_replicas: u32,
    /// Label selector of the pods, as text; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Accepted, QuotaReserved, Placed, Ready always; Reconciling, Stalled, ScalingLimited, Degraded, Draining only while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// What `kubectl get` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Where replicas are; at most 64, all of them through `kubectl stowage status`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub placements: Vec<Placement>,
    /// What really runs, after defaults and templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// The last decision about this deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What limits it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// What it costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Address of the gateway inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
}

/// One line's worth, because a printer column can show a single field only.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The model's name as clients send it.
    #[schemars(length(max = 128))]
    pub model: String,
    /// Ready and existing replicas, for example 3/3.
    #[schemars(length(max = 32))]
    pub ready: String,
    /// GPUs charged for all replicas, with one decimal, for example 0.3.
    #[schemars(length(max = 32))]
    pub gpus: String,
    /// GPU classes in use, comma separated.
    #[schemars(length(max = 256))]
    pub class: String,
}

/// Where one replica is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Name of the pod.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The slices that it was granted; empty on CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub gpus: Vec<PlacedGpu>,
    /// Name of the variant.
    #[schemars(length(max = 63))]
    pub variant: String,
    /// Where replica and weights are.
    #[serde(default)]
    pub tier: Tier,
    /// Whether it takes requests.
    #[serde(default)]
    pub ready: bool,
}

/// A slice of a GPU.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacedGpu {
    /// The GPU.
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Memory promised on it.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
    /// Per cent of its streaming multiprocessors promised.
    pub compute: u32,
}

/// What really runs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// Name and version of the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub runtime: Option<String>,
    /// Image of the engine container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Memory per GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub gpu_memory: Option<Quantity>,
    /// KV blocks per replica, as the engine reports them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_blocks: Option<u32>,
    /// Precision of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub quantization: Option<String>,
    /// How slices of one GPU are kept apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub sharing: Option<String>,
}

/// A decision, as `kubectl stowage explain` tells it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Identifier of the decision record.
    #[schemars(length(max = 64))]
    pub id: String,
    /// When it was taken.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// What was done, for example Place, Wait, Drain.
    #[schemars(length(max = 64))]
    pub action: String,
    /// Why, as one word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Why, as a sentence.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// What would change the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub counterfactual: Option<String>,
}

/// What limits a deployment.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bottleneck {
    /// Where requests spend their time.
    pub stage: Stage,
    /// What was measured.
    #[schemars(length(max = 1024))]
    pub evidence: String,
    /// What to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub suggestion: Option<String>,
}

/// Where requests spend their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Stage {
    /// Requests wait in the gateway.
    Queue,
    /// Prompts are read more slowly than they arrive.
    Prefill,
    /// The KV cache is full.
    KVCache,
    /// Tokens are produced more slowly than wanted.
    Decode,
    /// Time is spent between gateway and engine.
    Network,
    /// A GPU is unhealthy or throttled.
    GPUHealth,
    /// No stage limits.
    None,
}

/// What a deployment costs; decimal text, never floats.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Per hour, all replicas.
    #[schemars(length(max = 32))]
    pub per_hour: String,
    /// Per million input tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub per_million_input_tokens: Option<String>,
    /// Per million output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub per_million_output_tokens: Option<String>,
    /// ISO 4217.
    #[schemars(length(max = 3))]
    pub currency: String,
}

/// Where a replica and its weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Tier {
    /// A pod serves.
    #[default]
    Running,
    /// Weights are in host memory; the slice is kept.
    Asleep,
    /// No pod; weights are on the node.
    Cached,
    /// No pod, and no weights on a node.
    Cold,
}

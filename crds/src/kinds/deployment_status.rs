//! What the operator reports about an InferenceDeployment.
//!
//! Written on material change only. `load` and `bottleneck` change at most every 30 s.

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
    /// The commit of a model from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ResolvedModel>,
    /// What `memory: Auto` became, in its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_estimate: Option<MemoryEstimate>,
    /// How long a replica takes to start, once three starts were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<MeasuredStart>,
    /// What of `model.preload` is on nodes; absent until a revision's commit is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadedNodes>,
    /// What really runs, after defaults and templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// The last decision about this deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What it serves now; absent with fewer than 20 requests a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<ServedLoad>,
    /// What limits it now; absent with fewer than 20 requests a minute, and while no engine reports what a step costs.
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

/// Nodes that hold weights ahead of need.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreloadedNodes {
    /// That are to hold the weights: as many as were asked for, or as there are.
    pub nodes: u32,
    /// That do.
    pub cached: u32,
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

/// What a revision named when it was resolved. Later replicas get the same commit; another revision in the spec is resolved anew.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedModel {
    /// `owner/name`.
    #[schemars(length(max = 256))]
    pub repo: String,
    /// As in the spec.
    #[schemars(length(max = 128))]
    pub revision: String,
    /// 40 hexadecimal digits.
    #[schemars(length(max = 40))]
    pub commit: String,
}

/// The memory that the bundled engine takes for the model, from the headers of its files.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryEstimate {
    /// Of what it was computed; it is computed anew when model or options change.
    #[schemars(length(max = 16))]
    pub key: String,
    /// Weights.
    #[schemars(schema_with = "schema::quantity")]
    pub weights: Quantity,
    /// KV cache of so many sequences of the whole context.
    #[schemars(schema_with = "schema::quantity")]
    pub kv_cache: Quantity,
    /// Activations of one step.
    #[schemars(schema_with = "schema::quantity")]
    pub scratch: Quantity,
    /// The context, in tokens.
    pub context_len: u32,
    /// Sequences of that length.
    pub sequences: u32,
    /// The slice's memory: the sum, in steps of 256Mi.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

/// How long a replica takes to start.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredStart {
    /// Nine of ten of the last starts were over within this time, for example 42s. Gateways tell clients by it when to come again.
    #[schemars(schema_with = "schema::duration")]
    pub expected: String,
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

/// Means of the last half minute, written when they are clearly others than before.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedLoad {
    /// Requests that arrive, with one decimal, for example 41.2.
    #[schemars(length(max = 32))]
    pub requests_per_second: String,
    /// Sequences that engines have.
    pub running: u32,
    /// Requests that wait for an engine.
    pub waiting: u32,
    /// Mean time to first token, microseconds.
    pub time_to_first_token_micros: u64,
    /// Mean time between two tokens, microseconds.
    pub inter_token_micros: u64,
    /// Prompt tokens that a prefix cache held, per cent.
    pub prefix_hit_percent: u32,
}

/// What limits a deployment.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bottleneck {
    /// Where requests spend their time.
    pub stage: Stage,
    /// The stage's share of a request's time, per cent; absent: no stage limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_percent: Option<u32>,
    /// What was measured.
    #[schemars(length(max = 1024))]
    pub evidence: String,
    /// What to change, and what is predicted then.
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
    /// Prompts take the time of the engines.
    Prefill,
    /// Requests wait for room in the KV cache.
    KVCache,
    /// Tokens are produced more slowly than wanted.
    Decode,
    /// Time is spent between gateway and engine; not measured yet.
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

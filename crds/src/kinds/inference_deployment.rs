//! `InferenceDeployment`: a model, where it may run and how it is kept running.
//!
//! Wide types only. What this release honours is decided in `validate`, not here.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{deployment_status::InferenceDeploymentStatus, schema};
use crate::{names, rules};

pub use super::deployment_status::Tier;
pub use super::model::{
    Access, Adapter, HttpSource, HuggingFaceSource, ImageSource, Model, ModelSource, S3Source, SecretName, SecretRef,
    VolumeSource,
};
pub use super::pod_template::{
    EnvVar, PodTemplate, PullSecret, Resources, TaintEffect, Toleration, TolerationOperator, TopologySpread,
};

/// A model, where it may run, and how it is scaled.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "InferenceDeployment",
    plural = "inferencedeployments",
    shortname = "infd",
    category = "stowage",
    namespaced,
    status = "InferenceDeploymentStatus",
    derive = "PartialEq",
    doc = "A model, where it may run, and how it is scaled.",
    validation = crate::rules::deployment::NAME_LENGTH.cel(),
    validation = crate::rules::deployment::NAME_SHAPE.cel(),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.summary.model"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.summary.ready"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "GPUs", type_ = "string", json_path = ".status.summary.gpus"),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.summary.class"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Cost/h", type_ = "string", json_path = ".status.cost.perHour"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Ready')].message"
    ),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    )
)]
#[x_kube(validation = rules::deployment::REPLICAS_OUTSIDE_MANUAL.cel())]
#[x_kube(validation = rules::deployment::MANUAL_HAS_NO_RULE.cel())]
#[x_kube(validation = rules::deployment::FETCHED_NEEDS_GPU.cel())]
#[x_kube(validation = rules::deployment::AUTO_SOURCE.cel())]
#[serde(rename_all = "camelCase")]
pub struct InferenceDeploymentSpec {
    /// What is served.
    pub model: Model,

    /// Which engine serves it.
    #[serde(default)]
    pub runtime: Runtime,

    /// What kind of work this is; it decides which objectives count.
    #[serde(default)]
    pub service_class: ServiceClass,

    /// What the autoscaler and the gateway aim for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,

    /// One replica is one of these.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub variants: Vec<Variant>,

    /// How much of a GPU, or of a node, is shared with whom.
    #[serde(default)]
    pub isolation: Isolation,

    /// Wanted replicas in scaling mode Manual, also through the scale subresource. 0 runs none. Absent: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: u32,

    /// Who decides the number of replicas, and within which limits.
    #[serde(default)]
    pub scaling: Scaling,

    /// What the pods carry beyond what the operator sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,

    /// How a change reaches the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,

    /// Prefill and decode on different replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disaggregation: Option<Disaggregation>,

    /// Nodes per replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
}

/// Which engine serves the model, and with which options.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Name of an InferenceRuntime.
    #[serde(default = "default_runtime")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::deployment::OBJECT_NAME.cel())]
    pub r#ref: String,
    /// Options that every runtime understands or refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<RuntimeOptions>,
    /// Further arguments: only those that the runtime's allowedArgs lists, never one that the operator manages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 512)))]
    #[x_kube(validation = rules::deployment::EXTRA_ARGS.cel())]
    pub extra_args: Vec<String>,
}

fn default_runtime() -> String {
    names::DEFAULT_RUNTIME.to_owned()
}

impl Default for Runtime {
    fn default() -> Self {
        Self { r#ref: default_runtime(), options: None, extra_args: Vec::new() }
    }
}

/// Options that every runtime understands or refuses.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeOptions {
    /// Longest prompt plus answer, in tokens. Absent: the model's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16777216))]
    pub max_model_len: Option<u32>,
    /// Precision of the weights; Auto takes them as they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub quantization: Option<String>,
    /// Precision of the KV cache; Auto lets the runtime choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub kv_cache_type: Option<String>,
    /// Reuse of KV blocks between prompts with a common beginning. Absent: on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_caching: Option<bool>,
    /// Speculative decoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculative: Option<Speculative>,
}

/// Speculative decoding.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Speculative {
    /// Where the proposed tokens come from.
    pub method: SpeculativeMethod,
    /// Tokens proposed per step.
    #[schemars(range(min = 1, max = 32))]
    pub tokens: u32,
}

/// Where proposed tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SpeculativeMethod {
    /// N-grams of the prompt.
    NGram,
    /// A smaller model.
    DraftModel,
}

/// What kind of work this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ServiceClass {
    /// A person waits for each token.
    #[default]
    Interactive,
    /// A program waits for the whole answer.
    NearRealTime,
    /// Nobody waits; there is a deadline.
    Batch,
}

/// Share of the requests, in per cent, that must attain the objectives.
pub const PERCENTILE: u32 = 95;

/// What the autoscaler and the gateway aim for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// Time to first token, for example 800ms. A request's objective is the larger of this and twice its own time on an idle replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub ttft: Option<String>,
    /// Time between tokens, for example 60ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub itl: Option<String>,
    /// Share of the requests, in per cent, that must attain the objectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percentile: Option<u32>,
    /// Time to the whole answer; for NearRealTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub completion: Option<String>,
}

/// One shape of a replica.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::deployment::GPU_CLASS.cel())]
#[x_kube(validation = rules::deployment::CPU_FIELDS.cel())]
#[x_kube(validation = rules::deployment::GPU_HAS_NO_CPU.cel())]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Name, unique in the deployment.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it computes on. Absent: GPU. The CPU is used only by variants that name it.
    // No default in the schema: the API server would write it into a list, and the next `kubectl apply` would
    // find a difference.
    #[serde(default, skip_serializing_if = "Accelerator::is_gpu")]
    pub accelerator: Accelerator,
    /// Name of a GpuClass; needed on GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::deployment::OBJECT_NAME.cel())]
    pub class: Option<String>,
    /// GPUs per replica; more than one is tensor parallel inside one NVLink island. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<u32>,
    /// Memory on each GPU, for example 20Gi, or Auto: estimated from the headers of the model's files, see status.memoryEstimate. Absent: Auto
    /// with compute, whole GPUs without. On CPU: the container's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::deployment::MEMORY.cel())]
    #[x_kube(validation = rules::deployment::MEMORY_RANGE.cel())]
    pub memory: Option<Quantity>,
    /// Per cent of each GPU's streaming multiprocessors. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub compute: Option<u32>,
    /// MIG profile instead of memory and compute, for example 1g.10gb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub mig_profile: Option<String>,
    /// CPU cores, on accelerator CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::deployment::CPU.cel())]
    #[x_kube(validation = rules::deployment::CPU_RANGE.cel())]
    pub cpu: Option<Quantity>,
}

/// What a variant computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Accelerator {
    /// A GPU, or a slice of one.
    #[default]
    GPU,
    /// CPU cores.
    CPU,
}

impl Accelerator {
    fn is_gpu(&self) -> bool {
        *self == Self::GPU
    }
}

/// How much is shared with whom.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// Shared: slices of a GPU. DedicatedGPU: no other deployment on its GPUs. DedicatedNode: no other tenant on its nodes.
    #[serde(default)]
    pub level: IsolationLevel,
    /// How slices of one GPU are kept apart; Auto takes what the class allows.
    #[serde(default)]
    pub sharing: Sharing,
}

/// What a deployment shares with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum IsolationLevel {
    /// Slices of a GPU, beside others.
    #[default]
    Shared,
    /// No other deployment on its GPUs.
    DedicatedGPU,
    /// No other tenant on its nodes.
    DedicatedNode,
}

/// How slices of one GPU are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Sharing {
    /// What the class allows.
    #[default]
    Auto,
    /// Hardware partitions (Multi-Instance GPU).
    MIG,
    /// CUDA's Multi-Process Service.
    MPS,
    /// Processes take turns.
    TimeSlice,
    /// Each engine keeps to its byte budget; the node agent watches.
    EngineBudget,
}

/// Who decides the number of replicas.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::deployment::MIN_MAX.cel())]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// Active: the operator. Advisory: the operator reports what it would do, and changes nothing. Manual: spec.replicas, so kubectl scale or an HPA.
    #[serde(default)]
    pub mode: ScalingMode,
    /// Fewest replicas; 0 allows scale to zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: Option<u32>,
    /// Most replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<u32>,
    /// What is chosen among variants that meet the objectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<ScalingObjective>,
    /// What happens without requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// What happens to requests for a model at zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// Longest time that a replica may finish its requests before its pod ends.
    #[serde(default = "default_drain_timeout")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::deployment::DRAIN_TIMEOUT.cel())]
    #[x_kube(validation = rules::deployment::DRAIN_TIMEOUT_LONG.cel())]
    pub drain_timeout: String,
}

fn default_drain_timeout() -> String {
    format!("{}s", names::DEFAULT_DRAIN_SECONDS)
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: ScalingMode::default(),
            min_replicas: None,
            max_replicas: None,
            objective: None,
            idle: None,
            cold_start: None,
            drain_timeout: default_drain_timeout(),
        }
    }
}

/// Who decides the number of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ScalingMode {
    /// The operator decides.
    #[default]
    Active,
    /// The operator reports what it would do.
    Advisory,
    /// `spec.replicas` decides.
    Manual,
}

/// What is chosen among variants that meet the objectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum ScalingObjective {
    Cost,
    Latency,
}

/// What happens without requests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// How long there must be no request. Absent: learned from the gaps between requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub after: Option<String>,
    /// Where the replica goes. Absent: Cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
}

/// What happens to requests for a model at zero.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ColdStart {
    /// Longest time that the gateway holds a request. Absent: 120s, and more where starts were measured to take longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub hold: Option<String>,
    /// Most requests that it holds. Absent: 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100000))]
    pub max_held: Option<u32>,
}

/// How a change reaches the replicas.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Auto surges where GPUs are free and replaces one by one where they are not.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// A share of the traffic for the new revision first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// How a change reaches the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RolloutStrategy {
    /// Surge where GPUs are free, otherwise one by one.
    #[default]
    Auto,
    /// A share of the traffic first.
    Canary,
}

/// A share of the traffic for the new revision first.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Share of the requests.
    #[schemars(range(min = 1, max = 99))]
    pub percent: u32,
    /// What makes it roll back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<CanaryAnalysis>,
}

/// What makes a canary roll back.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CanaryAnalysis {
    /// Largest rise of the time to first token.
    #[schemars(range(min = 1, max = 1000))]
    pub ttft_regression_percent: u32,
    /// Over which time.
    #[schemars(schema_with = "schema::duration")]
    pub window: String,
}

/// Prefill and decode on different replicas.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disaggregation {
    /// Replicas that read prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<Pool>,
    /// Replicas that write answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<Pool>,
}

/// Replicas of one role.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Name of a variant.
    #[schemars(length(min = 1, max = 63))]
    pub variant: String,
    /// How many.
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: u32,
}

/// Nodes per replica.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// How many nodes one replica spans.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
}

fn one() -> u32 {
    1
}

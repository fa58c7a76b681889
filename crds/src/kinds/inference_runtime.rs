//! `InferenceRuntime`: which image serves models, how its arguments are made, what it can do.
//!
//! Cluster-scoped on purpose: which images run beside other tenants is the platform's decision.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    pod_template::{EnvVar, Resources},
    schema,
};
use crate::rules;

/// An engine and how to run it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "InferenceRuntime",
    plural = "inferenceruntimes",
    shortname = "irt",
    category = "stowage",
    status = "InferenceRuntimeStatus",
    derive = "PartialEq",
    validation = crate::rules::runtime::NAME_LENGTH.cel(),
    printcolumn(name = "Adapter", type_ = "string", json_path = ".spec.adapter"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].reason"),
    printcolumn(name = "Image", type_ = "string", priority = 1, json_path = ".spec.image"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    doc = "An engine: its image, how its arguments are made, and what it can do."
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceRuntimeSpec {
    /// Which adapter knows this engine's flags, probes and metrics.
    pub adapter: AdapterName,
    /// Version of the engine in the image, as people should see it.
    #[schemars(length(min = 1, max = 64))]
    pub version: String,
    /// Image of the engine container.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::runtime::IMAGE.cel())]
    pub image: String,
    /// When the image is pulled. Absent: IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Entry point. Empty: the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub command: Vec<String>,
    /// Arguments in place of the adapter's, with placeholders such as {model.path}. Empty: the adapter's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub args: Vec<String>,
    /// Environment of the engine container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = rules::runtime::ENV.cel())]
    pub env: Vec<EnvVar>,
    /// Port that serves HTTP. Absent: 8000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Probes in place of the adapter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// CPU and host memory where a deployment does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Flags that deployments may pass in extraArgs, for example --seed. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rules::runtime::ALLOWED_ARGS.cel())]
    pub allowed_args: Vec<String>,
    /// Environment variables that deployments may set in podTemplate.env, for example LOG_LEVEL. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rules::runtime::ALLOWED_ENV.cel())]
    pub allowed_env: Vec<String>,
    /// What the engine in this image can do. Absent: nothing beyond plain generation.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// An adapter of the `runtimes` crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum AdapterName {
    /// The bundled engine.
    Stowage,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    #[serde(rename = "tensorrt-llm")]
    TensorrtLlm,
    /// Triton Inference Server.
    Triton,
    /// ONNX Runtime.
    Onnxruntime,
    /// PyTorch.
    Pytorch,
    /// DeepSpeed.
    Deepspeed,
}

impl AdapterName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Stowage,
        Self::Vllm,
        Self::Sglang,
        Self::TensorrtLlm,
        Self::Triton,
        Self::Onnxruntime,
        Self::Pytorch,
        Self::Deepspeed,
    ];

    /// Whether this release has the adapter. The one list: `support` repeats it for the API server, the crate
    /// `runtimes` has an adapter for each, and a test compares both with this.
    pub fn supported(self) -> bool {
        matches!(self, Self::Stowage | Self::Vllm | Self::Sglang)
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Probes of the engine container.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// Takes requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<HttpProbe>,
    /// Must be restarted when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<HttpProbe>,
    /// Has started; the others wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<HttpProbe>,
}

/// An HTTP probe on the serving port.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Path, for example /readyz.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = rules::runtime::PROBE_PATH.cel())]
    pub path: String,
    /// Seconds between probes. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: Option<u32>,
    /// Failures in a row that count. Absent: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub failure_threshold: Option<u32>,
}

/// What an engine can do; absent is no.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Reuses KV blocks between prompts with a common beginning.
    #[serde(default)]
    pub prefix_caching: bool,
    /// Serves LoRA adapters.
    #[serde(default)]
    pub lora: bool,
    /// Can put its weights into host memory and wake again.
    #[serde(default)]
    pub sleep: bool,
    /// Constrains its output to a JSON schema.
    #[serde(default)]
    pub structured_outputs: bool,
    /// Parses tool calls.
    #[serde(default)]
    pub tools: bool,
    /// Serves embeddings.
    #[serde(default)]
    pub embeddings: bool,
    /// Continues another replica's answer from the tokens already sent.
    #[serde(default)]
    pub continuation: bool,
    /// Prefill and decode on different replicas.
    #[serde(default)]
    pub disaggregation: bool,
    /// One replica over several nodes.
    #[serde(default)]
    pub multi_node: bool,
    /// Splits one replica over several GPUs of a node.
    #[serde(default)]
    pub tensor_parallel: bool,
    /// Values of runtime.options.quantization beside Auto.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub quantizations: Vec<String>,
    /// Values of runtime.options.kvCacheType beside Auto.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub kv_cache_types: Vec<String>,
    /// Model architectures, for example llama.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub architectures: Vec<String>,
}

/// Status of an InferenceRuntime.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceRuntimeStatus {
    /// The generation that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

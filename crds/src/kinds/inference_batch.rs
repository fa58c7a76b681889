//! `InferenceBatch`: a file of requests that is processed before a deadline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{deployment_status::Cost, schema};

/// A file of requests.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "InferenceBatch",
    plural = "inferencebatches",
    shortname = "infb",
    category = "stowage",
    namespaced,
    status = "InferenceBatchStatus",
    derive = "PartialEq",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Completed", type_ = "integer", json_path = ".status.counts.completed"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.counts.total"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    doc = "A file of requests that is processed before a deadline."
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceBatchSpec {
    /// Where the requests are: exactly one place, one JSON object per line.
    pub input: BatchFile,
    /// The model's name as clients send it.
    #[schemars(length(min = 1, max = 128))]
    pub model: String,
    /// Which route every line is for.
    pub endpoint: BatchEndpoint,
    /// When it must be finished.
    pub deadline: Deadline,
    /// Where results go.
    pub output: BatchFile,
    /// Where refused lines go. Absent: beside the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_output: Option<BatchFile>,
    /// Most lines in flight. Absent: the gateway decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_concurrency: Option<u32>,
    /// Set it to stop; finished lines keep their results.
    #[serde(default)]
    pub cancel_requested: bool,
    /// When the object is deleted after its end. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub ttl_after_finished: Option<String>,
}

/// A file: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchFile {
    /// Object-store URL, for example s3://bucket/key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// A file on a volume of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<super::model::VolumeSource>,
    /// Identifier of a file uploaded to /v1/files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub file_id: Option<String>,
}

/// A route of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum BatchEndpoint {
    /// Chat completions.
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
    /// Text completions.
    #[serde(rename = "/v1/completions")]
    Completions,
    /// Embeddings.
    #[serde(rename = "/v1/embeddings")]
    Embeddings,
}

/// When a batch must be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Deadline {
    /// Within one hour.
    #[serde(rename = "1h")]
    OneHour,
    /// Within four hours.
    #[serde(rename = "4h")]
    FourHours,
    /// Within 24 hours.
    #[serde(rename = "24h")]
    OneDay,
    /// No deadline.
    BestEffort,
}

/// Status of an InferenceBatch.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceBatchStatus {
    /// The generation that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<BatchCounts>,
    /// When it is expected to finish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub eta: Option<Time>,
    /// Whether it will meet its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_risk: Option<DeadlineRisk>,
    /// What it cost so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Lines of a batch.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchCounts {
    /// In the input.
    pub total: u64,
    /// Answered.
    pub completed: u64,
    /// Refused.
    pub failed: u64,
}

/// Whether a batch will meet its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum DeadlineRisk {
    None,
    Some,
    High,
    Missed,
}

//! `GpuClass`: maps product names to the class names used everywhere, with a price and the rules by which tenants
//! may share.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::rules;

/// A kind of GPU.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "GpuClass",
    plural = "gpuclasses",
    shortname = "gpuc",
    category = "stowage",
    status = "GpuClassStatus",
    derive = "PartialEq",
    validation = crate::rules::class::NAME_LENGTH.cel(),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.gpus"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Price/h", type_ = "string", json_path = ".spec.pricePerHour"),
    printcolumn(name = "Currency", type_ = "string", json_path = ".spec.currency"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    doc = "A kind of GPU: which products it covers, what it costs, and how tenants may share it."
)]
#[x_kube(validation = rules::class::PRICE_NEEDS_CURRENCY.cel())]
#[serde(rename_all = "camelCase")]
pub struct GpuClassSpec {
    /// Which GPUs belong to the class: all given fields must match.
    pub selector: GpuSelector,
    /// Price of one whole GPU, decimal text, for example "3.00". Absent: not priced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = rules::class::PRICE.cel())]
    pub price_per_hour: Option<String>,
    /// ISO 4217, for example USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = rules::class::CURRENCY.cel())]
    pub currency: Option<String>,
    /// Ways in which slices of one GPU may be kept apart. Absent: EngineBudget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_sharing: Vec<SharingMode>,
    /// Whether two tenants may share a GPU without MIG.
    #[serde(default)]
    pub allow_soft_sharing: bool,
}

/// Which GPUs belong to a class.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::class::SELECTS.cel())]
#[serde(rename_all = "camelCase")]
pub struct GpuSelector {
    /// Product names as NVML prints them, for example NVIDIA H100 80GB HBM3. Absent: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub product_names: Vec<String>,
    /// Least total memory. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::class::MIN_MEMORY.cel())]
    #[x_kube(validation = rules::class::MIN_MEMORY_RANGE.cel())]
    pub min_memory: Option<Quantity>,
    /// Architectures, for example Hopper. Absent: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub architectures: Vec<String>,
}

/// A way to keep slices of one GPU apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
// Docs on the variants would replace the description of optional fields of this type in the CRD.
#[allow(missing_docs)]
pub enum SharingMode {
    MIG,
    MPS,
    TimeSlice,
    EngineBudget,
}

/// Status of a GpuClass.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuClassStatus {
    /// The generation that this status was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// GPUs that the selector matches.
    #[serde(default)]
    pub gpus: u32,
    /// Nodes that have one of them.
    #[serde(default)]
    pub nodes: u32,
}

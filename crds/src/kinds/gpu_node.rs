//! `GpuNode`: what one node has and how healthy it is. Written by the node agent of that node alone.
//!
//! The object's name is the node's. Slow-changing facts only; readings that move every second go to
//! the agent's metrics and its stream. A verdict is written at once, because gateways watch it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
pub use stowage_contracts::summary::Health;

use super::{gpu_class::SharingMode, schema};

/// Nothing to wish for: a node is observed.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stowage.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    shortname = "gpun",
    category = "stowage",
    status = "GpuNodeStatus",
    derive = "PartialEq",
    printcolumn(name = "Product", type_ = "string", json_path = ".status.devices[*].product"),
    // A column shows one value: the first GPU that is not well.
    printcolumn(
        name = "Unwell",
        type_ = "string",
        json_path = ".status.devices[?(@.verdict.health!='Healthy')].uuid"
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Degraded')].reason"
    ),
    printcolumn(name = "Simulated", type_ = "boolean", json_path = ".status.simulated"),
    printcolumn(name = "Observed", type_ = "date", json_path = ".status.observedTime"),
    doc = "A node's GPUs and their health, written by the node agent of that node."
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {}

/// What the agent found.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// The GPUs, in the driver's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".into()]))]
    pub devices: Vec<GpuDevice>,
    /// Version of the NVIDIA driver, or of the simulator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver_version: Option<String>,
    /// Whether the GPUs are simulated; what is shown of them is marked as simulated.
    #[serde(default)]
    pub simulated: bool,
    /// Weights that the node agent fetched and keeps on the node's disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["source".into()]))]
    pub cached_models: Vec<CachedModel>,
    /// Degraded while the agent does not work fully.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// When the agent last looked. Written with every other change, otherwise at most every 60 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub observed_time: Option<Time>,
}

/// One GPU.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuDevice {
    /// As NVML prints it.
    #[schemars(length(min = 1, max = 64))]
    pub uuid: String,
    /// The driver's index, from 0.
    pub index: u32,
    /// Product name as NVML prints it.
    #[schemars(length(max = 128))]
    pub product: String,
    /// What can be promised: the total floored to 256Mi.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
    /// Streaming multiprocessors. 0: unknown.
    #[serde(default)]
    pub sm_count: u32,
    /// For example Hopper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub architecture: Option<String>,
    /// MIG profiles that it offers; empty: no MIG.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)))]
    pub mig_profiles: Vec<String>,
    /// UUIDs of GPUs that NVLink connects directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub nvlink_peers: Vec<String>,
    /// GPUs with the same number reach each other over NVLink. Absent: alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub island: Option<u32>,
    /// NUMA node of its PCI slot. Absent: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// How its slices are kept apart now; one way per GPU at a time, changed only while it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing_mode: Option<SharingMode>,
    /// Whether work may run on it.
    #[serde(default)]
    pub verdict: Verdict,
}

/// Whether work may run on a GPU, and why not.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The verdict.
    #[serde(default)]
    pub health: Health,
    /// One word, for example Xid; see the condition constants. Absent: healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// What was seen and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Since when this verdict holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub since: Option<Time>,
}

/// Weights on a node's disk.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedModel {
    /// The model's key: an image reference, or `http:` with hashes of URL and content.
    #[schemars(length(max = 512))]
    pub source: String,
    /// Size on disk.
    #[schemars(schema_with = "schema::quantity")]
    pub size: Quantity,
}

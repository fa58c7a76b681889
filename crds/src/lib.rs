//! The API of Stowage: group `stowage.dev`, version `v1alpha1`, six kinds.
//!
//! This crate holds the wide types that users write and controllers report with, and the one `validate` that turns wide into narrow. It has no behaviour: nothing here
//! talks to a cluster, reads a clock or decides where anything runs.
//!
//! * a file per kind: [`inference_deployment`] (status in [`deployment_status`]), [`gpu_class`],
//!   [`tenant_quota`], [`inference_runtime`], [`gpu_node`], [`inference_batch`]
//! * [`conditions`]: every condition type and reason
//! * [`quantity`]: text to bytes, milli-units and durations
//!
//! The CRD manifests in `charts/stowage-crds` are generated from [`all_crds`] and compared in tests.
#![cfg_attr(test, allow(clippy::unwrap_used))]
// Printer columns of one kind repeat the keys of kube's attribute (`type_`, `json_path`); that is how they are written.
#![allow(clippy::duplicated_attributes)]

pub mod conditions;
pub mod crd;
pub mod deployment_status;
pub mod gpu_class;
pub mod gpu_node;
pub mod inference_batch;
pub mod inference_deployment;
pub mod inference_runtime;
pub mod model;
pub mod pod_template;
pub mod quantity;
pub mod rules;
mod schema;
pub mod tenant_quota;
pub mod validate;

pub use stowage_contracts::names;

pub use crd::all_crds;
pub use deployment_status::InferenceDeploymentStatus;
pub use gpu_class::{GpuClass, GpuClassSpec, GpuClassStatus};
pub use gpu_node::{GpuNode, GpuNodeSpec, GpuNodeStatus};
pub use inference_batch::{InferenceBatch, InferenceBatchSpec, InferenceBatchStatus};
pub use inference_deployment::{InferenceDeployment, InferenceDeploymentSpec};
pub use inference_runtime::{InferenceRuntime, InferenceRuntimeSpec, InferenceRuntimeStatus};
pub use tenant_quota::{TenantQuota, TenantQuotaSpec, TenantQuotaStatus};

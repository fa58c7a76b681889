//! The API of Stowage: group `stowage.dev`, version `v1alpha1`, six kinds.
//!
//! This crate holds the wide types that users write and controllers report with, and the one `validate` that turns
//! wide into narrow. It has no behaviour: nothing here talks to a cluster, reads a clock or decides where anything
//! runs.
//!
//! In the order in which they build on each other:
//! * [`conditions`], [`quantity`], [`syntax`]: reasons, and the shapes of text
//! * [`rules`]: what the API server checks, with the messages
//! * [`kinds`]: a file per kind, each field with its rules beside it
//! * [`support`]: what this release does not honour
//! * [`validate`]: wide to narrow; [`crd`]: the manifests
//!
//! The CRD manifests in `charts/stowage-crds` are generated from [`all_crds`] and compared in tests.
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
// Printer columns of one kind repeat the keys of kube's attribute (`type_`, `json_path`); that is how they are written.
#![allow(clippy::duplicated_attributes)]

pub mod conditions;
pub mod crd;
pub mod kinds;
pub mod quantity;
pub mod rules;
pub mod support;
pub mod syntax;
pub mod validate;

pub use stowage_contracts::names;

pub use crd::all_crds;
pub use kinds::deployment_status::{self, InferenceDeploymentStatus};
pub use kinds::gpu_class::{self, GpuClass, GpuClassSpec, GpuClassStatus};
pub use kinds::gpu_node::{self, GpuNode, GpuNodeSpec, GpuNodeStatus};
pub use kinds::inference_batch::{self, InferenceBatch, InferenceBatchSpec, InferenceBatchStatus};
pub use kinds::inference_deployment::{self, InferenceDeployment, InferenceDeploymentSpec};
pub use kinds::inference_runtime::{self, InferenceRuntime, InferenceRuntimeSpec, InferenceRuntimeStatus};
pub use kinds::model;
pub use kinds::pod_template;
pub use kinds::tenant_quota::{self, TenantQuota, TenantQuotaSpec, TenantQuotaStatus};

//! The six kinds as users write them and as controllers report on them: wide types only.
//!
//! What this release honours of a spec is decided in [`crate::rules`] and [`crate::validate`], not here.

pub mod deployment_status;
pub mod gpu_class;
pub mod gpu_node;
pub mod inference_batch;
pub mod inference_deployment;
pub mod inference_runtime;
pub mod model;
pub mod pod_template;
mod schema;
pub mod tenant_quota;

//! Kubernetes' objects as the planner's narrow ones, kind by kind.

pub mod changed;
pub mod deployments;
pub mod devices;
pub mod nodes;
pub mod owned;
pub mod promises;
pub mod replicas;
pub mod signals;
pub mod startup;
pub mod strays;
pub mod usage;

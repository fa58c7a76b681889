//! Who reads the state of the node: [`summary`] for the operator over [`http`], [`metrics`] for
//! Prometheus, [`gpunode`] for the API server.

pub mod estimates;
pub mod gpunode;
pub mod http;
pub mod metrics;
pub mod preloads;
pub mod summary;

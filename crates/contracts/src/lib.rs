//! What two programs of Stowage must agree on, each fact once. `docs/contracts.md` explains it.
//!
//! - [`names`]: labels, annotations, ports, paths, headers, environment variables
//! - [`tenancy`]: which tenant owns a namespace
//! - [`charge`]: what a GPU slice costs, in milli-GPU
//! - [`hold`]: how long a request waits for a replica to start
//! - [`lists`]: when an empty list of the API server is trusted
//! - [`load`]: the engine's load report, for gateways
//! - [`model`]: which files of a model are data
//! - [`fit`]: the cost of a step, learnt from steps
//! - [`signals`]: a gateway's report, for operators
//! - [`summary`]: the node agent's summary, for operators and people
//! - [`usage`]: the files in a claim's report directory
//!
//! Deliberately absent: behaviour that belongs to one program alone, Kubernetes types (they are in
//! `stowage-crds`) and any I/O.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod charge;
pub mod fit;
pub mod hold;
pub mod lists;
pub mod load;
pub mod model;
pub mod names;
pub mod signals;
pub mod summary;
pub mod tenancy;
pub mod usage;

pub use model::{estimate, hub, preload, s3};

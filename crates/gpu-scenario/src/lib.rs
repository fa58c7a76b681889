//! The scenario file of a node with simulated GPUs: what they are and what happens to them.
//!
//! The node agent makes the file from a [`Profile`] and reports when it cannot be read; the library
//! that stands in for NVIDIA's (`fake-nvml`) answers from it; people and tests edit it. Here are only
//! the file's schema ([`scenario`]) and how a reader keeps in step with it ([`store`]).
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod profiles;
pub mod scenario;
pub mod store;

pub use profiles::Profile;
pub use scenario::Scenario;
pub use store::Store;

/// Environment variable with the scenario's path, read by the library when it is initialised.
pub const SCENARIO_ENV: &str = "STOWAGE_FAKE_NVML_SCENARIO";
/// Environment variable with the directory of the claims' files, read by the library when it is
/// initialised. Absent: no claims.
pub const REPORTS_ENV: &str = "STOWAGE_FAKE_NVML_REPORTS";

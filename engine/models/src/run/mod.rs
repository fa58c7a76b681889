//! A model that runs: planned (how large), packed (for the processor at hand), computed.
//!
//! `oracle` computes the same without any of this; it is what tests compare with.

mod decoder;
pub mod oracle;
mod pack;
mod plan;
mod rope;

pub(crate) use decoder::CpuModel;
pub use plan::Memory;
pub(crate) use plan::{Plan, weight_bytes};

//! From a model file to something that runs: readers for GGUF and safetensors, one config-driven
//! Llama-family decoder on CPU kernels, and a slow oracle of it.
//!
//! [`load`] maps the file, checks it, packs the weights for the processor at hand, sizes the KV
//! cache by the byte budget, and returns an [`Executor`](stowage_engine_core::executor::Executor)
//! beside what a server needs to talk to the model ([`ModelMeta`]). Tokenizing, sampling and
//! scheduling happen elsewhere.

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod decoder;
mod file;
pub mod gguf;
mod hf;
mod load;
mod meta;
pub mod oracle;
mod rope;
pub mod safetensors;
mod weights;

pub use config::ModelConfig;
pub use decoder::CpuModel;
pub use file::shown;
pub use load::{KvChoice, LoadError, LoadOptions, load};
pub use meta::{GgufTokenizer, ModelMeta, TokenizerSource};
pub use oracle::Oracle;
pub use stowage_engine_kernels::isa::{ISA_ENV, Isa};

//! From a model file to something that runs: readers for GGUF and safetensors, one config-driven
//! Llama-family decoder on CPU kernels, and a slow oracle of it.
//!
//! [`load`] maps the file, checks it, packs the weights for the processor at hand, sizes the KV
//! cache by the byte budget, and returns an [`Executor`](stowage_engine_core::executor::Executor)
//! beside what a server needs to talk to the model ([`ModelMeta`]). Tokenizing, sampling and
//! scheduling happen elsewhere.
//!
//! Data flows `read` (files into values) → `load` (checks, byte budget) → `run` (packed, computed). [`inspect`] stops
//! after the headers: what a model is, and the memory it needs, before it is fetched.

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod file;
pub mod inspect;
mod load;
mod meta;
mod read;
mod run;
mod tensors;
mod weights;

pub use file::shown;
pub use load::{KvChoice, LoadOptions, SERVER_STEP_TOKENS, load};
pub use meta::{AddedToken, GgufTokenizer, HfTokenizer, ModelMeta, Setting, TokenType, TokenizerSource};
pub use read::error::{LoadError, chain};
pub use read::{gguf, safetensors};
pub use run::Memory;
pub use run::oracle::Oracle;
pub use stowage_engine_kernels::isa::{ISA_ENV, Isa};

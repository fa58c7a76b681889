//! Files into values: headers are parsed, tensors located, and all metadata
//! is collected. Nothing of the weights is read here.
//!
//! [`gguf`] and [`safetensors`] know the two formats; `gguf_model` and `directory` know what
//! a model in each of them looks like and end in the same [`Opened`]. `foreign` names what is no
//! model file although it has the name of one.

pub(crate) mod directory;
pub(crate) mod error;
pub(crate) mod foreign;
pub mod gguf;
pub(crate) mod gguf_model;
mod gguf_tokenizer;
mod hf_config;
mod hf_tokenizer;
mod names;
mod opened;
pub mod safetensors;

use std::path::Path;

use self::error::LoadError;
use crate::tensors;

pub(crate) use opened::Opened;

/// Reads a GGUF file or a safetensors directory. Every tensor of the result has its place in the
/// model, in the shape that the configuration gives it.
pub(crate) fn open(path: &Path) -> Result<Opened, LoadError> {
    let opened = if path.is_dir() { directory::open(path) } else { gguf_model::open(path) }?;
    tensors::check(&opened.config, &opened.weights)
        .map_err(|source| LoadError::Weights { path: path.into(), source })?;
    Ok(opened)
}

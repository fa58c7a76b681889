//! Why a model cannot be loaded.

use std::path::PathBuf;

use stowage_engine_kernels::isa::{ISA_ENV, Isa};
use thiserror::Error;

use crate::config::ConfigError;
use crate::file::thousands;
use crate::read::gguf::GgufError;
use crate::read::safetensors::SafetensorsError;
use crate::weights::WeightError;

/// Why a model was not loaded. One line each, naming the file and the way out.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("{}: cannot be opened", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{}: {what}", path.display())]
    Foreign { path: PathBuf, what: &'static str },
    #[error("{}: {why}", path.display())]
    Split { path: PathBuf, why: String },
    #[error("{}", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("{}", path.display())]
    Safetensors { path: PathBuf, source: SafetensorsError },
    #[error("{}: it is not the JSON expected there", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}", path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("{}", path.display())]
    Weights { path: PathBuf, source: WeightError },
    #[error("{}: the vocabulary has {tokens} tokens, the embedding {rows} rows: it is damaged", path.display())]
    Vocabulary { path: PathBuf, tokens: usize, rows: usize },
    #[error(
        "the model needs {} bytes (weights {}, scratch {}, KV for {} tokens {}), its slice has {}: give it a larger slice or a smaller model",
        thousands(*.weights + *.scratch + *.kv), thousands(*.weights), thousands(*.scratch), .tokens, thousands(*.kv), thousands(*.budget)
    )]
    DoesNotFit { weights: u64, scratch: u64, kv: u64, tokens: usize, budget: u64 },
    #[error("a context of {asked} tokens was asked for, the model was made for {model}")]
    ContextTooLong { asked: usize, model: usize },
    #[error("{ISA_ENV}: {0}")]
    Isa(String),
    #[error("this processor has no {0}: choose another kernel set or none")]
    IsaMissing(Isa),
    #[error("memory for the model cannot be mapped")]
    Memory { source: std::io::Error },
    #[error("a worker thread cannot be started")]
    Threads { source: std::io::Error },
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}

//! From a model's files to what encodes and decodes its text.
//!
//! `json` and `gguf` read the two kinds of files and end in the same [`Tokens`]. Finding added tokens and
//! putting something before a text are not left to the tokenizer: they depend on where a text comes from,
//! and a long text is encoded in pieces.

mod bounds;
mod encoder;
mod gguf;
mod json;

use stowage_engine_models::{ModelMeta, TokenizerSource};

use super::TextError;
use super::added::AddedTokens;
use super::pieces::Pieces;

pub use encoder::EncodeError;
pub(super) use encoder::{Encoder, Place};

/// A model's tokens in all their roles.
pub(super) struct Tokens {
    pub encoder: Encoder,
    pub added: AddedTokens,
    pub pieces: Pieces,
    /// Around a plain prompt, when the model was trained so.
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    /// The text of the token that begins a text, for templates; `None` where there is none.
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// Every token that ends an answer. Sorted.
    pub ends: Vec<u32>,
}

impl Tokens {
    pub(super) fn of(meta: &ModelMeta) -> Result<Self, TextError> {
        match &meta.tokenizer {
            TokenizerSource::Gguf(gguf) => gguf::tokens(gguf, meta),
            TokenizerSource::Hf(hf) => json::tokens(hf, meta),
        }
    }
}

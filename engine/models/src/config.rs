//! Shapes and constants of a decoder, from whichever file describes them.

use thiserror::Error;

use crate::file::shown;

/// A Llama-family decoder. What differs between families is data here, not another code path.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: String,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context_len: usize,
    pub rms_eps: f32,
    pub rope_theta: f64,
    /// Divisors of the rotary frequencies, one per pair of dimensions; empty for none.
    pub rope_factors: Vec<f32>,
    /// Rows of Q and K are in GGUF's order for `llama`: neighbours rotate together.
    pub interleaved_qk: bool,
    pub biases: Biases,
    /// Norms of each head of Q and K.
    pub qk_norm: Presence,
    /// An output matrix of its own; without it the embedding is the output matrix too.
    pub head: Presence,
}

/// Whether a tensor belongs to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Presence {
    /// Without it the file is refused.
    Required,
    /// Used where the file has it.
    Optional,
    /// With it the file is refused.
    #[default]
    Absent,
}

impl Presence {
    /// For formats whose configuration declares it.
    pub fn declared(declared: bool) -> Presence {
        if declared { Presence::Required } else { Presence::Absent }
    }
}

/// Which matrices of a layer have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Biases {
    pub qkv: Presence,
    pub out: Presence,
    /// Gate, up and down.
    pub ffn: Presence,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("architecture \"{}\" is not supported: llama, qwen2 and qwen3 are", shown(.0))]
    Architecture(String),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0} is not usable: {1}")]
    Unusable(String, String),
}

/// More than any model has, less than what could overflow a product of two.
const LIMIT: u64 = 1 << 24;

impl ModelConfig {
    /// What kernels and layouts take for granted.
    pub fn check(self) -> Result<ModelConfig, ConfigError> {
        let bad = |what: &str, why: String| Err(unusable(what, &why));
        let (heads, kv, dim) = (self.heads, self.kv_heads, self.head_dim);
        if self.layers == 0 || self.hidden == 0 || self.ffn == 0 || self.vocab == 0 {
            return bad("the shape of the model", "a dimension is 0".into());
        }
        if heads == 0 || kv == 0 || !heads.is_multiple_of(kv) {
            return bad("the number of heads", format!("{heads} heads do not share {kv} KV heads"));
        }
        if dim == 0 || !dim.is_multiple_of(16) || dim > 256 {
            return bad("the head size", format!("{dim} is no multiple of 16 up to 256"));
        }
        if !self.ffn.is_multiple_of(16) {
            return bad("the feed-forward size", format!("{} is no multiple of 16", self.ffn));
        }
        if self.context_len == 0 {
            return bad("the context length", "it is 0".into());
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0 && self.rms_eps.is_finite()) {
            return bad("the rotary base or the norm's epsilon", "it is not a sensible number".into());
        }
        Ok(self)
    }

    /// Values in a row of queries of all heads.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

pub fn bounded(what: &str, n: u64) -> Result<usize, ConfigError> {
    if n > LIMIT {
        return Err(unusable(what, &format!("{n} is beyond any model")));
    }
    Ok(n as usize)
}

pub fn unusable(what: &str, why: &str) -> ConfigError {
    ConfigError::Unusable(what.to_owned(), why.to_owned())
}

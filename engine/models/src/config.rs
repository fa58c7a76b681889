//! Shapes and constants of a decoder, from whichever file describes them.

use thiserror::Error;

use crate::file::shown;
use crate::gguf::Gguf;

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
    /// From GGUF metadata; `vocab` is the number of rows of the token embedding.
    pub fn from_gguf(gguf: &Gguf, vocab: usize) -> Result<ModelConfig, ConfigError> {
        let missing = |key: &str| ConfigError::Missing(format!("metadata {key}"));
        let arch = gguf.text("general.architecture").ok_or_else(|| missing("general.architecture"))?;
        if !["llama", "qwen2", "qwen3"].contains(&arch) {
            return Err(ConfigError::Architecture(arch.to_owned()));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let get = |name: &str| {
            let key = key(name);
            gguf.uint(&key).ok_or_else(|| missing(&key)).and_then(|n| bounded(&key, n))
        };
        let optional =
            |name: &str, default: usize| gguf.uint(&key(name)).map_or(Ok(default), |n| bounded(&key(name), n));
        let (hidden, heads) = (get("embedding_length")?, get("attention.head_count")?);
        let kv_heads = optional("attention.head_count_kv", heads)?;
        let head_dim = optional("attention.key_length", hidden / heads.max(1))?;
        if optional("attention.value_length", head_dim)? != head_dim {
            return Err(unusable(&key("attention.value_length"), "differs from key_length"));
        }
        if optional("rope.dimension_count", head_dim)? != head_dim {
            return Err(unusable(&key("rope.dimension_count"), "only whole heads can rotate"));
        }
        if let Some(kind) = gguf.text(&key("rope.scaling.type")).filter(|k| *k != "none") {
            return Err(unusable(&key("rope.scaling.type"), &format!("{} is not supported", shown(kind))));
        }
        let config = ModelConfig {
            architecture: arch.to_owned(),
            layers: get("block_count")?,
            hidden,
            ffn: get("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context_len: get("context_length")?,
            rms_eps: gguf
                .float(&key("attention.layer_norm_rms_epsilon"))
                .ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))? as f32,
            rope_theta: gguf.float(&key("rope.freq_base")).unwrap_or(10_000.0),
            rope_factors: Vec::new(),
            interleaved_qk: arch == "llama",
        };
        config.check()
    }

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

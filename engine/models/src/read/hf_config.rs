//! `config.json` of a Hugging Face checkpoint as a decoder's configuration.
//!
//! What changes the computation and is not implemented is refused by name. Fields that do not change
//! the answer (training, precision of the checkpoint) are not read.

use serde::Deserialize;

use crate::config::{Biases, ConfigError, ModelConfig, Presence, bounded, unusable};
use crate::file::shown;

/// What is needed of `config.json`.
#[derive(Deserialize)]
pub(super) struct HfConfig {
    model_type: String,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: u64,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    /// Where transformers 5 keeps base and scaling.
    rope_parameters: Option<RopeScaling>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    pub(super) tie_word_embeddings: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<u64>,
    layer_types: Option<Vec<String>>,
    pub(super) bos_token_id: Option<Ids>,
    pub(super) eos_token_id: Option<Ids>,
}

#[derive(Clone, Deserialize)]
struct RopeScaling {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// One id or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }
    }
}

pub(super) fn config(raw: &HfConfig) -> Result<ModelConfig, ConfigError> {
    let architecture = match raw.model_type.as_str() {
        "llama" | "mistral" | "qwen2" | "qwen3" => raw.model_type.clone(),
        other => return Err(ConfigError::Architecture(other.to_owned())),
    };
    refuse_unsupported(raw)?;
    let heads = bounded("num_attention_heads", raw.num_attention_heads)?;
    let hidden = bounded("hidden_size", raw.hidden_size)?;
    let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
    let head_dim = raw.head_dim.unwrap_or((hidden / heads.max(1)) as u64);
    let scaling = raw.rope_scaling.as_ref().or(raw.rope_parameters.as_ref());
    let nested = raw.rope_parameters.as_ref().and_then(|p| p.rope_theta);
    let mut config = ModelConfig {
        layers: bounded("num_hidden_layers", raw.num_hidden_layers)?,
        hidden,
        ffn: bounded("intermediate_size", raw.intermediate_size)?,
        heads,
        kv_heads: bounded("num_key_value_heads", kv_heads)?,
        head_dim: bounded("head_dim", head_dim)?,
        vocab: bounded("vocab_size", raw.vocab_size)?,
        context_len: bounded("max_position_embeddings", context_len(raw))?,
        rms_eps: raw.rms_norm_eps as f32,
        rope_theta: raw.rope_theta.or(nested).unwrap_or(10_000.0),
        rope_factors: Vec::new(),
        interleaved_qk: false,
        biases: biases(raw),
        qk_norm: Presence::declared(architecture == "qwen3"),
        head: Presence::declared(!raw.tie_word_embeddings.unwrap_or(false)),
        architecture,
    }
    .check()?;
    if let Some(scaling) = scaling {
        config.rope_factors = rope_factors(scaling, &config)?;
    }
    Ok(config)
}

fn refuse_unsupported(raw: &HfConfig) -> Result<(), ConfigError> {
    if raw.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        return Err(unusable("hidden_act", "only silu is supported"));
    }
    if raw.use_sliding_window == Some(true) {
        return Err(unusable("use_sliding_window", "sliding windows are not supported"));
    }
    if let Some(other) = raw.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
        return Err(unusable("layer_types", &format!("{} is not supported", shown(other))));
    }
    let nested = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()).and_then(|p| p.partial_rotary_factor);
    if raw.partial_rotary_factor.or(nested).is_some_and(|part| part != 1.0) {
        return Err(unusable("partial_rotary_factor", "only whole heads can rotate"));
    }
    Ok(())
}

/// Mistral's attention reaches back one window. Within the window it is full attention, so that is
/// how long a context may be.
fn context_len(raw: &HfConfig) -> u64 {
    let window = if raw.model_type == "mistral" { raw.sliding_window } else { None };
    raw.max_position_embeddings.min(window.unwrap_or(u64::MAX))
}

/// As the architectures define them: what the configuration does not declare, the authors' code does
/// not use either.
fn biases(raw: &HfConfig) -> Biases {
    // A declared bias that the checkpoint lacks is zero there too.
    let optional = |flag: Option<bool>| if flag == Some(true) { Presence::Optional } else { Presence::Absent };
    let (attention, ffn) = (optional(raw.attention_bias), optional(raw.mlp_bias));
    match raw.model_type.as_str() {
        "llama" => Biases { qkv: attention, out: attention, ffn },
        "qwen2" => Biases { qkv: Presence::Required, ..Biases::default() },
        "qwen3" => Biases { qkv: attention, out: attention, ..Biases::default() },
        _ => Biases::default(),
    }
}

/// Llama 3's scaling: long wavelengths are stretched, short ones are left, those between blend.
fn rope_factors(s: &RopeScaling, config: &ModelConfig) -> Result<Vec<f32>, ConfigError> {
    match s.rope_type.as_deref() {
        None | Some("default") => return Ok(Vec::new()),
        Some("llama3") => {}
        Some(other) => return Err(unusable("rope_scaling", &format!("{} is not supported", shown(other)))),
    }
    let (Some(factor), Some(low), Some(high), Some(original)) =
        (s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position_embeddings)
    else {
        return Err(unusable("rope_scaling", "llama3 needs its four numbers"));
    };
    let half = config.head_dim / 2;
    let factors = (0..half).map(|i| {
        let frequency = config.rope_theta.powf(-(i as f64) / half as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    });
    Ok(factors.collect())
}

//! Safetensors directories: `config.json`, the shards, and the texts beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{ConfigError, ModelConfig, bounded, unusable};
use crate::file::{Mapped, shown};
use crate::load::LoadError;
use crate::meta::TokenizerSource;
use crate::safetensors;
use crate::weights::{Entry, Weights};

/// What is needed of `config.json`. Unknown fields are none of our business.
#[derive(Deserialize)]
struct HfConfig {
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
    hidden_act: Option<String>,
    #[serde(default)]
    use_sliding_window: bool,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Clone, Deserialize)]
struct RopeScaling {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// One id or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }
    }
}

pub struct HfModel {
    pub config: ModelConfig,
    pub weights: Weights,
    pub tokenizer: TokenizerSource,
    pub chat_template: Option<String>,
    pub bos: Option<u32>,
    pub eog: Vec<u32>,
}

pub fn open(dir: &Path) -> Result<HfModel, LoadError> {
    let raw: HfConfig = read_json(&dir.join("config.json"))?;
    let config = config(&raw).map_err(|source| LoadError::Config { path: dir.join("config.json"), source })?;
    let weights = open_shards(dir)?;
    let mut eog = raw.eos_token_id.map(Ids::into_vec).unwrap_or_default();
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<Ids>,
    }
    if dir.join("generation_config.json").exists() {
        let more: Generation = read_json(&dir.join("generation_config.json"))?;
        eog.extend(more.eos_token_id.map(Ids::into_vec).unwrap_or_default());
    }
    eog.sort_unstable();
    eog.dedup();
    Ok(HfModel {
        config,
        weights,
        tokenizer: TokenizerSource::File(dir.join("tokenizer.json")),
        chat_template: chat_template(dir)?,
        bos: raw.bos_token_id.and_then(|ids| ids.into_vec().first().copied()),
        eog,
    })
}

fn config(raw: &HfConfig) -> Result<ModelConfig, ConfigError> {
    let architecture = match raw.model_type.as_str() {
        "llama" | "qwen2" | "qwen3" => raw.model_type.clone(),
        other => return Err(ConfigError::Architecture(other.to_owned())),
    };
    if raw.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        return Err(unusable("hidden_act", "only silu is supported"));
    }
    if raw.use_sliding_window {
        return Err(unusable("use_sliding_window", "sliding windows are not supported"));
    }
    let heads = bounded("num_attention_heads", raw.num_attention_heads)?;
    let hidden = bounded("hidden_size", raw.hidden_size)?;
    let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
    let head_dim = raw.head_dim.unwrap_or((hidden / heads.max(1)) as u64);
    let scaling = raw.rope_scaling.as_ref().or(raw.rope_parameters.as_ref());
    let nested = raw.rope_parameters.as_ref().and_then(|p| p.rope_theta);
    let mut config = ModelConfig {
        architecture,
        layers: bounded("num_hidden_layers", raw.num_hidden_layers)?,
        hidden,
        ffn: bounded("intermediate_size", raw.intermediate_size)?,
        heads,
        kv_heads: bounded("num_key_value_heads", kv_heads)?,
        head_dim: bounded("head_dim", head_dim)?,
        vocab: bounded("vocab_size", raw.vocab_size)?,
        context_len: bounded("max_position_embeddings", raw.max_position_embeddings)?,
        rms_eps: raw.rms_norm_eps as f32,
        rope_theta: raw.rope_theta.or(nested).unwrap_or(10_000.0),
        rope_factors: Vec::new(),
        interleaved_qk: false,
    }
    .check()?;
    if let Some(scaling) = scaling {
        config.rope_factors = rope_factors(scaling, &config)?;
    }
    Ok(config)
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

fn chat_template(dir: &Path) -> Result<Option<String>, LoadError> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.exists() {
        return std::fs::read_to_string(&jinja).map(Some).map_err(|source| LoadError::Open { path: jinja, source });
    }
    #[derive(Deserialize)]
    struct TokenizerConfig {
        chat_template: Option<serde_json::Value>,
    }
    let path = dir.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config: TokenizerConfig = read_json(&path)?;
    Ok(match config.chat_template {
        Some(serde_json::Value::String(template)) => Some(template),
        // A list of named templates: the one named `default` is the chat's.
        Some(serde_json::Value::Array(list)) => {
            list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str().map(str::to_owned))
        }
        _ => None,
    })
}

fn open_shards(dir: &Path) -> Result<Weights, LoadError> {
    let mut weights = Weights { files: Vec::new(), tensors: BTreeMap::new() };
    for (file, path) in shards(dir)?.into_iter().enumerate() {
        let open = |source| LoadError::Open { path: path.clone(), source };
        let map = Mapped::open(&path).map_err(open)?;
        let tensors =
            safetensors::parse(&map).map_err(|source| LoadError::Safetensors { path: path.clone(), source })?;
        for (name, t) in tensors {
            let Some(name) = gguf_name(&name) else { continue };
            let (rows, cols) = match t.shape[..] {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => continue,
            };
            let (rows, cols) = (rows as usize, cols as usize);
            weights.tensors.insert(name, Entry { file, ty: t.ty, rows, cols, range: t.range });
        }
        weights.files.push((path, map));
    }
    Ok(weights)
}

fn shards(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read_json(&index)?;
    let names: std::collections::BTreeSet<_> = index.weight_map.into_values().collect();
    // A shard is a file of this directory: `../` in an index would leave it.
    Ok(names.iter().filter_map(|n| Path::new(n).file_name()).map(|n| dir.join(n)).collect())
}

fn gguf_name(name: &str) -> Option<String> {
    let fixed = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let open = |source| LoadError::Open { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(open)?;
    serde_json::from_str(&text).map_err(|source| LoadError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_those_of_gguf() {
        let name = |n| gguf_name(n).unwrap();
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(name("model.layers.0.mlp.down_proj.weight"), "blk.0.ffn_down.weight");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(gguf_name("model.layers.0.rotary_emb.inv_freq"), None);
        assert_eq!(gguf_name("vision_tower.x"), None);
    }
}

//! Safetensors directories: `config.json`, the shards, and the texts beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::LoadError;
use super::foreign::instead_of_a_model;
use super::hf_config::{HfConfig, Ids, config};
use super::hf_tokenizer;
use super::names::{to_gguf, to_hf};
use super::opened::{Opened, digest};
use super::safetensors;
use crate::config::ModelConfig;
use crate::file::Mapped;
use crate::meta::{ModelMeta, TokenizerSource};
use crate::weights::{Entry, Weights};

pub(crate) fn open(dir: &Path) -> Result<Opened, LoadError> {
    let raw: HfConfig = read_json(&dir.join("config.json"))?;
    let config = config(&raw).map_err(|source| LoadError::Config { path: dir.join("config.json"), source })?;
    let tied = raw.tie_word_embeddings.unwrap_or(false);
    let weights = open_shards(dir, tied)?;
    let read = |path: &Path| if path.exists() { read_json(path).map(Some) } else { Ok(None) };
    let tokenizer = hf_tokenizer::settings(dir, &read)?;
    let tokenizer_json = &tokenizer.file;
    if let Some(what) = foreign(tokenizer_json)? {
        return Err(LoadError::Foreign { path: tokenizer_json.clone(), what });
    }
    let meta = ModelMeta {
        path: dir.into(),
        architecture: config.architecture.clone(),
        name: dir.file_name().map(|n| n.to_string_lossy().into_owned()),
        parameters: weights.parameters(),
        context_len: config.context_len,
        digest: digest_of_all(&weights),
        tokenizer: TokenizerSource::Hf(Box::new(tokenizer)),
        chat_template: chat_template(dir)?,
        bos: raw.bos_token_id.and_then(|ids| ids.into_vec().first().copied()),
        eog: end_tokens(dir, raw.eos_token_id)?,
    };
    Ok(Opened { config, weights, meta })
}

fn digest_of_all(weights: &Weights) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (i, (_, map)) in weights.files.iter().enumerate() {
        let ranges = weights.tensors.values().filter(|t| t.file == i).map(|t| t.range.clone());
        hasher.update(&digest(map, ranges));
    }
    *hasher.finalize().as_bytes()
}

/// `generation_config.json` decides where it names end tokens, else `config.json` does. The tokenizer's own
/// end token is added where the vocabulary is known.
fn end_tokens(dir: &Path, config: Option<Ids>) -> Result<Vec<u32>, LoadError> {
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<Ids>,
    }
    let path = dir.join("generation_config.json");
    let generation: Option<Generation> = if path.exists() { Some(read_json(&path)?) } else { None };
    let ids = generation.and_then(|g| g.eos_token_id).or(config);
    let mut eog = ids.map(Ids::into_vec).unwrap_or_default();
    eog.sort_unstable();
    eog.dedup();
    Ok(eog)
}

pub(crate) fn chat_template(dir: &Path) -> Result<Option<String>, LoadError> {
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

fn open_shards(dir: &Path, tied: bool) -> Result<Weights, LoadError> {
    let mut weights = Weights::new(to_hf);
    for (file, path) in shards(dir)?.into_iter().enumerate() {
        let map = Mapped::open(&path).map_err(|source| LoadError::Open { path: path.clone(), source })?;
        if let Some(what) = instead_of_a_model(&map) {
            return Err(LoadError::Foreign { path, what });
        }
        let tensors =
            safetensors::parse(&map).map_err(|source| LoadError::Safetensors { path: path.clone(), source })?;
        add_shard(&mut weights, file, &path, tensors, tied)?;
        weights.files.push((path, map));
    }
    Ok(weights)
}

fn add_shard(
    weights: &mut Weights,
    file: usize,
    path: &Path,
    tensors: BTreeMap<String, safetensors::Tensor>,
    tied: bool,
) -> Result<(), LoadError> {
    for (name, t) in tensors {
        if unneeded(&name, tied) {
            continue;
        }
        let (rows, cols) = match t.shape[..] {
            [] => (1, 1),
            [cols] => (1, cols),
            [ref rows @ .., cols] => (rows.iter().product(), cols),
        };
        let entry = Entry { file, ty: t.ty, rows: rows as usize, cols: cols as usize, range: t.range };
        let name = to_gguf(&name).unwrap_or(name);
        weights.add(name, entry, path).map_err(|source| LoadError::Weights { path: path.into(), source })?;
    }
    Ok(())
}

/// The shape of a model from `config.json` and its shards' headers, without the shards' bytes.
pub(crate) fn shape(
    config_path: &Path,
    config_json: &[u8],
    shards: Vec<(&Path, BTreeMap<String, safetensors::Tensor>)>,
) -> Result<(ModelConfig, Weights), LoadError> {
    let raw: HfConfig =
        serde_json::from_slice(config_json).map_err(|source| LoadError::Json { path: config_path.into(), source })?;
    let config = config(&raw).map_err(|source| LoadError::Config { path: config_path.into(), source })?;
    let mut weights = Weights::new(to_hf);
    for (file, (path, tensors)) in shards.into_iter().enumerate() {
        add_shard(&mut weights, file, path, tensors, raw.tie_word_embeddings.unwrap_or(false))?;
    }
    Ok((config, weights))
}

/// Tensors that the authors' code does not read either: rotary frequencies, which follow from the
/// configuration, and the output matrix of a model whose embedding takes its place.
fn unneeded(name: &str, tied: bool) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}

/// The files with weights, as the index names them.
pub(crate) fn shards(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read_json(&index)?;
    let names: BTreeSet<_> = index.weight_map.into_values().collect();
    // A shard is a file of this directory: `../` in an index would leave it.
    Ok(names.iter().filter_map(|n| Path::new(n).file_name()).map(|n| dir.join(n)).collect())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let open = |source| LoadError::Open { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(open)?;
    if let Some(what) = instead_of_a_model(&bytes) {
        return Err(LoadError::Foreign { path: path.to_owned(), what });
    }
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: path.to_owned(), source })
}

/// What the file is instead of a model file, by its first bytes. A file that does not exist is
/// reported where it is needed.
fn foreign(path: &Path) -> Result<Option<&'static str>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let open = |source| LoadError::Open { path: path.to_owned(), source };
    let map = Mapped::open(path).map_err(open)?;
    Ok(instead_of_a_model(&map))
}

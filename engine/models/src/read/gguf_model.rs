//! A GGUF file, or the parts of a split one, as a model.

use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::foreign::instead_of_a_model;
use super::gguf::Gguf;
use super::gguf_tokenizer::{end_tokens, tokenizer};
use super::opened::{Opened, digest};
use crate::config::{Biases, ConfigError, ModelConfig, Presence, bounded, unusable};
use crate::file::{Mapped, shown};
use crate::meta::{ModelMeta, TokenizerSource};
use crate::weights::{Entry, Weights};

/// A file of a model, mapped and parsed.
struct Part {
    path: PathBuf,
    map: Mapped,
    gguf: Gguf,
}

impl Part {
    fn open(path: &Path) -> Result<Part, LoadError> {
        let map = Mapped::open(path).map_err(|source| LoadError::Open { path: path.into(), source })?;
        if let Some(what) = instead_of_a_model(&map) {
            return Err(LoadError::Foreign { path: path.into(), what });
        }
        let gguf = Gguf::parse(&map).map_err(|source| LoadError::Gguf { path: path.into(), source })?;
        Ok(Part { path: path.into(), map, gguf })
    }

    fn digest(&self) -> [u8; 32] {
        digest(&self.map, self.gguf.tensors.iter().map(|t| t.range.clone()))
    }
}

pub(crate) fn open(path: &Path) -> Result<Opened, LoadError> {
    let parts = parts(path)?;
    let digest = digest_of_all(&parts);
    let tables: Vec<(&Path, &Gguf)> = parts.iter().map(|part| (part.path.as_path(), &part.gguf)).collect();
    let (mut config, mut weights) = shape(path, &tables)?;
    let mut first = None;
    for part in parts {
        weights.files.push((part.path, part.map));
        first.get_or_insert(part.gguf);
    }
    let gguf = first.ok_or_else(|| no_parts(path))?;
    take_rope_factors(&mut weights, &mut config).map_err(|source| LoadError::Weights { path: path.into(), source })?;
    let tokenizer = tokenizer(&gguf);
    if tokenizer.tokens.len() > config.vocab {
        let tokens = tokenizer.tokens.len();
        return Err(LoadError::Vocabulary { path: path.into(), tokens, rows: config.vocab });
    }
    let meta = ModelMeta {
        path: path.into(),
        architecture: config.architecture.clone(),
        name: gguf.text("general.name").map(str::to_owned),
        parameters: weights.parameters(),
        context_len: config.context_len,
        digest,
        chat_template: gguf.text("tokenizer.chat_template").map(str::to_owned),
        bos: tokenizer.bos,
        eog: end_tokens(&gguf, &tokenizer),
        tokenizer: TokenizerSource::Gguf(Box::new(tokenizer)),
    };
    Ok(Opened { config, weights, meta })
}

/// The shape of a model from the headers of its files, the first part first, without their bytes.
pub(crate) fn shape(path: &Path, parts: &[(&Path, &Gguf)]) -> Result<(ModelConfig, Weights), LoadError> {
    let mut weights = Weights::new(str::to_owned);
    for (file, (path, gguf)) in parts.iter().enumerate() {
        add_tensors(&mut weights, path, gguf, file)?;
    }
    let (_, gguf) = parts.first().ok_or_else(|| no_parts(path))?;
    let config_error = |source| LoadError::Config { path: path.into(), source };
    let embedding = weights.tensors.get("token_embd.weight").map(|t| t.rows);
    let vocab = embedding.ok_or_else(|| config_error(ConfigError::Missing("tensor token_embd.weight".into())))?;
    let config = config(gguf, vocab).map_err(config_error)?;
    Ok((config, weights))
}

fn no_parts(path: &Path) -> LoadError {
    LoadError::Config { path: path.into(), source: ConfigError::Missing("everything".into()) }
}

/// The file and, when it is the first of a split model, its other parts in order.
fn parts(path: &Path) -> Result<Vec<Part>, LoadError> {
    let first = Part::open(path)?;
    let refuse = |path: &Path, why: String| Err(LoadError::Split { path: path.into(), why });
    let count = match first.gguf.uint("split.count") {
        None | Some(0 | 1) => return Ok(vec![first]),
        Some(count) if count > MAX_PARTS => {
            return refuse(path, format!("it claims to be one of {count} parts, {MAX_PARTS} are allowed"));
        }
        Some(count) => count,
    };
    let number = first.gguf.uint("split.no").unwrap_or(0);
    let Some(name) = part_name(path, 0, count).filter(|_| part_name(path, number, count).as_deref() == Some(path))
    else {
        let name = format!("NAME-{:05}-of-{count:05}.gguf", number + 1);
        return refuse(
            path,
            format!("it is part {} of {count} of a split model and must be called {name}", number + 1),
        );
    };
    if number != 0 {
        let why =
            format!("it is part {} of {count} of a split model: give the first part, {}", number + 1, name.display());
        return refuse(path, why);
    }
    let mut parts = vec![first];
    for n in 1..count {
        let part = Part::open(&part_name(path, n, count).unwrap_or_default())?;
        if part.gguf.uint("split.no") != Some(n) || part.gguf.uint("split.count") != Some(count) {
            return refuse(
                &part.path,
                format!("it is not part {} of {count} of the split model {}", n + 1, path.display()),
            );
        }
        parts.push(part);
    }
    let found: usize = parts.iter().map(|part| part.gguf.tensors.len()).sum();
    match parts[0].gguf.uint("split.tensors.count") {
        Some(all) if all != found as u64 => {
            refuse(path, format!("the {count} parts of the split model have {found} tensors, it should have {all}"))
        }
        _ => Ok(parts),
    }
}

const MAX_PARTS: u64 = 10_000;

/// The path of a part, counted from 0, of the model that `path` is a part of, by its name.
pub(crate) fn part_name(path: &Path, number: u64, count: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, digits) = stem.rsplit_once('-')?;
    (digits.len() == 5).then(|| path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", number + 1)))
}

/// One file names itself; several are named by all of theirs.
fn digest_of_all(parts: &[Part]) -> [u8; 32] {
    if let [only] = parts {
        return only.digest();
    }
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(&part.digest());
    });
    *hasher.finalize().as_bytes()
}

fn add_tensors(weights: &mut Weights, path: &Path, gguf: &Gguf, file: usize) -> Result<(), LoadError> {
    for t in &gguf.tensors {
        if unneeded(&t.name) {
            continue;
        }
        let cols = t.dims[0] as usize;
        // `parse` has checked that the product of all dimensions fits.
        let rows = t.dims[1..].iter().product::<u64>() as usize;
        let entry = Entry { file, ty: t.ty, rows, cols, range: t.range.clone() };
        weights.add(t.name.clone(), entry, path).map_err(|source| LoadError::Weights { path: path.into(), source })?;
    }
    Ok(())
}

/// Rotary frequencies as tensors, which old files have beside the metadata from which they follow.
fn unneeded(name: &str) -> bool {
    name.starts_with("blk.") && name.ends_with(".attn_rot_embd.weight")
}

/// The one tensor that is part of the configuration.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

fn take_rope_factors(weights: &mut Weights, config: &mut ModelConfig) -> Result<(), crate::weights::WeightError> {
    if let Some(factors) = weights.optional_vector(ROPE_FACTORS, config.head_dim / 2)? {
        config.rope_factors = factors;
        weights.tensors.remove(ROPE_FACTORS);
    }
    Ok(())
}

/// From GGUF metadata; `vocab` is the number of rows of the token embedding.
fn config(gguf: &Gguf, vocab: usize) -> Result<ModelConfig, ConfigError> {
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
    let optional = |name: &str, default: usize| gguf.uint(&key(name)).map_or(Ok(default), |n| bounded(&key(name), n));
    let (hidden, heads) = (get("embedding_length")?, get("attention.head_count")?);
    let kv_heads = optional("attention.head_count_kv", heads)?;
    let head_dim = optional("attention.key_length", hidden / heads.max(1))?;
    if optional("attention.value_length", head_dim)? != head_dim {
        return Err(unusable(&key("attention.value_length"), "differs from key_length"));
    }
    if optional("rope.dimension_count", head_dim)? != head_dim {
        return Err(unusable(&key("rope.dimension_count"), "only whole heads can rotate"));
    }
    refuse_unsupported(gguf, arch)?;
    let window = optional("attention.sliding_window", 0)?;
    let config = ModelConfig {
        architecture: arch.to_owned(),
        layers: get("block_count")?,
        hidden,
        ffn: get("feed_forward_length")?,
        heads,
        kv_heads,
        head_dim,
        vocab,
        // Within its window, windowed attention is full attention.
        context_len: get("context_length")?.min(if window == 0 { usize::MAX } else { window }),
        rms_eps: gguf
            .float(&key("attention.layer_norm_rms_epsilon"))
            .ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))? as f32,
        rope_theta: gguf.float(&key("rope.freq_base")).unwrap_or(10_000.0),
        rope_factors: Vec::new(),
        interleaved_qk: arch == "llama",
        biases: Biases { qkv: Presence::Optional, out: Presence::Optional, ffn: Presence::Optional },
        qk_norm: Presence::declared(arch == "qwen3"),
        head: Presence::Optional,
    };
    config.check()
}

/// What changes the computation and is not implemented.
fn refuse_unsupported(gguf: &Gguf, arch: &str) -> Result<(), ConfigError> {
    let key = |name: &str| format!("{arch}.{name}");
    let scaling = key("rope.scaling.type");
    // Without a type the field's readers take the factor as linear scaling.
    let kind = gguf.text(&scaling).unwrap_or("linear");
    let factor = ["rope.scaling.factor", "rope.scale_linear"].iter().find_map(|name| gguf.float(&key(name)));
    let linear = kind == "linear" && factor.is_none_or(|factor| factor == 0.0 || factor == 1.0);
    if !linear && kind != "none" {
        return Err(unusable(&scaling, &format!("{} is not supported", shown(kind))));
    }
    if gguf.uint(&key("expert_count")).is_some_and(|n| n > 0) {
        return Err(unusable(&key("expert_count"), "mixtures of experts are not supported"));
    }
    if gguf.flag(&key("attention.causal")) == Some(false) {
        return Err(unusable(&key("attention.causal"), "only causal attention is supported"));
    }
    const FACTORS: [&str; 7] = [
        "attention.scale",
        "attention.clamp_kqv",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
    ];
    let other = |name: &&&str| gguf.float(&key(name)).is_some_and(|x| x != 0.0 && x != 1.0);
    match FACTORS.iter().find(other) {
        Some(name) => Err(unusable(&key(name), "it is not supported")),
        None => Ok(()),
    }
}

//! Opening a model: find out what it is, check it, see whether it fits, pack it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use stowage_engine_core::executor::BLOCK_TOKENS;
use stowage_engine_kernels::cpu::KvType;
use stowage_engine_kernels::isa::{ISA_ENV, Isa};
use thiserror::Error;

use crate::config::{ConfigError, ModelConfig};
use crate::decoder::{CpuModel, Plan, check_shapes};
use crate::file::{Mapped, thousands};
use crate::gguf::{Gguf, GgufError};
use crate::hf;
use crate::meta::{GgufTokenizer, ModelMeta, TokenizerSource};
use crate::safetensors::SafetensorsError;
use crate::weights::{Entry, WeightError, Weights};

/// What the caller decides about an instance.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Bounds weights + KV + scratch, in bytes. `None`: as much KV as `DEFAULT_SEQUENCES` sequences
    /// of full length need, at most `DEFAULT_KV_BYTES`.
    pub max_memory_bytes: Option<u64>,
    pub kv_type: KvChoice,
    /// `None`: one per core this process may use.
    pub threads: Option<usize>,
    /// A shorter context than the model's, in tokens.
    pub max_model_len: Option<usize>,
    /// `None`: `STOWAGE_ENGINE_ISA` if set, else the best the processor has.
    pub isa: Option<Isa>,
    /// The most tokens a step may carry. More is no faster and costs scratch memory.
    pub max_step_tokens: usize,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            max_memory_bytes: None,
            kv_type: KvChoice::Auto,
            threads: None,
            max_model_len: None,
            isa: None,
            max_step_tokens: 512,
        }
    }
}

/// How K and V are kept. `Auto` is what the fidelity tests allow by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvChoice {
    #[default]
    Auto,
    Type(KvType),
}

impl FromStr for KvChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<KvChoice, String> {
        if s == "auto" { Ok(KvChoice::Auto) } else { s.parse().map(KvChoice::Type) }
    }
}

impl KvChoice {
    fn resolve(self) -> KvType {
        match self {
            KvChoice::Auto => KvType::Bf16,
            KvChoice::Type(ty) => ty,
        }
    }
}

/// The cache's size when no budget is given: memory becomes resident only where used.
const DEFAULT_SEQUENCES: usize = 4;
const DEFAULT_KV_BYTES: usize = 4 << 30;
/// Fewer blocks than this cannot serve a useful request.
const MIN_BLOCKS: usize = 16;

/// Why a model was not loaded. One line each, naming the file and the way out.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("{}: cannot be opened", path.display())]
    Open { path: PathBuf, source: std::io::Error },
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

/// A model file as read, before anything is decided about running it.
pub(crate) struct Opened {
    pub config: ModelConfig,
    pub weights: Weights,
    pub meta: ModelMeta,
}

/// Loads a GGUF file or a safetensors directory.
pub fn load(path: &Path, options: &LoadOptions) -> Result<(CpuModel, ModelMeta), LoadError> {
    let opened = open(path)?;
    check_shapes(&opened.config, &opened.weights).map_err(|source| LoadError::Weights { path: path.into(), source })?;
    let isa = choose_isa(options.isa, std::env::var(ISA_ENV).ok().as_deref())?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(cores).max(1);
    let plan = plan(&opened, options, isa, threads)?;
    let model = CpuModel::build(&opened, plan)?;
    Ok((model, opened.meta))
}

pub(crate) fn open(path: &Path) -> Result<Opened, LoadError> {
    if path.is_dir() { open_dir(path) } else { open_gguf(path) }
}

fn choose_isa(option: Option<Isa>, env: Option<&str>) -> Result<Isa, LoadError> {
    let forced = match (option, env) {
        (Some(isa), _) => Some(isa),
        (None, Some(name)) if !name.is_empty() => Some(name.parse().map_err(LoadError::Isa)?),
        _ => None,
    };
    match forced {
        Some(isa) if !isa.supported() => Err(LoadError::IsaMissing(isa)),
        Some(isa) => Ok(isa),
        None => Ok(Isa::detect()),
    }
}

/// Divides the byte budget between weights, scratch and KV.
fn plan(opened: &Opened, options: &LoadOptions, isa: Isa, threads: usize) -> Result<Plan, LoadError> {
    let config = &opened.config;
    let wanted = match options.max_model_len {
        Some(asked) if asked > config.context_len => {
            return Err(LoadError::ContextTooLong { asked, model: config.context_len });
        }
        Some(asked) => asked.max(1),
        None => config.context_len,
    };
    let mut plan = Plan {
        isa,
        threads,
        kv_type: options.kv_type.resolve(),
        context_len: wanted,
        max_step_tokens: options.max_step_tokens.clamp(BLOCK_TOKENS, 1 << 14),
        num_blocks: 0,
    };
    let weights = CpuModel::weight_bytes(opened);
    let scratch = CpuModel::scratch_bytes(config, &plan);
    let block = plan.kv_layout(config).block_bytes();
    let full = wanted.div_ceil(BLOCK_TOKENS);
    // With an explicit length the whole of it must fit; else a shorter context will do.
    let least = if options.max_model_len.is_some() { full } else { full.min(MIN_BLOCKS) };
    plan.num_blocks = match options.max_memory_bytes {
        None => (DEFAULT_SEQUENCES * full).min(DEFAULT_KV_BYTES / block).max(full),
        Some(budget) => {
            let left = budget.saturating_sub((weights + scratch) as u64);
            let blocks = usize::try_from(left / block as u64).unwrap_or(usize::MAX);
            if blocks < least {
                return Err(LoadError::DoesNotFit {
                    weights: weights as u64,
                    scratch: scratch as u64,
                    kv: (least * block) as u64,
                    tokens: least * BLOCK_TOKENS,
                    budget,
                });
            }
            blocks
        }
    };
    // Block ids are u32, and nobody needs more than this.
    plan.num_blocks = plan.num_blocks.min(1 << 24);
    plan.context_len = wanted.min(plan.num_blocks * BLOCK_TOKENS);
    Ok(plan)
}

fn open_gguf(path: &Path) -> Result<Opened, LoadError> {
    let map = Mapped::open(path).map_err(|source| LoadError::Open { path: path.into(), source })?;
    let gguf = Gguf::parse(&map).map_err(|source| LoadError::Gguf { path: path.into(), source })?;
    let config_error = |source| LoadError::Config { path: path.into(), source };
    let mut weights = Weights { files: Vec::new(), tensors: Default::default() };
    for t in &gguf.tensors {
        let cols = t.dims[0] as usize;
        // `parse` has checked that the product of all dimensions fits.
        let rows = t.dims[1..].iter().product::<u64>() as usize;
        let entry = Entry { file: 0, ty: t.ty, rows, cols, range: t.range.clone() };
        weights.tensors.insert(t.name.clone(), entry);
    }
    let embedding = weights.tensors.get("token_embd.weight").map(|t| t.rows);
    let missing = || ConfigError::Missing("tensor token_embd.weight".into());
    let vocab = embedding.ok_or_else(missing).map_err(config_error)?;
    let mut config = ModelConfig::from_gguf(&gguf, vocab).map_err(config_error)?;
    let digest = digest(&map, gguf.tensors.iter().map(|t| t.range.clone()));
    weights.files.push((path.into(), map));
    if let Some(factors) = weights
        .optional_vector("rope_freqs.weight", config.head_dim / 2)
        .map_err(|source| LoadError::Weights { path: path.into(), source })?
    {
        config.rope_factors = factors;
    }
    let tokenizer = gguf_tokenizer(&gguf);
    if tokenizer.tokens.len() > vocab {
        let tokens = tokenizer.tokens.len();
        return Err(LoadError::Vocabulary { path: path.into(), tokens, rows: vocab });
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

fn gguf_tokenizer(gguf: &Gguf) -> GgufTokenizer {
    use crate::gguf::Value;
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| gguf.uint(&key(name)).and_then(|n| u32::try_from(n).ok());
    let strings = |name: &str| gguf.strings(&key(name)).map(<[String]>::to_vec).unwrap_or_default();
    GgufTokenizer {
        model: gguf.text(&key("model")).unwrap_or_default().to_owned(),
        pre: gguf.text(&key("pre")).map(str::to_owned),
        tokens: strings("tokens"),
        types: match gguf.metadata.get(&key("token_type")) {
            Some(Value::Ints(v)) => v.iter().map(|t| *t as i32).collect(),
            _ => Vec::new(),
        },
        merges: strings("merges"),
        scores: match gguf.metadata.get(&key("scores")) {
            Some(Value::Floats(v)) => v.clone(),
            _ => Vec::new(),
        },
        add_bos: gguf.flag(&key("add_bos_token")).unwrap_or(false),
        add_space_prefix: gguf.flag(&key("add_space_prefix")).unwrap_or(false),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
    }
}

/// The ids the file names, and control tokens whose text is known to end a turn.
fn end_tokens(gguf: &Gguf, tokenizer: &GgufTokenizer) -> Vec<u32> {
    const ENDS: [&str; 6] =
        ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"];
    const CONTROL: i32 = 3;
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"]
        .iter()
        .filter_map(|name| gguf.uint(&format!("tokenizer.ggml.{name}")))
        .filter_map(|id| u32::try_from(id).ok());
    let known = tokenizer.tokens.iter().zip(&tokenizer.types).enumerate();
    let known =
        known.filter(|(_, (text, ty))| **ty == CONTROL && ENDS.contains(&text.as_str())).map(|(id, _)| id as u32);
    let mut ids: Vec<u32> = named.chain(known).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn open_dir(path: &Path) -> Result<Opened, LoadError> {
    let hf::HfModel { config, weights, tokenizer, chat_template, bos, eog } = hf::open(path)?;
    let mut hasher = blake3::Hasher::new();
    for (i, (_, map)) in weights.files.iter().enumerate() {
        let ranges = weights.tensors.values().filter(|t| t.file == i).map(|t| t.range.clone());
        hasher.update(&digest(map, ranges));
    }
    let meta = ModelMeta {
        path: path.into(),
        architecture: config.architecture.clone(),
        name: path.file_name().map(|n| n.to_string_lossy().into_owned()),
        parameters: weights.parameters(),
        context_len: config.context_len,
        digest: *hasher.finalize().as_bytes(),
        tokenizer,
        chat_template,
        bos,
        eog,
    };
    Ok(Opened { config, weights, meta })
}

/// Names the model: length, everything before the data, and the first and last bytes of each
/// tensor. It tells models and conversions apart in a moment whatever their size; it is no proof
/// against someone who crafts a file to collide (the image's digest is).
fn digest(bytes: &[u8], tensors: impl Iterator<Item = std::ops::Range<usize>>) -> [u8; 32] {
    const SAMPLE: usize = 4096;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    let ranges: Vec<_> = tensors.collect();
    let data = ranges.iter().map(|r| r.start).min().unwrap_or(bytes.len());
    hasher.update(&bytes[..data]);
    for r in ranges {
        let n = r.len().min(SAMPLE);
        hasher.update(&bytes[r.start..r.start + n]);
        hasher.update(&bytes[r.end - n..r.end]);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_wins_over_the_environment_and_that_over_detection() {
        let chosen = choose_isa(Some(Isa::Portable), Some("avx2")).unwrap();
        assert_eq!(chosen, Isa::Portable);
        assert_eq!(choose_isa(None, Some("portable")).unwrap(), Isa::Portable);
        assert_eq!(choose_isa(None, Some("")).unwrap(), Isa::detect());
        assert_eq!(choose_isa(None, None).unwrap(), Isa::detect());
    }

    #[test]
    fn an_unknown_kernel_set_is_refused_by_name() {
        let error = choose_isa(None, Some("sse")).unwrap_err().to_string();
        assert!(error.starts_with("STOWAGE_ENGINE_ISA: unknown kernel set \"sse\""), "{error}");
    }
}

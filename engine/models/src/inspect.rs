//! What a model is and which memory it needs, from the headers of its files: before it is fetched, and without
//! reading its weights.
//!
//! The tables are those that [`load`](crate::load) reads, and the sizes those by which it divides its budget, so an
//! estimate is what an instance takes. What the bundled engine cannot load is described all the same, with the reason.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use stowage_engine_core::executor::BLOCK_TOKENS;
use stowage_engine_kernels::isa::Isa;

use crate::config::ModelConfig;
use crate::file::Mapped;
use crate::load::{KvChoice, SERVER_STEP_TOKENS};
use crate::read::error::LoadError;
use crate::read::foreign::instead_of_a_model;
use crate::read::gguf::{Gguf, GgufError};
use crate::read::{directory, gguf_model, safetensors};
use crate::run::{Memory, Plan, weight_bytes};
use crate::tensors;
use crate::weights::Weights;

/// The longest beginning of a file that is read for its header, in bytes.
pub const MAX_HEAD: u64 = 128 << 20;

/// What a model's headers say.
#[derive(Debug)]
pub struct Facts {
    pub format: Format,
    pub name: Option<String>,
    pub architecture: String,
    /// All weights.
    pub parameters: u64,
    /// Parameters of each type of weight.
    pub types: BTreeMap<String, u64>,
    /// What the model was made for, in tokens.
    pub context_len: Option<u64>,
    /// Whether the files hold a chat template.
    pub chat_template: bool,
    /// A name (`apache-2.0`), or the file that holds the licence.
    pub licence: Option<String>,
    /// Of all files with weights.
    pub file_bytes: u64,
    /// What the bundled engine needs to serve it, or why it refuses it.
    pub engine: Result<Needs, LoadError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Gguf,
    Safetensors,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Gguf => "GGUF",
            Format::Safetensors => "safetensors",
        }
    }
}

impl Facts {
    /// The type of most weights.
    pub fn quantization(&self) -> Option<&str> {
        self.types.iter().max_by_key(|(_, count)| **count).map(|(name, _)| name.as_str())
    }
}

/// What the bundled engine needs for a model, as a function of how it is served.
#[derive(Clone, Debug)]
pub struct Needs {
    config: ModelConfig,
    weight_bytes: usize,
}

/// How a model is to be served.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Tokens of prompt and answer together.
    pub context_len: usize,
    /// Sequences of that length whose KV cache fits at once.
    pub sequences: usize,
    pub kv_type: KvChoice,
    /// See [`LoadOptions::max_step_tokens`](crate::LoadOptions::max_step_tokens).
    pub max_step_tokens: usize,
}

impl Served {
    /// One sequence, everything else as the engine does it by default.
    pub fn one(context_len: usize) -> Served {
        Served { context_len, sequences: 1, kv_type: KvChoice::Auto, max_step_tokens: SERVER_STEP_TOKENS as usize }
    }
}

impl Needs {
    /// The memory that an instance takes; with one byte less the engine refuses to serve that context.
    pub fn memory(&self, served: Served) -> Memory {
        let plan = Plan {
            // Neither decides about memory.
            isa: Isa::Portable,
            threads: 1,
            kv_type: served.kv_type.resolve(),
            context_len: served.context_len,
            max_step_tokens: served.max_step_tokens,
            num_blocks: served.sequences * served.context_len.div_ceil(BLOCK_TOKENS),
        };
        Memory::of(&self.config, self.weight_bytes, &plan)
    }

    /// The longest context, in tokens.
    pub fn context_len(&self) -> usize {
        self.config.context_len
    }
}

/// Why a header was not read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The header goes on behind the bytes that were given.
    #[error("the header is longer than the part of the file that was read")]
    NeedsMore,
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Inspects a GGUF file, or a directory with safetensors.
pub fn path(path: &Path) -> Result<Facts, LoadError> {
    let facts = if path.is_dir() { directory_at(path) } else { gguf_at(path) };
    facts.map_err(|e| match e {
        HeadError::Load(e) => e,
        // The whole file was given.
        HeadError::NeedsMore => LoadError::Open { path: path.into(), source: std::io::ErrorKind::UnexpectedEof.into() },
    })
}

/// Whether the header of a GGUF file ends within its first `have` bytes. What cannot be read is not longer than it seems.
pub fn header_ends_within(path: &Path, have: u64) -> bool {
    let read = || {
        let file = std::fs::File::open(path)?;
        let total = file.metadata()?.len();
        let mut head = Vec::new();
        file.take(have).read_to_end(&mut head)?;
        Ok::<_, std::io::Error>((head, total))
    };
    let Ok((head, total)) = read() else { return true };
    !matches!(gguf(path, &head, total), Err(HeadError::NeedsMore))
}

/// Inspects a GGUF file of `len` bytes by its beginning. Of a split model this is one part, which the engine refuses.
pub fn gguf(name: &Path, head: &[u8], len: u64) -> Result<Facts, HeadError> {
    gguf_parts(name, &[(name.to_owned(), head, len)])
}

fn gguf_at(path: &Path) -> Result<Facts, HeadError> {
    let first = map(path)?;
    let count = Gguf::outline(&first, first.len() as u64).ok().and_then(|(head, _)| head.uint("split.count"));
    let others = (1..count.unwrap_or(1).min(10_000)).filter_map(|n| gguf_model::part_name(path, n, count?));
    let mut maps = vec![(path.to_owned(), first)];
    for other in others {
        let part = map(&other)?;
        maps.push((other, part));
    }
    let parts: Vec<(PathBuf, &[u8], u64)> = maps.iter().map(|(p, m)| (p.clone(), &m[..], m.len() as u64)).collect();
    gguf_parts(path, &parts)
}

fn map(path: &Path) -> Result<Mapped, LoadError> {
    Mapped::open(path).map_err(|source| LoadError::Open { path: path.into(), source })
}

fn gguf_parts(path: &Path, parts: &[(PathBuf, &[u8], u64)]) -> Result<Facts, HeadError> {
    let mut types = BTreeMap::new();
    let mut first = None;
    for (name, head, len) in parts {
        if let Some(what) = instead_of_a_model(head) {
            return Err(LoadError::Foreign { path: name.clone(), what }.into());
        }
        let (outline, counts) = Gguf::outline(head, *len).map_err(|source| gguf_error(name, head, *len, source))?;
        add(&mut types, counts);
        first.get_or_insert(outline);
    }
    let text = |key: &str| first.as_ref().and_then(|gguf| gguf.text(key)).map(str::to_owned);
    let architecture = text("general.architecture").unwrap_or_default();
    let context_len = first.as_ref().and_then(|gguf| gguf.uint(&format!("{architecture}.context_length")));
    let (name, licence) = (text("general.name"), text("general.license"));
    let chat_template = text("tokenizer.chat_template").is_some();
    // A table is large, and the next step reads them all.
    drop(first);
    Ok(Facts {
        format: Format::Gguf,
        name,
        parameters: types.values().sum(),
        types,
        context_len,
        chat_template,
        licence,
        file_bytes: parts.iter().map(|(_, _, len)| len).sum(),
        engine: gguf_needs(path, parts),
        architecture,
    })
}

fn gguf_needs(path: &Path, parts: &[(PathBuf, &[u8], u64)]) -> Result<Needs, LoadError> {
    let mut tables = Vec::new();
    for (name, head, len) in parts {
        let table = Gguf::parse_head(head, *len);
        tables.push((name.as_path(), table.map_err(|source| LoadError::Gguf { path: name.clone(), source })?));
    }
    let tables: Vec<(&Path, &Gguf)> = tables.iter().map(|(name, gguf)| (*name, gguf)).collect();
    let (config, mut weights) = gguf_model::shape(path, &tables)?;
    weights.tensors.remove(gguf_model::ROPE_FACTORS);
    needs(path, config, &weights)
}

fn gguf_error(path: &Path, head: &[u8], len: u64, source: GgufError) -> HeadError {
    match source {
        GgufError::Ends { .. } if (head.len() as u64) < len => HeadError::NeedsMore,
        source => LoadError::Gguf { path: path.into(), source }.into(),
    }
}

fn directory_at(dir: &Path) -> Result<Facts, HeadError> {
    let config_path = dir.join("config.json");
    let open = |path: &Path| std::fs::read(path).map_err(|source| LoadError::Open { path: path.into(), source });
    let config_json = open(&config_path)?;
    let mut shards = Vec::new();
    for path in directory::shards(dir)? {
        let map = map(&path)?;
        if let Some(what) = instead_of_a_model(&map) {
            return Err(LoadError::Foreign { path, what }.into());
        }
        shards.push((path, map));
    }
    let mut types = BTreeMap::new();
    for (path, map) in &shards {
        let counts =
            safetensors::outline(map).map_err(|source| LoadError::Safetensors { path: path.clone(), source })?;
        add(&mut types, counts);
    }
    let described: serde_json::Value =
        serde_json::from_slice(&config_json).map_err(|source| LoadError::Json { path: config_path.clone(), source })?;
    let licence = ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"].into_iter().find(|name| dir.join(name).exists());
    Ok(Facts {
        format: Format::Safetensors,
        name: dir.file_name().map(|name| name.to_string_lossy().into_owned()),
        architecture: described["model_type"].as_str().unwrap_or_default().to_owned(),
        parameters: types.values().sum(),
        types,
        context_len: described["max_position_embeddings"].as_u64(),
        chat_template: matches!(directory::chat_template(dir), Ok(Some(_))),
        licence: licence.map(str::to_owned),
        file_bytes: shards.iter().map(|(_, map)| map.len() as u64).sum(),
        engine: directory_needs(dir, &config_path, &config_json, &shards),
    })
}

fn directory_needs(
    dir: &Path,
    config_path: &Path,
    config_json: &[u8],
    shards: &[(PathBuf, Mapped)],
) -> Result<Needs, LoadError> {
    let mut tables = Vec::new();
    for (path, map) in shards {
        let table = safetensors::parse(map);
        tables.push((path.as_path(), table.map_err(|source| LoadError::Safetensors { path: path.clone(), source })?));
    }
    let (config, weights) = directory::shape(config_path, config_json, tables)?;
    needs(dir, config, &weights)
}

fn needs(path: &Path, config: ModelConfig, weights: &Weights) -> Result<Needs, LoadError> {
    tensors::check(&config, weights).map_err(|source| LoadError::Weights { path: path.into(), source })?;
    let weight_bytes = weight_bytes(&config, weights);
    Ok(Needs { config, weight_bytes })
}

fn add(types: &mut BTreeMap<String, u64>, counts: BTreeMap<String, u64>) {
    for (name, count) in counts {
        *types.entry(name).or_default() += count;
    }
}

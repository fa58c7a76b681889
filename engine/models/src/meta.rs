//! What a model file says about itself beside its weights.

use std::path::PathBuf;

/// Everything a server needs to know to speak for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelMeta {
    /// The file or directory it came from.
    pub path: PathBuf,
    /// `llama`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// The name its makers gave it, if the file says so.
    pub name: Option<String>,
    pub parameters: u64,
    /// What the model was trained for; an instance may be limited to less (`ModelInfo`).
    pub context_len: usize,
    /// As in [`stowage_engine_core::executor::ModelInfo`]: see `load` for what it covers.
    pub digest: [u8; 32],
    pub tokenizer: TokenizerSource,
    /// The default Jinja chat template, if there is one.
    pub chat_template: Option<String>,
    pub bos: Option<u32>,
    /// Every token that ends a generation. Sorted; may be empty.
    pub eog: Vec<u32>,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The tables of a GGUF file.
    Gguf(Box<GgufTokenizer>),
    /// A `tokenizer.json` beside safetensors.
    File(PathBuf),
}

/// `tokenizer.ggml.*`, as it is in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `gpt2` for byte-level BPE, `llama` for SentencePiece.
    pub model: String,
    /// Which splitting rules come before BPE: `smollm`, `qwen2`, `llama-bpe`…
    pub pre: Option<String>,
    /// Text of each token, as many as the vocabulary has rows. Byte-level BPE spells bytes as
    /// printable characters here.
    pub tokens: Vec<String>,
    /// One per token, or empty: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `left right`, the most important first.
    pub merges: Vec<String>,
    /// One per token, or empty (SentencePiece).
    pub scores: Vec<f32>,
    pub add_bos: bool,
    pub add_space_prefix: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

//! The metadata of a model beside its weights.

use std::path::PathBuf;

/// Everything a server needs to know to speak for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelMeta {
    /// The file or directory it came from.
    pub path: PathBuf,
    /// `llama`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// The name its makers gave it, if the file has one.
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
    /// Tokens that end a generation, as far as ids name them. Sorted; may be empty. Names of tokens are
    /// in `tokenizer`.
    pub eog: Vec<u32>,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The tables of a GGUF file.
    Gguf(Box<GgufTokenizer>),
    /// A `tokenizer.json` beside safetensors, and what the files around it say.
    Hf(Box<HfTokenizer>),
}

/// A `tokenizer.json` and the settings beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HfTokenizer {
    pub file: PathBuf,
    pub bos: Setting,
    pub eos: Setting,
    /// Texts of tokens that count as control tokens whatever flag they have in `tokenizer.json`.
    pub special: Vec<String>,
    /// Flags that win over those of `tokenizer.json`.
    pub added: Vec<AddedToken>,
    /// Whether a plain prompt begins with the first token of a text, `None`: as the post-processor of `tokenizer.json` does.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

/// The text of a named token.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Setting {
    /// No file has the setting.
    #[default]
    Missing,
    /// A file sets it to none.
    None,
    Text(String),
}

/// A token that is found in text before the text is split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    /// A control token: never shown in an answer.
    pub special: bool,
    /// Takes the white space before it along.
    pub lstrip: bool,
    /// Takes the white space after it along.
    pub rstrip: bool,
    /// Only where no letter or digit touches it.
    pub single_word: bool,
    /// Looked for after normalisation.
    pub normalized: bool,
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
    /// One per token: see [`TokenType`]. Tokens whose text only a control token has are control tokens here even
    /// where the file has another type.
    pub types: Vec<i32>,
    /// `left right`, the most important first.
    pub merges: Vec<String>,
    /// One per token, or empty (SentencePiece).
    pub scores: Vec<f32>,
    /// `None`: the file does not say; its kind decides.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

/// The token types of GGUF.
pub struct TokenType;

impl TokenType {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    /// Found in text before the text is split, and shown in answers.
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    /// `<0x0A>`: a byte for which there is no other token.
    pub const BYTE: i32 = 6;
}

//! Byte-level BPE from the tables in the file, and the special tokens beside it.

use std::collections::HashMap;
use std::path::Path;

use stowage_engine_models::GgufTokenizer;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::TextError;
use super::pieces::Pieces;

/// How the families split text before BPE, as in their published tokenizer.json.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Encodes plain text. Special tokens spelt out in it stay text.
#[derive(Clone)]
pub(super) struct Encoder(Tokenizer);

impl Encoder {
    pub(super) fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TextError> {
        if gguf.model != "gpt2" {
            return Err(TextError::UnknownTokenizer(gguf.model.clone()));
        }
        let splitter = splitter(gguf.pre.as_deref().unwrap_or("gpt-2"))?;
        let vocab: HashMap<String, u32> = gguf.tokens.iter().zip(0..).map(|(text, id)| (text.clone(), id)).collect();
        let merges = gguf.merges.iter().enumerate().map(|(index, merge)| split_merge(index, merge));
        let merges = merges.collect::<Result<Vec<_>, _>>()?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .build();
        let bpe = bpe.map_err(|err| TextError::Tokenizer(err.to_string()))?;
        let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(bpe));
        tokenizer.with_pre_tokenizer(Some(splitter));
        Ok(Self(tokenizer))
    }

    pub(super) fn from_file(path: &Path) -> Result<Self, TextError> {
        let mut tokenizer =
            Tokenizer::from_file(path).map_err(|err| TextError::Tokenizer(format!("{}: {err}", path.display())))?;
        tokenizer.set_encode_special_tokens(true);
        Ok(Self(tokenizer))
    }

    pub(super) fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self.0.encode_fast(text, false).map_err(|err| TextError::Tokenizer(err.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The special tokens of a tokenizer.json.
    pub(super) fn specials(&self) -> Specials {
        let added = self.0.get_added_tokens_decoder();
        Specials::new(added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (token.content, id)))
    }

    /// What a tokenizer.json puts before a plain prompt, when it is a single token.
    pub(super) fn prefix(&self) -> Option<u32> {
        let encoding = self.0.encode_fast("", true).ok()?;
        match encoding.get_ids() {
            [id] => Some(*id),
            _ => None,
        }
    }

    pub(super) fn pieces(&self) -> Pieces {
        Pieces::from_vocab(&self.0.get_vocab(true), &self.specials())
    }
}

fn split_merge(index: usize, merge: &str) -> Result<(String, String), TextError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(TextError::BadMerge { index, merge: merge.chars().take(40).collect() }),
    }
}

fn splitter(name: &str) -> Result<PreTokenizerWrapper, TextError> {
    let bytes = |use_regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, use_regex));
    let by_regex = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        split.map_err(|err| TextError::Tokenizer(err.to_string()))
    };
    Ok(match name {
        "gpt-2" | "gpt2" | "default" => bytes(true),
        "smollm" => PreTokenizerWrapper::Sequence(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            bytes(true),
        ])),
        "qwen2" => PreTokenizerWrapper::Sequence(Sequence::new(vec![by_regex(QWEN2)?.into(), bytes(false)])),
        "llama-bpe" | "llama3" => {
            PreTokenizerWrapper::Sequence(Sequence::new(vec![by_regex(LLAMA3)?.into(), bytes(false)]))
        }
        other => return Err(TextError::UnknownSplitter(other.to_owned())),
    })
}

/// The control tokens of a model, by their text.
#[derive(Clone, Default)]
pub(super) struct Specials {
    /// Longest first, so that the longest match wins.
    by_text: Vec<(String, u32)>,
    /// First bytes that occur, to skip quickly over ordinary text.
    starts: Vec<bool>,
}

/// A stretch of rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Special(u32),
}

impl Specials {
    pub(super) fn new(tokens: impl Iterator<Item = (String, u32)>) -> Self {
        let mut by_text: Vec<(String, u32)> = tokens.filter(|(text, _)| !text.is_empty()).collect();
        by_text.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        let mut starts = vec![false; 256];
        for (text, _) in &by_text {
            starts[text.as_bytes()[0] as usize] = true;
        }
        Self { by_text, starts }
    }

    /// Control (3) and user-defined (4) tokens.
    pub(super) fn from_gguf(gguf: &GgufTokenizer) -> Self {
        let kinds = gguf.types.iter().copied();
        let marked = gguf.tokens.iter().zip(0..).zip(kinds).filter(|(_, kind)| matches!(kind, 3 | 4));
        Self::new(marked.map(|((text, id), _)| (text.clone(), id)))
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.by_text.iter().any(|(_, special)| *special == id)
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.by_text.iter().find(|(text, _)| text == name).map(|(_, id)| *id)
    }

    pub(super) fn name(&self, id: u32) -> Option<&str> {
        self.by_text.iter().find(|(_, special)| *special == id).map(|(text, _)| text.as_str())
    }

    /// The special token at the start of `text`.
    pub(super) fn at_start(&self, text: &str) -> Option<(usize, u32)> {
        let first = *text.as_bytes().first()?;
        if !self.starts.get(first as usize).copied().unwrap_or(false) {
            return None;
        }
        let (found, id) = self.by_text.iter().find(|(special, _)| text.starts_with(special.as_str()))?;
        Some((found.len(), *id))
    }

    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            if let Some((len, id)) = self.at_start(&text[at..]) {
                if from < at {
                    parts.push(Part::Text(&text[from..at]));
                }
                parts.push(Part::Special(id));
                at += len;
                from = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        if from < text.len() {
            parts.push(Part::Text(&text[from..]));
        }
        parts
    }
}

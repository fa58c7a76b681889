//! The tables of a GGUF file: byte-level BPE by merges, SentencePiece BPE by scores.

use std::collections::{HashMap, HashSet};

use stowage_engine_models::{AddedToken, GgufTokenizer, ModelMeta, TokenType};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::encoder::{Encoder, Prefix};
use super::{AddedTokens, Pieces, TextError, Tokens};
use crate::text::pieces::Decoder;

/// How the families split text before BPE, as in their published tokenizer.json.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn tokens(gguf: &GgufTokenizer, meta: &ModelMeta) -> Result<Tokens, TextError> {
    let kind = Kind::of(gguf)?;
    let decoder = match &kind {
        Kind::ByteLevel(_) => Decoder::byte_level(),
        Kind::SentencePiece { prefix } => Decoder::sentence_piece(*prefix),
    };
    let (bos, eos) =
        (gguf.bos.or(kind.default_token(gguf, 1, "<s>")), gguf.eos.or(kind.default_token(gguf, 2, "</s>")));
    let added = added_tokens(gguf, [bos, eos]);
    let vocabulary = gguf.tokens.iter().map(String::as_str).zip(0..);
    let names = added.iter().map(|token| (token.content.as_str(), token.id, token.special));
    let pieces = Pieces::new(&decoder, vocabulary, names);
    let added = AddedTokens::new(added).map_err(TextError::Tokenizer)?;
    let tokenizer = match &kind {
        Kind::ByteLevel(family) => byte_level(gguf, family)?,
        Kind::SentencePiece { .. } => sentence_piece(gguf)?,
    };
    let prefix = match kind {
        Kind::SentencePiece { prefix: true } => Prefix::always(" "),
        _ => Prefix::None,
    };
    let name = |id: Option<u32>| id.and_then(|id| gguf.tokens.get(id as usize)).cloned();
    let when = |flag: Option<bool>, default: bool, id: Option<u32>| {
        id.filter(|_| flag.unwrap_or(default)).into_iter().collect()
    };
    Ok(Tokens {
        encoder: Encoder::new(tokenizer, prefix, &pieces, &added),
        before: when(gguf.add_bos, kind.adds_bos(), bos),
        after: when(gguf.add_eos, false, eos),
        bos: name(bos),
        eos: name(eos),
        ends: meta.eog.clone(),
        pieces,
        added,
    })
}

enum Kind {
    ByteLevel(Family),
    /// `prefix`: a space is put before each text.
    SentencePiece {
        prefix: bool,
    },
}

/// What llama.cpp, which defined the format, knows of a family beside its splitting rule.
struct Family {
    splitter: Splitter,
    /// A whole word of the vocabulary is that token, whatever merges would make of it.
    ignore_merges: bool,
    /// What `add_bos_token` is when the file does not say.
    add_bos: bool,
}

enum Splitter {
    Gpt2,
    /// GPT-2's rule after single digits.
    Digits,
    Regex(&'static str),
}

impl Kind {
    fn of(gguf: &GgufTokenizer) -> Result<Self, TextError> {
        match gguf.model.as_str() {
            "gpt2" => Ok(Kind::ByteLevel(Family::of(gguf.pre.as_deref().unwrap_or("default"))?)),
            "llama" => Ok(Kind::SentencePiece { prefix: gguf.add_space_prefix.unwrap_or(true) }),
            other => Err(TextError::UnknownTokenizer(other.to_owned())),
        }
    }

    fn adds_bos(&self) -> bool {
        match self {
            Kind::ByteLevel(family) => family.add_bos,
            Kind::SentencePiece { .. } => true,
        }
    }

    /// SentencePiece has its first ids in a fixed order, which files need not repeat.
    fn default_token(&self, gguf: &GgufTokenizer, id: u32, text: &str) -> Option<u32> {
        let is_there = gguf.tokens.get(id as usize).is_some_and(|token| token == text);
        (matches!(self, Kind::SentencePiece { .. }) && is_there).then_some(id)
    }
}

impl Family {
    fn of(pre: &str) -> Result<Self, TextError> {
        let plain = |splitter| Family { splitter, ignore_merges: false, add_bos: false };
        let whole_words = |splitter| Family { splitter, ignore_merges: true, add_bos: true };
        Ok(match pre {
            "gpt-2" | "gpt2" | "default" | "phi-2" | "mpt" | "olmo" | "jais" => plain(Splitter::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => plain(Splitter::Digits),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" => plain(Splitter::Regex(QWEN2)),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => whole_words(Splitter::Regex(LLAMA3)),
            "tekken" => whole_words(Splitter::Regex(TEKKEN)),
            other => return Err(TextError::UnknownSplitter(other.to_owned())),
        })
    }

    fn splitter(&self) -> Result<PreTokenizerWrapper, TextError> {
        let bytes = |use_regex| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, use_regex));
        Ok(match self.splitter {
            Splitter::Gpt2 => bytes(true),
            Splitter::Digits => PreTokenizerWrapper::Sequence(Sequence::new(vec![
                PreTokenizerWrapper::Digits(Digits::new(true)),
                bytes(true),
            ])),
            Splitter::Regex(pattern) => {
                let pattern = SplitPattern::Regex(pattern.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                let split = split.map_err(|err| TextError::Tokenizer(err.to_string()))?;
                PreTokenizerWrapper::Sequence(Sequence::new(vec![split.into(), bytes(false)]))
            }
        })
    }
}

/// Control and user-defined tokens, and the named ones whatever their type.
fn added_tokens(gguf: &GgufTokenizer, named: [Option<u32>; 2]) -> Vec<AddedToken> {
    let is_named = |id: u32, text: &str| named.contains(&Some(id)) && text.starts_with('<') && text.ends_with('>');
    let kinds = gguf.tokens.iter().zip(&gguf.types).zip(0..);
    let added = kinds.filter_map(|((text, kind), id)| {
        let special = match *kind {
            TokenType::CONTROL => true,
            TokenType::NORMAL | TokenType::USER_DEFINED if is_named(id, text) => true,
            TokenType::USER_DEFINED => false,
            _ => return None,
        };
        Some(AddedToken { id, content: text.clone(), special, ..AddedToken::default() })
    });
    added.collect()
}

/// The texts that ordinary text can become: no control token is among them, so none can be spelt out.
fn vocabulary(gguf: &GgufTokenizer) -> HashMap<String, u32> {
    let ids = gguf.tokens.iter().zip(&gguf.types).zip(0..);
    let ordinary = ids.filter(|((_, kind), _)| **kind != TokenType::CONTROL);
    ordinary.map(|((text, _), id)| (text.clone(), id)).collect()
}

fn byte_level(gguf: &GgufTokenizer, family: &Family) -> Result<Tokenizer, TextError> {
    let control: HashSet<&str> = gguf
        .tokens
        .iter()
        .zip(&gguf.types)
        .filter(|(_, kind)| **kind == TokenType::CONTROL)
        .map(|(text, _)| text.as_str())
        .collect();
    let mut merges = Vec::with_capacity(gguf.merges.len());
    for (index, merge) in gguf.merges.iter().enumerate() {
        let (left, right) = split_merge(index, merge)?;
        if !control.contains(format!("{left}{right}").as_str()) {
            merges.push((left, right));
        }
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(gguf).into_iter().collect::<Vocab>(), merges)
        .ignore_merges(family.ignore_merges)
        .build();
    let bpe = bpe.map_err(|err| TextError::Tokenizer(err.to_string()))?;
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(bpe));
    tokenizer.with_pre_tokenizer(Some(family.splitter()?));
    Ok(tokenizer)
}

fn split_merge(index: usize, merge: &str) -> Result<(String, String), TextError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(TextError::BadMerge { index, merge: merge.chars().take(40).collect() }),
    }
}

/// SentencePiece joins the neighbours whose union has the best score. As merges: every way to cut a
/// token into two others, best tokens first.
fn sentence_piece(gguf: &GgufTokenizer) -> Result<Tokenizer, TextError> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(TextError::Scores { scores: gguf.scores.len(), tokens: gguf.tokens.len() });
    }
    let normal = |id: u32| gguf.types.get(id as usize).is_none_or(|kind| *kind == TokenType::NORMAL);
    let vocabulary = vocabulary(gguf);
    let part = |text: &str| vocabulary.get(text).copied().filter(|id| normal(*id));
    let mut merges: Vec<(f32, u32, u32)> = Vec::new();
    for (text, id) in gguf.tokens.iter().zip(0..).filter(|(_, id)| normal(*id)) {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let score = gguf.scores[id as usize];
        merges.extend(cuts.filter_map(|(left, right)| Some((score, part(left)?, part(right)?))));
    }
    // Equal scores (runs of spaces have one) in the order of ids, as published conversions have them: so the
    // leftmost run grows first.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    let text = |id: u32| gguf.tokens[id as usize].clone();
    let merges = merges.into_iter().map(|(_, left, right)| (text(left), text(right))).collect();
    let unknown = gguf.types.iter().zip(0..).find(|(kind, _)| **kind == TokenType::UNKNOWN).map(|(_, id)| id);
    let unknown = gguf.unknown.or(unknown).and_then(|id| gguf.tokens.get(id as usize));
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocabulary.iter().map(|(text, id)| (text.clone(), *id)).collect::<Vocab>(), merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown.clone());
    }
    let bpe = bpe.build().map_err(|err| TextError::Tokenizer(err.to_string()))?;
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(bpe));
    let spaces = Replace::new(" ", "▁").map_err(|err| TextError::Tokenizer(err.to_string()))?;
    tokenizer.with_normalizer(Some(spaces)).map_err(|err| TextError::Tokenizer(err.to_string()))?;
    Ok(tokenizer)
}

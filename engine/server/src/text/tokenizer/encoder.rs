//! Text to tokens, in bounded memory.
//!
//! A tokenizer takes hundreds of bytes for each byte of text while it works, so a long text is encoded
//! in pieces. They are cut where the result is the same: at the border of two words of the splitting rule,
//! or, for vocabularies without such a rule, between two characters that no token has side by side. The
//! work ends as soon as there are too many tokens.

use std::collections::HashSet;

use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString};
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizer, PreTokenizerWrapper, Tokenizer};

use super::bounds::{LeastTokens, Lengths, whole};
use crate::text::added::AddedTokens;
use crate::text::pieces::Pieces;

/// Bytes that are encoded at once. Its cost is a few MiB and milliseconds.
const PIECE: usize = 16 << 10;
/// A text without a place to cut it for so many bytes is refused.
const LONGEST_PIECE: usize = 256 << 10;
/// How much of a piece's end is not trusted to be cut as the whole text would be.
const MARGIN: usize = 64;

/// Why a text was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The limit is the caller's.
    #[error("it has at least {at_least} tokens, more than the {limit} that are allowed")]
    TooLong { at_least: usize, limit: usize },
    #[error("it has {bytes} bytes in which the tokenizer finds no border between words: break it up")]
    Unbroken { bytes: usize },
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// Where a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum Place {
    /// Nothing comes before it.
    First,
    /// After an added token.
    Later,
}

/// What is put before a text so that its first word looks like the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    None,
    Some {
        text: String,
        /// Not where the text already begins with one of these characters.
        unless: Vec<char>,
        /// Only before the first text, not after added tokens.
        first_only: bool,
    },
}

impl Prefix {
    pub(super) fn always(text: &str) -> Self {
        Self::Some { text: text.to_owned(), unless: Vec::new(), first_only: false }
    }

    fn of(&self, text: &str, place: Place) -> &str {
        match self {
            Self::Some { text: prefix, unless, first_only }
                if (place == Place::First || !first_only) && !text.starts_with(unless.as_slice()) =>
            {
                prefix
            }
            _ => "",
        }
    }
}

/// Encodes text between added tokens.
pub(in crate::text) struct Encoder {
    /// Without prefix, truncation and post-processing; finds no special token in a text.
    tokenizer: Tokenizer,
    prefix: Prefix,
    least: LeastTokens,
    cuts: Cuts,
}

/// Where a text may be cut.
enum Cuts {
    /// At borders of the splitting rule, before characters beyond ASCII only where nothing joins them to
    /// what comes before.
    Words { ascii_only: bool },
    /// Between characters that no token has side by side.
    Pairs { together: HashSet<(char, char)>, space: char },
    /// Nowhere.
    Never,
}

impl Encoder {
    pub(super) fn new(tokenizer: Tokenizer, prefix: Prefix, pieces: &Pieces, added: &AddedTokens) -> Self {
        let texts = added.iter().map(|token| token.content.as_bytes());
        let strips = added.iter().any(|token| token.lstrip || token.rstrip);
        let mut uncounted = if strips { b" \t\r\n\x0b\x0c".to_vec() } else { Vec::new() };
        // Written by a user, the character that stands for a space takes three bytes of text.
        uncounted.extend("▁".as_bytes());
        let least = LeastTokens::new(pieces.iter().chain(texts), lengths(&tokenizer), &uncounted);
        Self { cuts: Cuts::of(&tokenizer), tokenizer, prefix, least }
    }

    /// A number of tokens that the text does not get below; exact enough to be compared with `enough`.
    pub(in crate::text) fn least(&self, text: &str, enough: usize) -> usize {
        self.least.of(text, enough)
    }

    /// How many bytes of the text make more than `enough` tokens already.
    pub(in crate::text) fn prefix(&self, text: &str, enough: usize) -> Option<usize> {
        self.least.prefix(text, enough)
    }

    /// Appends the tokens of a text. `limit` is for all of `ids`.
    pub(in crate::text) fn encode_into(
        &self,
        text: &str,
        place: Place,
        ids: &mut Vec<u32>,
        limit: usize,
    ) -> Result<(), EncodeError> {
        if text.is_empty() {
            return Ok(());
        }
        let too_long = |at_least: usize| Err(EncodeError::TooLong { at_least, limit });
        let mut remaining = self.least.sum(text, limit);
        let least = ids.len() + whole(remaining);
        if least > limit {
            return too_long(least);
        }
        let prefixed: String;
        let mut rest = match self.prefix.of(text, place) {
            "" => text,
            prefix => {
                prefixed = format!("{prefix}{text}");
                &prefixed
            }
        };
        let mut size = PIECE;
        while rest.len() > size {
            let window = &rest[..rest.floor_char_boundary(size)];
            match self.cut(window)? {
                Some(at) => {
                    let piece;
                    (piece, rest) = rest.split_at(at);
                    self.encode_piece(piece, ids)?;
                    size = PIECE;
                    remaining -= self.least.sum(piece, usize::MAX);
                    let least = ids.len() + whole(remaining);
                    if least > limit {
                        return too_long(least);
                    }
                }
                None if size >= LONGEST_PIECE => return Err(EncodeError::Unbroken { bytes: window.len() }),
                None => size *= 2,
            }
        }
        self.encode_piece(rest, ids)?;
        if ids.len() > limit { too_long(ids.len()) } else { Ok(()) }
    }

    fn encode_piece(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|err| EncodeError::Failed(err.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The last place in the window at which cutting changes nothing, whatever follows the window.
    fn cut(&self, window: &str) -> Result<Option<usize>, EncodeError> {
        match &self.cuts {
            Cuts::Never => Ok(None),
            Cuts::Pairs { together, space } => Ok(between_pairs(window, together, *space)),
            Cuts::Words { ascii_only } => self.between_words(window, *ascii_only),
        }
    }

    fn between_words(&self, window: &str, ascii_only: bool) -> Result<Option<usize>, EncodeError> {
        let borders = self.borders(window)?;
        let trusted = window.len().saturating_sub(MARGIN);
        // Two words before the end, so that whatever the rule looks ahead for is in the window.
        let usable = |at: usize| at > 0 && at <= trusted && (!ascii_only || window.as_bytes()[at].is_ascii());
        let candidates = borders.iter().rev().skip(2).filter(|at| usable(**at)).take(8);
        for at in candidates {
            // The words before it must come out the same when the text ends there and begins anywhere.
            let from = borders.iter().rev().find(|b| **b + 256 <= *at).copied().unwrap_or(0);
            let alone = self.borders(&window[from..*at])?;
            let in_window = borders.iter().filter(|b| (from..*at).contains(b)).map(|b| b - from);
            if alone.into_iter().eq(in_window) {
                return Ok(Some(*at));
            }
        }
        Ok(None)
    }

    /// Where words of the splitting rule begin.
    fn borders(&self, text: &str) -> Result<Vec<usize>, EncodeError> {
        let mut split = PreTokenizedString::from(text);
        if let Some(rule) = self.tokenizer.get_pre_tokenizer() {
            rule.pre_tokenize(&mut split).map_err(|err| EncodeError::Failed(err.to_string()))?;
        }
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(_, (from, _), _)| from).collect())
    }
}

fn between_pairs(window: &str, together: &HashSet<(char, char)>, space: char) -> Option<usize> {
    let spelt = |c: char| if c == ' ' { space } else { c };
    let mut characters = window.char_indices().rev();
    let (mut at, mut next) = characters.next()?;
    for (before, c) in characters {
        if !together.contains(&(spelt(c), spelt(next))) {
            return Some(at);
        }
        (at, next) = (before, c);
    }
    None
}

impl Cuts {
    fn of(tokenizer: &Tokenizer) -> Self {
        let replaces_only_spaces = match tokenizer.get_normalizer() {
            None => true,
            Some(NormalizerWrapper::Replace(replace)) => spaces_become(replace),
            Some(_) => false,
        };
        match tokenizer.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::Metaspace(metaspace)) if replaces_only_spaces => {
                Self::pairs(tokenizer, metaspace.get_replacement())
            }
            None if replaces_only_spaces => Self::pairs(tokenizer, '▁'),
            Some(_) => match tokenizer.get_normalizer() {
                None => Self::Words { ascii_only: false },
                Some(NormalizerWrapper::NFC(_)) => Self::Words { ascii_only: true },
                Some(_) => Self::Never,
            },
            None => Self::Never,
        }
    }

    /// For models in which unknown characters do not join into one token.
    fn pairs(tokenizer: &Tokenizer, space: char) -> Self {
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return Self::Never };
        if bpe.fuse_unk && !bpe.byte_fallback {
            return Self::Never;
        }
        let mut together = HashSet::new();
        for text in tokenizer.get_vocab(false).keys() {
            together.extend(text.chars().zip(text.chars().skip(1)));
        }
        Self::Pairs { together, space }
    }
}

fn spaces_become(replace: &tokenizers::normalizers::replace::Replace) -> bool {
    let json = serde_json::to_value(replace).unwrap_or_default();
    json.pointer("/pattern/String").is_some_and(|pattern| pattern == " ") && json["content"] == "▁"
}

/// What the tokenizer does to the length of a text.
fn lengths(tokenizer: &Tokenizer) -> Lengths {
    let (joins_unknown, known_model) = match tokenizer.get_model() {
        ModelWrapper::BPE(bpe) => (bpe.unk_token.is_some() && bpe.fuse_unk && !bpe.byte_fallback, true),
        _ => (true, false),
    };
    if !known_model || joins_unknown {
        return Lengths::Unknown;
    }
    match tokenizer.get_normalizer() {
        None | Some(NormalizerWrapper::NFD(_)) => Lengths::Kept,
        Some(NormalizerWrapper::Replace(replace)) if spaces_become(replace) => Lengths::Kept,
        Some(NormalizerWrapper::NFC(_)) => Lengths::AsciiKept,
        Some(_) => Lengths::Unknown,
    }
}

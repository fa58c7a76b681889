//! The bytes each token stands for.
//!
//! A token is bytes and not text: one character may take several tokens. Vocabularies spell bytes in
//! two ways, and which one is used shows in the vocabulary itself: byte-level BPE maps every byte to
//! a printable character (a space is `Ġ`), SentencePiece writes `▁` for a space and `<0x0A>` for a
//! byte it has no text for.

use std::collections::HashMap;

use stowage_engine_models::GgufTokenizer;

use super::tokenizer::Specials;

/// Bytes per token id. Control tokens stand for nothing.
#[derive(Clone, Default)]
pub struct Pieces(Vec<Box<[u8]>>);

impl Pieces {
    pub(super) fn from_gguf(gguf: &GgufTokenizer) -> Self {
        let table = char_to_byte();
        let is_text = |id: usize| !matches!(gguf.types.get(id), Some(3 | 5));
        let piece = |(id, text): (usize, &String)| if is_text(id) { byte_level(&table, text) } else { Box::default() };
        Self(gguf.tokens.iter().enumerate().map(piece).collect())
    }

    pub(super) fn from_vocab(vocab: &HashMap<String, u32>, specials: &Specials) -> Self {
        let table = char_to_byte();
        let is_byte_level = vocab.keys().any(|text| text.starts_with('Ġ'));
        let size = vocab.values().max().map_or(0, |max| *max as usize + 1);
        let mut pieces = vec![Box::default(); size];
        for (text, id) in vocab {
            if !specials.contains(*id) {
                pieces[*id as usize] = if is_byte_level { byte_level(&table, text) } else { sentence_piece(text) };
            }
        }
        Self(pieces)
    }

    /// The bytes of a token; nothing for control tokens and for ids that do not exist.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.0.get(token as usize).map_or(&[], |piece| piece)
    }

    /// For people: broken characters are replaced.
    pub fn text(&self, token: u32) -> String {
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }
}

fn byte_level(table: &HashMap<char, u8>, text: &str) -> Box<[u8]> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| table.get(&c).copied()).collect();
    // Tokens added later are spelt as they are.
    bytes.unwrap_or_else(|| text.as_bytes().to_vec()).into_boxed_slice()
}

fn sentence_piece(text: &str) -> Box<[u8]> {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => Box::new([byte]),
        None => text.replace('▁', " ").into_bytes().into_boxed_slice(),
    }
}

/// GPT-2's alphabet: printable Latin-1 bytes are themselves, the other 68 come after U+0100.
pub(super) fn byte_to_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !is_printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn char_to_byte() -> HashMap<char, u8> {
    (0..=255).map(|byte| (byte_to_char(byte), byte)).collect()
}

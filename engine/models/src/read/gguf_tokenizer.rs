//! `tokenizer.ggml.*` of a GGUF file.
//!
//! Converters have written wrong token types for years (`<|im_end|>` as an ordinary token), and then a
//! model's turns do not end and its template's markers are split like words. So the text decides where
//! it leaves no doubt.

use super::gguf::{Gguf, Value};
use crate::meta::{GgufTokenizer, TokenType};

/// Tokens that end a turn in the models that have them.
const ENDS: [&str; 14] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

pub(super) fn tokenizer(gguf: &Gguf) -> GgufTokenizer {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| gguf.uint(&key(name)).and_then(|n| u32::try_from(n).ok());
    let strings = |name: &str| gguf.strings(&key(name)).map(<[String]>::to_vec).unwrap_or_default();
    let tokens = strings("tokens");
    let mut types: Vec<i32> = match gguf.metadata.get(&key("token_type")) {
        Some(Value::Ints(v)) => v.iter().map(|t| *t as i32).collect(),
        _ => Vec::new(),
    };
    types.resize(tokens.len(), TokenType::NORMAL);
    for (ty, text) in types.iter_mut().zip(&tokens) {
        let may_be_wrong = matches!(*ty, TokenType::NORMAL | TokenType::USER_DEFINED);
        if may_be_wrong && is_marker(text) {
            *ty = TokenType::CONTROL;
        }
    }
    GgufTokenizer {
        model: gguf.text(&key("model")).unwrap_or_default().to_owned(),
        pre: gguf.text(&key("pre")).map(str::to_owned),
        tokens,
        types,
        merges: strings("merges"),
        scores: match gguf.metadata.get(&key("scores")) {
            Some(Value::Floats(v)) => v.clone(),
            _ => Vec::new(),
        },
        add_bos: gguf.flag(&key("add_bos_token")),
        add_eos: gguf.flag(&key("add_eos_token")),
        add_space_prefix: gguf.flag(&key("add_space_prefix")),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
    }
}

/// A text that no vocabulary learns from ordinary text: a known end of a turn, or `<|name|>`.
fn is_marker(text: &str) -> bool {
    let inner = |open: &str, close: &str| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    let name = inner("<|", "|>").or_else(|| inner("<｜", "｜>"));
    ENDS.contains(&text) || name.is_some_and(|name| !name.is_empty() && !name.contains(char::is_whitespace))
}

/// The ids the file names, and tokens whose text is known to end a turn. Sorted.
pub(super) fn end_tokens(gguf: &Gguf, tokenizer: &GgufTokenizer) -> Vec<u32> {
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"]
        .iter()
        .filter_map(|name| gguf.uint(&format!("tokenizer.ggml.{name}")))
        .filter_map(|id| u32::try_from(id).ok());
    let known = tokenizer.tokens.iter().zip(0..).filter(|(text, _)| ENDS.contains(&text.as_str())).map(|(_, id)| id);
    let mut ids: Vec<u32> = named.chain(known).chain(default_end(tokenizer)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// SentencePiece models whose file names no end have it at 2.
fn default_end(tokenizer: &GgufTokenizer) -> Option<u32> {
    let is_end = tokenizer.tokens.get(2).is_some_and(|text| text == "</s>");
    (tokenizer.model == "llama" && tokenizer.eos.is_none() && is_end).then_some(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_is_known_by_its_text() {
        for text in ["<|im_end|>", "<|im_start|>", "<|reserved_special_token_7|>", "<end_of_turn>", "<｜User｜>"] {
            assert!(is_marker(text), "{text}");
        }
        for text in ["<|", "|>", "<||>", "<| a |>", "hello", "<s>", "<tool_call>"] {
            assert!(!is_marker(text), "{text}");
        }
    }
}

//! A `tokenizer.json`, with what the files around it say about its tokens.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use stowage_engine_models::{AddedToken, HfTokenizer, ModelMeta, Setting};
use tokenizers::{NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use super::encoder::{Encoder, Prefix};
use super::{AddedTokens, Pieces, TextError, Tokens};
use crate::text::pieces::Decoder;

/// The parts of the file that are looked at here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    normalized: bool,
}

pub(super) fn tokens(hf: &HfTokenizer, meta: &ModelMeta) -> Result<Tokens, TextError> {
    let failed = |err: String| TextError::Tokenizer(format!("{}: {err}", hf.file.display()));
    let bytes = std::fs::read(&hf.file).map_err(|err| failed(err.to_string()))?;
    let mut file: File = serde_json::from_slice(&bytes).map_err(|err| failed(err.to_string()))?;
    let decoder = Decoder::from_json(&file.decoder)?;
    let prefix = take_prefix(&mut file);
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|err| failed(err.to_string()))?;
    drop(bytes);
    let File { added_tokens, normalizer, pre_tokenizer, post_processor, .. } = file;
    make_bare(&mut tokenizer, normalizer, pre_tokenizer).map_err(&failed)?;
    let vocabulary = tokenizer.get_vocab(false);
    let added = with_settings(added_tokens, hf, meta, &|text| vocabulary.get(text).copied());
    let special = added.iter().filter(|token| token.special);
    let special = special.map(|token| tokenizers::AddedToken::from(token.content.clone(), true));
    tokenizer.add_special_tokens(special).map_err(|err| failed(err.to_string()))?;
    let words = vocabulary.iter().map(|(text, id)| (text.as_str(), *id));
    let names = added.iter().map(|token| (token.content.as_str(), token.id, token.special));
    let pieces = Pieces::new(&decoder, words, names);
    let added = AddedTokens::new(added).map_err(&failed)?;
    let named = |id: Option<u32>| id.and_then(|id| added.text(id)).map(str::to_owned);
    let text = |setting: &Setting, id: Option<u32>| match setting {
        Setting::Text(text) => Some(text.clone()),
        Setting::None => None,
        Setting::Missing => named(id),
    };
    let (bos, eos) = (text(&hf.bos, meta.bos), text(&hf.eos, meta.eog.first().copied()));
    let id = |text: &Option<String>| text.as_deref().and_then(|text| added.id(text));
    let (before, after) = around(&post_processor);
    let set = |flag: Option<bool>, token: Option<u32>, file: Vec<u32>| match flag {
        Some(true) => token.into_iter().collect(),
        Some(false) => Vec::new(),
        None => file,
    };
    let mut ends: Vec<u32> = meta.eog.iter().copied().chain(id(&eos)).collect();
    ends.sort_unstable();
    ends.dedup();
    Ok(Tokens {
        encoder: Encoder::new(tokenizer, prefix, &pieces, &added),
        before: set(hf.add_bos, id(&bos), before),
        after: set(hf.add_eos, id(&eos), after),
        bos,
        eos,
        ends,
        pieces,
        added,
    })
}

/// Leaves only the model and what comes before it. No special token is found in text (see [`super`]),
/// nothing is put around a text, and nothing is cut off or filled up, which is for training.
fn make_bare(tokenizer: &mut Tokenizer, normalizer: Value, pre_tokenizer: Value) -> Result<(), String> {
    let text = |err: serde_json::Error| err.to_string();
    let normalizer: Option<NormalizerWrapper> = serde_json::from_value(normalizer).map_err(text)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> = serde_json::from_value(pre_tokenizer).map_err(text)?;
    tokenizer.with_normalizer(normalizer).map_err(|err| err.to_string())?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    tokenizer.with_truncation(None).map_err(|err| err.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    Ok(())
}

/// The file's added tokens, with the flags that other files give them. Tokens that those name and ids
/// that end an answer are control tokens, wherever they come from.
fn with_settings(
    file: Vec<Added>,
    hf: &HfTokenizer,
    meta: &ModelMeta,
    id: &dyn Fn(&str) -> Option<u32>,
) -> Vec<AddedToken> {
    let own = file.into_iter().map(|Added { id, content, special, lstrip, rstrip, single_word, normalized }| {
        AddedToken { id, content, special, lstrip, rstrip, single_word, normalized }
    });
    let mut tokens: BTreeMap<String, AddedToken> = own.map(|token| (token.content.clone(), token)).collect();
    for token in &hf.added {
        // The file's id counts: it is the one the vocabulary was made with.
        let id = tokens.get(&token.content).map_or(token.id, |own| own.id);
        tokens.insert(token.content.clone(), AddedToken { id, ..token.clone() });
    }
    let defaults = [&hf.bos, &hf.eos].into_iter().filter_map(|setting| match setting {
        Setting::Text(text) => Some(text),
        _ => None,
    });
    for text in hf.special.iter().chain(defaults) {
        match (tokens.get_mut(text), id(text)) {
            (Some(token), _) => token.special = true,
            (None, Some(id)) => {
                let token = AddedToken { id, content: text.clone(), special: true, ..AddedToken::default() };
                tokens.insert(text.clone(), token);
            }
            (None, None) => {}
        }
    }
    let mut tokens: Vec<AddedToken> = tokens.into_values().collect();
    tokens.iter_mut().filter(|token| meta.eog.contains(&token.id)).for_each(|token| token.special = true);
    tokens
}

/// Takes what is put before texts out of normaliser and pre-tokenizer, where it would be put before every
/// piece of a long text.
fn take_prefix(file: &mut File) -> Prefix {
    if let Some(prefix) = take_prepend(&mut file.normalizer) {
        return prefix;
    }
    let pre = &mut file.pre_tokenizer;
    let first = if pre["type"] == "Sequence" { pre.pointer_mut("/pretokenizers/0") } else { Some(pre) };
    let Some(Value::Object(first)) = first else { return Prefix::None };
    let text = |name: &str| first.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let add = first.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
    match text("type").as_str() {
        "Metaspace" => {
            let (scheme, space) = (text("prepend_scheme"), text("replacement"));
            first.remove("add_prefix_space");
            first.insert("prepend_scheme".to_owned(), "never".into());
            if !add || scheme == "never" {
                return Prefix::None;
            }
            let unless = std::iter::once(' ').chain(space.chars()).collect();
            Prefix::Some { text: space, unless, first_only: scheme == "first" }
        }
        "ByteLevel" if add => {
            first.insert("add_prefix_space".to_owned(), false.into());
            Prefix::Some { text: " ".to_owned(), unless: vec![' '], first_only: false }
        }
        _ => Prefix::None,
    }
}

/// `Prepend`, alone or first in a sequence. What is left of a sequence of two is the other one.
fn take_prepend(normalizer: &mut Value) -> Option<Prefix> {
    let prefix = |step: &Value| {
        let text = step.get("prepend").and_then(Value::as_str).filter(|_| step["type"] == "Prepend")?;
        Some(Prefix::always(text))
    };
    if let Some(found) = prefix(normalizer) {
        *normalizer = Value::Null;
        return Some(found);
    }
    let steps = normalizer.get_mut("normalizers").and_then(Value::as_array_mut)?;
    let found = prefix(steps.first()?)?;
    steps.remove(0);
    if steps.len() == 1 {
        *normalizer = steps.remove(0);
    }
    Some(found)
}

/// The tokens that the post-processor puts before and after a single text.
fn around(processor: &Value) -> (Vec<u32>, Vec<u32>) {
    let id =
        |pair: &Value| pair.get(1).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()).into_iter().collect();
    match processor["type"].as_str() {
        Some("Sequence") => {
            let parts = processor["processors"].as_array().into_iter().flatten().map(around);
            parts.fold((Vec::new(), Vec::new()), |(before, after), (outer, outer_after)| {
                ([outer, before].concat(), [after, outer_after].concat())
            })
        }
        Some("TemplateProcessing") => template(processor),
        Some("BertProcessing" | "RobertaProcessing") => (id(&processor["cls"]), id(&processor["sep"])),
        _ => (Vec::new(), Vec::new()),
    }
}

fn template(processor: &Value) -> (Vec<u32>, Vec<u32>) {
    let (mut before, mut after, mut passed) = (Vec::new(), Vec::new(), false);
    for part in processor["single"].as_array().into_iter().flatten() {
        passed |= part.get("Sequence").is_some();
        let Some(name) = part.pointer("/SpecialToken/id").and_then(Value::as_str) else { continue };
        let ids = processor["special_tokens"][name]["ids"].as_array().into_iter().flatten();
        let ids = ids.filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
        if passed { after.extend(ids) } else { before.extend(ids) }
    }
    (before, after)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_around_a_text_are_those_of_the_template() {
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        });
        assert_eq!(around(&template), (vec![1], vec![2]));
        let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        assert_eq!(around(&sequence), (vec![1], vec![2]));
        assert_eq!(around(&json!({"type": "ByteLevel"})), (vec![], vec![]));
        assert_eq!(around(&Value::Null), (vec![], vec![]));
    }

    #[test]
    fn prepend_is_taken_out_of_a_sequence() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
        assert_eq!(take_prepend(&mut normalizer), Some(Prefix::always("▁")));
        assert_eq!(normalizer, replace);
        assert_eq!(take_prepend(&mut normalizer), None);
    }
}

//! What the files beside `tokenizer.json` say about control tokens, in the order in which
//! `transformers` reads them: `tokenizer_config.json`; where that lacks `added_tokens_decoder` (written
//! by old versions) `special_tokens_map.json` wins over it; then the defaults of the tokenizer's class.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::LoadError;
use crate::meta::{AddedToken, HfTokenizer, Setting};

/// Names under which a token counts as a control token.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Reads the settings of the tokenizer in `dir` with `read`, which gives `None` for a file that does not exist.
pub(super) fn settings(
    dir: &Path,
    read: &dyn Fn(&Path) -> Result<Option<Value>, LoadError>,
) -> Result<HfTokenizer, LoadError> {
    let object = |name: &str| {
        let value = read(&dir.join(name))?;
        Ok::<_, LoadError>(match value {
            Some(Value::Object(map)) => Some(map),
            _ => None,
        })
    };
    let config = object("tokenizer_config.json")?;
    let old = config.as_ref().is_none_or(|config| !config.contains_key("added_tokens_decoder"));
    let map = if old { object("special_tokens_map.json")? } else { None };
    let sources: Vec<&Map<String, Value>> = map.iter().chain(&config).collect();
    let class = config.as_ref().and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
    let defaults = ClassDefaults::of(class);
    let named = |name: &str| sources.iter().find_map(|source| source.get(name)).map(text);
    let flag = |name: &str| config.as_ref().and_then(|config| config.get(name)).and_then(Value::as_bool);
    let setting = |name: &str, default: Option<&str>| match (named(name), default) {
        (Some(Some(text)), _) => Setting::Text(text),
        (Some(None), _) => Setting::None,
        (None, Some(default)) => Setting::Text(default.to_owned()),
        (None, None) => Setting::Missing,
    };
    let more = sources.iter().filter_map(|source| source.get("additional_special_tokens")).filter_map(Value::as_array);
    let special = NAMED.iter().filter_map(|name| named(name).flatten()).chain(more.flatten().filter_map(text));
    Ok(HfTokenizer {
        file: dir.join("tokenizer.json"),
        bos: setting("bos_token", defaults.bos),
        eos: setting("eos_token", defaults.eos),
        special: special.collect(),
        added: config.as_ref().and_then(|config| config.get("added_tokens_decoder")).map(added).unwrap_or_default(),
        add_bos: flag("add_bos_token").or(defaults.add_bos),
        add_eos: flag("add_eos_token").or(defaults.add_eos),
    })
}

/// What a tokenizer class of `transformers` sets where the files say nothing.
#[derive(Default)]
struct ClassDefaults {
    bos: Option<&'static str>,
    eos: Option<&'static str>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
}

impl ClassDefaults {
    fn of(class: Option<&str>) -> ClassDefaults {
        match class {
            Some("LlamaTokenizer" | "LlamaTokenizerFast" | "CodeLlamaTokenizer" | "CodeLlamaTokenizerFast") => {
                let (add_bos, add_eos) = (Some(true), Some(false));
                ClassDefaults { bos: Some("<s>"), eos: Some("</s>"), add_bos, add_eos }
            }
            Some("Qwen2Tokenizer" | "Qwen2TokenizerFast") => {
                ClassDefaults { eos: Some("<|endoftext|>"), ..ClassDefaults::default() }
            }
            _ => ClassDefaults::default(),
        }
    }
}

/// A token given as its text or as an object with its text.
fn text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

fn added(decoder: &Value) -> Vec<AddedToken> {
    let token = |(id, value): (&String, &Value)| {
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
        Some(AddedToken {
            id: id.parse().ok()?,
            content: text(value)?,
            special: flag("special"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            single_word: flag("single_word"),
            normalized: flag("normalized"),
        })
    };
    decoder.as_object().into_iter().flatten().filter_map(token).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value, map: Option<Value>) -> HfTokenizer {
        let files = |path: &Path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            Ok(match name.as_str() {
                "tokenizer_config.json" => Some(config.clone()),
                "special_tokens_map.json" => map.clone(),
                _ => None,
            })
        };
        settings(Path::new("model"), &files).unwrap()
    }

    fn text_of(text: &str) -> Setting {
        Setting::Text(text.to_owned())
    }

    #[test]
    fn token_given_as_text_or_object_is_read() {
        let found = read(json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}), None);
        assert_eq!((found.bos, found.eos), (text_of("<s>"), text_of("</s>")));
        assert_eq!(found.special, ["<s>", "</s>"]);
    }

    #[test]
    fn null_means_none_and_absence_means_missing() {
        let found = read(json!({"bos_token": null}), None);
        assert_eq!((found.bos, found.eos), (Setting::None, Setting::Missing));
    }

    #[test]
    fn special_tokens_map_wins_only_over_old_configs() {
        let map = || Some(json!({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}));
        let old = read(json!({"eos_token": "</s>"}), map());
        assert_eq!(
            (old.eos, &old.special[..]),
            (text_of("<|im_end|>"), &["<|im_end|>".to_owned(), "<|im_start|>".into()][..])
        );
        let new = read(json!({"eos_token": "</s>", "added_tokens_decoder": {}}), map());
        assert_eq!(new.eos, text_of("</s>"));
    }

    #[test]
    fn llama_class_has_defaults_that_settings_override() {
        let found = read(json!({"tokenizer_class": "LlamaTokenizer"}), None);
        assert_eq!((found.bos, found.add_bos, found.add_eos), (text_of("<s>"), Some(true), Some(false)));
        let found = read(json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false}), None);
        assert_eq!(found.add_bos, Some(false));
    }

    #[test]
    fn flags_of_added_tokens_are_read() {
        let found =
            read(json!({"added_tokens_decoder": {"7": {"content": "<x>", "special": true, "rstrip": true}}}), None);
        let want = AddedToken { id: 7, content: "<x>".into(), special: true, rstrip: true, ..AddedToken::default() };
        assert_eq!(found.added, [want]);
    }
}

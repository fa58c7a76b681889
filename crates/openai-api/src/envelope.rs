//! The few fields a router needs, read without building the rest.
//!
//! The body stays as it came and is relayed byte by byte; other fields are the engine's to judge.
//! Well-formed JSON takes one pass that allocates only the model's name. Only when that pass fails
//! is the body parsed again, slowly, to name the wrong field.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use serde_json::Value;

use crate::ApiError;
use crate::fields::{Fields, missing};

/// What a gateway routes, limits and accounts by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The name of the model, as the client sent it.
    pub model: String,
    /// The answer comes as events.
    pub stream: bool,
    /// The stream's last event carries the usage.
    pub include_usage: bool,
    /// `max_completion_tokens`, else `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Choices per prompt. At least 1.
    pub n: u32,
    /// Prompts in `prompt`, each continued `n` times. At least 1; 1 for chat.
    pub prompts: u32,
}

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    prompt: Option<PromptCount>,
}

/// How many prompts there are, regardless of their content: an array of texts or of token lists is several,
/// a text or a list of token ids is one.
struct PromptCount(u32);

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Envelope {
    /// Sequences that the engine will run for it. At least 1.
    pub fn sequences(&self) -> u64 {
        u64::from(self.n) * u64::from(self.prompts)
    }

    /// Reads the envelope of a chat, completion or embedding request.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        // serde would also read an array of the right length into a struct; only objects are meant.
        let is_object = body.trim_ascii_start().first() == Some(&b'{');
        match serde_json::from_slice::<Wire>(body) {
            Ok(wire) if is_object => wire.narrow(),
            _ => Self::parse_slowly(body),
        }
    }

    fn parse_slowly(body: &[u8]) -> Result<Self, ApiError> {
        let most = i64::from(u32::MAX);
        let mut fields = Fields::from_body(body, None)?;
        let wire = Wire {
            model: fields.string("model")?,
            stream: fields.boolean("stream")?,
            stream_options: match fields.object("stream_options")? {
                Some(mut options) => Some(StreamOptions { include_usage: options.boolean("include_usage")? }),
                None => None,
            },
            max_tokens: fields.integer("max_tokens", 0, most)?.map(|n| n as u32),
            max_completion_tokens: fields.integer("max_completion_tokens", 0, most)?.map(|n| n as u32),
            n: fields.integer("n", 0, most)?.map(|n| n as u32),
            prompt: fields.take("prompt").map(|prompt| PromptCount::of(&prompt)),
        };
        wire.narrow()
    }
}

impl Wire {
    fn narrow(self) -> Result<Envelope, ApiError> {
        Ok(Envelope {
            model: self.model.ok_or_else(|| missing("model", "the name of a model"))?,
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            n: self.n.unwrap_or(1).max(1),
            prompts: self.prompt.map_or(1, |prompt| prompt.0.max(1)),
        })
    }
}

impl PromptCount {
    fn of(prompt: &Value) -> Self {
        let count = match prompt {
            Value::Array(items) if items.iter().any(|item| !item.is_number()) => items.len(),
            _ => 1,
        };
        Self(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

impl<'de> Deserialize<'de> for PromptCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountPrompts)
    }
}

/// Looks at the elements of an array and keeps none of them. Anything else counts as one prompt; the
/// engine refuses what is none.
struct CountPrompts;

macro_rules! one_prompt {
    ($($visit:ident: $from:ty),+) => {
        $(fn $visit<E>(self, _: $from) -> Result<PromptCount, E> {
            Ok(PromptCount(1))
        })+
    };
}

impl<'de> Visitor<'de> for CountPrompts {
    type Value = PromptCount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }

    one_prompt!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<PromptCount, E> {
        Ok(PromptCount(1))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PromptCount, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(PromptCount(1))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<PromptCount, A::Error> {
        let (mut count, mut only_numbers) = (0_u32, true);
        while let Some(item) = items.next_element::<Element>()? {
            count = count.saturating_add(1);
            only_numbers &= item.is_number;
        }
        Ok(PromptCount(if only_numbers { 1 } else { count }))
    }
}

/// An element of `prompt`.
struct Element {
    is_number: bool,
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadElement)
    }
}

struct ReadElement;

macro_rules! element {
    ($is_number:literal: $($visit:ident: $from:ty),+) => {
        $(fn $visit<E>(self, _: $from) -> Result<Element, E> {
            Ok(Element { is_number: $is_number })
        })+
    };
}

impl<'de> Visitor<'de> for ReadElement {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an element of a prompt")
    }

    element!(true: visit_i64: i64, visit_u64: u64, visit_f64: f64);
    element!(false: visit_bool: bool, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Element, E> {
        Ok(Element { is_number: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element { is_number: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Element, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element { is_number: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_and_param(body: &str) -> (&'static str, Option<String>) {
        let err = Envelope::parse(body.as_bytes()).unwrap_err();
        (err.code, err.param)
    }

    #[test]
    fn other_fields_are_left_to_the_engine() {
        let body =
            br#"{"model":"m","messages":[{"role":1}],"stream":true,"stream_options":{"include_usage":true},"x":[]}"#;
        let envelope = Envelope::parse(body).unwrap();
        let expected =
            Envelope { model: "m".into(), stream: true, include_usage: true, max_tokens: None, n: 1, prompts: 1 };
        assert_eq!(envelope, expected);
    }

    #[test]
    fn the_newer_name_of_max_tokens_wins() {
        let body = br#"{"model":"m","max_tokens":3,"max_completion_tokens":5,"n":2}"#;
        let envelope = Envelope::parse(body).unwrap();
        assert_eq!((envelope.max_tokens, envelope.n), (Some(5), 2));
    }

    #[test]
    fn prompts_are_counted_fast_and_slowly_alike() {
        let big = "9".repeat(400);
        for (prompt, count) in [
            (r#""a""#, 1),
            (r#"["a","b"]"#, 2),
            ("[1,2,3]", 1),
            ("[[1,2],[3]]", 2),
            ("[]", 1),
            ("null", 1),
            ("7", 1),
            (r#"{"a":1}"#, 1),
            (r#"["a",1,null,{"x":[{}]}]"#, 4),
            ("[1,[2]]", 2),
            ("true", 1),
            ("1.5", 1),
            (&format!("[-1,{}]", &big[..300]), 1),
        ] {
            let fast = Envelope::parse(format!(r#"{{"model":"m","prompt":{prompt}}}"#).as_bytes()).unwrap();
            let slow = Envelope::parse(format!(r#"{{"model":"a","model":"m","prompt":{prompt}}}"#).as_bytes()).unwrap();
            assert_eq!((fast.prompts, slow.prompts), (count, count), "{prompt}");
        }
    }

    #[test]
    fn errors_name_the_wrong_field() {
        assert_eq!(code_and_param("{"), ("invalid_json", None));
        assert_eq!(code_and_param("[]"), ("invalid_json", None));
        assert_eq!(code_and_param("{}"), ("missing_required_parameter", Some("model".into())));
        assert_eq!(code_and_param(r#"{"model":7}"#), ("invalid_type", Some("model".into())));
        assert_eq!(code_and_param(r#"{"model":"m","stream":"yes"}"#), ("invalid_type", Some("stream".into())));
        assert_eq!(code_and_param(r#"{"model":"m","n":-1}"#), ("invalid_value", Some("n".into())));
        assert_eq!(code_and_param(r#"{"model":"m\ud800"}"#), ("invalid_json", None));
    }

    #[test]
    fn an_array_is_refused_where_an_object_is_expected() {
        assert_eq!(code_and_param(r#"["m",null,null,null,null,null,null]"#), ("invalid_json", None));
    }

    #[test]
    fn a_field_given_twice_is_read_once() {
        // serde's derive refuses duplicates, the slow path takes the last, as other servers do.
        assert_eq!(Envelope::parse(br#"{"model":"a","model":"b"}"#).unwrap().model, "b");
    }
}

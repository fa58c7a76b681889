//! The few fields a router needs, read without building the rest.
//!
//! The body stays as it came and is relayed byte by byte; other fields are the engine's to judge.
//! Well-formed JSON takes one pass that allocates only the model's name. Only when that pass fails
//! is the body parsed again, slowly, to say which field is wrong.

use serde::Deserialize;

use crate::ApiError;
use crate::fields::{Fields, missing};

/// What a gateway routes, limits and accounts by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub model: String,
    pub stream: bool,
    pub include_usage: bool,
    /// `max_completion_tokens`, else `max_tokens`.
    pub max_tokens: Option<u32>,
    /// At least 1.
    pub n: u32,
}

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Envelope {
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
        let mut fields = Fields::from_body(body)?;
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
        })
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
        assert_eq!(envelope, Envelope { model: "m".into(), stream: true, include_usage: true, max_tokens: None, n: 1 });
    }

    #[test]
    fn the_newer_name_of_max_tokens_wins() {
        let body = br#"{"model":"m","max_tokens":3,"max_completion_tokens":5,"n":2}"#;
        let envelope = Envelope::parse(body).unwrap();
        assert_eq!((envelope.max_tokens, envelope.n), (Some(5), 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(code_and_param("{"), ("invalid_json", None));
        assert_eq!(code_and_param("[]"), ("invalid_json", None));
        assert_eq!(code_and_param("{}"), ("missing_required_parameter", Some("model".into())));
        assert_eq!(code_and_param(r#"{"model":7}"#), ("invalid_type", Some("model".into())));
        assert_eq!(code_and_param(r#"{"model":"m","stream":"yes"}"#), ("invalid_type", Some("stream".into())));
        assert_eq!(code_and_param(r#"{"model":"m","n":-1}"#), ("invalid_value", Some("n".into())));
        assert_eq!(code_and_param(r#"{"model":"m\ud800"}"#), ("invalid_json", None));
    }

    #[test]
    fn an_array_is_not_an_object_in_disguise() {
        assert_eq!(code_and_param(r#"["m",null,null,null,null,null]"#), ("invalid_json", None));
    }

    #[test]
    fn a_field_given_twice_is_read_once() {
        // serde's derive refuses duplicates, the slow path takes the last, as other servers do.
        assert_eq!(Envelope::parse(br#"{"model":"a","model":"b"}"#).unwrap().model, "b");
    }
}

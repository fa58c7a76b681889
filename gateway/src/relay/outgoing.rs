//! What is sent to an engine: the client's body with a few top-level fields changed, and headers of ours.
//!
//! The body stays as it came wherever it can. Removed are fields by which a client could reach into an
//! engine's shared state; they are the gateway's to set. The model's name is replaced when the client called
//! the model by another name than the engine knows.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;

use crate::listen::paths::Inference;

/// Fields of other engines' APIs that are not the client's to set: the salt keeps tenants' prefix caches
/// apart, and the priority would put one tenant before another.
const REMOVED: [&str; 2] = ["cache_salt", "priority"];

/// A request to an engine.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub route: Inference,
    pub body: Bytes,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// `None` while no key gives one: then the engine is the tenant's own.
    pub salt: Option<HeaderValue>,
    pub request_id: HeaderValue,
}

/// The body for the engine. `body` is a JSON object; `called` is the model's name in it, `model` the engine's.
pub fn body(body: Bytes, called: &str, model: &str) -> Bytes {
    let suspicious = |name: &&str| memchr::memmem::find(&body, name.as_bytes()).is_some();
    // An escape could spell any name.
    let escaped = memchr::memmem::find(&body, b"\\u").is_some();
    if called == model && !escaped && !REMOVED.iter().any(suspicious) {
        return body;
    }
    let Some(fields) = top_level(&body) else { return body };
    let name_of = |field: &Field| serde_json::from_slice::<String>(&body[field.name.clone()]).unwrap_or_default();
    if called == model && !fields.iter().any(|field| REMOVED.contains(&name_of(field).as_str())) {
        return body;
    }
    let mut edited = Vec::with_capacity(body.len() + model.len());
    edited.push(b'{');
    for field in &fields {
        let name = name_of(field);
        if REMOVED.contains(&name.as_str()) {
            continue;
        }
        if edited.len() > 1 {
            edited.push(b',');
        }
        edited.extend_from_slice(&body[field.name.clone()]);
        edited.push(b':');
        if name == "model" {
            edited.extend_from_slice(serde_json::Value::from(model).to_string().as_bytes());
        } else {
            edited.extend_from_slice(&body[field.value.clone()]);
        }
    }
    edited.push(b'}');
    edited.into()
}

/// Where one field of the object stands in its text.
struct Field {
    /// With its quotes.
    name: Range<usize>,
    value: Range<usize>,
}

/// The fields of a JSON object, in order. `None` for text that is no object; what is inside the values is not
/// judged.
fn top_level(json: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    let mut at = expect(json, 0, b'{')?;
    if expect(json, at, b'}').is_some() {
        return Some(fields);
    }
    loop {
        let name_start = space(json, at);
        let name_end = value_end(json, name_start)?;
        let value_start = space(json, expect(json, name_end, b':')?);
        let value_end = value_end(json, value_start)?;
        fields.push(Field { name: name_start..name_end, value: value_start..value_end });
        match expect(json, value_end, b',') {
            Some(next) => at = next,
            None => return expect(json, value_end, b'}').map(|_| fields),
        }
    }
}

/// Where the first byte after white space stands.
fn space(json: &[u8], from: usize) -> usize {
    let rest = json.get(from..).unwrap_or_default();
    from + rest.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(rest.len())
}

/// Behind `byte`, when that is what comes next.
fn expect(json: &[u8], from: usize, byte: u8) -> Option<usize> {
    let at = space(json, from);
    (json.get(at) == Some(&byte)).then_some(at + 1)
}

/// Where the value that begins at `start` ends.
fn value_end(json: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, start);
    loop {
        match json.get(at)? {
            b'"' => at = string_end(json, at)?,
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' if depth > 0 => (depth, at) = (depth - 1, at + 1),
            b'}' | b']' | b',' | b':' if depth == 0 => return (at > start).then_some(at),
            byte if byte.is_ascii_whitespace() && depth == 0 => return (at > start).then_some(at),
            _ => {
                at += 1;
                continue;
            }
        }
        // A string or a bracket has ended.
        if depth == 0 && json.get(at - 1).is_some_and(|byte| matches!(byte, b'"' | b'}' | b']')) {
            return Some(at);
        }
    }
}

/// Behind the closing quote of the string that begins at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        match json[at] {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: &str, called: &str, model: &str, after: &str) {
        let edited = body(before.to_owned().into(), called, model);
        assert_eq!(std::str::from_utf8(&edited).unwrap(), after);
        serde_json::from_slice::<serde_json::Value>(&edited).unwrap();
    }

    #[test]
    fn body_without_fields_to_change_stays_as_it_came() {
        for same in [
            r#"{ "model":"m" , "messages":[{"role":"user","content":"Ünïcode"}],"x":1.50 }"#,
            r#"{"model":"m","messages":[{"content":"my priority is a cache_salt","priority":1}]}"#,
            r#"{"model":"m","prompt":"\u0061 \"quoted\" \\"}"#,
        ] {
            check(same, "m", "m", same);
        }
    }

    #[test]
    fn engine_gets_its_own_name_of_the_model() {
        check(
            r#"{"a":[{"model":"x"}], "model" : "t/m","b":"}"}"#,
            "t/m",
            "m",
            r#"{"a":[{"model":"x"}],"model":"m","b":"}"}"#,
        );
        check(r#"{"model":"t/m"}"#, "t/m", "a\"b", r#"{"model":"a\"b"}"#);
        check(r#"{"model":"x","model":"t/m"}"#, "t/m", "m", r#"{"model":"m","model":"m"}"#);
    }

    #[test]
    fn salt_and_priority_of_the_client_are_removed_however_they_are_spelt() {
        check(r#"{"cache_salt":"a,}","model":"m","priority":-1}"#, "m", "m", r#"{"model":"m"}"#);
        check(r#"{"cache\u005fsalt":{"a":[1,2]},"model":"m"}"#, "m", "m", r#"{"model":"m"}"#);
        check(r#"{"model":"m","\u0070riority":null,"n":1}"#, "m", "m", r#"{"model":"m","n":1}"#);
        check(r#"{"priority":1,"priority":2,"model":"m"}"#, "m", "m", r#"{"model":"m"}"#);
    }

    #[test]
    fn every_kind_of_value_is_passed_over() {
        let values =
            r#"{"a":null,"b":true,"c":-1.5e3,"d":"x\\\"y","e":[],"f":{},"g":[[{"h":"]"}]],"i":""  , "model":"t/m"}"#;
        let after = r#"{"a":null,"b":true,"c":-1.5e3,"d":"x\\\"y","e":[],"f":{},"g":[[{"h":"]"}]],"i":"","model":"m"}"#;
        check(values, "t/m", "m", after);
    }
}

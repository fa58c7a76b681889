//! Reads a JSON object field by field, and complains about each by name.
//!
//! [`Fields`] is emptied as it is read; what is left at the end is treated by the policy.
//! `null` counts as absent everywhere, as OpenAI's servers do.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::ApiError;
use crate::ordered::OrderedValue;
use crate::policy::{Place, Treatment, rule_for, rules_of};

/// The not yet read fields of an object. `path` is empty at the top, `messages[2].` further down.
pub(crate) struct Fields {
    path: String,
    map: BTreeMap<String, Field>,
    /// Whose rules apply; `None` for small objects (`stream_options`) and where few fields are read.
    place: Option<Place>,
    /// Names that were asked for, to suggest one for a misspelt field.
    asked: Vec<&'static str>,
}

/// Top-level fields that a chat template shows, or of which it shows a part.
const ORDERED: [&str; 3] = ["messages", "tools", "chat_template_kwargs"];

/// The value of a field. At the top level only those of [`ORDERED`] keep the order of their keys, further down all.
enum Field {
    Plain(Value),
    Ordered(OrderedValue),
}

impl Field {
    fn is_null(&self) -> bool {
        matches!(self, Self::Plain(Value::Null) | Self::Ordered(OrderedValue::Null))
    }

    fn plain(self) -> Value {
        match self {
            Self::Plain(value) => value,
            Self::Ordered(value) => value.into(),
        }
    }
}

/// The object that a request's body is.
struct Body(BTreeMap<String, Field>);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BodyVisitor)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Body, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            let field = if ORDERED.contains(&name.as_str()) {
                Field::Ordered(entries.next_value()?)
            } else {
                Field::Plain(entries.next_value()?)
            };
            map.insert(name, field);
        }
        Ok(Body(map))
    }
}

impl Fields {
    /// Parses a request body. With a place, its rules apply.
    pub(crate) fn from_body(body: &[u8], place: Option<Place>) -> Result<Self, ApiError> {
        if nested(body) > MAX_NESTED {
            let message = format!("The request body holds more than {MAX_NESTED} objects and arrays. Send fewer.");
            return Err(ApiError::invalid_json(message));
        }
        match serde_json::from_slice(body) {
            Ok(Body(map)) => Ok(Self { path: String::new(), map, place, asked: Vec::new() }),
            Err(err) => Err(ApiError::invalid_json(match serde_json::from_slice(body) {
                Ok(other) => format!("The request body must be a JSON object, not {}.", describe(&other)),
                Err(_) => format!("The request body is not valid JSON: {err}. Send a JSON object."),
            })),
        }
    }

    /// Opens a nested object.
    pub(crate) fn nested(path: &str, value: OrderedValue, place: Option<Place>) -> Result<Self, ApiError> {
        match value {
            OrderedValue::Object(map) => {
                let map = map.into_iter().map(|(name, value)| (name, Field::Ordered(value))).collect();
                Ok(Self { path: format!("{path}."), map, place, asked: Vec::new() })
            }
            other => Err(mistyped(path, "an object", &other.into())),
        }
    }

    pub(crate) fn param(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes the field out; `null` and absent are the same.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.take_field(name).map(Field::plain)
    }

    /// As `take`, for what a chat template shows.
    pub(crate) fn take_ordered(&mut self, name: &'static str) -> Option<OrderedValue> {
        match self.take_field(name)? {
            Field::Ordered(value) => Some(value),
            Field::Plain(_) => unreachable!("{name} is not in ORDERED"),
        }
    }

    fn take_field(&mut self, name: &'static str) -> Option<Field> {
        debug_assert!(
            self.place.is_none_or(|place| rule_for(place, name).is_some()),
            "{name} is read and has no entry in the table of the policy"
        );
        self.asked.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Fields>, ApiError> {
        let path = format!("{}.", self.param(name));
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let map = map.into_iter().map(|(name, value)| (name, Field::Plain(value))).collect();
                Ok(Some(Fields { path, map, place: None, asked: Vec::new() }))
            }
            Some(other) => Err(mistyped(&self.param(name), "an object", &other)),
        }
    }

    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(mistyped(&self.param(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(mistyped(&self.param(name), "true or false", &other)),
        }
    }

    /// A whole number in `min..=max`. `2.0` is not one: it is a mistake of the client.
    pub(crate) fn integer(&mut self, name: &'static str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let param = self.param(name);
        if !value.is_i64() && !value.is_u64() {
            return Err(mistyped(&param, "an integer", &value));
        }
        match value.as_i64().filter(|n| (min..=max).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(out_of_range(&param, &value, min, max)),
        }
    }

    /// A number in `min..=max`.
    pub(crate) fn number(&mut self, name: &'static str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number_in(&self.param(name), &value, min, max).map(Some)
    }

    /// Fields of a small object that are allowed and change nothing here.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            let _ = self.take(name);
        }
    }

    /// Treats all that was not read: refuses values that the policy refuses, and unknown fields.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        for rule in self.place.into_iter().flat_map(rules_of) {
            let Some(value) = self.map.remove(rule.name) else { continue };
            let is_left = rule.treatment == Treatment::Honoured && self.path.is_empty();
            debug_assert!(!is_left, "{} should be honoured and was not read", rule.name);
            if !rule.treatment.accepts(&value.plain()) {
                return Err(ApiError::unsupported(self.param(rule.name), rule.note));
            }
        }
        match self.place {
            Some(place) if place.is_tolerant() => self.refuse_misspellings(place),
            Some(place) => {
                self.asked.extend(rules_of(place).map(|rule| rule.name));
                self.refuse_unknown()
            }
            None => self.refuse_unknown(),
        }
    }

    /// A field that is nearly the name of one that is honoured or read was meant to be that.
    fn refuse_misspellings(self, place: Place) -> Result<(), ApiError> {
        let is_known = |name| rule_for(place, name).is_some_and(|rule| rule.treatment == Treatment::Honoured);
        let names = rules_of(place).map(|rule| rule.name);
        let known: Vec<&'static str> = names.filter(|name| is_known(name) || self.asked.contains(name)).collect();
        let misspelt = self.map.iter().find_map(|(name, value)| {
            nearest(name, &known).filter(|_| !value.is_null()).map(|near| (name.clone(), near))
        });
        match misspelt {
            None => Ok(()),
            Some((name, near)) => Err(self.unknown(&name, Some(near))),
        }
    }

    fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.unknown(name, nearest(name, &self.asked))),
        }
    }

    fn unknown(&self, name: &str, near: Option<&'static str>) -> ApiError {
        let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        let hint = near.map_or_else(|| "remove it".to_owned(), |near| format!("remove it, or did you mean `{near}`?"));
        let param = format!("{}{shown}", self.path);
        ApiError::invalid(param.clone(), "unknown_parameter", format!("Unknown parameter `{param}`: {hint}"))
    }
}

/// An object or array in a tree of values may take a hundred times the memory of its text.
const MAX_NESTED: usize = 1 << 16;

/// Objects and arrays in a text, if it is JSON.
fn nested(body: &[u8]) -> usize {
    let (mut count, mut at) = (0, 0);
    while let Some(byte) = body.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(body, at),
            b'{' | b'[' => count += 1,
            _ => {}
        }
    }
    count
}

/// Behind the closing quote of the string whose first character stands at `at`; most of a long body is strings.
fn string_end(body: &[u8], mut at: usize) -> usize {
    while let Some(found) = body.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        match body[at + found] {
            b'"' => return at + found + 1,
            _ => at += found + 2,
        }
    }
    body.len()
}

pub(crate) fn number_in(param: &str, value: &Value, min: f64, max: f64) -> Result<f32, ApiError> {
    let Some(n) = value.as_f64() else { return Err(mistyped(param, "a number", value)) };
    if (min..=max).contains(&n) { Ok(n as f32) } else { Err(out_of_range(param, value, min, max)) }
}

/// `expected` completes "must be …".
pub(crate) fn mistyped(param: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::invalid(param, "invalid_type", format!("`{param}` must be {expected}, not {}.", describe(found)))
}

pub(crate) fn missing(param: &str, expected: &str) -> ApiError {
    ApiError::invalid(param, "missing_required_parameter", format!("`{param}` is missing: give {expected}."))
}

pub(crate) fn out_of_range<T: std::fmt::Display>(param: &str, value: &Value, min: T, max: T) -> ApiError {
    ApiError::invalid(
        param,
        "invalid_value",
        format!("`{param}` must be between {min} and {max}, not {}.", describe(value)),
    )
}

/// Short, and never the whole of what was sent.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(n) => n.to_string().chars().take(40).collect(),
        Value::String(text) if text.chars().count() <= 24 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The known name within two edits, if there is one.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    if name.len() > 40 {
        return None;
    }
    let best = known.iter().map(|candidate| (edits(name, candidate), *candidate)).min()?;
    (best.0 <= 2 && best.0 * 3 <= best.1.len()).then_some(best.1)
}

/// Levenshtein distance over bytes; names are ASCII and short.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_answered_with_the_right_one() {
        assert_eq!(nearest("temprature", &["top_p", "temperature"]), Some("temperature"));
        assert_eq!(nearest("max_token", &["max_tokens", "n"]), Some("max_tokens"));
        assert_eq!(nearest("xy", &["n", "stop"]), None);
    }

    #[test]
    fn what_is_nested_is_counted_outside_of_strings() {
        assert_eq!(nested(br#"{"a":[{},"[{\"[\\"],"b":"]"}"#), 3);
    }

    #[test]
    fn edits_counts_insertions_deletions_and_substitutions() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}

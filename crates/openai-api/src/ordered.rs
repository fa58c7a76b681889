//! JSON whose objects keep the order of their keys.
//!
//! What a chat template shows of a request (tools, documents, further variables) is shown in the client's order:
//! Python's dictionaries keep it, so models were trained on it, and another order is another prompt. The workspace's
//! `serde_json::Value` sorts, on which files that must not change rely; so the few fields that reach a template have
//! a type of their own.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};

/// An object. Of two equal keys the last counts, in the place of the first, as in Python.
pub type OrderedMap = IndexMap<String, OrderedValue>;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum OrderedValue {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<OrderedValue>),
    /// An object.
    Object(OrderedMap),
}

impl OrderedValue {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value at these keys, one inside the other.
    pub fn at_mut(&mut self, keys: &[&str]) -> Option<&mut Self> {
        keys.iter().try_fold(self, |value, key| match value {
            Self::Object(fields) => fields.get_mut(*key),
            _ => None,
        })
    }
}

/// Keys are sorted from here on.
impl From<OrderedValue> for Value {
    fn from(value: OrderedValue) -> Self {
        match value {
            OrderedValue::Null => Self::Null,
            OrderedValue::Bool(flag) => Self::Bool(flag),
            OrderedValue::Number(number) => Self::Number(number),
            OrderedValue::String(text) => Self::String(text),
            OrderedValue::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            OrderedValue::Object(fields) => {
                Self::Object(fields.into_iter().map(|(name, value)| (name, value.into())).collect())
            }
        }
    }
}

impl Serialize for OrderedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(flag) => serializer.serialize_bool(*flag),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(fields) => serializer.collect_map(fields),
        }
    }
}

impl<'de> Deserialize<'de> for OrderedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = OrderedValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<OrderedValue, E> {
        Ok(OrderedValue::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<OrderedValue, E> {
        Ok(OrderedValue::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<OrderedValue, E> {
        Ok(OrderedValue::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<OrderedValue, E> {
        Ok(OrderedValue::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<OrderedValue, E> {
        Ok(Number::from_f64(number).map_or(OrderedValue::Null, OrderedValue::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<OrderedValue, E> {
        Ok(OrderedValue::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<OrderedValue, E> {
        Ok(OrderedValue::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OrderedValue, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(OrderedValue::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<OrderedValue, A::Error> {
        let mut fields = OrderedMap::new();
        while let Some((name, value)) = entries.next_entry()? {
            fields.insert(name, value);
        }
        Ok(OrderedValue::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> String {
        serde_json::to_string(&serde_json::from_str::<OrderedValue>(json).unwrap()).unwrap()
    }

    #[test]
    fn keys_keep_their_order_at_every_depth() {
        for json in [
            r#"{"b":1,"a":{"z":[{"y":null,"x":true}],"c":-2.5}}"#,
            r#"[18446744073709551615,-9223372036854775808,1e+300,"\u0001é"]"#,
        ] {
            assert_eq!(written(json), json);
        }
    }

    #[test]
    fn last_of_two_equal_keys_counts_in_the_place_of_the_first() {
        assert_eq!(written(r#"{"b":1,"a":2,"b":3}"#), r#"{"b":3,"a":2}"#);
    }

    #[test]
    fn nesting_is_bounded_as_for_other_json() {
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        assert!(serde_json::from_str::<OrderedValue>(&deep).is_err());
    }

    #[test]
    fn same_value_comes_out_as_plain_json() {
        let json = r#"{"b":[1,2.5,"x",null,true],"a":{}}"#;
        let ordered: OrderedValue = serde_json::from_str(json).unwrap();
        assert_eq!(Value::from(ordered), serde_json::from_str::<Value>(json).unwrap());
    }

    #[test]
    fn value_inside_an_object_is_found_by_its_keys() {
        let mut value: OrderedValue = serde_json::from_str(r#"{"a":{"b":"x"}}"#).unwrap();
        assert_eq!(value.at_mut(&["a", "b"]).and_then(|value| value.as_str()), Some("x"));
        assert_eq!(value.at_mut(&["a", "c"]), None);
        assert_eq!(value.at_mut(&["a", "b", "c"]), None);
    }
}

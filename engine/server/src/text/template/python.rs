//! Values as Python prints them, and JSON as Python's `json.dumps` writes it.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Lists and mappings nest no deeper than this.
const DEEPEST: usize = 64;

/// What `str(value)` is; nothing for what is undefined.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out);
            out
        }
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        _ if depth >= DEEPEST => out.push_str("..."),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr` of a string: single quotes unless that takes more escapes than double ones.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// The options of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct JsonFormat {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// Spaces per level; `None`: all on one line.
    pub indent: Option<usize>,
    /// Between items, and between key and value.
    pub separators: Option<[String; 2]>,
}

/// What `json.dumps(value)` is.
pub(super) fn json(value: &Value, format: &JsonFormat) -> Result<String, Error> {
    let mut out = String::new();
    let default = if format.indent.is_some() { [",", ": "] } else { [", ", ": "] };
    let [item, key] = match &format.separators {
        Some([item, key]) => [item.as_str(), key.as_str()],
        None => default,
    };
    Writer { format, item, key }.write(value, 0, &mut out)?;
    Ok(out)
}

struct Writer<'a> {
    format: &'a JsonFormat,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::new(ErrorKind::BadSerialization, what));
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            _ if depth >= DEEPEST => return refuse(format!("tojson: nested deeper than {DEEPEST}")),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.group(('[', ']'), &items, depth, out, &|item, out| self.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.format.sort_keys {
                    keys.sort();
                }
                self.group(('{', '}'), &keys, depth, out, &|key, out| {
                    match key.as_str() {
                        Some(name) => self.string(name, out),
                        None => self.string(&text(key), out),
                    }
                    out.push_str(self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => return refuse(format!("tojson: {other} is no JSON")),
        }
        Ok(())
    }

    fn group(
        &self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        out: &mut String,
        write: &dyn Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { self.item } else { "" });
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.format.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', (indent.min(16)) * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.format.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        super::super::values::foreign(&serde_json::from_str(json).unwrap(), &str::to_owned)
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        for (json, want) in [
            ("true", "True"),
            ("null", "None"),
            ("[1, 2.0, \"a\", null]", "[1, 2.0, 'a', None]"),
            ("{\"a\": {\"b\": \"it's\"}}", "{'a': {'b': \"it's\"}}"),
            ("\"plain\"", "plain"),
            ("[\"\\n\"]", "['\\n']"),
        ] {
            assert_eq!(text(&value(json)), want);
        }
        assert_eq!(text(&Value::UNDEFINED), "");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let sample = value(r#"{"a": [1, "<é>"], "b": {}}"#);
        let plain = JsonFormat::default();
        assert_eq!(json(&sample, &plain).unwrap(), r#"{"a": [1, "<é>"], "b": {}}"#);
        let ascii =
            JsonFormat { ensure_ascii: true, separators: Some([",".into(), ":".into()]), ..JsonFormat::default() };
        assert_eq!(json(&sample, &ascii).unwrap(), r#"{"a":[1,"<\u00e9>"],"b":{}}"#);
        let indented = JsonFormat { indent: Some(2), ..JsonFormat::default() };
        assert_eq!(json(&sample, &indented).unwrap(), "{\n  \"a\": [\n    1,\n    \"<é>\"\n  ],\n  \"b\": {}\n}");
        assert!(json(&Value::UNDEFINED, &plain).is_err());
    }
}

//! What a template is given: the request's values, with control tokens in them guarded.

use minijinja::Value;
use stowage_openai_api::{Message, OrderedValue as Json, Role};

use super::{Chat, TemplateError};

/// Guards a text.
type Guarded<'a> = &'a dyn Fn(&str) -> String;

/// The variables of a template. Named tokens that a model does not have are undefined. `end` is put behind the content of a message that is to be continued.
pub(super) fn context(chat: &Chat<'_>, guarded: Guarded<'_>, end: char, named: [(&str, &Option<String>); 2]) -> Value {
    let continued = chat.fields.continue_final_message.then(|| chat.messages.len().saturating_sub(1));
    let messages = chat.messages.iter().enumerate();
    let messages = messages.map(|(i, message)| turn(message, guarded, (continued == Some(i)).then_some(end)));
    let messages: Vec<Value> = messages.collect();
    let list = |values: &[Json]| {
        // As `transformers` has it: defined, and nothing.
        if values.is_empty() { Value::from(()) } else { values.iter().map(|value| foreign(value, guarded)).collect() }
    };
    let mut variables: Vec<(String, Value)> = vec![
        ("messages".to_owned(), Value::from(messages)),
        ("tools".to_owned(), list(chat.tools)),
        ("documents".to_owned(), list(chat.documents)),
        ("add_generation_prompt".to_owned(), Value::from(chat.fields.add_generation_prompt)),
        ("continue_final_message".to_owned(), Value::from(chat.fields.continue_final_message)),
    ];
    let tokens = named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text.as_deref()?))));
    variables.extend(tokens);
    let more = chat.fields.kwargs.iter();
    variables.extend(more.map(|(name, value)| (name.clone(), foreign(value, guarded))));
    Value::from_pairs(variables)
}

fn turn(message: &Message, guarded: Guarded<'_>, end: Option<char>) -> Value {
    // Templates were written before OpenAI renamed the role.
    let role = if message.role == Role::Developer { Role::System } else { message.role };
    let calls = !message.tool_calls.is_empty();
    let content = match end {
        None if calls && message.content.is_empty() => Value::from(()),
        _ => {
            let mut content = guarded(&message.content);
            content.extend(end);
            content.into()
        }
    };
    let mut fields = vec![("role", Value::from(role.as_str())), ("content", content)];
    if let Some(name) = &message.name {
        fields.push(("name", guarded(name).into()));
    }
    if let Some(id) = &message.tool_call_id {
        fields.push(("tool_call_id", guarded(id).into()));
    }
    if calls {
        let calls = message.tool_calls.iter().map(|call| foreign(&with_arguments(call), guarded));
        fields.push(("tool_calls", calls.collect()));
    }
    Value::from_pairs(fields)
}

/// OpenAI sends the arguments of a call as JSON in a string; templates expect the value.
fn with_arguments(call: &Json) -> Json {
    let mut call = call.clone();
    if let Some(arguments) = call.at_mut(&["function", "arguments"])
        && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok())
        && matches!(parsed, Json::Object(_))
    {
        *arguments = parsed;
    }
    call
}

fn number_value(number: &serde_json::Number) -> Value {
    match (number.as_i64(), number.as_u64()) {
        (Some(n), _) => Value::from(n),
        (None, Some(n)) => Value::from(n),
        (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// A value of the request, all text in it guarded.
pub(super) fn foreign(value: &Json, guarded: Guarded<'_>) -> Value {
    match value {
        Json::String(text) => guarded(text).into(),
        Json::Array(items) => items.iter().map(|item| foreign(item, guarded)).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (guarded(name), foreign(value, guarded))))
        }
        Json::Number(number) => number_value(number),
        Json::Bool(flag) => Value::from(*flag),
        Json::Null => Value::from(()),
    }
}

/// Bytes of text that the template has to work with.
pub(super) fn text_bytes(chat: &Chat<'_>) -> usize {
    let message = |m: &Message| {
        let calls: usize = m.tool_calls.iter().map(json_bytes).sum();
        m.content.len() + calls + [&m.name, &m.tool_call_id].into_iter().flatten().map(String::len).sum::<usize>()
    };
    let messages: usize = chat.messages.iter().map(message).sum();
    let lists: usize = chat.tools.iter().chain(chat.documents).map(json_bytes).sum();
    messages + lists + chat.fields.kwargs.iter().map(|(name, value)| name.len() + json_bytes(value)).sum::<usize>()
}

/// Bytes of a value's text, and some for each other value.
fn json_bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => 8 + items.iter().map(json_bytes).sum::<usize>(),
        Json::Object(fields) => 8 + fields.iter().map(|(name, value)| name.len() + json_bytes(value)).sum::<usize>(),
        _ => 8,
    }
}

/// Characters that occur nowhere in a request.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    /// Breaks control tokens.
    pub guard: char,
    /// Stands behind the message that is to be continued.
    pub end: char,
}

/// Two of the 32 noncharacters of the Arabic block that the request does not use.
pub(super) fn choose_marks(chat: &Chat<'_>) -> Result<Marks, TemplateError> {
    let mut used = Used::default();
    for message in chat.messages {
        let texts = [Some(&message.content), message.name.as_ref(), message.tool_call_id.as_ref()];
        texts.into_iter().flatten().for_each(|text| used.note(text));
        message.tool_calls.iter().for_each(|call| used.note_json(call));
    }
    chat.tools.iter().chain(chat.documents).for_each(|value| used.note_json(value));
    for (name, value) in &chat.fields.kwargs {
        used.note(name);
        used.note_json(value);
    }
    let mut unused = (0..32).filter(|i| used.0 & (1 << i) == 0).filter_map(|i| char::from_u32(FIRST_MARK + i));
    match (unused.next(), unused.next()) {
        (Some(guard), Some(end)) => Ok(Marks { guard, end }),
        _ => Err(TemplateError::NoGuard),
    }
}

const FIRST_MARK: u32 = 0xFDD0;

/// Which of the 32 noncharacters from [`FIRST_MARK`] on were seen, one bit each.
#[derive(Default)]
struct Used(u32);

impl Used {
    /// Looks at a text once: all 32 begin with the same two bytes.
    fn note(&mut self, text: &str) {
        for at in memchr::memmem::find_iter(text.as_bytes(), b"\xEF\xB7") {
            if let Some(byte @ 0x90..=0xAF) = text.as_bytes().get(at + 2) {
                self.0 |= 1 << (byte - 0x90);
            }
        }
    }

    /// A text that may be JSON itself: escaped in it, a character would come out of `with_arguments`.
    fn note_escaped(&mut self, text: &str) {
        for at in memchr::memmem::find_iter(text.as_bytes(), b"\\u") {
            let digits = text.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            if let Some(mark @ FIRST_MARK..=0xFDEF) = digits {
                self.0 |= 1 << (mark - FIRST_MARK);
            }
        }
    }

    fn note_json(&mut self, value: &Json) {
        match value {
            Json::String(text) => {
                self.note(text);
                self.note_escaped(text);
            }
            Json::Array(items) => items.iter().for_each(|item| self.note_json(item)),
            Json::Object(fields) => {
                for (name, value) in fields {
                    self.note(name);
                    self.note_json(value);
                }
            }
            Json::Number(_) | Json::Bool(_) | Json::Null => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(json: &str) -> Vec<u32> {
        let mut used = Used::default();
        used.note_json(&serde_json::from_str(json).unwrap());
        (0..32).filter(|i| used.0 & (1 << i) != 0).collect()
    }

    #[test]
    fn marks_that_a_request_uses_are_found_plain_and_escaped() {
        for (json, want) in [
            ("\"\u{FDD0}x\u{FDEF}\"", vec![0, 31]),
            ("{\"\u{FDD1}\":[\"\u{FDD2}\"]}", vec![1, 2]),
            (r#""{\"a\":\"\\ufdd3 \\uFDD4\"}""#, vec![3, 4]),
            // Neighbours of the block, and texts that end too early.
            ("\"\u{FDCF}\u{FDF0}\u{FE10}\"", vec![]),
            (r#""\\ufdd \\u""#, vec![]),
        ] {
            assert_eq!(used(json), want, "{json}");
        }
    }
}

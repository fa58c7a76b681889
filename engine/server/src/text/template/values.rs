//! What a template is given: the request's values, with control tokens in them guarded.

use minijinja::Value;
use serde_json::Value as Json;
use stowage_openai_api::{Message, Role};

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
        _ => guarded(&message.content).chars().chain(end).collect::<String>().into(),
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
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok())
        && parsed.is_object()
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
    let in_message = |m: &Message, c: char| {
        let texts = [Some(&m.content), m.name.as_ref(), m.tool_call_id.as_ref()];
        texts.into_iter().flatten().any(|text| text.contains(c)) || m.tool_calls.iter().any(|call| in_json(call, c))
    };
    let used = |c: char| {
        chat.messages.iter().any(|message| in_message(message, c))
            || chat.tools.iter().chain(chat.documents).any(|value| in_json(value, c))
            || chat.fields.kwargs.iter().any(|(name, value)| name.contains(c) || in_json(value, c))
    };
    let mut unused = ('\u{FDD0}'..='\u{FDEF}').filter(|c| !used(*c));
    match (unused.next(), unused.next()) {
        (Some(guard), Some(end)) => Ok(Marks { guard, end }),
        _ => Err(TemplateError::NoGuard),
    }
}

fn in_json(value: &Json, c: char) -> bool {
    match value {
        // Escaped in a string of JSON it would come out of `with_arguments`.
        Json::String(text) => text.contains(c) || text.to_ascii_lowercase().contains(&format!("\\u{:04x}", c as u32)),
        Json::Array(items) => items.iter().any(|item| in_json(item, c)),
        Json::Object(fields) => fields.iter().any(|(name, value)| name.contains(c) || in_json(value, c)),
        _ => false,
    }
}

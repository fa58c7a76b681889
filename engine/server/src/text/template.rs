//! The model's chat template, and why users cannot escape from it.
//!
//! A template joins control tokens and what people wrote into one text, in which both look the
//! same. So before rendering, each control token spelt out in a message is broken by a *guard*, a
//! Unicode noncharacter that no message contains; after rendering, what still matches a control
//! token was written by the template; then the guards are taken out again. The template may trim,
//! split or repeat the content as it likes.
//!
//! A template is a program that came with the model, so it is also held to bounds: it runs on a thread
//! of its own, with so many steps, as much stack as they can nest, and so much room to write. When it
//! exceeds them, or panics, that is its own failure and not the engine's.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State, Value, context};
use stowage_engine_models::shown;
use stowage_openai_api::{Message, Role, TemplateFields};

use super::TextError;
use super::tokenizer::Specials;

/// Why a conversation cannot be turned into a prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("this model has no chat template; use /v1/completions")]
    Missing,
    /// The template's own words: roles must alternate, and the like.
    #[error("the model's chat template refuses these messages: {}", shown(.0))]
    Refused(String),
    #[error("the model's chat template failed: {}", shown(.0))]
    Failed(String),
    #[error("the rendered messages cannot be tokenized: {}", shown(.0))]
    Encode(String),
    #[error("the messages use every character that could guard control tokens")]
    NoGuard,
    #[error("the model's chat template leaves out the last message, so it cannot be continued")]
    NotContinued,
}

pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// A prompt with its guards still in it.
pub(super) struct Rendered {
    text: String,
    guard: char,
}

impl Rendered {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn without_guards(&self, part: &str) -> String {
        part.replace(self.guard, "")
    }
}

const NAME: &str = "chat";

impl ChatTemplate {
    pub(super) fn new(source: &str, bos: String, eos: String) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|err| TextError::Template(err.to_string()))?);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(|err| TextError::Template(err.to_string()))?;
        Ok(Self { environment, bos, eos })
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        fields: &TemplateFields,
        specials: &Specials,
    ) -> Result<Rendered, TemplateError> {
        let marks = choose_marks(messages, fields)?;
        let stack = STACK + steps(messages) as usize * STACK_PER_STEP;
        let mut text = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(stack);
            let rendering = thread.spawn_scoped(scope, || self.run(messages, fields, specials, marks));
            let rendering = rendering.map_err(|err| TemplateError::Failed(format!("no thread for it: {err}")))?;
            rendering.join().unwrap_or_else(|_| Err(TemplateError::Failed("it panicked".to_owned())))
        })?;
        if fields.continue_final_message {
            let end = text.rfind(marks.end).ok_or(TemplateError::NotContinued)?;
            text.truncate(end);
        }
        Ok(Rendered { text, guard: marks.guard })
    }

    fn run(
        &self,
        messages: &[Message],
        fields: &TemplateFields,
        specials: &Specials,
        marks: Marks,
    ) -> Result<String, TemplateError> {
        let guard = marks.guard;
        let continued = fields.continue_final_message.then(|| messages.len() - 1);
        let end = |i: usize| if continued == Some(i) { Some(marks.end) } else { None };
        let turns = messages.iter().enumerate().map(|(i, message)| turn(message, specials, guard, end(i)));
        let turns: Vec<Value> = turns.collect();
        let kwargs = guarded_map(&fields.kwargs, specials, guard);
        let context = context! {
            messages => turns,
            add_generation_prompt => fields.add_generation_prompt,
            continue_final_message => fields.continue_final_message,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..kwargs
        };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps(messages)));
        let template = environment.get_template(NAME).map_err(explain)?;
        let mut prompt = Bounded { text: Vec::new(), room: longest_prompt(messages) };
        template.render_captured_to(context, &mut prompt).map_err(explain)?;
        String::from_utf8(prompt.text).map_err(|err| TemplateError::Failed(err.to_string()))
    }
}

/// What a template may spend: one for an instruction, and one for each 64 bytes that it makes. Templates
/// take some tens per message and copy its text a few times; there is room for those that look at all
/// messages for each.
fn steps(messages: &[Message]) -> u64 {
    (100_000 + 1_000 * messages.len() as u64).min(1_000_000) + text_bytes(messages) as u64 / 4
}

/// As much as Tokio's threads have, and what a list takes that is nested at every step: less than half
/// of this, when it is written and when it is dropped.
const STACK: usize = 2 << 20;
const STACK_PER_STEP: usize = 512;

/// The most bytes that a template may make of these messages.
pub fn longest_prompt(messages: &[Message]) -> usize {
    (1 << 20) + 4 * text_bytes(messages)
}

fn text_bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.content.len() + message.name.as_ref().map_or(0, String::len)).sum()
}

/// The methods of Python. They pay for what they make, all but `format`, for which we do.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    if name == "format"
        && let Some(text) = value.as_str()
    {
        state.consume_fuel(most_formatted(text, args)? / 64)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// No `str.format` of this text makes more bytes: each field is as wide as the widest argument, or as any
/// number in the text says. Lists and mappings are refused: what they take cannot be told beforehand.
fn most_formatted(text: &str, args: &[Value]) -> Result<u64, minijinja::Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let named: Vec<Value> = named.args().map(|name| named.get(name)).collect::<Result<_, _>>()?;
    let mut widest = 0;
    for value in positional.iter().chain(&named) {
        let Some(width) = width(value) else {
            let what = format!("str.format takes text and numbers, not a {}", value.kind());
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
        };
        widest = widest.max(width as u64);
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let widths = numbers.map(|run| run.parse().unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
    let fields = text.matches('{').count() as u64;
    // A character that fills may be four bytes long.
    Ok(fields.saturating_mul(widest).saturating_add(widths.saturating_mul(4)).saturating_add(text.len() as u64))
}

/// Bytes of a value written out, at most; `None`: of what it consists of.
fn width(value: &Value) -> Option<usize> {
    match value.kind() {
        ValueKind::String => value.as_str().map(str::len),
        // The least positive double in full.
        ValueKind::Number | ValueKind::Bool | ValueKind::None | ValueKind::Undefined => Some(1100),
        _ => None,
    }
}

/// Text that may not grow beyond its room.
struct Bounded {
    text: Vec<u8>,
    room: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.text.len() + more.len() > self.room {
            return Err(io::Error::other("no room"));
        }
        self.text.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Marks the messages of `raise_exception`, which are meant for whoever sent the request.
const REFUSAL: &str = "\u{1}refused: ";

fn explain(err: minijinja::Error) -> TemplateError {
    match err.detail().and_then(|detail| detail.strip_prefix(REFUSAL)) {
        Some(message) => TemplateError::Refused(message.to_owned()),
        None if err.kind() == ErrorKind::OutOfFuel => TemplateError::Failed("it does not come to an end".to_owned()),
        None if err.kind() == ErrorKind::WriteFailure => TemplateError::Failed("it writes without end".to_owned()),
        None => TemplateError::Failed(err.to_string()),
    }
}

/// `end` is put behind the content.
fn turn(message: &Message, specials: &Specials, guard: char, end: Option<char>) -> Value {
    // Templates were written before OpenAI renamed the role.
    let role = if message.role == Role::Developer { Role::System } else { message.role };
    let mut content = guarded(&message.content, specials, guard);
    content.extend(end);
    match &message.name {
        Some(name) => context! { role => role.as_str(), content, name => guarded(name, specials, guard) },
        None => context! { role => role.as_str(), content },
    }
}

fn guarded(text: &str, specials: &Specials, guard: char) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        out.push(c);
        if specials.at_start(&text[at..]).is_some() {
            out.push(guard);
        }
    }
    out
}

/// A value of a request as the template sees it, all its texts guarded.
fn guarded_value(value: &serde_json::Value, specials: &Specials, guard: char) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(guarded(text, specials, guard)),
        Json::Array(items) => items.iter().map(|item| guarded_value(item, specials, guard)).collect(),
        Json::Object(map) => guarded_map(map, specials, guard),
    }
}

fn guarded_map(map: &serde_json::Map<String, serde_json::Value>, specials: &Specials, guard: char) -> Value {
    let entry = |(key, value): (&String, &serde_json::Value)| {
        (guarded(key, specials, guard), guarded_value(value, specials, guard))
    };
    Value::from_pairs(map.iter().map(entry))
}

/// Characters that occur nowhere in a request.
#[derive(Clone, Copy)]
struct Marks {
    /// Breaks control tokens.
    guard: char,
    /// Stands behind the message that is to be continued.
    end: char,
}

/// Two of the 32 noncharacters of the Arabic block that the request does not use.
fn choose_marks(messages: &[Message], fields: &TemplateFields) -> Result<Marks, TemplateError> {
    let kwargs = if fields.kwargs.is_empty() {
        String::new()
    } else {
        serde_json::Value::Object(fields.kwargs.clone()).to_string()
    };
    let used = |c: char| {
        kwargs.contains(c)
            || messages
                .iter()
                .any(|message| message.content.contains(c) || message.name.as_ref().is_some_and(|n| n.contains(c)))
    };
    let mut unused = ('\u{FDD0}'..='\u{FDEF}').filter(|c| !used(*c));
    match (unused.next(), unused.next()) {
        (Some(guard), Some(end)) => Ok(Marks { guard, end }),
        _ => Err(TemplateError::NoGuard),
    }
}

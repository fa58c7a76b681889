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
//!
//! [`dialect`] is the language that templates are written in, `values` what they are given.

mod dialect;
mod python;
mod source;
mod values;

use std::io;

use jiff::Timestamp;
use minijinja::{Environment, ErrorKind};
use stowage_engine_models::shown;
use stowage_openai_api::{Message, OrderedValue, TemplateFields};

use super::added::AddedTokens;
use super::tokenizer::EncodeError;
use values::Marks;

/// Why a conversation cannot be turned into a prompt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("this model has no chat template; use /v1/completions")]
    Missing,
    #[error("the model's chat template cannot be read: {}; use /v1/completions", shown(.0))]
    Unreadable(String),
    /// The template's own words: roles must alternate, and the like.
    #[error("the model's chat template refuses these messages: {}", shown(.0))]
    Refused(String),
    #[error("the model's chat template failed: {}", shown(.0))]
    Failed(String),
    #[error("the last message cannot be continued: the model's chat template does not show it")]
    NotContinued,
    #[error("the rendered messages cannot be tokenized: {0}")]
    Encode(#[from] EncodeError),
    #[error("the messages use every character that could guard control tokens")]
    NoGuard,
}

/// What a template renders.
#[derive(Clone, Debug)]
pub struct Chat<'a> {
    pub messages: &'a [Message],
    /// Descriptions of tools and documents, as the request has them; empty for none.
    pub tools: &'a [OrderedValue],
    pub documents: &'a [OrderedValue],
    /// How the messages become a prompt.
    pub fields: &'a TemplateFields,
    /// What `strftime_now` shows, in UTC.
    pub now: Timestamp,
}

impl<'a> Chat<'a> {
    /// Messages without tools and documents.
    pub fn new(messages: &'a [Message], fields: &'a TemplateFields, now: Timestamp) -> Self {
        Self { messages, tools: &[], documents: &[], fields, now }
    }
}

pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `None` is undefined in the template.
    bos: Option<String>,
    eos: Option<String>,
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

    /// How many guards there are.
    pub(super) fn guards(&self) -> usize {
        self.text.matches(self.guard).count()
    }

    pub(super) fn without_guards(&self, part: &str) -> String {
        part.replace(self.guard, "")
    }
}

const NAME: &str = "chat";

impl ChatTemplate {
    pub(super) fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, TemplateError> {
        let unreadable = |err: minijinja::Error| TemplateError::Unreadable(err.to_string());
        let mut environment = dialect::environment().map_err(unreadable)?;
        environment.add_template_owned(NAME, source::without_generation_tags(source)).map_err(unreadable)?;
        Ok(Self { environment, bos, eos })
    }

    pub(super) fn render(&self, chat: &Chat<'_>, added: &AddedTokens) -> Result<Rendered, TemplateError> {
        let marks = values::choose_marks(chat)?;
        let stack = STACK + steps(chat) as usize * STACK_PER_STEP;
        let mut text = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(stack);
            let rendering = thread.spawn_scoped(scope, || self.run(chat, added, marks));
            let rendering = rendering.map_err(|err| TemplateError::Failed(format!("no thread for it: {err}")))?;
            rendering.join().unwrap_or_else(|_| Err(TemplateError::Failed("it panicked".to_owned())))
        })?;
        if chat.fields.continue_final_message {
            let end = text.rfind(marks.end).ok_or(TemplateError::NotContinued)?;
            text.truncate(end);
        }
        Ok(Rendered { text, guard: marks.guard })
    }

    fn run(&self, chat: &Chat<'_>, added: &AddedTokens, marks: Marks) -> Result<String, TemplateError> {
        let guarded = |text: &str| added.guarded(text, marks.guard);
        let context = values::context(chat, &guarded, marks.end, [("bos_token", &self.bos), ("eos_token", &self.eos)]);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps(chat)));
        dialect::set_clock(&mut environment, chat.now);
        let template = environment.get_template(NAME).map_err(explain)?;
        let mut prompt = Bounded { text: Vec::new(), room: longest_prompt(chat) };
        template.render_captured_to(context, &mut prompt).map_err(explain)?;
        String::from_utf8(prompt.text).map_err(|err| TemplateError::Failed(err.to_string()))
    }
}

/// What a template may spend: one for an instruction, and one for each 64 bytes that it makes. Templates
/// take some tens per message and copy its text a few times; there is room for those that look at all
/// messages for each.
fn steps(chat: &Chat<'_>) -> u64 {
    (100_000 + 1_000 * chat.messages.len() as u64).min(1_000_000) + values::text_bytes(chat) as u64 / 4
}

/// As much as Tokio's threads have, and what a list takes that is nested at every step: less than half
/// of this, when it is written and when it is dropped.
const STACK: usize = 2 << 20;
const STACK_PER_STEP: usize = 512;

/// The most bytes that a template may make of a chat.
pub fn longest_prompt(chat: &Chat<'_>) -> usize {
    (1 << 20) + 4 * values::text_bytes(chat)
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

fn explain(err: minijinja::Error) -> TemplateError {
    match err.detail().and_then(|detail| detail.strip_prefix(dialect::REFUSAL)) {
        Some(message) => TemplateError::Refused(message.to_owned()),
        None if err.kind() == ErrorKind::OutOfFuel => TemplateError::Failed("it does not come to an end".to_owned()),
        None if err.kind() == ErrorKind::WriteFailure => TemplateError::Failed("it writes without end".to_owned()),
        None => TemplateError::Failed(err.to_string()),
    }
}

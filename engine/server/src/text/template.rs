//! The model's chat template, and why users cannot escape from it.
//!
//! A template joins control tokens and what people wrote into one text, in which both look the
//! same. So before rendering, each control token spelt out in a message is broken by a *guard*, a
//! Unicode noncharacter that no message contains; after rendering, what still matches a control
//! token was written by the template; then the guards are taken out again. The template may trim,
//! split or repeat the content as it likes.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use stowage_openai_api::{Message, Role};

use super::TextError;
use super::tokenizer::Specials;

/// Why a conversation cannot be turned into a prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("this model has no chat template; use /v1/completions")]
    Missing,
    /// The template's own words: roles must alternate, and the like.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    #[error("the model's chat template failed: {0}")]
    Failed(String),
    #[error("the rendered messages cannot be tokenized: {0}")]
    Encode(String),
    #[error("the messages use every character that could guard control tokens")]
    NoGuard,
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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(|err| TextError::Template(err.to_string()))?;
        Ok(Self { environment, bos, eos })
    }

    pub(super) fn render(&self, messages: &[Message], specials: &Specials) -> Result<Rendered, TemplateError> {
        let guard = choose_guard(messages)?;
        let turns: Vec<Value> = messages.iter().map(|message| turn(message, specials, guard)).collect();
        let template = self.environment.get_template(NAME).map_err(|err| TemplateError::Failed(err.to_string()))?;
        let text = template
            .render(context! {
                messages => turns,
                add_generation_prompt => true,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(explain)?;
        Ok(Rendered { text, guard })
    }
}

/// Marks the messages of `raise_exception`, which are meant for whoever sent the request.
const REFUSAL: &str = "\u{1}refused: ";

fn explain(err: minijinja::Error) -> TemplateError {
    match err.detail().and_then(|detail| detail.strip_prefix(REFUSAL)) {
        Some(message) => TemplateError::Refused(message.to_owned()),
        None => TemplateError::Failed(err.to_string()),
    }
}

fn turn(message: &Message, specials: &Specials, guard: char) -> Value {
    // Templates were written before OpenAI renamed the role.
    let role = if message.role == Role::Developer { Role::System } else { message.role };
    let content = guarded(&message.content, specials, guard);
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

/// One of the 32 noncharacters of the Arabic block that nobody used.
fn choose_guard(messages: &[Message]) -> Result<char, TemplateError> {
    let used = |c: char| {
        messages
            .iter()
            .any(|message| message.content.contains(c) || message.name.as_ref().is_some_and(|n| n.contains(c)))
    };
    ('\u{FDD0}'..='\u{FDEF}').find(|c| !used(*c)).ok_or(TemplateError::NoGuard)
}

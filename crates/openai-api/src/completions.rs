//! `POST /v1/completions`.

use serde_json::Value;

use crate::fields::{Fields, missing, mistyped};
use crate::policy::Place;
use crate::sampling::{read_cache_salt, read_token};
use crate::{ApiError, Limits, Output, SamplingFields};

/// What to continue: one or several, as text or as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Texts, to be tokenized.
    Text(Vec<String>),
    /// Token ids, taken as they are.
    Tokens(Vec<Vec<u32>>),
}

impl Prompt {
    /// How many prompts; at least one.
    pub fn count(&self) -> usize {
        match self {
            Self::Text(texts) => texts.len(),
            Self::Tokens(lists) => lists.len(),
        }
    }
}

/// A text completion request, all fields within their ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The name of the model, as the client sent it.
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: SamplingFields,
    /// What to give back, and when to stop.
    pub output: Output,
    /// The answer begins with the prompt; with [`Output::logprobs`], the prompt is scored as well.
    pub echo: bool,
    /// Cached prefixes are shared only with requests of the same salt, on top of the tenant's. Empty
    /// is a salt too.
    pub cache_salt: String,
}

/// OpenAI's default for this API; chat has none.
const DEFAULT_MAX_TOKENS: u32 = 16;

impl CompletionRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body, Some(Place::Completion))?;
        let model = fields.string("model")?.ok_or_else(|| missing("model", "the name of a model"))?;
        let prompt = read_prompt(&mut fields, limits)?;
        let sampling = SamplingFields::read(&mut fields, limits)?;
        let mut output = Output::read(&mut fields, limits, 0)?;
        output.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS.max(output.min_tokens));
        output.logprobs = fields.integer("logprobs", 0, limits.max_top_logprobs)?.map(|n| n as u8);
        if fields.integer("best_of", 1, i64::MAX)?.is_some_and(|best| best != i64::from(output.n)) {
            return Err(ApiError::unsupported("best_of", "`best_of` must equal `n`. Use `n` and choose yourself."));
        }
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let cache_salt = read_cache_salt(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, prompt, sampling, output, echo, cache_salt })
    }
}

fn read_prompt(fields: &mut Fields, limits: &Limits) -> Result<Prompt, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, or token ids";
    let prompt = match fields.take("prompt") {
        None => return Err(missing("prompt", EXPECTED)),
        Some(Value::String(text)) => Prompt::Text(vec![text]),
        Some(Value::Array(items)) => match items.first() {
            None => return Err(ApiError::invalid("prompt", "invalid_value", "`prompt` is empty: give a text.")),
            Some(Value::Number(_)) => Prompt::Tokens(vec![read_tokens("prompt", items)?]),
            Some(Value::String(_)) => Prompt::Text(each(items, |path, item| match item {
                Value::String(text) => Ok(text),
                other => Err(mistyped(path, "a string, as the first one is", &other)),
            })?),
            Some(Value::Array(_)) => Prompt::Tokens(each(items, |path, item| match item {
                Value::Array(ids) => read_tokens(path, ids),
                other => Err(mistyped(path, "an array of token ids, as the first one is", &other)),
            })?),
            Some(other) => return Err(mistyped("prompt[0]", EXPECTED, other)),
        },
        Some(other) => return Err(mistyped("prompt", EXPECTED, &other)),
    };
    if prompt.count() > limits.max_prompts {
        let message = format!("`prompt` may hold at most {} prompts, not {}.", limits.max_prompts, prompt.count());
        return Err(ApiError::invalid("prompt", "invalid_value", message));
    }
    Ok(prompt)
}

fn each<T>(items: Vec<Value>, read: impl Fn(&str, Value) -> Result<T, ApiError>) -> Result<Vec<T>, ApiError> {
    items.into_iter().enumerate().map(|(i, item)| read(&format!("prompt[{i}]"), item)).collect()
}

fn read_tokens(path: &str, ids: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    if ids.is_empty() {
        let message = format!("`{path}` is empty: give at least one token.");
        return Err(ApiError::invalid(path, "invalid_value", message));
    }
    ids.iter().enumerate().map(|(i, id)| read_token(&format!("{path}[{i}]"), id)).collect()
}

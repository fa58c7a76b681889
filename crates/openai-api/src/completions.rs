//! `POST /v1/completions`.

use serde_json::Value;

use crate::fields::{Fields, missing, mistyped};
use crate::{ApiError, Limits, Output, SamplingFields};

/// What to continue: one or several, as text or as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(Vec<String>),
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
    pub model: String,
    pub prompt: Prompt,
    pub sampling: SamplingFields,
    pub output: Output,
}

/// OpenAI's default for this API; chat has none.
const DEFAULT_MAX_TOKENS: u32 = 16;

impl CompletionRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = fields.string("model")?.ok_or_else(|| missing("model", "the name of a model"))?;
        let prompt = read_prompt(&mut fields, limits)?;
        let sampling = SamplingFields::read(&mut fields, limits)?;
        let mut output = Output::read(&mut fields, limits)?;
        output.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        output.logprobs = fields.integer("logprobs", 0, limits.max_top_logprobs)?.map(|n| n as u8);
        refuse_unsupported(&mut fields, output.n)?;
        fields.ignore(&["user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"]);
        fields.finish()?;
        Ok(Self { model, prompt, sampling, output })
    }
}

fn refuse_unsupported(fields: &mut Fields, n: u32) -> Result<(), ApiError> {
    if fields.boolean("echo")?.unwrap_or(false) {
        return Err(ApiError::unsupported(
            "echo",
            "`echo` is not supported. Put the prompt before the answer yourself.",
        ));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "This model cannot fill in the middle. Remove `suffix`."));
    }
    if fields.integer("best_of", 1, i64::MAX)?.is_some_and(|best| best != i64::from(n)) {
        return Err(ApiError::unsupported("best_of", "`best_of` is not supported. Use `n` and choose yourself."));
    }
    Ok(())
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
    ids.iter()
        .enumerate()
        .map(|(i, id)| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| mistyped(&format!("{path}[{i}]"), "a token id", id))
        })
        .collect()
}

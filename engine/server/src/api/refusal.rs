//! Why the engine did not take a request, in the words of the API.

use stowage_engine_core::engine::Refusal;
use stowage_openai_api::{ApiError, Output, TokenCount};

use super::App;
use super::choice::JobPrompt;
use crate::engine_thread::SubmitError;
use crate::text::EncodeError;

/// A prompt that did not become tokens. `param` is the field that it came from.
pub(super) fn not_encoded(param: &'static str, err: &EncodeError) -> ApiError {
    match err {
        EncodeError::TooLong { at_least, limit } => {
            ApiError::context_length(param, TokenCount::AtLeast(*at_least), *limit)
        }
        EncodeError::Unbroken { .. } | EncodeError::Failed(_) => {
            ApiError::invalid(param, "invalid_value", format!("`{param}` cannot be tokenized: {err}."))
        }
    }
}

/// `param` is the field that the prompts came from.
pub(super) fn refusal(
    app: &App,
    prompts: &[JobPrompt],
    output: &Output,
    param: &'static str,
    err: SubmitError,
) -> ApiError {
    match err {
        SubmitError::Gone => ApiError::unavailable("engine_gone", "The engine has stopped. Try another replica.", 1),
        SubmitError::Refused(Refusal::EmptyPrompt) => {
            ApiError::invalid(param, "invalid_value", format!("`{param}` is empty: give at least one token."))
        }
        SubmitError::Refused(Refusal::PromptTooLong { tokens, limit }) => {
            ApiError::context_length(param, TokenCount::Exactly(tokens), limit)
        }
        SubmitError::Refused(Refusal::NoSuchToken { token, vocab }) => {
            let in_prompt = prompts.iter().any(|prompt| prompt.tokens.contains(&token));
            let param = match () {
                () if in_prompt => param,
                () if output.stop_token_ids.contains(&token) => "stop_token_ids",
                () => "logit_bias",
            };
            ApiError::invalid(
                param,
                "invalid_value",
                format!("`{param}` names token {token}; the ids of {} are below {vocab}.", app.model),
            )
        }
        SubmitError::Refused(Refusal::QueueFull { waiting }) => ApiError::unavailable(
            "queue_full",
            format!("{waiting} sequences are waiting already. Try again in a moment."),
            1,
        ),
        SubmitError::Refused(Refusal::Duplicate(_)) => {
            ApiError::internal("Two requests got the same number. Try again.")
        }
    }
}

//! The compatibility policy, as a table: which fields of a request are honoured, ignored or refused.
//!
//! The parsers follow it (a field that they read without an entry here fails a debug assertion), the
//! documentation is generated from it (`docs/gateway.md`, section Compatibility), and the tests walk it.
//!
//! The rules behind it. At the top level a field without an entry is refused with the nearest name, for
//! a misspelt field would silently change the answer. Inside messages and content parts a field without
//! an entry is ignored, for clients send back what other servers put there; only the near misspelling
//! of an honoured name is refused.

use serde_json::Value;

/// Where a field stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Top level of `POST /v1/chat/completions`.
    Chat,
    /// Top level of `POST /v1/completions`.
    Completion,
    /// An element of `messages`.
    Message,
    /// An element of a message's `content`.
    Part,
}

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It has the effect that its API documents.
    Honoured,
    /// Accepted with any value: it cannot change the answer.
    Ignored,
    /// Accepted with one of these values, as JSON, which ask for nothing beyond the default.
    OnlyDefault(&'static [&'static str]),
    /// Refused unless it is null.
    Refused,
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Where the rule applies.
    pub places: &'static [Place],
    /// The key in the JSON object.
    pub name: &'static str,
    /// What is done.
    pub treatment: Treatment,
    /// For refused values, a sentence with what to do instead; else what the field does here, or
    /// empty where its API's own documentation is enough.
    pub note: &'static str,
}

use Place::{Chat, Completion, Message, Part};
use Treatment::{Honoured, Ignored, OnlyDefault, Refused};

const BOTH: &[Place] = &[Chat, Completion];
const CHAT: &[Place] = &[Chat];
const TEXT: &[Place] = &[Completion];
const MESSAGE: &[Place] = &[Message];
const PART: &[Place] = &[Part];
const INSIDE: &[Place] = &[Message, Part];

const fn rule(places: &'static [Place], name: &'static str, treatment: Treatment, note: &'static str) -> Rule {
    Rule { places, name, treatment, note }
}

/// All fields with an entry, by place and treatment.
pub const RULES: &[Rule] = &[
    rule(BOTH, "model", Honoured, ""),
    rule(CHAT, "messages", Honoured, ""),
    rule(TEXT, "prompt", Honoured, "text, texts, token ids, or lists of token ids"),
    rule(BOTH, "stream", Honoured, ""),
    rule(BOTH, "stream_options", Honoured, ""),
    rule(BOTH, "n", Honoured, "prompts times `n` must fit into the engine's queue"),
    rule(BOTH, "max_tokens", Honoured, "0 with text completions: the prompt is computed, and nothing generated"),
    rule(BOTH, "max_completion_tokens", Honoured, "the newer name of `max_tokens`"),
    rule(BOTH, "stop", Honoured, "a string that is a control token's name stops at the token too"),
    rule(BOTH, "temperature", Honoured, "0 is greedy"),
    rule(BOTH, "top_p", Honoured, "0 is greedy"),
    rule(BOTH, "presence_penalty", Honoured, ""),
    rule(BOTH, "frequency_penalty", Honoured, ""),
    rule(BOTH, "logit_bias", Honoured, ""),
    rule(BOTH, "seed", Honoured, ""),
    rule(BOTH, "logprobs", Honoured, ""),
    rule(CHAT, "top_logprobs", Honoured, ""),
    rule(TEXT, "echo", Honoured, "with `logprobs`, the prompt's log-probabilities as well"),
    rule(CHAT, "modalities", Honoured, "`[\"text\"]`"),
    rule(TEXT, "best_of", Honoured, "equal to `n`"),
    rule(BOTH, "top_k", Honoured, "vLLM; 0 and -1 are off"),
    rule(BOTH, "min_p", Honoured, "vLLM"),
    rule(BOTH, "repetition_penalty", Honoured, "vLLM"),
    rule(BOTH, "min_tokens", Honoured, "vLLM"),
    rule(BOTH, "stop_token_ids", Honoured, "vLLM"),
    rule(BOTH, "ignore_eos", Honoured, "vLLM"),
    rule(BOTH, "skip_special_tokens", Honoured, "vLLM; `false` writes control tokens by their names"),
    rule(BOTH, "include_stop_str_in_output", Honoured, "vLLM"),
    rule(BOTH, "cache_salt", Honoured, "vLLM; on top of the tenant's own, which is always there"),
    rule(CHAT, "add_generation_prompt", Honoured, "vLLM"),
    rule(CHAT, "continue_final_message", Honoured, "vLLM; the last message is continued, not answered"),
    rule(CHAT, "chat_template_kwargs", Honoured, "vLLM"),
    rule(BOTH, "user", Ignored, ""),
    rule(BOTH, "metadata", Ignored, ""),
    rule(BOTH, "store", Ignored, "nothing is stored"),
    rule(BOTH, "service_tier", Ignored, ""),
    rule(BOTH, "safety_identifier", Ignored, ""),
    rule(BOTH, "prompt_cache_key", Ignored, "the prefix cache needs no key"),
    rule(BOTH, "prompt_cache_retention", Ignored, ""),
    rule(CHAT, "parallel_tool_calls", Ignored, ""),
    rule(CHAT, "reasoning_effort", Ignored, ""),
    rule(CHAT, "verbosity", Ignored, ""),
    rule(CHAT, "prediction", Ignored, ""),
    rule(BOTH, "priority", Ignored, "vLLM; the order among requests is the platform's to decide"),
    rule(BOTH, "request_id", Ignored, "vLLM; send the header `x-request-id`"),
    rule(CHAT, "tools", OnlyDefault(&["[]"]), "This release has no tool calling. Remove `tools`."),
    rule(
        CHAT,
        "tool_choice",
        OnlyDefault(&["\"none\"", "\"auto\""]),
        "This release has no tool calling. Remove `tool_choice`.",
    ),
    rule(
        CHAT,
        "response_format",
        OnlyDefault(&["{\"type\":\"text\"}"]),
        "This release has no structured output. Remove `response_format`.",
    ),
    rule(TEXT, "suffix", OnlyDefault(&["\"\""]), "This model cannot fill in the middle. Remove `suffix`."),
    rule(CHAT, "echo", OnlyDefault(&["false"]), "Only text completions echo. Remove `echo`, or use /v1/completions."),
    rule(BOTH, "use_beam_search", OnlyDefault(&["false"]), "There is no beam search. Remove `use_beam_search`."),
    rule(BOTH, "length_penalty", OnlyDefault(&["1"]), "There is no beam search. Remove `length_penalty`."),
    rule(BOTH, "early_stopping", OnlyDefault(&["false"]), "There is no beam search. Remove `early_stopping`."),
    rule(
        BOTH,
        "spaces_between_special_tokens",
        OnlyDefault(&["true", "false"]),
        "Use true or false; tokenizers here add no spaces either way.",
    ),
    rule(BOTH, "add_special_tokens", OnlyDefault(&["true"]), "Send token ids instead of `add_special_tokens: false`."),
    rule(BOTH, "bad_words", OnlyDefault(&["[]"]), "Use `logit_bias` with -100 instead of `bad_words`."),
    rule(BOTH, "return_tokens_as_token_ids", OnlyDefault(&["false"]), "Remove `return_tokens_as_token_ids`."),
    rule(BOTH, "return_token_ids", OnlyDefault(&["false"]), "Remove `return_token_ids`."),
    rule(BOTH, "allowed_token_ids", Refused, "Use `logit_bias` instead of `allowed_token_ids`."),
    rule(BOTH, "prompt_logprobs", Refused, "Use /v1/completions with `echo: true` and `logprobs`."),
    rule(BOTH, "truncate_prompt_tokens", Refused, "Shorten the prompt yourself, and remove `truncate_prompt_tokens`."),
    rule(BOTH, "guided_json", Refused, "This release has no structured output. Remove `guided_json`."),
    rule(BOTH, "guided_regex", Refused, "This release has no structured output. Remove `guided_regex`."),
    rule(BOTH, "guided_choice", Refused, "This release has no structured output. Remove `guided_choice`."),
    rule(BOTH, "guided_grammar", Refused, "This release has no structured output. Remove `guided_grammar`."),
    rule(BOTH, "structured_outputs", Refused, "This release has no structured output. Remove `structured_outputs`."),
    rule(
        BOTH,
        "extra_body",
        Refused,
        "`extra_body` is an argument of client libraries. Send its fields at the top level.",
    ),
    rule(CHAT, "chat_template", Refused, "The model's own chat template is used. Remove `chat_template`."),
    rule(CHAT, "documents", Refused, "Put the documents into a message, and remove `documents`."),
    rule(CHAT, "enable_thinking", Refused, "Send it inside `chat_template_kwargs`."),
    rule(CHAT, "functions", Refused, "This release has no tool calling. Remove `functions`."),
    rule(CHAT, "function_call", Refused, "This release has no tool calling. Remove `function_call`."),
    rule(CHAT, "audio", Refused, "Audio answers are not supported. Remove `audio`."),
    rule(CHAT, "web_search_options", Refused, "Web search is not supported. Remove `web_search_options`."),
    rule(CHAT, "moderation", Refused, "Moderation is not supported. Remove `moderation`."),
    rule(MESSAGE, "role", Honoured, ""),
    rule(MESSAGE, "content", Honoured, "may be null for the assistant"),
    rule(MESSAGE, "name", Honoured, ""),
    rule(MESSAGE, "tool_calls", OnlyDefault(&["[]"]), "This release has no tool calling. Send the calls as text."),
    rule(MESSAGE, "tool_call_id", Honoured, ""),
    rule(MESSAGE, "refusal", Honoured, "the text of an assistant's message that has no content"),
    rule(MESSAGE, "finish_reason", Ignored, ""),
    rule(MESSAGE, "reasoning", Ignored, "as `reasoning_content`: earlier reasoning is not shown to the model"),
    rule(MESSAGE, "reasoning_content", Ignored, ""),
    rule(MESSAGE, "reasoning_details", Ignored, ""),
    rule(MESSAGE, "thinking_blocks", Ignored, ""),
    rule(INSIDE, "id", Ignored, ""),
    rule(INSIDE, "annotations", Ignored, ""),
    rule(INSIDE, "cache_control", Ignored, "the prefix cache needs no hints"),
    rule(INSIDE, "provider_specific_fields", Ignored, ""),
    rule(MESSAGE, "audio", Refused, "This model takes text only. Send the transcript as `content`."),
    rule(MESSAGE, "images", Refused, "This model takes text only. Remove `images`."),
    rule(MESSAGE, "function_call", Refused, "This release has no tool calling. Send the call as text."),
    rule(MESSAGE, "prefix", OnlyDefault(&["false"]), "Use `continue_final_message: true` instead of `prefix`."),
    rule(
        PART,
        "type",
        Honoured,
        "`text`; also `input_text`, `output_text` and `refusal`. `thinking` parts are left out",
    ),
    rule(PART, "text", Honoured, ""),
    rule(PART, "refusal", Honoured, ""),
];

/// The rule for a field, if it has an entry.
pub fn rule_for(place: Place, name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name && rule.places.contains(&place))
}

/// All rules of a place, in the order of the table.
pub fn rules_of(place: Place) -> impl Iterator<Item = &'static Rule> {
    RULES.iter().filter(move |rule| rule.places.contains(&place))
}

impl Place {
    /// Whether a field without an entry is ignored here.
    pub fn is_tolerant(self) -> bool {
        matches!(self, Message | Part)
    }

    fn title(self) -> &'static str {
        match self {
            Chat => "chat",
            Completion => "completions",
            Message => "message",
            Part => "content part",
        }
    }
}

impl Treatment {
    /// Whether the value asks for nothing that the treatment refuses. Null is the same as absent.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Honoured | Ignored => true,
            OnlyDefault(defaults) => value.is_null() || defaults.iter().any(|default| is_equal(default, value)),
            Refused => value.is_null(),
        }
    }

    fn title(self) -> String {
        match self {
            Honoured => "honoured".to_owned(),
            Ignored => "ignored".to_owned(),
            OnlyDefault(values) => format!("only `{}`", values.join("`, `")),
            Refused => "refused".to_owned(),
        }
    }
}

/// Numbers by value: `1` and `1.0` are the same.
fn is_equal(default: &str, value: &Value) -> bool {
    match (serde_json::from_str::<Value>(default), value) {
        (Ok(Value::Number(a)), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Ok(default), value) => default == *value,
        (Err(_), _) => false,
    }
}

/// The table in Markdown, as the documentation shows it.
pub fn markdown() -> String {
    let mut text = "| field | where | treatment | note |\n|---|---|---|---|\n".to_owned();
    for rule in RULES {
        let places: Vec<&str> = rule.places.iter().map(|place| place.title()).collect();
        let treatment = rule.treatment.title();
        text.push_str(&format!("| `{}` | {} | {treatment} | {} |\n", rule.name, places.join(", "), rule.note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_has_two_rules_in_one_place() {
        for (i, rule) in RULES.iter().enumerate() {
            for place in rule.places {
                let other = RULES[..i].iter().find(|other| other.name == rule.name && other.places.contains(place));
                assert!(other.is_none(), "{place:?} {}", rule.name);
            }
        }
    }

    #[test]
    fn refused_values_name_an_alternative() {
        for rule in RULES.iter().filter(|rule| matches!(rule.treatment, OnlyDefault(_) | Refused)) {
            assert!(rule.note.ends_with('.'), "{}", rule.name);
        }
    }

    #[test]
    fn defaults_are_json_and_compared_by_value() {
        for rule in RULES {
            if let OnlyDefault(values) = rule.treatment {
                for value in values {
                    let value: Value = serde_json::from_str(value).unwrap();
                    assert!(rule.treatment.accepts(&value), "{}", rule.name);
                }
            }
        }
        assert!(OnlyDefault(&["1"]).accepts(&serde_json::json!(1.0)));
        assert!(!OnlyDefault(&["1"]).accepts(&serde_json::json!("1")));
        assert!(OnlyDefault(&["1"]).accepts(&Value::Null));
        assert!(!Refused.accepts(&serde_json::json!([])));
    }

    #[test]
    fn the_table_in_the_documentation_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/gateway.md");
        let page = std::fs::read_to_string(path).unwrap();
        let start = page.find("| field | where |").expect("the page has the table");
        let end = start + page[start..].find("\n\n").expect("the table ends") + 1;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, format!("{}{}{}", &page[..start], markdown(), &page[end..])).unwrap();
            return;
        }
        assert!(
            page[start..end] == markdown(),
            "the table in docs/gateway.md differs: UPDATE_GOLDEN=1 cargo test -p stowage-openai-api policy"
        );
    }
}

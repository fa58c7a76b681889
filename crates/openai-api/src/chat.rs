//! `POST /v1/chat/completions`.

use serde_json::Value;

use crate::fields::{Fields, missing, mistyped};
use crate::sampling::read_chat_logprobs;
use crate::{ApiError, Limits, Output, SamplingFields};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    fn parse(param: &str, text: &str) -> Result<Self, ApiError> {
        Ok(match text {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            other => {
                let other: String = other.chars().take(24).collect();
                let message = format!("`{param}` must be system, developer, user, assistant or tool, not {other:?}.");
                return Err(ApiError::invalid(param, "invalid_value", message));
            }
        })
    }
}

/// One turn. Content parts are joined: a text model sees one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: Role,
    /// Empty only where the assistant called tools.
    pub content: String,
    pub name: Option<String>,
    /// As sent; a server without tools refuses them.
    pub tool_calls: Vec<Value>,
    pub tool_call_id: Option<String>,
}

/// A chat request, all fields within their ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    pub sampling: SamplingFields,
    pub output: Output,
    /// As sent. A server that cannot honour them must refuse (see [`ChatRequest::refuse_extras`]).
    pub tools: Vec<Value>,
    pub tool_choice: Option<Value>,
    pub response_format: Option<Value>,
}

/// Allowed and without effect on the text.
const IGNORED: [&str; 11] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "prediction",
];

/// In OpenAI's API, and never silently dropped.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("functions", "`functions` was replaced by `tools`. Use that."),
    ("function_call", "`function_call` was replaced by `tool_choice`. Use that."),
    ("audio", "Audio answers are not supported. Remove `audio`."),
    ("web_search_options", "Web search is not supported. Remove `web_search_options`."),
    ("moderation", "Moderation is not supported. Remove `moderation`."),
];

impl ChatRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = fields.string("model")?.ok_or_else(|| missing("model", "the name of a model"))?;
        let messages = read_messages(&mut fields, limits)?;
        let sampling = SamplingFields::read(&mut fields, limits)?;
        let mut output = Output::read(&mut fields, limits)?;
        output.logprobs = read_chat_logprobs(&mut fields, limits)?;
        let request = Self {
            model,
            messages,
            sampling,
            output,
            tools: read_array(&mut fields, "tools")?,
            tool_choice: fields.take("tool_choice"),
            response_format: fields.take("response_format"),
        };
        refuse_audio(&mut fields)?;
        for (name, why) in UNSUPPORTED {
            if fields.take(name).is_some() {
                return Err(ApiError::unsupported(name, why));
            }
        }
        fields.ignore(&IGNORED);
        fields.finish()?;
        Ok(request)
    }

    /// Refuses tools and structured output, for servers that have neither. The defaults, said out
    /// loud (`tool_choice: none`, `response_format: text`), are fine.
    pub fn refuse_extras(&self) -> Result<(), ApiError> {
        let calls = self.messages.iter().position(|message| !message.tool_calls.is_empty());
        if !self.tools.is_empty() {
            return Err(ApiError::unsupported("tools", "This model's server has no tool calling. Remove `tools`."));
        }
        if self.tool_choice.as_ref().is_some_and(|choice| choice != "none" && choice != "auto") {
            let message = "This model's server has no tool calling. Remove `tool_choice`.";
            return Err(ApiError::unsupported("tool_choice", message));
        }
        if let Some(i) = calls {
            let message = "This model's server has no tool calling. Send the calls as text.";
            return Err(ApiError::unsupported(format!("messages[{i}].tool_calls"), message));
        }
        let format = self.response_format.as_ref();
        if format.is_some_and(|format| format.get("type").is_none_or(|kind| kind != "text")) {
            let message =
                "This model's server has no structured output. Remove `response_format`, or use {\"type\": \"text\"}.";
            return Err(ApiError::unsupported("response_format", message));
        }
        Ok(())
    }
}

/// `modalities: ["text"]` is the default said out loud.
fn refuse_audio(fields: &mut Fields) -> Result<(), ApiError> {
    let modalities = read_array(fields, "modalities")?;
    if modalities.iter().any(|modality| modality != "text") {
        return Err(ApiError::unsupported(
            "modalities",
            "Only text is supported. Use [\"text\"], or remove `modalities`.",
        ));
    }
    Ok(())
}

fn read_array(fields: &mut Fields, name: &'static str) -> Result<Vec<Value>, ApiError> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(mistyped(&fields.param(name), "an array", &other)),
    }
}

fn read_messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let items = match fields.take("messages") {
        None => return Err(missing("messages", "at least one message")),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mistyped("messages", "an array of messages", &other)),
    };
    let refuse = |message: String| Err(ApiError::invalid("messages", "invalid_value", message));
    if items.is_empty() {
        return refuse("`messages` is empty: give at least one message.".to_owned());
    }
    if items.len() > limits.max_messages {
        return refuse(format!("`messages` may hold at most {}, not {}.", limits.max_messages, items.len()));
    }
    items.into_iter().enumerate().map(|(i, item)| read_message(&format!("messages[{i}]"), item)).collect()
}

fn read_message(path: &str, item: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(path, item)?;
    let role_param = fields.param("role");
    let role = fields.string("role")?.ok_or_else(|| missing(&role_param, "who speaks"))?;
    let role = Role::parse(&role_param, &role)?;
    let content_param = fields.param("content");
    let content = fields.take("content").map(|content| read_content(&content_param, content)).transpose()?;
    let tool_calls = read_array(&mut fields, "tool_calls")?;
    let message = Message {
        role,
        name: fields.string("name")?,
        tool_call_id: fields.string("tool_call_id")?,
        content: match content {
            Some(content) => content,
            None if role == Role::Assistant && !tool_calls.is_empty() => String::new(),
            None => return Err(missing(&content_param, "the text of the message")),
        },
        tool_calls,
    };
    // What our own answers carry, so that a client may send them back as they came.
    fields.ignore(&["refusal", "annotations", "audio", "function_call", "reasoning_content"]);
    fields.finish()?;
    Ok(message)
}

fn read_content(param: &str, content: Value) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            parts.into_iter().enumerate().map(|(i, part)| read_part(&format!("{param}[{i}]"), part)).collect()
        }
        other => Err(mistyped(param, "a string or an array of parts", &other)),
    }
}

fn read_part(path: &str, part: Value) -> Result<String, ApiError> {
    let mut fields = Fields::nested(path, part)?;
    let kind_param = fields.param("type");
    match fields.string("type")?.ok_or_else(|| missing(&kind_param, "\"text\""))?.as_str() {
        "text" => {}
        other => {
            let other: String = other.chars().take(24).collect();
            let message = format!("This model takes text only; a part of type {other:?} cannot be used. Remove it.");
            return Err(ApiError::unsupported(kind_param, message));
        }
    }
    let text_param = fields.param("text");
    let text = fields.string("text")?.ok_or_else(|| missing(&text_param, "the text of this part"))?;
    fields.finish()?;
    Ok(text)
}

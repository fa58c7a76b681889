//! `POST /v1/chat/completions`.

use serde_json::Value;

use crate::fields::{Fields, missing, mistyped};
use crate::ordered::{OrderedMap, OrderedValue};
use crate::policy::{Place, rule_for};
use crate::sampling::{read_cache_salt, read_chat_logprobs};
use crate::{ApiError, Limits, Output, SamplingFields};

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The application's instructions.
    System,
    /// The newer name of [`Role::System`].
    Developer,
    /// The person, or the program in its place.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The role on the wire.
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
    /// The author.
    pub role: Role,
    /// May be empty.
    pub content: String,
    /// Distinguishes authors of one role.
    pub name: Option<String>,
    /// As sent; a server without tools refuses them.
    pub tool_calls: Vec<OrderedValue>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
}

/// How the messages become a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateFields {
    /// The prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The prompt ends inside the last message, which the answer continues. Excludes the former.
    pub continue_final_message: bool,
    /// Further variables for the model's chat template.
    pub kwargs: OrderedMap,
}

impl Default for TemplateFields {
    /// What a request without any of the fields asks for.
    fn default() -> Self {
        Self { add_generation_prompt: true, continue_final_message: false, kwargs: OrderedMap::new() }
    }
}

/// A chat request, all fields within their ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The name of the model, as the client sent it.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// How they become a prompt.
    pub template: TemplateFields,
    /// How to choose tokens.
    pub sampling: SamplingFields,
    /// What to give back, and when to stop.
    pub output: Output,
    /// Cached prefixes are shared only with requests of the same salt, on top of the tenant's. Empty
    /// is a salt too.
    pub cache_salt: String,
    /// As sent. A server that cannot honour them must refuse (see [`ChatRequest::refuse_extras`]).
    pub tools: Vec<OrderedValue>,
    /// As sent; the same holds.
    pub tool_choice: Option<Value>,
    /// As sent; the same holds.
    pub response_format: Option<Value>,
}

impl ChatRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::from_body(body, Some(Place::Chat))?;
        let model = fields.string("model")?.ok_or_else(|| missing("model", "the name of a model"))?;
        let messages = read_messages(&mut fields, limits)?;
        let template = read_template(&mut fields, &messages)?;
        let sampling = SamplingFields::read(&mut fields, limits)?;
        let mut output = Output::read(&mut fields, limits, 1)?;
        output.logprobs = read_chat_logprobs(&mut fields, limits)?;
        let request = Self {
            model,
            messages,
            template,
            sampling,
            output,
            cache_salt: read_cache_salt(&mut fields)?,
            tools: read_array(&mut fields, "tools")?,
            tool_choice: fields.take("tool_choice"),
            response_format: fields.take("response_format"),
        };
        refuse_audio(&mut fields)?;
        fields.finish()?;
        Ok(request)
    }

    /// Refuses tools and structured output, for servers that have neither. The explicit defaults
    /// (`tool_choice: none`, `response_format: text`) are fine.
    pub fn refuse_extras(&self) -> Result<(), ApiError> {
        let refuse = |place, name, param| {
            let note = rule_for(place, name).map_or("", |rule| rule.note);
            Err(ApiError::unsupported(param, note))
        };
        if !self.tools.is_empty() {
            return refuse(Place::Chat, "tools", "tools".to_owned());
        }
        if self.tool_choice.as_ref().is_some_and(|choice| choice != "none" && choice != "auto") {
            return refuse(Place::Chat, "tool_choice", "tool_choice".to_owned());
        }
        if let Some(i) = self.messages.iter().position(|message| !message.tool_calls.is_empty()) {
            return refuse(Place::Message, "tool_calls", format!("messages[{i}].tool_calls"));
        }
        let format = self.response_format.as_ref();
        if format.is_some_and(|format| format.get("type").is_none_or(|kind| kind != "text")) {
            return refuse(Place::Chat, "response_format", "response_format".to_owned());
        }
        Ok(())
    }
}

/// `modalities: ["text"]` is the explicit default.
fn refuse_audio(fields: &mut Fields) -> Result<(), ApiError> {
    let modalities = match fields.take("modalities") {
        None => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mistyped("modalities", "an array", &other)),
    };
    if modalities.iter().any(|modality| modality != "text") {
        return Err(ApiError::unsupported(
            "modalities",
            "Only text is supported. Use [\"text\"], or remove `modalities`.",
        ));
    }
    Ok(())
}

fn read_array(fields: &mut Fields, name: &'static str) -> Result<Vec<OrderedValue>, ApiError> {
    match fields.take_ordered(name) {
        None => Ok(Vec::new()),
        Some(OrderedValue::Array(items)) => Ok(items),
        Some(other) => Err(mistyped(&fields.param(name), "an array", &other.into())),
    }
}

fn read_messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let items = match fields.take_ordered("messages") {
        None => return Err(missing("messages", "at least one message")),
        Some(OrderedValue::Array(items)) => items,
        Some(other) => return Err(mistyped("messages", "an array of messages", &other.into())),
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

fn read_message(path: &str, item: OrderedValue) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(path, item, Some(Place::Message))?;
    let role_param = fields.param("role");
    let role = fields.string("role")?.ok_or_else(|| missing(&role_param, "the author of the message"))?;
    let role = Role::parse(&role_param, &role)?;
    let content_param = fields.param("content");
    let content = fields.take_ordered("content").map(|content| read_content(&content_param, content)).transpose()?;
    let refusal = fields.string("refusal")?;
    let message = Message {
        role,
        name: fields.string("name")?,
        tool_call_id: fields.string("tool_call_id")?,
        tool_calls: read_array(&mut fields, "tool_calls")?,
        content: match content.or(refusal) {
            Some(content) => content,
            // It called tools, or its answer was cut before the first word: clients send that back.
            None if role == Role::Assistant => String::new(),
            None => return Err(missing(&content_param, "the text of the message")),
        },
    };
    fields.finish()?;
    Ok(message)
}

/// Variables that the server sets; a request that sets them as well would see one of the two ignored.
const RESERVED: [&str; 7] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"];

fn read_template(fields: &mut Fields, messages: &[Message]) -> Result<TemplateFields, ApiError> {
    let generation = fields.boolean("add_generation_prompt")?;
    let continues = fields.boolean("continue_final_message")?.unwrap_or(false);
    let refuse = |message: &str| Err(ApiError::invalid("continue_final_message", "invalid_value", message));
    if continues && generation == Some(true) {
        return refuse("`continue_final_message` and `add_generation_prompt` exclude each other. Send one of them.");
    }
    if continues && messages.last().is_none_or(|last| last.content.is_empty()) {
        return refuse("`continue_final_message` needs a last message with content. Remove it, or add the content.");
    }
    let kwargs = match fields.take_ordered("chat_template_kwargs") {
        None => OrderedMap::new(),
        Some(OrderedValue::Object(kwargs)) => kwargs,
        Some(other) => return Err(mistyped("chat_template_kwargs", "an object", &other.into())),
    };
    if let Some(name) = RESERVED.iter().find(|name| kwargs.contains_key(**name)) {
        let message = format!("The server sets `{name}`. Send it at the top level, or remove it.");
        return Err(ApiError::invalid(format!("chat_template_kwargs.{name}"), "invalid_value", message));
    }
    Ok(TemplateFields {
        add_generation_prompt: generation.unwrap_or(!continues),
        continue_final_message: continues,
        kwargs,
    })
}

fn read_content(param: &str, content: OrderedValue) -> Result<String, ApiError> {
    match content {
        OrderedValue::String(text) => Ok(text),
        OrderedValue::Array(parts) => {
            parts.into_iter().enumerate().map(|(i, part)| read_part(&format!("{param}[{i}]"), part)).collect()
        }
        other => Err(mistyped(param, "a string or an array of parts", &other.into())),
    }
}

fn read_part(path: &str, part: OrderedValue) -> Result<String, ApiError> {
    let mut fields = Fields::nested(path, part, Some(Place::Part))?;
    let kind_param = fields.param("type");
    let text = match fields.string("type")?.ok_or_else(|| missing(&kind_param, "\"text\""))?.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        // Earlier reasoning is not shown to the model, in whichever field it comes.
        "thinking" | "redacted_thinking" | "reasoning" => return Ok(String::new()),
        other => {
            let other: String = other.chars().take(24).collect();
            let message = format!("This model takes text only; a part of type {other:?} cannot be used. Remove it.");
            return Err(ApiError::unsupported(kind_param, message));
        }
    };
    let text_param = fields.param(text);
    let text = fields.string(text)?.ok_or_else(|| missing(&text_param, "the text of this part"))?;
    fields.finish()?;
    Ok(text)
}

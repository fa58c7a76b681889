//! The fields that chat and text completions share: how to sample, when to stop, what to return.

use serde_json::Value;

use crate::ApiError;
use crate::fields::{Fields, mistyped, number_in};

/// What a server allows. The defaults are OpenAI's or larger, and bounded by what they cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Choices per prompt.
    pub max_n: u32,
    /// Prompts in one text completion.
    pub max_prompts: usize,
    /// Stop strings; also stop token ids.
    pub max_stops: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Bytes of all stop strings: each token's text is compared with all of them.
    pub max_stops_bytes: usize,
    /// Messages of a conversation.
    pub max_messages: usize,
    /// Tokens with a bias.
    pub max_logit_bias: usize,
    /// Log-probabilities beside the chosen token's.
    pub max_top_logprobs: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_n: 128,
            max_prompts: 1024,
            max_stops: 256,
            max_stop_bytes: 1024,
            max_stops_bytes: 8192,
            max_messages: 2048,
            max_logit_bias: 300,
            max_top_logprobs: 20,
        }
    }
}

/// How to choose tokens. Every value is within its range; `None` leaves the model's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingFields {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 keeps the likeliest token alone, 1 is off.
    pub top_p: Option<f32>,
    /// `None` is off (clients also send 0 or -1).
    pub top_k: Option<u32>,
    /// 0 is off.
    pub min_p: Option<f32>,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Token id and bias. Ids are not checked against a vocabulary here.
    pub logit_bias: Vec<(u32, f32)>,
    /// Equal seeds give equal answers; `None` is another one each time.
    pub seed: Option<i64>,
}

/// What to give back, and when to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The answer comes as events.
    pub stream: bool,
    /// A last chunk with the usage, before `[DONE]`.
    pub include_usage: bool,
    /// At least 1.
    pub n: u32,
    /// Strings that end the answer. None is empty.
    pub stop: Vec<String>,
    /// Tokens that end the answer, beside those of the model. Ids are not checked against a
    /// vocabulary here.
    pub stop_token_ids: Vec<u32>,
    /// The text of what ended the answer is part of it.
    pub include_stop: bool,
    /// Control tokens have no text. Otherwise their names are their text.
    pub skip_special_tokens: bool,
    /// `None` is as much as the context allows. 0, with text completions only, generates nothing.
    pub max_tokens: Option<u32>,
    /// Nothing ends the answer before so many tokens. 0 is off.
    pub min_tokens: u32,
    /// `Some(k)`: log-probabilities of the chosen token and of the `k` likeliest.
    pub logprobs: Option<u8>,
    /// Goes on past the end-of-text token; for measurements (as in vLLM).
    pub ignore_eos: bool,
}

impl SamplingFields {
    pub(crate) fn read(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        Ok(Self {
            temperature: fields.number("temperature", 0.0, 2.0)?,
            top_p: fields.number("top_p", 0.0, 1.0)?,
            top_k: fields
                .integer("top_k", -1, i64::from(u32::MAX))?
                .and_then(|k| u32::try_from(k).ok())
                .filter(|k| *k > 0),
            min_p: fields.number("min_p", 0.0, 1.0)?,
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0),
            logit_bias: read_logit_bias(fields, limits)?,
            seed: fields.integer("seed", i64::MIN, i64::MAX)?,
        })
    }
}

fn read_logit_bias(fields: &mut Fields, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    let param = fields.param("logit_bias");
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(mistyped(&param, "an object from token id to bias", &other)),
    };
    if map.len() > limits.max_logit_bias {
        let message = format!("`{param}` may hold at most {} tokens, not {}.", limits.max_logit_bias, map.len());
        return Err(ApiError::invalid(param, "invalid_value", message));
    }
    map.iter()
        .map(|(key, value)| {
            // `01` and `1` would be one token with two biases.
            let token = key.parse::<u32>().ok().filter(|id| id.to_string() == *key).ok_or_else(|| {
                let key: String = key.chars().take(24).collect();
                let message = format!("`{param}` must map token ids to biases; {key:?} is not a token id.");
                ApiError::invalid(param.clone(), "invalid_value", message)
            })?;
            Ok((token, number_in(&format!("{param}.{token}"), value, -100.0, 100.0)?))
        })
        .collect()
}

impl Output {
    /// All but `logprobs`, which the two APIs spell differently. `least` is the smallest `max_tokens`.
    pub(crate) fn read(fields: &mut Fields, limits: &Limits, least: i64) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let max_tokens = read_max_tokens(fields, least)?;
        Ok(Self {
            stream,
            include_usage: read_stream_options(fields, stream)?,
            n: fields.integer("n", 1, i64::from(limits.max_n))?.map_or(1, |n| n as u32),
            stop: read_stop(fields, limits)?,
            stop_token_ids: read_stop_tokens(fields, limits)?,
            include_stop: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            max_tokens,
            min_tokens: read_min_tokens(fields, max_tokens)?,
            logprobs: None,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        })
    }
}

fn read_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    let include = options.boolean("include_usage")?.unwrap_or(false);
    options.ignore(&["include_obfuscation", "continuous_usage_stats"]);
    options.finish()?;
    if !stream {
        let message = "`stream_options` needs `stream: true`. Set it, or remove `stream_options`.";
        return Err(ApiError::invalid("stream_options", "invalid_value", message));
    }
    Ok(include)
}

fn read_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let param = fields.param("stop");
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                Value::String(text) => Ok(text),
                other => Err(mistyped(&format!("{param}[{i}]"), "a string", &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(mistyped(&param, "a string or an array of strings", &other)),
    };
    let refuse = |message: String| Err(ApiError::invalid(param.clone(), "invalid_value", message));
    if stops.len() > limits.max_stops {
        return refuse(format!("`{param}` may hold at most {} strings, not {}.", limits.max_stops, stops.len()));
    }
    if stops.iter().any(String::is_empty) {
        return refuse(format!("`{param}` may not hold an empty string: it would stop before the first token."));
    }
    if stops.iter().any(|stop| stop.len() > limits.max_stop_bytes) {
        return refuse(format!("Each string of `{param}` may be at most {} bytes long.", limits.max_stop_bytes));
    }
    if stops.iter().map(String::len).sum::<usize>() > limits.max_stops_bytes {
        return refuse(format!("All strings of `{param}` may be {} bytes long together.", limits.max_stops_bytes));
    }
    Ok(stops)
}

fn read_stop_tokens(fields: &mut Fields, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let items = match fields.take("stop_token_ids") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mistyped("stop_token_ids", "an array of token ids", &other)),
    };
    if items.len() > limits.max_stops {
        let message = format!("`stop_token_ids` may hold at most {} ids, not {}.", limits.max_stops, items.len());
        return Err(ApiError::invalid("stop_token_ids", "invalid_value", message));
    }
    items.iter().enumerate().map(|(i, id)| read_token(&format!("stop_token_ids[{i}]"), id)).collect()
}

/// A token id, or the error that names `param`.
pub(crate) fn read_token(param: &str, id: &Value) -> Result<u32, ApiError> {
    id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| mistyped(param, "a token id", id))
}

/// At most 256 bytes: it names a group of requests and is no place for data.
pub(crate) fn read_cache_salt(fields: &mut Fields) -> Result<String, ApiError> {
    const MOST: usize = 256;
    let salt = fields.string("cache_salt")?.unwrap_or_default();
    if salt.len() > MOST {
        let message = format!("`cache_salt` may be at most {MOST} bytes long, not {}.", salt.len());
        return Err(ApiError::invalid("cache_salt", "invalid_value", message));
    }
    Ok(salt)
}

fn read_min_tokens(fields: &mut Fields, max_tokens: Option<u32>) -> Result<u32, ApiError> {
    let min = fields.integer("min_tokens", 0, i64::from(u32::MAX))?.map_or(0, |n| n as u32);
    match max_tokens {
        Some(max) if min > max => {
            let message = format!("`min_tokens` ({min}) is larger than `max_tokens` ({max}). Lower it.");
            Err(ApiError::invalid("min_tokens", "invalid_value", message))
        }
        _ => Ok(min),
    }
}

/// The newer name wins; both at once with different values is refused, for one of them is a mistake.
fn read_max_tokens(fields: &mut Fields, least: i64) -> Result<Option<u32>, ApiError> {
    let most = i64::from(u32::MAX);
    let leave_out = |mut err: ApiError| {
        if err.code == "invalid_value" {
            err.message.push_str(" Leave it out for as many as the context holds.");
        }
        err
    };
    let newer = fields.integer("max_completion_tokens", least, most).map_err(leave_out)?;
    let older = fields.integer("max_tokens", least, most).map_err(leave_out)?;
    match (newer, older) {
        (Some(a), Some(b)) if a != b => Err(ApiError::invalid(
            "max_tokens",
            "invalid_value",
            format!("`max_tokens` ({b}) and `max_completion_tokens` ({a}) differ. Send one of them."),
        )),
        (a, b) => Ok(a.or(b).map(|n| n as u32)),
    }
}

/// `logprobs: true` with `top_logprobs: k`, as chat spells it.
pub(crate) fn read_chat_logprobs(fields: &mut Fields, limits: &Limits) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, limits.max_top_logprobs)?;
    match (wanted, top) {
        (false, Some(top)) if top > 0 => Err(ApiError::invalid(
            "top_logprobs",
            "invalid_value",
            "`top_logprobs` needs `logprobs: true`. Set it, or remove `top_logprobs`.",
        )),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

//! Answers and stream chunks. All can be read as well, since a gateway accounts by them.

use serde::{Deserialize, Serialize};

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended, or a stop string was met.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// Another server left out a part.
    ContentFilter,
}

/// Tokens in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All tokens of all prompts.
    pub prompt_tokens: u32,
    /// All generated tokens, those that ended an answer included.
    pub completion_tokens: u32,
    /// The sum.
    pub total_tokens: u32,
    /// Absent is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// Absent is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// How much of the prompt was not computed again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens that came from the prefix cache.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// What the generated tokens were for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Tokens of reasoning that the client does not see.
    #[serde(default)]
    pub reasoning_tokens: u32,
}

impl Usage {
    /// Of `prompt` tokens `cached` came from the cache.
    pub fn new(prompt: u32, completion: u32, cached: u32) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: cached }),
            completion_tokens_details: None,
        }
    }

    /// 0 where it is unknown.
    pub fn cached_tokens(&self) -> u32 {
        self.prompt_tokens_details.map_or(0, |details| details.cached_tokens)
    }
}

/// A whole chat answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// Unique to the request.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that the client sent.
    pub model: String,
    /// In order of their index.
    pub choices: Vec<ChatChoice>,
    /// Always there from our own servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One of `n` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// The answer.
    pub message: ChatMessage,
    /// Where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Always there from our own servers.
    pub finish_reason: Option<FinishReason>,
}

/// The message of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `assistant`.
    pub role: String,
    /// The text.
    pub content: Option<String>,
    /// Of other servers.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// One event of a chat stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same in all chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that the client sent.
    pub model: String,
    /// Empty in the last chunk, which carries the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// In the last chunk, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What one chunk adds to one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// Which answer.
    pub index: u32,
    /// What is added.
    pub delta: Delta,
    /// Of the tokens that came with this chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// In the last chunk of the answer.
    pub finish_reason: Option<FinishReason>,
}

/// A piece of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// In the first chunk of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Text to append.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Log-probabilities, as chat spells them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<TokenLogprob>,
}

/// A token of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text, the name of a control token, or `bytes:\x…` where it is a part of a character.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// What it adds to the text.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest at its place, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that the model might have chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// As in [`TokenLogprob`].
    pub bytes: Option<Vec<u8>>,
}

/// A text completion: the whole answer, or one event of its stream (they have the same shape).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Unique to the request; the same in all events.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that the client sent.
    pub model: String,
    /// In order of their index; empty in the event that carries the usage.
    pub choices: Vec<CompletionChoice>,
    /// Absent in events but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One answer, or what an event adds to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Prompts in order, and the `n` answers of each together.
    pub index: u32,
    /// The text, after the prompt where `echo` was asked for.
    pub text: String,
    /// Where they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Absent in events but an answer's last.
    pub finish_reason: Option<FinishReason>,
}

/// The older shape: parallel arrays, one element per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// The text of each token, the name of a control token, or `bytes:\x…` where it is a part of a
    /// character.
    pub tokens: Vec<String>,
    /// Natural logarithms. `None` for the first token of an echoed prompt, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest by their text, the chosen one among them; `None` as above.
    pub top_logprobs: Vec<Option<std::collections::BTreeMap<String, f32>>>,
    /// Where the token's text begins, in characters from the start of the choice's text.
    pub text_offset: Vec<usize>,
}

/// `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models that the caller may use.
    pub data: Vec<Model>,
}

impl ModelList {
    /// The list of these models.
    pub fn new(data: Vec<Model>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}

/// A model that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name to send.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970 at which it was loaded or declared.
    pub created: u64,
    /// `stowage`.
    pub owned_by: String,
    /// Longest prompt and answer together, in tokens (as vLLM reports it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
}

impl Model {
    /// `max_model_len` is `None` where it is not known.
    pub fn new(id: impl Into<String>, created: u64, max_model_len: Option<u32>) -> Self {
        Self { id: id.into(), object: "model".to_owned(), created, owned_by: "stowage".to_owned(), max_model_len }
    }
}

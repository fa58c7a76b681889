//! The OpenAI wire format as Stowage implements it: requests parsed once into narrow types, answers,
//! stream chunks, and errors that name the field and the change to make.
//!
//! Both sides of the data plane use it: the engine parses whole requests ([`ChatRequest`],
//! [`CompletionRequest`]), the gateway usually reads the few fields it routes by ([`Envelope`]) and
//! relays the body as it came. Requests are read by hand, field by field, and not by a serde derive:
//! an error must name the field (`param`), what was found and what is allowed.
//!
//! Strict where a silent misreading would change the answer (unknown fields, wrong types, values
//! out of range), tolerant where it cannot: [`policy`] is the table of all fields. Deliberately absent:
//! HTTP, tokens, models. No I/O.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![deny(missing_docs)]

mod chat;
mod completions;
mod envelope;
mod error;
mod fields;
mod ordered;
pub mod policy;
mod response;
mod sampling;
mod share;
mod sse;

pub use chat::{ChatRequest, Message, Role, TemplateFields};
pub use completions::{CompletionRequest, Prompt};
pub use envelope::Envelope;
pub use error::{ApiError, ErrorBody, ErrorKind, ErrorObject, TokenCount};
pub use ordered::{OrderedMap, OrderedValue};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatMessage, Completion, CompletionChoice,
    CompletionLogprobs, CompletionTokensDetails, Delta, FinishReason, Model, ModelList, PromptTokensDetails,
    TokenLogprob, TopLogprob, Usage,
};
pub use sampling::{Limits, Output, SamplingFields};
pub use share::{Exceeded, Share, SharedBudget};
pub use sse::{DONE, data_line};

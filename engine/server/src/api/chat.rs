//! `POST /v1/chat/completions`.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use stowage_openai_api::{
    ApiError, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatMessage, ChatRequest,
    TokenLogprob, TopLogprob, Usage,
};
use stowage_telemetry::traces::traceparent::TraceParent;

use super::answer::answer;
use super::choice::{Delta, JobPrompt, Scored};
use super::job::{Caller, Job, claim};
use super::labels::{finite, label};
use super::refusal::not_encoded;
use super::stream::{Answer, Header};
use super::{App, body};
use crate::text::{self, Beginning, TemplateError, TextModel};

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let caller = TraceParent::of(&headers);
    let parse = async |app: &App| prepare(app, &headers, body).await;
    answer::<Chat>(app, caller, parse).await
}

async fn prepare(app: &App, headers: &HeaderMap, body: Body) -> Result<Job, ApiError> {
    let caller = Caller::new(headers);
    let held = body::read(app, headers, &caller, body).await?;
    let request = ChatRequest::parse(&held.bytes, &app.limits)?;
    if request.model != app.model {
        return Err(ApiError::model_not_found(&request.model));
    }
    request.refuse_extras()?;
    let places = claim(app, &caller, 1, request.output.n)?;
    let chat = text::Chat::new(&request.messages, &request.template, Timestamp::now());
    let limit = app.engine.max_sequence;
    let tokens = app.tokenize(|text| text.encode_chat(&chat, limit)).await.map_err(explain)?;
    // An answer that continues a message goes on where that ends.
    let continues = request.template.continue_final_message;
    let beginning = if continues { Beginning::AsItIs } else { app.text.pieces().beginning() };
    Ok(Job {
        prompts: vec![JobPrompt { tokens, echo: None }],
        sampling: request.sampling,
        output: request.output,
        caller: caller.with_cache_salt(&request.cache_salt),
        param: "messages",
        score_stop: false,
        places,
        beginning,
    })
}

fn explain(err: TemplateError) -> ApiError {
    match err {
        TemplateError::Encode(err) => not_encoded("messages", &err),
        TemplateError::Missing
        | TemplateError::Unreadable(_)
        | TemplateError::Refused(_)
        | TemplateError::NoGuard
        | TemplateError::NotContinued => ApiError::invalid("messages", "invalid_value", format!("{err}.")),
        // A template may also fail on what it did not expect; the request can be changed, the file not.
        TemplateError::Failed(_) => {
            tracing::warn!(%err, "a conversation could not be rendered");
            ApiError::invalid(
                "messages",
                "chat_template_failed",
                format!("{err}. Use plain system, user and assistant turns."),
            )
        }
    }
}

/// The shapes of chat answers.
pub(super) struct Chat;

impl Answer for Chat {
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OPERATION: &'static str = "chat";
    type Whole = ChatCompletion;
    type Chunk = ChatChunk;

    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, text: &TextModel) -> ChatCompletion {
        let wants_logprobs = header.logprobs;
        let choice = |delta: Delta| ChatChoice {
            index: delta.index,
            logprobs: wants_logprobs.then(|| logprobs(&delta.scored, text)),
            message: ChatMessage { role: "assistant".to_owned(), content: Some(delta.text), refusal: None },
            finish_reason: delta.finish,
        };
        ChatCompletion {
            id: header.id,
            object: "chat.completion".to_owned(),
            created: header.created,
            model: header.model,
            choices: choices.into_iter().map(choice).collect(),
            usage: Some(usage),
        }
    }

    fn opening(header: &Header, index: u32) -> Option<ChatChunk> {
        let delta = stowage_openai_api::Delta { role: Some("assistant".to_owned()), content: Some(String::new()) };
        Some(chunk(header, vec![ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }], None))
    }

    fn chunk(header: &Header, delta: Delta, text: &TextModel) -> ChatChunk {
        let content = (!delta.text.is_empty() || delta.finish.is_none()).then_some(delta.text);
        let choice = ChatChunkChoice {
            index: delta.index,
            logprobs: (!delta.scored.is_empty()).then(|| logprobs(&delta.scored, text)),
            delta: stowage_openai_api::Delta { role: None, content },
            finish_reason: delta.finish,
        };
        chunk(header, vec![choice], None)
    }

    fn closing(header: &Header, usage: Usage) -> ChatChunk {
        chunk(header, Vec::new(), Some(usage))
    }
}

fn chunk(header: &Header, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
    ChatChunk {
        id: header.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: header.created,
        model: header.model.clone(),
        choices,
        usage,
    }
}

fn logprobs(scored: &[Scored], text: &TextModel) -> ChatLogprobs {
    let bytes = |token: u32| Some(text.pieces().bytes(token).to_vec());
    let token = |scored: &Scored| {
        // Only prompts have tokens that nothing predicts, and chat gives back none.
        let logprobs = scored.logprobs.as_ref()?;
        let top = logprobs.top.iter().map(|top| TopLogprob {
            token: label(text, top.token),
            logprob: finite(top.logprob),
            bytes: bytes(top.token),
        });
        Some(TokenLogprob {
            token: label(text, scored.token),
            logprob: finite(logprobs.chosen),
            bytes: bytes(scored.token),
            top_logprobs: top.collect(),
        })
    };
    ChatLogprobs { content: scored.iter().filter_map(token).collect() }
}

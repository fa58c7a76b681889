//! `POST /v1/chat/completions`.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use stowage_openai_api::{
    ApiError, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatMessage, ChatRequest,
    TokenLogprob, TopLogprob, Usage,
};

use super::completions::{Answer, Header, answer};
use super::generate::{Delta, Job, Scored};
use super::{App, SALT_HEADER, body};
use crate::text::{Pieces, TemplateError};

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let parse = async |app: &App| prepare(app, &headers, body).await;
    answer::<Chat>(app, parse).await
}

async fn prepare(app: &App, headers: &HeaderMap, body: Body) -> Result<Job, ApiError> {
    let bytes = body::read(app, headers, body).await?;
    let request = ChatRequest::parse(&bytes, &app.limits)?;
    if request.model != app.model {
        return Err(ApiError::model_not_found(&request.model));
    }
    request.refuse_extras()?;
    let prompt = tokio::task::block_in_place(|| app.text.encode_chat(&request.messages)).map_err(explain)?;
    Ok(Job {
        prompts: vec![prompt],
        sampling: request.sampling,
        output: request.output,
        salt: headers.get(SALT_HEADER).map(|salt| salt.as_bytes().to_vec()).unwrap_or_default(),
        param: "messages",
    })
}

fn explain(err: TemplateError) -> ApiError {
    match err {
        TemplateError::Missing | TemplateError::Refused(_) | TemplateError::NoGuard => {
            ApiError::invalid("messages", "invalid_value", format!("{err}."))
        }
        // A template may also trip over what it did not expect; the request can be changed, the file not.
        TemplateError::Failed(_) | TemplateError::Encode(_) => {
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
    type Whole = ChatCompletion;
    type Chunk = ChatChunk;

    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, pieces: &Pieces) -> ChatCompletion {
        let wants_logprobs = header.logprobs;
        let choice = |delta: Delta| ChatChoice {
            index: delta.index,
            logprobs: wants_logprobs.then(|| logprobs(&delta.scored, pieces)),
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

    fn chunk(header: &Header, delta: Delta, _offset: usize, pieces: &Pieces) -> ChatChunk {
        let content = (!delta.text.is_empty() || delta.finish.is_none()).then_some(delta.text);
        let choice = ChatChunkChoice {
            index: delta.index,
            logprobs: (!delta.scored.is_empty()).then(|| logprobs(&delta.scored, pieces)),
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

fn logprobs(scored: &[Scored], pieces: &Pieces) -> ChatLogprobs {
    let token = |scored: &Scored| TokenLogprob {
        token: pieces.text(scored.token),
        logprob: scored.logprobs.chosen,
        bytes: Some(pieces.bytes(scored.token).to_vec()),
        top_logprobs: scored
            .logprobs
            .top
            .iter()
            .map(|top| TopLogprob {
                token: pieces.text(top.token),
                logprob: top.logprob,
                bytes: Some(pieces.bytes(top.token).to_vec()),
            })
            .collect(),
    };
    ChatLogprobs { content: scored.iter().map(token).collect() }
}

//! `POST /v1/completions`: from the body to a job, and the shapes of its answers.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use stowage_openai_api::{
    ApiError, Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, Prompt, Usage,
};
use stowage_telemetry::traces::traceparent::TraceParent;

use super::answer::answer;
use super::choice::{Delta, Echo, JobPrompt, Scored};
use super::job::{Caller, Job, claim};
use super::labels::{by_label, finite, label};
use super::refusal::not_encoded;
use super::stream::{Answer, Header};
use super::{App, body};
use crate::text::{Beginning, TextModel};

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let caller = TraceParent::of(&headers);
    let parse = async |app: &App| prepare(app, &headers, body).await;
    answer::<Text>(app, caller, parse).await
}

async fn prepare(app: &App, headers: &HeaderMap, body: Body) -> Result<Job, ApiError> {
    let caller = Caller::new(headers);
    let held = body::read(app, headers, &caller, body).await?;
    let request = CompletionRequest::parse(&held.bytes, &app.limits)?;
    if request.model != app.model {
        return Err(ApiError::model_not_found(&request.model));
    }
    let places = claim(app, &caller, request.prompt.count(), request.output.n)?;
    let prompts = app.tokenize(|text| read_prompts(app, text, request.prompt, request.echo)).await?;
    Ok(Job {
        prompts,
        sampling: request.sampling,
        output: request.output,
        caller: caller.with_cache_salt(&request.cache_salt),
        param: "prompt",
        score_stop: request.echo,
        places,
        beginning: Beginning::AsItIs,
    })
}

fn read_prompts(app: &App, model: &TextModel, prompt: Prompt, echo: bool) -> Result<Vec<JobPrompt>, ApiError> {
    let job = |tokens: Vec<u32>, original: Option<&str>| {
        let echo = echo.then(|| Echo::new(model, &tokens, original));
        JobPrompt { tokens, echo }
    };
    match prompt {
        Prompt::Tokens(lists) => Ok(lists.into_iter().map(|tokens| job(tokens, None)).collect()),
        Prompt::Text(texts) => {
            // The prompt is the client's own text, so control tokens in it are meant as such.
            let encode = |text: &str| model.encode(text, app.parse_special, app.engine.max_sequence);
            let read = |text: &String| Ok(job(encode(text).map_err(|err| not_encoded("prompt", &err))?, Some(text)));
            texts.iter().map(read).collect()
        }
    }
}

/// The shapes of text completions.
pub(super) struct Text;

impl Answer for Text {
    const ID_PREFIX: &'static str = "cmpl-";
    const OPERATION: &'static str = "text_completion";
    type Whole = Completion;
    type Chunk = Completion;

    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, text: &TextModel) -> Completion {
        let wants_logprobs = header.logprobs;
        let choice = |delta: Delta| CompletionChoice {
            index: delta.index,
            logprobs: wants_logprobs.then(|| logprobs(&delta.scored, text)),
            text: delta.text,
            finish_reason: delta.finish,
        };
        completion(&header, choices.into_iter().map(choice).collect(), Some(usage))
    }

    fn opening(_: &Header, _: u32) -> Option<Completion> {
        None
    }

    fn chunk(header: &Header, delta: Delta, text: &TextModel) -> Completion {
        let choice = CompletionChoice {
            index: delta.index,
            logprobs: (!delta.scored.is_empty()).then(|| logprobs(&delta.scored, text)),
            text: delta.text,
            finish_reason: delta.finish,
        };
        completion(header, vec![choice], None)
    }

    fn closing(header: &Header, usage: Usage) -> Completion {
        completion(header, Vec::new(), Some(usage))
    }
}

fn completion(header: &Header, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
    Completion {
        id: header.id.clone(),
        object: "text_completion".to_owned(),
        created: header.created,
        model: header.model.clone(),
        choices,
        usage,
    }
}

fn logprobs(scored: &[Scored], text: &TextModel) -> CompletionLogprobs {
    let mut out = CompletionLogprobs::default();
    for Scored { token, logprobs, offset } in scored {
        out.tokens.push(label(text, *token));
        out.text_offset.push(*offset);
        out.token_logprobs.push(logprobs.as_ref().map(|logprobs| finite(logprobs.chosen)));
        out.top_logprobs.push(logprobs.as_ref().map(|logprobs| by_label(text, *token, logprobs)));
    }
    out
}

//! `POST /v1/completions`, and how an answer is sent: at once, or as a stream of events.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Serialize;
use stowage_openai_api::{
    ApiError, Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, DONE, Output, Prompt, Usage,
    data_line,
};

use super::generate::{Account, Choice, Delta, Generation, Job, Scored, random, start};
use super::{App, SALT_HEADER, body, respond};
use crate::text::Pieces;

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let parse = async |app: &App| prepare(app, &headers, body).await;
    answer::<Text>(app, parse).await
}

async fn prepare(app: &App, headers: &HeaderMap, body: Body) -> Result<Job, ApiError> {
    let bytes = body::read(app, headers, body).await?;
    let request = CompletionRequest::parse(&bytes, &app.limits)?;
    if request.model != app.model {
        return Err(ApiError::model_not_found(&request.model));
    }
    let prompts = match request.prompt {
        Prompt::Tokens(lists) => lists,
        Prompt::Text(texts) => {
            tokio::task::block_in_place(|| texts.iter().map(|text| app.text.encode(text)).collect::<Result<_, _>>())
                .map_err(|err| {
                    ApiError::invalid("prompt", "invalid_value", format!("`prompt` cannot be tokenized: {err}."))
                })?
        }
    };
    Ok(Job {
        prompts,
        sampling: request.sampling,
        output: request.output,
        salt: headers.get(SALT_HEADER).map(|salt| salt.as_bytes().to_vec()).unwrap_or_default(),
        param: "prompt",
    })
}

/// What all parts of one answer say.
pub(super) struct Header {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) logprobs: bool,
}

/// The JSON shapes of one API.
pub(super) trait Answer: Send + 'static {
    const ID_PREFIX: &'static str;
    type Whole: Serialize + Send;
    type Chunk: Serialize + Send;

    /// All choices, in order of their index.
    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, pieces: &Pieces) -> Self::Whole;
    /// What comes before the first text of a choice.
    fn opening(header: &Header, index: u32) -> Option<Self::Chunk>;
    /// `offset` is the number of characters of the choice before this chunk.
    fn chunk(header: &Header, delta: Delta, offset: usize, pieces: &Pieces) -> Self::Chunk;
    /// The usage, when it was asked for.
    fn closing(header: &Header, usage: Usage) -> Self::Chunk;
}

/// Parses, submits and answers. Counts the request whatever happens.
pub(super) async fn answer<A: Answer>(app: App, parse: impl AsyncFnOnce(&App) -> Result<Job, ApiError>) -> Response {
    let mut account = Account::new(&app);
    if app.engine.is_draining() {
        let err = ApiError::unavailable(
            "draining",
            "This replica is shutting down. Try again at once: another one answers.",
            1,
        );
        account.refused(&err);
        return respond(&err);
    }
    let job = match parse(&app).await {
        Ok(job) => job,
        Err(err) => {
            account.refused(&err);
            return respond(&err);
        }
    };
    let output = job.output.clone();
    let header = Header {
        id: format!("{}{:016x}", A::ID_PREFIX, random()),
        created: now(),
        model: app.model.clone(),
        logprobs: output.logprobs.is_some(),
    };
    match start(&app, job, account).await {
        Err((err, mut account)) => {
            account.refused(&err);
            respond(&err)
        }
        Ok(generation) if output.stream => stream_events::<A>(app, header, generation, &output),
        Ok(generation) => at_once::<A>(app, header, generation).await,
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

async fn at_once<A: Answer>(app: App, header: Header, generation: Generation) -> Response {
    let Generation { choices, mut account } = generation;
    let mut whole = Vec::with_capacity(choices.len());
    // One after the other: all of them run meanwhile, and their channels hold a whole answer.
    for mut choice in choices {
        match collect(&app, &mut choice, &mut account).await {
            Ok(delta) => whole.push(delta),
            Err(err) => {
                account.refused(&err);
                return respond(&err);
            }
        }
    }
    account.completed();
    let usage = account.usage();
    Json(A::whole(header, whole, usage, app.text.pieces())).into_response()
}

async fn collect(app: &App, choice: &mut Choice, account: &mut Account) -> Result<Delta, ApiError> {
    let mut all = Delta { index: 0, text: String::new(), scored: Vec::new(), finish: None };
    while let Some(delta) = choice.next(app, account).await {
        let delta = delta?;
        all.index = delta.index;
        all.text.push_str(&delta.text);
        all.scored.extend(delta.scored);
        all.finish = delta.finish.or(all.finish);
    }
    Ok(all)
}

/// A choice that is being streamed.
struct Live {
    choice: Choice,
    opened: bool,
    /// Characters sent.
    offset: usize,
}

fn stream_events<A: Answer>(app: App, header: Header, generation: Generation, output: &Output) -> Response {
    let Generation { choices, account } = generation;
    let streaming = Streaming {
        app,
        header,
        account,
        include_usage: output.include_usage,
        live: choices.into_iter().map(|choice| Live { choice, opened: false, offset: 0 }).collect(),
        ended: false,
    };
    let events = stream::unfold(streaming, |mut streaming| async move {
        let event = streaming.next::<A>().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), streaming))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events.boxed())).into_response()
}

struct Streaming {
    app: App,
    header: Header,
    account: Account,
    include_usage: bool,
    live: Vec<Live>,
    ended: bool,
}

impl Streaming {
    /// The bytes of the next event or events, `None` after the last.
    async fn next<A: Answer>(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        while !self.live.is_empty() {
            let (at, delta) = self.next_delta().await;
            match delta {
                None => {
                    self.live.swap_remove(at);
                }
                Some(Ok(delta)) => return Some(self.render::<A>(at, delta)),
                Some(Err(err)) => {
                    self.ended = true;
                    self.account.refused(&err);
                    return Some(data_line(&err.body()));
                }
            }
        }
        self.ended = true;
        self.account.completed();
        let mut last = String::new();
        if self.include_usage {
            last = data_line(&A::closing(&self.header, self.account.usage()));
        }
        last.push_str(DONE);
        Some(last)
    }

    /// The first delta of any choice.
    async fn next_delta(&mut self) -> (usize, Option<Result<Delta, ApiError>>) {
        let Self { app, account, live, .. } = self;
        if let [only] = live.as_mut_slice() {
            return (0, only.choice.next(app, account).await);
        }
        // Wait for whichever has something, then take it: `next` needs the account for itself.
        let ready = futures::future::select_all(live.iter_mut().map(|live| Box::pin(live.choice.ready())));
        let (_, at, _) = ready.await;
        (at, live[at].choice.next(app, account).await)
    }

    fn render<A: Answer>(&mut self, at: usize, delta: Delta) -> String {
        let live = &mut self.live[at];
        let mut text = String::new();
        if !std::mem::replace(&mut live.opened, true)
            && let Some(opening) = A::opening(&self.header, delta.index)
        {
            text = data_line(&opening);
        }
        let offset = live.offset;
        live.offset += delta.text.chars().count();
        text.push_str(&data_line(&A::chunk(&self.header, delta, offset, self.app.text.pieces())));
        text
    }
}

/// The shapes of text completions.
pub(super) struct Text;

impl Answer for Text {
    const ID_PREFIX: &'static str = "cmpl-";
    type Whole = Completion;
    type Chunk = Completion;

    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, pieces: &Pieces) -> Completion {
        let wants_logprobs = header.logprobs;
        let choice = |delta: Delta| CompletionChoice {
            index: delta.index,
            logprobs: wants_logprobs.then(|| logprobs(&delta.scored, 0, pieces)),
            text: delta.text,
            finish_reason: delta.finish,
        };
        completion(&header, choices.into_iter().map(choice).collect(), Some(usage))
    }

    fn opening(_: &Header, _: u32) -> Option<Completion> {
        None
    }

    fn chunk(header: &Header, delta: Delta, offset: usize, pieces: &Pieces) -> Completion {
        let choice = CompletionChoice {
            index: delta.index,
            logprobs: (!delta.scored.is_empty()).then(|| logprobs(&delta.scored, offset, pieces)),
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

fn logprobs(scored: &[Scored], mut offset: usize, pieces: &Pieces) -> CompletionLogprobs {
    let mut out = CompletionLogprobs::default();
    for Scored { token, logprobs } in scored {
        let text = pieces.text(*token);
        let mut top = BTreeMap::new();
        for rival in &logprobs.top {
            // Best first, so the first of equal texts is the likelier one.
            top.entry(pieces.text(rival.token)).or_insert(rival.logprob);
        }
        out.text_offset.push(offset);
        offset += text.chars().count();
        out.tokens.push(text);
        out.token_logprobs.push(logprobs.chosen);
        out.top_logprobs.push(top);
    }
    out
}

//! What an API must be able to render of an answer, and the answer as server-sent events, choices
//! interleaved as their tokens come.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Serialize;
use stowage_openai_api::{ApiError, DONE, Output, Usage, data_line};

use super::App;
use super::account::Account;
use super::choice::{Choice, Delta};
use super::job::Generation;
use crate::text::TextModel;

/// What all parts of one answer have in common.
pub(super) struct Header {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) logprobs: bool,
}

/// The JSON shapes of one API.
pub(super) trait Answer: Send + 'static {
    const ID_PREFIX: &'static str;
    /// As OpenTelemetry names it.
    const OPERATION: &'static str;
    type Whole: Serialize + Send;
    type Chunk: Serialize + Send;

    /// All choices, in order of their index.
    fn whole(header: Header, choices: Vec<Delta>, usage: Usage, text: &TextModel) -> Self::Whole;
    /// What comes before the first text of a choice.
    fn opening(header: &Header, index: u32) -> Option<Self::Chunk>;
    /// What one update adds to a choice.
    fn chunk(header: &Header, delta: Delta, text: &TextModel) -> Self::Chunk;
    /// The usage, when it was asked for.
    fn closing(header: &Header, usage: Usage) -> Self::Chunk;
}

/// A choice that is being streamed.
struct Live {
    choice: Choice,
    opened: bool,
}

pub(super) fn stream_events<A: Answer>(app: App, header: Header, generation: Generation, output: &Output) -> Response {
    let Generation { choices, account } = generation;
    let streaming = Streaming {
        app,
        header,
        account,
        include_usage: output.include_usage,
        live: choices.into_iter().map(|choice| Live { choice, opened: false }).collect(),
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
        text.push_str(&data_line(&A::chunk(&self.header, delta, &self.app.text)));
        text
    }
}

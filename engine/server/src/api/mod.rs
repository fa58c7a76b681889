//! The HTTP routes.
//!
//! A request flows through the files in this order: `body` reads it, `chat` or `completions` parse it
//! into a job, `job` submits that (`refusal` words why not), `choice` turns tokens into text, `answer`
//! sends it whole or through `stream`; `account` counts.
//!
//! A refusal is always an OpenAI error object that names the field and what to change. Every
//! response carries the load in short (`x-stowage-load`), so what a gateway knows of an engine is at
//! most one answer old. While draining, new work is refused with 503 and running requests continue.

mod account;
mod answer;
mod body;
mod chat;
mod choice;
mod completions;
mod info;
mod job;
mod labels;
mod refusal;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use stowage_contracts::names::{HEADER_LOAD, PATH_LOAD};
use stowage_openai_api::{ApiError, Limits, SharedBudget};
use stowage_telemetry::traces::Tracer;
use tokio::sync::{Semaphore, watch};

pub(crate) use job::random;

use crate::engine_thread::EngineHandle;
use crate::metrics::{Metrics, Outcome};
use crate::text::{ParseSpecial, TextModel};

/// Prompts that are tokenized at the same time.
const TOKENIZING: usize = 2;

/// What all handlers share.
#[derive(Clone)]
pub struct App(Arc<Shared>);

pub struct Shared {
    pub engine: EngineHandle,
    pub text: TextModel,
    /// Whether control tokens in plain prompts count.
    pub parse_special: ParseSpecial,
    /// Prompts that are tokenized at the same time: each takes a processor and some MiB.
    tokenizing: Semaphore,
    /// The name clients send.
    pub model: String,
    /// Seconds since 1970 at which the model was loaded.
    pub created: u64,
    pub limits: Limits,
    pub max_body: usize,
    pub body_timeout: Duration,
    pub metrics: Metrics,
    pub tracer: Tracer,
    /// Requests that have not got their last byte yet.
    in_flight: watch::Sender<usize>,
    /// Bytes of request bodies held in memory, from their arrival until they are tokenized.
    pub(crate) bodies: Arc<SharedBudget>,
    /// Sequences in the engine, running and waiting.
    pub(crate) sequences: Arc<SharedBudget>,
    /// Log-probabilities of echoed prompts.
    pub(crate) scores: Arc<SharedBudget>,
}

/// Log-probabilities of echoed prompts in memory, together.
const SCORES: usize = 1 << 21;

/// All bodies in memory, together. Beyond it clients are asked to come back.
const BODY_BYTES: usize = 256 << 20;

/// What [`App::new`] needs.
pub struct Setup {
    pub engine: EngineHandle,
    pub text: TextModel,
    pub parse_special: ParseSpecial,
    pub model: String,
    pub created: u64,
    pub max_body: usize,
    pub body_timeout: Duration,
    /// Sequences that the engine takes, running and waiting.
    pub max_sequences: usize,
    pub metrics: Metrics,
    pub tracer: Tracer,
}

impl App {
    pub fn new(setup: Setup) -> Self {
        let Setup {
            engine,
            text,
            parse_special,
            model,
            created,
            max_body,
            body_timeout,
            max_sequences,
            metrics,
            tracer,
        } = setup;
        Self(Arc::new(Shared {
            engine,
            text,
            parse_special,
            tokenizing: Semaphore::new(TOKENIZING),
            model,
            created,
            limits: Limits::default(),
            max_body,
            body_timeout,
            metrics,
            tracer,
            in_flight: watch::Sender::new(0),
            bodies: SharedBudget::new(BODY_BYTES),
            sequences: SharedBudget::new(max_sequences),
            scores: SharedBudget::new(SCORES),
        }))
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        let mut in_flight = self.0.in_flight.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = in_flight.wait_for(|count| *count == 0).await;
    }

    pub fn in_flight(&self) -> usize {
        *self.0.in_flight.borrow()
    }

    /// Runs work on text that takes long; at most [`TOKENIZING`] at a time, the others wait.
    async fn tokenize<T>(&self, work: impl FnOnce(&TextModel) -> T) -> T {
        // The semaphore is never closed, so a permit comes.
        let _permit = self.0.tokenizing.acquire().await;
        tokio::task::block_in_place(|| work(&self.0.text))
    }

    fn enter(&self) -> InFlight {
        self.0.in_flight.send_modify(|count| *count += 1);
        InFlight(self.clone())
    }
}

impl std::ops::Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// A request under way; held by its response body until the last byte.
pub(crate) struct InFlight(App);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.send_modify(|count| *count -= 1);
    }
}

/// All routes but the probes and the metrics page.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*name}", get(info::model))
        .route(PATH_LOAD, get(info::load))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// Puts the load into every response of the router.
pub fn with_load_header(router: Router, app: App) -> Router {
    router.layer(middleware::from_fn_with_state(app, with_load))
}

async fn with_load(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&app.engine.load().header().to_string()) {
        response.headers_mut().insert(HEADER_LOAD, value);
    }
    response
}

async fn no_route(request: Request) -> Response {
    respond(&ApiError::no_route(request.method().as_str(), request.uri().path()))
}

async fn wrong_method(request: Request) -> Response {
    respond(&ApiError::method_not_allowed(request.method().as_str(), request.uri().path()))
}

/// An error as a response.
pub(crate) fn respond(err: &ApiError) -> Response {
    let status = StatusCode::from_u16(err.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], err.to_json()).into_response();
    if let Some(seconds) = err.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Which outcome a refusal is counted as.
fn outcome(err: &ApiError) -> Outcome {
    match (err.status, err.code) {
        (503, "draining") => Outcome::Draining,
        (503, _) => Outcome::QueueFull,
        (500.., _) => Outcome::Failed,
        _ => Outcome::Invalid,
    }
}

//! From a parsed request to pieces of text: what chat and text completions share.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use stowage_engine_core::engine::Refusal;
use stowage_engine_core::request::{self, Priority, Request, RequestId};
use stowage_engine_core::sampling::{SamplingParams, TokenLogprobs, choice_seed};
use stowage_openai_api::{ApiError, FinishReason, Output, SamplingFields, Usage};
use tokio::sync::mpsc;

use super::{App, InFlight, outcome};
use crate::engine_thread::{SubmitError, Update};
use crate::metrics::Outcome;
use crate::text::{Piece, TextStream};

/// A generation request after parsing and tokenizing.
pub(super) struct Job {
    /// Each is continued `output.n` times.
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) sampling: SamplingFields,
    pub(super) output: Output,
    pub(super) salt: Vec<u8>,
    /// The field to blame when a prompt is too long.
    pub(super) param: &'static str,
}

/// A token with its log-probability and its rivals', as ids.
pub(super) struct Scored {
    pub(super) token: u32,
    pub(super) logprobs: TokenLogprobs,
}

/// What one update of one choice adds to the answer.
pub(super) struct Delta {
    pub(super) index: u32,
    pub(super) text: String,
    pub(super) scored: Vec<Scored>,
    pub(super) finish: Option<FinishReason>,
}

/// Choices under way. Dropping it cancels them.
pub(super) struct Generation {
    pub(super) choices: Vec<Choice>,
    pub(super) account: Account,
}

/// One continuation of one prompt.
pub(super) struct Choice {
    index: u32,
    updates: mpsc::Receiver<Update>,
    text: TextStream,
    prompt_tokens: usize,
    /// The first choice of its prompt: the one whose prompt is counted.
    is_first: bool,
    done: bool,
    /// Received by `ready` and not looked at yet.
    peeked: Option<Option<Update>>,
}

/// Counts while choices run, and reports when the response has ended, however it ended.
pub(super) struct Account {
    app: App,
    _in_flight: InFlight,
    started: Instant,
    last_token: Option<Instant>,
    prompt: usize,
    cached: usize,
    completion: usize,
    outcome: Outcome,
}

impl Account {
    pub(super) fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            _in_flight: app.enter(),
            started: Instant::now(),
            last_token: None,
            prompt: 0,
            cached: 0,
            completion: 0,
            // Until the end is reached: if it never is, the client has left.
            outcome: Outcome::Cancelled,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Usage::new(narrow(self.prompt), narrow(self.completion), narrow(self.cached))
    }

    pub(super) fn refused(&mut self, err: &ApiError) {
        self.outcome = outcome(err);
    }

    pub(super) fn completed(&mut self) {
        self.outcome = Outcome::Ok;
    }

    fn admitted(&mut self, cached: usize) {
        self.cached += cached;
        self.app.metrics.queue_wait.observe(self.started.elapsed().as_secs_f64());
    }

    fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.app.metrics.first_token.observe((now - self.started).as_secs_f64()),
            Some(last) => self.app.metrics.inter_token.observe((now - last).as_secs_f64()),
        }
        self.completion += 1;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let metrics = &self.app.metrics;
        metrics.finished(self.outcome);
        let usage = self.usage();
        metrics.counted(usage.prompt_tokens, usage.cached_tokens(), usage.completion_tokens);
        if self.outcome == Outcome::Ok {
            metrics.duration.observe(self.started.elapsed().as_secs_f64());
        }
    }
}

/// Submits all choices, or none.
pub(super) async fn start(app: &App, job: Job, mut account: Account) -> Result<Generation, (ApiError, Account)> {
    match submit(app, &job, &mut account).await {
        Ok(choices) => Ok(Generation { choices, account }),
        Err(err) => Err((err, account)),
    }
}

async fn submit(app: &App, job: &Job, account: &mut Account) -> Result<Vec<Choice>, ApiError> {
    let seed = job.sampling.seed.map_or_else(random, |seed| seed as u64);
    let mut choices = Vec::new();
    for prompt in &job.prompts {
        for n in 0..job.output.n {
            let index = choices.len() as u32;
            let request = request(app, job, prompt.clone(), choice_seed(seed, index));
            let updates = app.engine.submit(request).await.map_err(|err| refusal(app, job, err))?;
            choices.push(Choice {
                index,
                updates,
                text: TextStream::new(job.output.stop.clone()),
                prompt_tokens: prompt.len(),
                is_first: n == 0,
                done: false,
                peeked: None,
            });
        }
        account.prompt += prompt.len();
    }
    Ok(choices)
}

/// Unpredictable enough for seeds and ids; nothing secret hangs on it.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn request(app: &App, job: &Job, prompt: Vec<u32>, seed: u64) -> Request {
    let room = app.engine.max_sequence.saturating_sub(prompt.len()).max(1);
    let fields = &job.sampling;
    Request {
        // The handle numbers them.
        id: RequestId(0),
        max_tokens: job.output.max_tokens.map_or(room, |n| room.min(n as usize)),
        prompt,
        stop_tokens: if job.output.ignore_eos { Vec::new() } else { app.text.end_tokens().to_vec() },
        sampling: SamplingParams {
            temperature: fields.temperature.unwrap_or(1.0),
            top_p: fields.top_p.unwrap_or(1.0),
            top_k: fields.top_k.unwrap_or(0),
            min_p: fields.min_p.unwrap_or(0.0),
            presence_penalty: fields.presence_penalty,
            frequency_penalty: fields.frequency_penalty,
            repetition_penalty: fields.repetition_penalty,
            logit_bias: fields.logit_bias.clone(),
            seed,
        },
        logprobs: job.output.logprobs,
        priority: Priority::Interactive,
        salt: job.salt.clone(),
        adapter: String::new(),
    }
}

fn refusal(app: &App, job: &Job, err: SubmitError) -> ApiError {
    let param = job.param;
    match err {
        SubmitError::Gone => ApiError::unavailable("engine_gone", "The engine has stopped. Try another replica.", 1),
        SubmitError::Refused(Refusal::EmptyPrompt) => {
            ApiError::invalid(param, "invalid_value", format!("`{param}` is empty: give at least one token."))
        }
        SubmitError::Refused(Refusal::PromptTooLong { tokens, limit }) => ApiError::context_length(
            param,
            format!(
                "`{param}` has {tokens} tokens, and {} holds {limit} for prompt and answer together. Shorten it to {} tokens or fewer.",
                app.model,
                limit - 1
            ),
        ),
        SubmitError::Refused(Refusal::NoSuchToken { token, vocab }) => {
            let in_prompt = job.prompts.iter().flatten().any(|t| *t == token);
            let param = if in_prompt { param } else { "logit_bias" };
            ApiError::invalid(
                param,
                "invalid_value",
                format!("`{param}` names token {token}; the ids of {} are below {vocab}.", app.model),
            )
        }
        SubmitError::Refused(Refusal::QueueFull { waiting }) => ApiError::unavailable(
            "queue_full",
            format!("{waiting} requests are waiting already. Try again in a moment."),
            1,
        ),
        SubmitError::Refused(Refusal::Duplicate(_)) => {
            ApiError::internal("Two requests got the same number. Try again.")
        }
    }
}

impl Choice {
    /// Resolves when `next` has something to look at. Dropping it half-way loses nothing.
    pub(super) async fn ready(&mut self) {
        if !self.done && self.peeked.is_none() {
            self.peeked = Some(self.updates.recv().await);
        }
    }

    /// The next thing to show, `None` after the last. Updates that show nothing are passed over.
    pub(super) async fn next(&mut self, app: &App, account: &mut Account) -> Option<Result<Delta, ApiError>> {
        if self.done {
            return None;
        }
        loop {
            let received = match self.peeked.take() {
                Some(peeked) => peeked,
                None => self.updates.recv().await,
            };
            let Some(update) = received else {
                self.done = true;
                return Some(Err(ApiError::unavailable(
                    "engine_gone",
                    "The engine has stopped. Try another replica.",
                    1,
                )));
            };
            match update {
                Update::Admitted { cached_tokens } => {
                    account.admitted(if self.is_first { cached_tokens.min(self.prompt_tokens) } else { 0 });
                }
                Update::Token { token, logprobs } => {
                    account.token();
                    if let Some(delta) = self.token(app, token, logprobs) {
                        return Some(Ok(delta));
                    }
                }
                Update::Finished { reason } => {
                    self.done = true;
                    return Some(self.end(reason, account));
                }
            }
        }
    }

    fn token(&mut self, app: &App, token: u32, logprobs: Option<TokenLogprobs>) -> Option<Delta> {
        let Piece { text, stopped } = self.text.push(app.text.pieces().bytes(token));
        let scored: Vec<Scored> = logprobs.map(|logprobs| Scored { token, logprobs }).into_iter().collect();
        if stopped {
            self.done = true;
            // Dropping the receiving end cancels what the engine still computes.
            self.updates.close();
        }
        let finish = stopped.then_some(FinishReason::Stop);
        let shows = !text.is_empty() || !scored.is_empty() || stopped;
        shows.then_some(Delta { index: self.index, text, scored, finish })
    }

    fn end(&mut self, reason: request::FinishReason, account: &mut Account) -> Result<Delta, ApiError> {
        let finish = match reason {
            request::FinishReason::Stop => {
                // The end token is a token too, though nobody sees it.
                account.completion += 1;
                FinishReason::Stop
            }
            request::FinishReason::Length => FinishReason::Length,
            request::FinishReason::Failed => {
                return Err(ApiError::internal("The engine failed while it computed this answer. Try again."));
            }
        };
        Ok(Delta { index: self.index, text: self.text.finish(), scored: Vec::new(), finish: Some(finish) })
    }
}

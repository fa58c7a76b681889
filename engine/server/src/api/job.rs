//! A request after parsing and tokenizing, and how its sequences get into the engine.

use std::hash::{BuildHasher, RandomState};

use axum::http::HeaderMap;
use stowage_contracts::names::HEADER_TENANT_SALT;
use stowage_engine_core::request::{Priority, Request, RequestId};
use stowage_engine_core::sampling::{SamplingParams, choice_seed};
use stowage_openai_api::{ApiError, Output, SamplingFields, Share};

use super::App;
use super::account::Account;
use super::choice::{Choice, Echo, Ends};
use super::refusal::refusal;
use crate::text::Beginning;

/// What the engine is to do for one HTTP request.
pub(super) struct Job {
    /// Each is continued `output.n` times.
    pub(super) prompts: Vec<JobPrompt>,
    pub(super) sampling: SamplingFields,
    pub(super) output: Output,
    pub(super) caller: Caller,
    /// The field that an error names when a prompt is too long.
    pub(super) param: &'static str,
    /// The token that ended an answer has log-probabilities too. Evaluation harnesses let the prompt be
    /// repeated, ask for one token and drop the last of the list, so it must be there whatever it is.
    pub(super) score_stop: bool,
    /// Sequences that the engine keeps free for it.
    pub(super) places: Share,
    /// What is taken away at the beginning of an answer.
    pub(super) beginning: Beginning,
}

/// One prompt.
pub(super) struct JobPrompt {
    pub(super) tokens: Vec<u32>,
    /// What the answer begins with.
    pub(super) echo: Option<Echo>,
}

/// Who asks: a tenant, as a gateway names it.
#[derive(Clone)]
pub(super) struct Caller {
    /// Empty without a gateway.
    tenant: Vec<u8>,
    /// The tenant, and the request's own `cache_salt`.
    salt: Vec<u8>,
}

impl Caller {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let tenant = headers.get(HEADER_TENANT_SALT).map(|salt| salt.as_bytes().to_vec()).unwrap_or_default();
        Self { salt: tenant.clone(), tenant }
    }

    /// Narrows the part of the prefix cache that is shared. Header values hold no NUL, so that no pair of
    /// tenant and salt looks like another one.
    pub(super) fn with_cache_salt(mut self, cache_salt: &str) -> Self {
        if !cache_salt.is_empty() {
            self.salt.push(0);
            self.salt.extend_from_slice(cache_salt.as_bytes());
        }
        self
    }

    pub(super) fn tenant(&self) -> &[u8] {
        &self.tenant
    }
}

/// Claims the engine's places for all sequences of a request, before anything is tokenized. What can
/// never fit is the request's fault, what does not fit now is a full queue.
pub(super) fn claim(app: &App, caller: &Caller, prompts: usize, n: u32) -> Result<Share, ApiError> {
    let (wanted, most) = (prompts.saturating_mul(n as usize), app.sequences.most_for_one());
    if wanted > most {
        return Err(ApiError::too_many_sequences(prompts, n, most));
    }
    let mut places = app.sequences.share(caller.tenant());
    places.grow(wanted).map_err(|exceeded| {
        let message = format!("The engine's queue is full: {exceeded}. Try again in a moment.");
        ApiError::unavailable("queue_full", message, 1)
    })?;
    Ok(places)
}

/// Choices under way. Dropping it cancels them.
pub(super) struct Generation {
    pub(super) choices: Vec<Choice>,
    pub(super) account: Account,
}

/// Submits all choices, or none.
pub(super) async fn start(app: &App, job: Job, mut account: Account) -> Result<Generation, (ApiError, Account)> {
    match submit(app, job, &mut account).await {
        Ok(choices) => Ok(Generation { choices, account }),
        Err(err) => Err((err, account)),
    }
}

async fn submit(app: &App, job: Job, account: &mut Account) -> Result<Vec<Choice>, ApiError> {
    let Job { prompts, sampling, output, caller, param, score_stop, places, beginning } = job;
    account.hold(places);
    let seed = sampling.seed.map_or_else(random, |seed| seed as u64);
    let ends = Ends::new(&app.text, &output, score_stop, beginning);
    let mut choices = Vec::new();
    for prompt in &prompts {
        for n in 0..output.n {
            let index = choices.len() as u32;
            let scores = prompt.echo.is_some().then_some(output.logprobs).flatten();
            let request = Request {
                // The handle numbers them.
                id: RequestId(0),
                prompt: prompt.tokens.clone(),
                max_tokens: output.max_tokens.map_or(usize::MAX, |n| n as usize),
                min_tokens: output.min_tokens as usize,
                stop_tokens: ends.tokens().to_vec(),
                sampling: sampling_params(&sampling, choice_seed(seed, index)),
                logprobs: output.logprobs,
                prompt_logprobs: scores,
                priority: Priority::Interactive,
                tenant: caller.tenant.clone(),
                salt: caller.salt.clone(),
                adapter: String::new(),
            };
            let updates =
                app.engine.submit(request).await.map_err(|err| refusal(app, &prompts, &output, param, err))?;
            choices.push(Choice::new(index, updates, prompt, scores.is_some(), &ends, n == 0));
        }
        account.prompt += prompt.tokens.len();
    }
    Ok(choices)
}

/// Unpredictable enough for seeds and ids; not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn sampling_params(fields: &SamplingFields, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: fields.temperature.unwrap_or(1.0),
        top_p: fields.top_p.unwrap_or(1.0),
        top_k: fields.top_k.unwrap_or(0),
        min_p: fields.min_p.unwrap_or(0.0),
        presence_penalty: fields.presence_penalty,
        frequency_penalty: fields.frequency_penalty,
        repetition_penalty: fields.repetition_penalty,
        logit_bias: fields.logit_bias.clone(),
        seed,
    }
}

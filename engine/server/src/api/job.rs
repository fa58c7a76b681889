//! A request after parsing and tokenizing, and how its sequences get into the engine.

use std::hash::{BuildHasher, RandomState};

use axum::http::HeaderMap;
use stowage_contracts::names::HEADER_TENANT_SALT;
use stowage_engine_core::request::{Priority, Request, RequestId};
use stowage_engine_core::sampling::{SamplingParams, choice_seed};
use stowage_openai_api::{ApiError, Output, SamplingFields, Share};

use super::App;
use super::account::Account;
use super::choice::{Choice, Ends, JobPrompt};
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

/// Log-probabilities that one answer may hold for its prompts: some 8 bytes each here, and some tens of
/// them in JSON.
const MOST_SCORES: usize = 1 << 19;

/// Claims the memory for the log-probabilities of echoed prompts, which come all at once.
fn claim_scores(app: &App, caller: &Caller, prompts: &[JobPrompt], output: &Output) -> Result<Share, ApiError> {
    let tokens: usize = prompts.iter().filter(|prompt| prompt.echo.is_some()).map(|prompt| prompt.tokens.len()).sum();
    let per_token = output.logprobs.map_or(0, |top| usize::from(top) + 1);
    let wanted = tokens.saturating_mul(per_token).saturating_mul(output.n as usize);
    if wanted > MOST_SCORES {
        let message = format!(
            "`echo` with `logprobs` would return {wanted} log-probabilities, and {MOST_SCORES} fit into an answer. Send fewer or shorter prompts, or lower `n` or `logprobs`."
        );
        return Err(ApiError::invalid("logprobs", "invalid_value", message));
    }
    let mut share = app.scores.share(caller.tenant());
    share.grow(wanted).map_err(|exceeded| {
        let message = format!("Too many prompts are being scored at once: {exceeded}. Try again in a moment.");
        ApiError::unavailable("overloaded", message, 1)
    })?;
    Ok(share)
}

async fn submit(app: &App, job: Job, account: &mut Account) -> Result<Vec<Choice>, ApiError> {
    let Job { prompts, sampling, output, caller, param, score_stop, places, beginning } = job;
    account.hold(places);
    account.hold(claim_scores(app, &caller, &prompts, &output)?);
    let seed = sampling.seed.map_or_else(random, |seed| seed as u64);
    let ends = Ends::new(&app.text, &output, score_stop, beginning);
    // One choice after the other, as their index counts: prompt by prompt.
    let each = || prompts.iter().flat_map(|prompt| (0..output.n).map(move |n| (prompt, n)));
    let scores = |prompt: &JobPrompt| prompt.echo.is_some().then_some(output.logprobs).flatten();
    let requests = each().enumerate().map(|(index, (prompt, _))| Request {
        // The handle numbers them.
        id: RequestId(0),
        prompt: prompt.tokens.clone(),
        max_tokens: output.max_tokens.map_or(usize::MAX, |n| n as usize),
        min_tokens: output.min_tokens as usize,
        stop_tokens: ends.tokens().to_vec(),
        sampling: sampling_params(&sampling, choice_seed(seed, index as u32)),
        logprobs: output.logprobs,
        prompt_logprobs: scores(prompt),
        priority: Priority::Interactive,
        tenant: caller.tenant.clone(),
        salt: caller.salt.clone(),
        adapter: String::new(),
    });
    // Together, so that the engine accepts all of them between two steps.
    let submitted = futures::future::try_join_all(requests.map(|request| app.engine.submit(request))).await;
    let updates = submitted.map_err(|err| refusal(app, &prompts, &output, param, err))?;
    account.prompt += prompts.iter().map(|prompt| prompt.tokens.len()).sum::<usize>();
    let choice = |(index, ((prompt, n), updates)): (usize, ((&JobPrompt, u32), _))| {
        Choice::new(index as u32, updates, prompt, scores(prompt).is_some(), &ends, n == 0)
    };
    Ok(each().zip(updates).enumerate().map(choice).collect())
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

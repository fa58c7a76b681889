//! The step machine: scheduler, executor and sampler, turned one step at a time.
//!
//! [`Engine::step`] decides, computes, samples and reports. It is called in a loop by the one thread
//! that owns the engine, and by tests with a simulated executor; it knows no clock and no channel.
//! Every request submitted gets exactly one [`Event::Finished`], unless it is cancelled: then it
//! gets nothing more.

use crate::blocks::BlockHash;
use crate::executor::{BLOCK_TOKENS, ExecError, Executor, LogitsWanted, SeqStep, StepBatch};
use crate::request::{FinishReason, Request, RequestId, Usage};
use crate::sampling::{Sampler, TokenLogprobs, logprobs};
use crate::scheduler::{Grant, Plan, Scheduler, SchedulerConfig};

/// Bytes that the logits of prompts to be scored may take in one step.
const SCORED_BYTES: usize = 16 << 20;

/// Steps in a row that may fail before the requests in them are given up.
const MAX_FAILED_STEPS: u32 = 3;

/// The bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Tokens per step, cut to what the executor takes. Large is good for throughput, small for the
    /// time between two tokens of the others while a long prompt comes in.
    pub max_step_tokens: usize,
    /// Requests computed at the same time.
    pub max_running: usize,
    /// Requests that may wait; more are refused.
    pub max_waiting: usize,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It runs for the first time; `cached_tokens` of its prompt need not be computed.
    Admitted {
        /// The request.
        id: RequestId,
        /// Tokens of its prompt found in the cache.
        cached_tokens: usize,
    },
    /// Log-probabilities of the next tokens of its prompt, from the second on. All of them come before
    /// its first token.
    Prompt {
        /// The request.
        id: RequestId,
        /// One per token.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The next token of the answer.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Its log-probability, where the request asks for it.
        logprobs: Option<TokenLogprobs>,
    },
    /// Nothing more comes.
    Finished {
        /// The request.
        id: RequestId,
        /// Why it ended.
        reason: FinishReason,
        /// What ended it, with [`FinishReason::Stop`].
        stop: Option<StopToken>,
        /// What it cost.
        usage: Usage,
    },
}

/// The token that ended an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct StopToken {
    /// One of the request's stop tokens.
    pub token: u32,
    /// Where the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A prompt has at least one token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Prompt and one token do not fit.
    #[error("the prompt has {tokens} tokens; prompt and answer together hold {limit}")]
    PromptTooLong {
        /// Of the prompt.
        tokens: usize,
        /// For prompt and answer together.
        limit: usize,
    },
    /// In the prompt, the bias or the stop tokens.
    #[error("token {token} does not exist: the vocabulary has {vocab}")]
    NoSuchToken {
        /// The first such token.
        token: u32,
        /// Ids are below it.
        vocab: usize,
    },
    /// The same request can be accepted later.
    #[error("{waiting} requests are waiting already")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
    },
    /// A request of this name runs or waits.
    #[error("request {0:?} exists already")]
    Duplicate(RequestId),
}

/// What one step did, for metrics and for the fit of the cost model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Sequences in the step.
    pub sequences: usize,
    /// Sequences that computed one token to get the next.
    pub decodes: usize,
    /// Tokens of all the others.
    pub prefill_tokens: usize,
    /// Positions in the KV cache that belong to the sequences of the step.
    pub kv_tokens: usize,
    /// Tokens sampled.
    pub sampled: usize,
    /// Requests that gave up their blocks for it.
    pub preempted: usize,
}

/// How full the engine is. The load report is made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that hold blocks.
    pub running: usize,
    /// Requests that wait to run.
    pub waiting: usize,
    /// Blocks that requests hold; cached ones that no request holds are not counted.
    pub blocks_used: usize,
    /// All blocks.
    pub blocks_total: usize,
    /// Blocks ever written, so occupying memory.
    pub blocks_touched: usize,
    /// Prompt tokens accepted and not computed yet.
    pub prefill_backlog: usize,
    /// Since the start.
    pub preemptions: u64,
    /// Cached blocks given up for others, since the start.
    pub evictions: u64,
}

/// A model being served.
pub struct Engine<E> {
    executor: E,
    scheduler: Scheduler,
    sampler: Sampler,
    config: EngineConfig,
    /// Prompt and answer of one request, in tokens.
    max_sequence: usize,
    logits: Vec<f32>,
    failed_steps: u32,
}

impl<E: Executor> Engine<E> {
    /// An engine without requests.
    pub fn new(executor: E, config: EngineConfig) -> Self {
        let info = executor.info();
        let scheduler = Scheduler::new(SchedulerConfig {
            max_step_tokens: config.max_step_tokens.min(info.max_step_tokens),
            max_running: config.max_running,
            max_scored_rows: SCORED_BYTES / (info.vocab.max(1) * size_of::<f32>()),
            num_blocks: info.num_blocks,
        });
        // A single request must fit into the cache when it is alone, or it could never end.
        let max_sequence = info.context_len.min(info.num_blocks * BLOCK_TOKENS);
        Self {
            executor,
            scheduler,
            sampler: Sampler::default(),
            config,
            max_sequence,
            logits: Vec::new(),
            failed_steps: 0,
        }
    }

    /// What computes.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// The longest prompt and answer together.
    pub fn max_sequence(&self) -> usize {
        self.max_sequence
    }

    /// Whether a step has anything to do.
    pub fn has_work(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() > 0
    }

    /// How full it is now.
    pub fn load(&self) -> Load {
        let pool = self.scheduler.pool();
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            blocks_used: pool.used(),
            blocks_total: pool.total(),
            blocks_touched: pool.touched(),
            prefill_backlog: self.scheduler.prefill_backlog(),
            preemptions: self.scheduler.preemptions(),
            evictions: pool.evictions(),
        }
    }

    /// Takes a request into the queue, or refuses it with the reason.
    pub fn submit(&mut self, mut request: Request) -> Result<(), Refusal> {
        self.judge(&request)?;
        let room = self.max_sequence - request.prompt.len();
        request.max_tokens = request.max_tokens.min(room);
        let info = self.executor.info();
        let root = BlockHash::root(&info.model_digest, info.kv_type, &request.adapter, &request.salt);
        self.scheduler.submit(request, root);
        Ok(())
    }

    fn judge(&self, request: &Request) -> Result<(), Refusal> {
        let (tokens, vocab) = (request.prompt.len(), self.executor.info().vocab);
        if tokens == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if tokens + request.max_tokens.min(1) > self.max_sequence {
            return Err(Refusal::PromptTooLong { tokens, limit: self.max_sequence });
        }
        let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
        let named = request.prompt.iter().chain(biased).chain(&request.stop_tokens);
        if let Some(&token) = named.into_iter().find(|token| **token as usize >= vocab) {
            return Err(Refusal::NoSuchToken { token, vocab });
        }
        if self.scheduler.waiting() >= self.config.max_waiting {
            return Err(Refusal::QueueFull { waiting: self.scheduler.waiting() });
        }
        if self.scheduler.contains(request.id) {
            return Err(Refusal::Duplicate(request.id));
        }
        Ok(())
    }

    /// Ends a request without another event. Returns what it had cost, `None` if it was not here.
    pub fn cancel(&mut self, id: RequestId) -> Option<Usage> {
        self.scheduler.remove(id).map(|sequence| sequence.usage())
    }

    /// Computes one step and appends what happened to `events`.
    ///
    /// After an error the same work is tried again by the next call; after three in a row the
    /// requests of the step end as [`FinishReason::Failed`].
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<StepStats, ExecError> {
        let plan = self.scheduler.schedule();
        let mut stats = self.describe(&plan);
        events.extend(plan.admitted.iter().map(|&(id, cached_tokens)| Event::Admitted { id, cached_tokens }));
        if let Err(err) = self.compute(&plan) {
            self.failed_steps += 1;
            if self.failed_steps >= MAX_FAILED_STEPS {
                self.failed_steps = 0;
                plan.grants.iter().for_each(|grant| self.finish(grant.id, FinishReason::Failed, None, events));
            }
            return Err(err);
        }
        self.failed_steps = 0;
        stats.sampled = self.advance(&plan, events);
        Ok(stats)
    }

    fn compute(&mut self, plan: &Plan) -> Result<(), ExecError> {
        let sequences: Vec<SeqStep<'_>> =
            plan.grants.iter().filter_map(|grant| seq_step(&self.scheduler, grant)).collect();
        if sequences.is_empty() {
            self.logits.clear();
            return Ok(());
        }
        self.executor.step(&StepBatch { seqs: &sequences }, &mut self.logits)
    }

    /// After a step that succeeded: K and V count as computed, then each row gives a token.
    fn advance(&mut self, plan: &Plan, events: &mut Vec<Event>) -> usize {
        for grant in &plan.grants {
            self.scheduler.commit(grant.id, grant.tokens);
        }
        let vocab = self.executor.info().vocab;
        let (mut row, mut sampled) = (0, 0);
        for grant in &plan.grants {
            let rows = rows_wanted(grant).rows(grant.tokens);
            if grant.score {
                self.score(grant, row, events);
            }
            row += rows;
            if grant.sample {
                self.sample(grant.id, (row - 1) * vocab..row * vocab, events);
                sampled += 1;
            }
        }
        sampled
    }

    /// The log-probabilities of prompt tokens that the rows from `first_row` on predict: the row of a
    /// position is about the token after it.
    fn score(&mut self, grant: &Grant, first_row: usize, events: &mut Vec<Event>) {
        let vocab = self.executor.info().vocab;
        let Some(sequence) = self.scheduler.sequence(grant.id) else { return };
        let top = sequence.request.prompt_logprobs.unwrap_or(0);
        let first = sequence.computed - grant.tokens;
        // After a preemption some of the positions were given out before.
        let positions = sequence.scored.max(first)..sequence.computed.min(sequence.request.prompt.len() - 1);
        let score = |position: usize| {
            let row = first_row + position - first;
            let logits = self.logits.get(row * vocab..(row + 1) * vocab).unwrap_or_default();
            logprobs(logits, sequence.request.prompt[position + 1], top.into())
        };
        let logprobs: Vec<TokenLogprobs> = positions.map(score).collect();
        self.scheduler.scored(grant.id, logprobs.len());
        events.push(Event::Prompt { id: grant.id, logprobs });
    }

    fn sample(&mut self, id: RequestId, row: std::ops::Range<usize>, events: &mut Vec<Event>) {
        let Some(sequence) = self.scheduler.sequence(id) else { return };
        let request = &sequence.request;
        if request.max_tokens == 0 {
            return self.finish(id, FinishReason::Length, None, events);
        }
        let logits = self.logits.get(row).unwrap_or_default();
        let forbidden = if sequence.generated() < request.min_tokens { request.stop_tokens.as_slice() } else { &[] };
        let position = sequence.tokens.len();
        let sampled = self.sampler.sample(logits, &request.sampling, &sequence.counts, forbidden, position);
        let Ok(token) = sampled else { return self.finish(id, FinishReason::Failed, None, events) };
        let is_last = sequence.generated() + 1 >= request.max_tokens;
        let logprobs = request.logprobs.map(|top| logprobs(logits, token, top.into()));
        let stops = request.stop_tokens.contains(&token);
        self.scheduler.push(id, token);
        if stops {
            return self.finish(id, FinishReason::Stop, Some(StopToken { token, logprobs }), events);
        }
        events.push(Event::Token { id, token, logprobs });
        if is_last {
            self.finish(id, FinishReason::Length, None, events);
        }
    }

    fn finish(&mut self, id: RequestId, reason: FinishReason, stop: Option<StopToken>, events: &mut Vec<Event>) {
        if let Some(sequence) = self.scheduler.remove(id) {
            events.push(Event::Finished { id, reason, stop, usage: sequence.usage() });
        }
    }

    fn describe(&self, plan: &Plan) -> StepStats {
        let mut stats =
            StepStats { sequences: plan.grants.len(), preempted: plan.preempted.len(), ..StepStats::default() };
        for grant in &plan.grants {
            let Some(sequence) = self.scheduler.sequence(grant.id) else { continue };
            if grant.tokens == 1 && sequence.generated() > 0 {
                stats.decodes += 1;
            } else {
                stats.prefill_tokens += grant.tokens;
            }
            stats.kv_tokens += sequence.computed + grant.tokens;
        }
        stats
    }

    /// The scheduler's invariants; for tests.
    pub fn check(&self) -> Result<(), String> {
        self.scheduler.check()
    }
}

fn seq_step<'a>(scheduler: &'a Scheduler, grant: &Grant) -> Option<SeqStep<'a>> {
    let sequence = scheduler.sequence(grant.id)?;
    let position = sequence.computed;
    Some(SeqStep {
        tokens: &sequence.tokens[position..position + grant.tokens],
        position,
        blocks: &sequence.blocks,
        want_logits: rows_wanted(grant),
    })
}

fn rows_wanted(grant: &Grant) -> LogitsWanted {
    match (grant.score, grant.sample) {
        (true, _) => LogitsWanted::All,
        (false, true) => LogitsWanted::Last,
        (false, false) => LogitsWanted::None,
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

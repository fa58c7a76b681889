//! Where the requests of the means are, and how fast they go through: Little's law and the cost model. All counts are of
//! requests; an engine counts sequences, of which a request may have several.

use stowage_contracts::load::Coefficients;

use super::means::{Means, Sample};
use crate::demand::autoscale::ASSUMED_OUTPUT;
use crate::snapshot::Objectives;

/// Prompt tokens that engines compute in one iteration at most.
const CHUNK: f64 = 8192.0;
/// Share of the KV caches that are full from which on requests wait for one.
const KV_FULL: f64 = 0.5;
/// Share of a request's work that its prompt is, from which on requests wait for prompts.
const PROMPT_HEAVY: f64 = 0.75;

/// Requests by stage, and times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub cost: Coefficients,
    /// Ready replicas, and replicas that a faulty GPU took away.
    pub ready: f64,
    pub lost: f64,
    /// Requests per second.
    pub arrivals: f64,
    /// Tokens per request: of the prompt those that no prefix cache held, of the answer.
    pub uncached: f64,
    pub output: f64,
    /// Sequences of one request.
    pub sequences: f64,
    /// Work of one request, for its prompt and its answers.
    pub prompt: f64,
    pub answer: f64,
    /// On engines, all and those that decode.
    pub running: f64,
    pub decoding: f64,
    /// Requests without a first token that wait for something other than their own prompt's computation.
    pub waiting: f64,
    /// Those whose prompt is computed.
    pub prefilling: f64,
    /// Of those that arrive: the part that gets no place.
    pub unplaced: f64,
    pub waits_for: Waits,
    /// Of an iteration's time: what prompts take.
    pub prefill_part: f64,
    /// Iteration without prompts, as the cost model has it.
    pub step: f64,
    pub ttft: f64,
    pub itl: f64,
}

/// What those who wait lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    Replicas,
    PromptTime,
    KvCache,
}

impl Flow {
    pub fn of(means: &Means, cost: Coefficients) -> Self {
        let Sample { arrivals, sequences, started, unplaced, .. } = means.mean;
        let Sample { input, uncached, queued, running, unprefilled, ready, lost, .. } = means.mean;
        let sequences = (sequences / arrivals.max(1e-9)).max(1.0);
        let running = running / sequences;
        let per_request = |tokens: f64| (tokens / arrivals.max(1e-9)).max(1.0);
        let (input, uncached) = (per_request(input), per_request(uncached));
        let output = if means.output > 0.0 { means.output.max(1.0) } else { ASSUMED_OUTPUT };
        // Those that go from the queue to an engine. A queue that grows faster than requests come is a rounding error.
        let started = started.clamp(0.01 * arrivals, f64::INFINITY);
        let unprefilled = (unprefilled / uncached).min(running);
        let decoding = running - unprefilled;
        let serving = ready.max(1.0);
        // Milliseconds of one request: of each step, for its prompt, and for all tokens of its answers.
        let each = sequences * (cost.d + cost.k * (input / sequences + output / 2.0) / 1000.0);
        let step = cost.a + each * decoding / serving;
        let prompt = cost.p * uncached / 1000.0;
        let answer = output * each;
        let chunk = cost.p * CHUNK / 1000.0;
        let prefill_part = (started * prompt / 1000.0 / serving).min(chunk / (step + chunk));
        let iteration = step / (1.0 - prefill_part);
        let chunks = (uncached / CHUNK).ceil();
        let own = 1.5 * iteration + (chunks - 1.0) * step + prompt;
        let first = queued + unprefilled;
        let prefilling = first.min(started * own / 1000.0);
        Self {
            cost,
            ready,
            lost,
            arrivals,
            uncached,
            output,
            sequences,
            prompt,
            answer,
            running,
            decoding,
            waiting: first - prefilling,
            prefilling,
            unplaced: (unplaced / arrivals.max(1e-9)).clamp(0.0, 1.0),
            waits_for: match means.mean {
                Sample { kv_full, .. } if kv_full >= KV_FULL => Waits::KvCache,
                _ if prompt >= PROMPT_HEAVY * (prompt + answer) => Waits::PromptTime,
                _ => Waits::Replicas,
            },
            prefill_part,
            step,
            ttft: 1000.0 * first / started,
            itl: 1000.0 * decoding / started / (output - 1.0).max(1.0),
        }
    }

    /// Requests that wait or run.
    pub fn all(&self) -> f64 {
        self.waiting + self.prefilling + self.decoding
    }

    /// Replicas that the load would keep busy all the time, at the cost of the model.
    pub fn load(&self) -> f64 {
        self.arrivals * (self.prompt + self.answer) / 1000.0
    }

    /// Whether so many replicas, all of them as the model has them, carry the load within the objective for tokens.
    pub fn carried_by(&self, replicas: f64, objectives: Objectives) -> bool {
        self.load() <= replicas * (1.0 - self.cost.a / objectives.itl_ms)
    }
}

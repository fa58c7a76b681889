//! From a row of logits to a token.
//!
//! Order: logit bias and penalties, then greedy or temperature, min-p, top-k, top-p, then one draw.
//! The random number depends on (seed, position in the sequence) and nothing else, so that a
//! request's text does not depend on what runs beside it, on how it was chunked, or on whether it
//! was preempted. Ties go to the smaller token id, for the same reason.
//!
//! Log-probabilities are those of the model, before bias, penalties and temperature.

use std::collections::HashMap;

/// How to choose. [`SamplingParams::default`] is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 0 is off. Keeps tokens at least this fraction as likely as the likeliest.
    pub min_p: f32,
    /// Taken once from every token that was generated. 0 is off.
    pub presence_penalty: f32,
    /// Taken as often as the token was generated. 0 is off.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer. 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits. Ids beyond the vocabulary are refused on submission.
    pub logit_bias: Vec<(u32, f32)>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    fn penalises(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// How often each token occurred; empty when no penalty asks.
#[derive(Debug, Default)]
pub struct TokenCounts {
    enabled: bool,
    /// (in the prompt, generated)
    seen: HashMap<u32, (bool, u32)>,
}

impl TokenCounts {
    /// Counts of a prompt; nothing is counted unless a penalty needs it.
    pub fn new(prompt: &[u32], params: &SamplingParams) -> Self {
        let enabled = params.penalises();
        let seen = if enabled { prompt.iter().map(|token| (*token, (true, 0))).collect() } else { HashMap::new() };
        Self { enabled, seen }
    }

    /// Notes a generated token. Not called when K and V are computed again.
    pub fn push(&mut self, token: u32) {
        if self.enabled {
            self.seen.entry(token).or_default().1 += 1;
        }
    }
}

/// A token with the model's own opinion of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Log-probabilities for one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest, best first.
    pub top: Vec<Scored>,
}

/// The row holds no number one could sample from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model gave no finite logit")]
pub struct NoFiniteLogit;

/// Keeps its buffers from call to call; its answers do not depend on earlier ones.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// Chooses the token at `position` (its index in the sequence); never one of `forbidden`.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        counts: &TokenCounts,
        forbidden: &[u32],
        position: usize,
    ) -> Result<u32, NoFiniteLogit> {
        let Self { adjusted, candidates } = self;
        let row = if params.penalises() || !params.logit_bias.is_empty() || !forbidden.is_empty() {
            adjust(adjusted, logits, params, counts);
            for token in forbidden {
                if let Some(logit) = adjusted.get_mut(*token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            adjusted.as_slice()
        } else {
            logits
        };
        let (best, best_logit) = argmax(row).ok_or(NoFiniteLogit)?;
        if params.temperature < 1e-5 {
            return Ok(best);
        }
        let u = uniform(params.seed, position as u64);
        Ok(draw(candidates, row, best_logit, params, u).unwrap_or(best))
    }
}

/// The model's log-probabilities of `chosen` and of the `top` likeliest tokens.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let best = argmax(logits).map_or(0.0, |(_, logit)| logit);
    let total: f64 = logits.iter().filter(|l| !l.is_nan()).map(|l| f64::from(l - best).exp()).sum();
    let offset = f64::from(best) + total.ln();
    let score = |token: u32| Scored { token, logprob: (f64::from(logits[token as usize]) - offset) as f32 };
    TokenLogprobs { chosen: score(chosen).logprob, top: likeliest(logits, top).into_iter().map(score).collect() }
}

/// The ids of the `top` largest logits, best first, the smaller id among equals. One pass that keeps the
/// few best so far: prompts are scored token by token, and `top` is small.
fn likeliest(logits: &[f32], top: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(top + 1);
    for (id, logit) in logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()) {
        let is_larger = |other: &u32| logit.total_cmp(&logits[*other as usize]).is_gt();
        if best.len() < top || best.last().is_some_and(is_larger) {
            let at = best.partition_point(|other| !is_larger(other));
            best.insert(at, id as u32);
            best.truncate(top);
        }
    }
    best
}

fn adjust(out: &mut Vec<f32>, logits: &[f32], params: &SamplingParams, counts: &TokenCounts) {
    out.clear();
    out.extend_from_slice(logits);
    for (token, (_, generated)) in &counts.seen {
        let Some(logit) = out.get_mut(*token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        if *generated > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * *generated as f32;
        }
    }
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = out.get_mut(*token as usize) {
            *logit += bias;
        }
    }
}

/// The largest finite logit; the smaller id among equals. NaN counts as impossible.
fn argmax(row: &[f32]) -> Option<(u32, f32)> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in row.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, top)| logit > top) {
            best = Some((id as u32, logit));
        }
    }
    best
}

/// Draws by inverse transform. `None` only when rounding leaves nothing, and the best is meant.
fn draw(candidates: &mut Vec<(u32, f32)>, row: &[f32], best: f32, params: &SamplingParams, u: f64) -> Option<u32> {
    let scale = 1.0 / params.temperature;
    let floor = if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY };
    candidates.clear();
    // The exponent relative to the best: 0 for it, negative for the others.
    candidates.extend(row.iter().enumerate().filter_map(|(id, logit)| {
        let exponent = (logit - best) * scale;
        (exponent.is_finite() && exponent >= floor).then_some((id as u32, exponent))
    }));
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let k = params.top_k as usize;
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, order);
        candidates.truncate(k);
        candidates.sort_unstable_by_key(|(id, _)| *id);
    }
    if params.top_p < 1.0 {
        keep_top_p(candidates, f64::from(params.top_p), order);
    }
    let weight = |exponent: f32| f64::from(exponent).exp();
    let total: f64 = candidates.iter().map(|(_, e)| weight(*e)).sum();
    let mut left = u * total;
    for (id, exponent) in candidates.iter() {
        left -= weight(*exponent);
        if left < 0.0 {
            return Some(*id);
        }
    }
    None
}

/// Keeps the fewest likeliest candidates whose mass reaches `p`. Sorts only as many as it needs:
/// of 49,152 tokens usually a few dozen matter.
fn keep_top_p(
    candidates: &mut Vec<(u32, f32)>,
    p: f64,
    order: impl Fn(&(u32, f32), &(u32, f32)) -> std::cmp::Ordering + Copy,
) {
    let weight = |exponent: f32| f64::from(exponent).exp();
    let wanted = p * candidates.iter().map(|(_, e)| weight(*e)).sum::<f64>();
    let mut sorted = 64;
    loop {
        let n = sorted.min(candidates.len());
        if n < candidates.len() {
            candidates.select_nth_unstable_by(n - 1, order);
        }
        candidates[..n].sort_unstable_by(order);
        let mut mass = 0.0;
        let enough = candidates[..n].iter().position(|(_, e)| {
            mass += weight(*e);
            mass >= wanted
        });
        if let Some(last) = enough {
            candidates.truncate(last + 1);
            return;
        }
        if n == candidates.len() {
            return;
        }
        sorted *= 8;
    }
}

/// In `[0, 1)`, from a counter: no state to advance, so nothing can advance it twice.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let bits = mix(mix(seed) ^ mix(position.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The seed of choice `index` of a request with `n` choices. Choice 0 has the seed as given.
pub fn choice_seed(seed: u64, index: u32) -> u64 {
    if index == 0 { seed } else { mix(seed ^ mix(u64::from(index))) }
}

/// SplitMix64's finaliser: every input bit reaches every output bit.
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;

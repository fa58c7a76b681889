//! What arrives at one model, as the operator counts it, and what ended answers teach about its requests.
//!
//! A body's size is all that is known of a prompt when it arrives. How many tokens that is, and how many of them a
//! prefix cache holds, follows from what engines counted in recent answers: each estimate is scaled by it at arrival,
//! so that a count never has to be taken back.

use crate::metrics::Tokens;

/// Expected answer length until some answer has ended, in tokens.
const FIRST_MEAN_OUTPUT: f64 = 128.0;
/// Weight of the newest answer in the means.
const MEAN_WEIGHT: f64 = 0.05;
/// What one answer may teach about the tokens of an estimate: more is a body of another kind.
const SCALE: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Counts since the start of this gateway, and means.
#[derive(Debug)]
pub struct Arrivals {
    pub requests: u64,
    pub input_tokens: f64,
    /// Part of the input tokens.
    pub cached_tokens: f64,
    answers: u64,
    mean_output: f64,
    /// Counted tokens per estimated one.
    scale: f64,
    /// Of the counted prompt tokens.
    cached_part: f64,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            requests: 0,
            input_tokens: 0.0,
            cached_tokens: 0.0,
            answers: 0,
            mean_output: FIRST_MEAN_OUTPUT,
            scale: 1.0,
            cached_part: 0.0,
        }
    }
}

impl Arrivals {
    /// A request was let in. `estimate`: its prompt tokens by size.
    pub fn arrived(&mut self, estimate: u64) {
        let tokens = estimate as f64 * self.scale;
        self.requests += 1;
        self.input_tokens += tokens;
        self.cached_tokens += tokens * self.cached_part;
    }

    /// An answer ended well. `estimate` as at arrival.
    pub fn answered(&mut self, estimate: u64, tokens: Tokens, sequences: u32) {
        // The first answer weighs as much as all before it: nothing was known.
        let weight = if self.answers == 0 { 1.0 } else { MEAN_WEIGHT };
        let learn = |mean: &mut f64, value: f64| *mean += weight * (value - *mean);
        self.answers += 1;
        learn(&mut self.mean_output, tokens.output as f64 / f64::from(sequences.max(1)));
        if estimate == 0 || tokens.prompt == 0 {
            return;
        }
        let scale = tokens.prompt as f64 / estimate as f64;
        learn(&mut self.scale, scale.clamp(*SCALE.start(), *SCALE.end()));
        learn(&mut self.cached_part, tokens.cached.min(tokens.prompt) as f64 / tokens.prompt as f64);
    }

    /// Tokens to expect of an answer.
    pub fn expected_output(&self) -> f64 {
        self.mean_output
    }

    /// Mean tokens of recent answers; 0: none has ended.
    pub fn mean_output(&self) -> f64 {
        if self.answers == 0 { 0.0 } else { self.mean_output }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_scaled_by_what_engines_counted() {
        let mut arrivals = Arrivals::default();
        arrivals.arrived(100);
        assert_eq!((arrivals.requests, arrivals.input_tokens, arrivals.cached_tokens), (1, 100.0, 0.0));
        assert_eq!((arrivals.mean_output(), arrivals.expected_output()), (0.0, FIRST_MEAN_OUTPUT));
        arrivals.answered(100, Tokens { prompt: 50, cached: 25, output: 8 }, 1);
        arrivals.arrived(100);
        assert_eq!((arrivals.input_tokens, arrivals.cached_tokens), (150.0, 25.0));
        assert_eq!((arrivals.mean_output(), arrivals.expected_output()), (8.0, 8.0));
    }

    #[test]
    fn one_odd_answer_moves_the_means_a_little() {
        let mut arrivals = Arrivals::default();
        arrivals.answered(100, Tokens { prompt: 100, cached: 0, output: 10 }, 1);
        arrivals.answered(1, Tokens { prompt: 1_000_000, cached: 0, output: 10 }, 0);
        arrivals.arrived(100);
        assert!((arrivals.input_tokens - 195.0).abs() < 1e-9, "{}", arrivals.input_tokens);
        arrivals.answered(0, Tokens { prompt: 0, cached: 9, output: 30 }, 3);
        assert_eq!(arrivals.mean_output(), 10.0);
    }
}

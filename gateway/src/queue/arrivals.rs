//! What arrives at one model, as the operator counts it, and what ended answers teach about its requests.
//!
//! A body's size is all that is known of a prompt when it arrives. How many tokens that is, and how many of them a
//! prefix cache holds, follows from what engines counted in recent answers: each estimate is scaled by it at arrival,
//! so that a count never has to be taken back.
//!
//! Each tenant's requests are estimated by that tenant's own answers. A guest of a shared model, whatever it sends,
//! changes nothing about its owner's estimates, and changes the model's mean by its part of the arrivals alone.

use std::collections::HashMap;
use std::sync::Arc;

use crate::metrics::Tokens;

/// Expected answer length until some answer has ended, in tokens.
const FIRST_MEAN_OUTPUT: f64 = 128.0;
/// Weight of the newest answer in the means.
const MEAN_WEIGHT: f64 = 0.05;
/// Weight of the newest arrival in the tenants' parts.
const PART_WEIGHT: f64 = 0.01;
/// A tenant with a smaller part of the arrivals is forgotten once there are `MAX_TENANTS`.
const FORGOTTEN_PART: f64 = 1e-4;
const MAX_TENANTS: usize = 1024;
/// What one answer may teach about the tokens of an estimate: more is a body of another kind.
const SCALE: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Counts since the start of this gateway, and what is known of each tenant's requests.
#[derive(Debug, Default)]
pub struct Arrivals {
    pub requests: u64,
    /// Of all these requests: prompts times choices.
    pub sequences: u64,
    /// Requests that got a place on a replica.
    pub placed: u64,
    pub input_tokens: f64,
    /// Part of the input tokens.
    pub cached_tokens: f64,
    tenants: HashMap<Arc<str>, Known>,
}

/// What is known of one tenant's requests.
#[derive(Debug, Default)]
struct Known {
    /// Its part of recent arrivals, as of the arrival with this number.
    part: f64,
    at: u64,
    /// `None`: no answer has ended.
    means: Option<Means>,
}

#[derive(Debug, Clone, Copy)]
struct Means {
    output: f64,
    /// Counted tokens per estimated one.
    scale: f64,
    /// Of the counted prompt tokens.
    cached_part: f64,
}

impl Arrivals {
    /// A request of this tenant was let in. `estimate`: its prompt tokens by size.
    pub fn arrived(&mut self, tenant: &Arc<str>, estimate: u64, sequences: u32) {
        let means = self.expected(tenant);
        let tokens = estimate as f64 * means.scale;
        self.requests += 1;
        self.sequences += u64::from(sequences);
        self.input_tokens += tokens;
        self.cached_tokens += tokens * means.cached_part;
        let requests = self.requests;
        let known = self.tenants.entry(tenant.clone()).or_default();
        known.part = known.part_at(requests) + PART_WEIGHT;
        known.at = requests;
        if self.tenants.len() > MAX_TENANTS {
            self.tenants.retain(|_, known| known.part_at(requests) >= FORGOTTEN_PART);
        }
    }

    /// An answer to this tenant ended well. `estimate` as at arrival.
    pub fn answered(&mut self, tenant: &Arc<str>, estimate: u64, tokens: Tokens, sequences: u32) {
        let before = self.expected(tenant);
        let Some(known) = self.tenants.get_mut(tenant) else { return };
        // The first answer weighs as much as all before it: nothing was known.
        let weight = if known.means.is_none() { 1.0 } else { MEAN_WEIGHT };
        known.means = Some(before.learn(weight, estimate, tokens, sequences));
    }

    /// Tokens to expect of an answer to this tenant.
    pub fn expected_output(&self, tenant: &Arc<str>) -> f64 {
        self.expected(tenant).output
    }

    /// Mean tokens of an answer, over recent arrivals; 0: none has ended.
    pub fn mean_output(&self) -> f64 {
        self.pooled().map_or(0.0, |means| means.output)
    }

    fn expected(&self, tenant: &Arc<str>) -> Means {
        let own = self.tenants.get(tenant).and_then(|known| known.means);
        own.or_else(|| self.pooled()).unwrap_or(Means::FIRST)
    }

    /// The means of all tenants that had an answer, by their parts of the arrivals.
    fn pooled(&self) -> Option<Means> {
        let parts = || self.tenants.values().filter_map(|k| Some((k.part_at(self.requests), k.means?)));
        let total: f64 = parts().map(|(part, _)| part).sum();
        let mean = |of: fn(&Means) -> f64| parts().map(|(part, means)| part * of(&means)).sum::<f64>() / total;
        (total > 0.0).then(|| Means {
            output: mean(|m| m.output),
            scale: mean(|m| m.scale),
            cached_part: mean(|m| m.cached_part),
        })
    }
}

impl Known {
    /// Each later arrival takes its part of the weight.
    fn part_at(&self, requests: u64) -> f64 {
        let later = i32::try_from(requests.saturating_sub(self.at)).unwrap_or(i32::MAX);
        self.part * (1.0 - PART_WEIGHT).powi(later)
    }
}

impl Means {
    const FIRST: Self = Self { output: FIRST_MEAN_OUTPUT, scale: 1.0, cached_part: 0.0 };

    fn learn(mut self, weight: f64, estimate: u64, tokens: Tokens, sequences: u32) -> Self {
        let learn = |mean: &mut f64, value: f64| *mean += weight * (value - *mean);
        learn(&mut self.output, tokens.output as f64 / f64::from(sequences.max(1)));
        if estimate > 0 && tokens.prompt > 0 {
            let scale = tokens.prompt as f64 / estimate as f64;
            learn(&mut self.scale, scale.clamp(*SCALE.start(), *SCALE.end()));
            learn(&mut self.cached_part, tokens.cached.min(tokens.prompt) as f64 / tokens.prompt as f64);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Arc<str> {
        name.into()
    }

    /// A request and its answer.
    fn exchange(arrivals: &mut Arrivals, tenant: &Arc<str>, estimate: u64, tokens: Tokens) {
        arrivals.arrived(tenant, estimate, 1);
        arrivals.answered(tenant, estimate, tokens, 1);
    }

    #[test]
    fn estimates_are_scaled_by_what_engines_counted() {
        let (mut arrivals, a) = (Arrivals::default(), tenant("a"));
        arrivals.arrived(&a, 100, 1);
        assert_eq!((arrivals.requests, arrivals.input_tokens, arrivals.cached_tokens), (1, 100.0, 0.0));
        assert_eq!((arrivals.mean_output(), arrivals.expected_output(&a)), (0.0, FIRST_MEAN_OUTPUT));
        arrivals.answered(&a, 100, Tokens { prompt: 50, cached: 25, output: 8 }, 1);
        arrivals.arrived(&a, 100, 1);
        assert_eq!((arrivals.input_tokens, arrivals.cached_tokens), (150.0, 25.0));
        assert_eq!((arrivals.mean_output(), arrivals.expected_output(&a)), (8.0, 8.0));
    }

    #[test]
    fn request_is_as_many_sequences_as_it_asks_for() {
        let (mut arrivals, a) = (Arrivals::default(), tenant("a"));
        arrivals.arrived(&a, 100, 4);
        arrivals.arrived(&a, 100, 1);
        assert_eq!((arrivals.requests, arrivals.sequences, arrivals.placed), (2, 5, 0));
    }

    #[test]
    fn one_odd_answer_moves_the_means_a_little() {
        let (mut arrivals, a) = (Arrivals::default(), tenant("a"));
        exchange(&mut arrivals, &a, 0, Tokens { prompt: 100, cached: 0, output: 10 });
        arrivals.answered(&a, 1, Tokens { prompt: 1_000_000, cached: 0, output: 10 }, 0);
        arrivals.arrived(&a, 100, 1);
        assert!((arrivals.input_tokens - 195.0).abs() < 1e-9, "{}", arrivals.input_tokens);
        arrivals.answered(&a, 0, Tokens { prompt: 0, cached: 9, output: 30 }, 3);
        assert_eq!(arrivals.mean_output(), 10.0);
    }

    #[test]
    fn guest_with_absurd_lengths_leaves_its_owners_estimates_alone() {
        let usual = Tokens { prompt: 100, cached: 50, output: 200 };
        let check = |absurd: Tokens| {
            let (mut arrivals, owner, guest) = (Arrivals::default(), tenant("owner"), tenant("guest"));
            (0..1000).for_each(|_| exchange(&mut arrivals, &owner, 100, usual));
            // Answers that all end at once weigh no more than the requests they answer.
            (0..5).for_each(|_| exchange(&mut arrivals, &guest, 100, absurd));
            (0..500).for_each(|_| arrivals.answered(&guest, 100, absurd, 1));
            assert_eq!(arrivals.expected_output(&owner), 200.0);
            let part = absurd.output as f64 * 0.05 + 200.0 * 0.95;
            let (least, most) = (part.min(200.0), part.max(200.0));
            let mean = arrivals.mean_output();
            assert!((least..=most).contains(&mean), "{mean}: the guest has sent a twentieth at most");
            let (input, cached) = (arrivals.input_tokens, arrivals.cached_tokens);
            arrivals.arrived(&owner, 100, 1);
            let (input, cached) = (arrivals.input_tokens - input, arrivals.cached_tokens - cached);
            assert!((input - 100.0).abs() < 1e-6 && (cached - 50.0).abs() < 1e-6, "{input} {cached}");
        };
        check(Tokens { prompt: 1_000_000, cached: 0, output: 100_000 });
        check(Tokens { prompt: 1, cached: 1, output: 0 });
    }

    #[test]
    fn newcomer_is_expected_to_ask_what_others_ask() {
        let (mut arrivals, a, b) = (Arrivals::default(), tenant("a"), tenant("b"));
        exchange(&mut arrivals, &a, 100, Tokens { prompt: 200, cached: 0, output: 40 });
        assert_eq!(arrivals.expected_output(&b), 40.0);
        let before = arrivals.input_tokens;
        arrivals.arrived(&b, 100, 1);
        assert_eq!(arrivals.input_tokens - before, 200.0);
    }

    #[test]
    fn tenants_that_send_nothing_any_more_are_forgotten() {
        let mut arrivals = Arrivals::default();
        for n in 0..4 * MAX_TENANTS {
            arrivals.arrived(&tenant(&n.to_string()), 1, 1);
        }
        assert!(arrivals.tenants.len() <= MAX_TENANTS + 1, "{}", arrivals.tenants.len());
    }
}

//! What clients can expect of a number of replicas, by the cost model: an iteration of a replica that is
//! busy for the share ρ of its time takes `a / (1 − ρ)`.
//!
//! A prediction is for the forecast load, spread evenly. It knows no queue, so it holds below the
//! objectives and not beyond them.

use serde::{Deserialize, Serialize};
use stowage_contracts::load::Coefficients;

/// What is expected once all planned replicas serve. What is not known is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prediction {
    /// Time to first token of a prompt of mean length, microseconds; absent also while the replicas
    /// cannot carry the load.
    pub ttft_us: Option<u64>,
    /// Time between two tokens, microseconds; absent as above.
    pub itl_us: Option<u64>,
    /// From now until the last replica that this plan creates serves; absent: none is created.
    pub ready_in_ms: Option<u64>,
    /// Of all replicas; absent: one of their classes has no price.
    pub price_per_hour_micros: Option<u64>,
}

/// The load that a prediction is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basis {
    pub cost: Coefficients,
    /// Prompt tokens of a request that no prefix cache holds.
    pub mean_input: f64,
    /// In replicas that would be busy all the time.
    pub load: f64,
    /// What a replica carries on the average, in those replicas.
    pub each: f64,
}

impl Basis {
    /// TTFT and ITL of so many replicas, in microseconds.
    pub fn latencies(&self, replicas: u32) -> Option<(u64, u64)> {
        let free = 1.0 - self.load / (self.each * f64::from(replicas));
        if replicas == 0 || free <= 0.0 {
            return None;
        }
        let itl = self.cost.a / free;
        // A prompt arrives in the middle of an iteration and is computed in the next one.
        let ttft = 1.5 * itl + self.cost.p * self.mean_input / 1000.0;
        Some(((ttft * 1000.0).round() as u64, (itl * 1000.0).round() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The design's figures for its conversation trace: 13.2, 14.5, 16.3 and 21.4 ms.
    #[test]
    fn time_between_tokens_is_that_of_the_design_at_each_load() {
        let basis = Basis { cost: Coefficients::REFERENCE, mean_input: 1154.0, load: 3.88, each: 1.0 };
        let itl = |replicas| basis.latencies(replicas).map(|(_, itl)| (itl as f64 / 100.0).round() / 10.0);
        assert_eq!([24, 16, 12, 8].map(itl), [13.1, 14.5, 16.3, 21.4].map(Some));
        assert_eq!((itl(3), itl(0)), (None, None));
    }
}

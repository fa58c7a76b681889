//! The cost model's coefficients, learnt from the steps as they happen.
//!
//! `milliseconds = a + d·decodes + k·(KV tokens)/1000 + p·(prefill tokens)/1000`, by recursive least
//! squares that slowly forgets, so that a slower workload beside it or a throttled clock shows within a few
//! hundred steps. Routing and autoscaling read the result from the load report.

pub use stowage_contracts::load::Coefficients;

/// Weight of the past at each step: half of it is gone after about 140.
const FORGETTING: f64 = 0.995;
/// Uncertainty to start with, and the bound that keeps it finite while nothing new is seen.
const START: f64 = 1e4;
const MAX_TRACE: f64 = 1e6;

type Row = [f64; 4];

/// An estimate that follows the steps it is shown.
#[derive(Clone, Debug)]
pub struct CostFit {
    theta: Row,
    /// Covariance up to a factor, symmetric.
    cov: [Row; 4],
    steps: u64,
}

impl Default for CostFit {
    fn default() -> Self {
        let mut cov = [[0.0; 4]; 4];
        for (i, row) in cov.iter_mut().enumerate() {
            row[i] = START;
        }
        Self { theta: [0.0; 4], cov, steps: 0 }
    }
}

impl CostFit {
    /// Notes a step and how long it took. Times that are no times are ignored.
    pub fn observe(&mut self, decodes: usize, kv_tokens: usize, prefill_tokens: usize, millis: f64) {
        if !millis.is_finite() || millis < 0.0 {
            return;
        }
        let x = [1.0, decodes as f64, kv_tokens as f64 / 1e3, prefill_tokens as f64 / 1e3];
        let cov_x = self.cov.map(|row| dot(&row, &x));
        let gain = 1.0 / (FORGETTING + dot(&x, &cov_x));
        let error = millis - dot(&self.theta, &x);
        for i in 0..4 {
            self.theta[i] += gain * cov_x[i] * error;
            for j in 0..4 {
                self.cov[i][j] -= gain * cov_x[i] * cov_x[j];
            }
        }
        // Forgetting what is not seen any more would let the uncertainty grow without bound.
        let trace: f64 = (0..4).map(|i| self.cov[i][i]).sum();
        if trace < MAX_TRACE {
            self.cov.iter_mut().flatten().for_each(|c| *c /= FORGETTING);
        }
        self.steps += 1;
    }

    /// The present estimate. Never negative: nothing makes a step faster. A zero means unknown.
    pub fn coefficients(&self) -> Coefficients {
        let [a, d, k, p] = self.theta.map(|c| if c.is_finite() { c.max(0.0) } else { 0.0 });
        Coefficients { a, d, k, p }
    }

    /// Steps observed.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

fn dot(a: &Row, b: &Row) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::CostModel;

    fn learn(fit: &mut CostFit, truth: CostModel, steps: usize) {
        for i in 0..steps {
            let (decodes, prefill) = (i % 13, if i % 3 == 0 { 16 * (i % 9) } else { 0 });
            let kv = 700 * (i % 7) + prefill;
            fit.observe(decodes, kv, prefill, truth.millis(decodes, kv, prefill));
        }
    }

    #[track_caller]
    fn near(found: Coefficients, truth: CostModel) {
        for (f, t) in [(found.a, truth.a), (found.d, truth.d), (found.k, truth.k), (found.p, truth.p)] {
            assert!((f - t).abs() < 0.02 * t.max(1.0), "{found:?} against {truth:?}");
        }
    }

    #[test]
    fn the_coefficients_are_recovered_and_followed_when_they_change() {
        let (before, after) =
            (CostModel { a: 11.0, d: 0.5, k: 0.3, p: 44.0 }, CostModel { a: 20.0, d: 1.0, k: 0.3, p: 90.0 });
        let mut fit = CostFit::default();
        learn(&mut fit, before, 500);
        near(fit.coefficients(), before);
        learn(&mut fit, after, 3000);
        near(fit.coefficients(), after);
    }

    #[test]
    fn seeing_the_same_step_for_ever_stays_finite() {
        let mut fit = CostFit::default();
        for _ in 0..200_000 {
            fit.observe(1, 500, 0, 9.0);
        }
        let Coefficients { a, d, k, p } = fit.coefficients();
        assert!([a, d, k, p].iter().all(|c| c.is_finite() && *c < 100.0));
        assert!((a + d + 0.5 * k - 9.0).abs() < 0.1);
    }

    #[test]
    fn nonsense_times_are_ignored() {
        let mut fit = CostFit::default();
        fit.observe(1, 1, 1, f64::NAN);
        fit.observe(1, 1, 1, -5.0);
        assert_eq!(fit.steps(), 0);
    }
}

//! The cost model's coefficients, learnt from the steps as they happen: by the engine of its own steps, by
//! the planner of the steps that a kind of replica reports.
//!
//! `milliseconds = a + d·decodes + k·(KV tokens)/1000 + p·(prefill tokens)/1000`, by recursive least
//! squares that slowly forgets, so that a slower workload beside it or a throttled clock shows within a few
//! hundred steps.

use serde::{Deserialize, Serialize};

use crate::load::Coefficients;

/// Weight of the past at each step: half of it is gone after about 140.
const FORGETTING: f64 = 0.995;
/// Uncertainty to start with, and the bound that keeps it finite while nothing new is seen.
const START: f64 = 1e4;
const MAX_TRACE: f64 = 1e6;

type Row = [f64; 4];

/// An estimate that follows the steps it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
        self.steps = self.steps.saturating_add(1);
    }

    /// The best estimate without a negative part: nothing makes a step faster. A zero means unknown.
    ///
    /// Cutting a negative part off would leave the others as wrong as it was, so the least squares are
    /// solved again with that part at zero: all sixteen choices of such parts are tried.
    pub fn coefficients(&self) -> Coefficients {
        let mut best: Option<(f64, Row)> = None;
        for zeros in 0..16u32 {
            if let Some((cost, row)) = self.with_zeros(zeros)
                && best.is_none_or(|(least, _)| cost < least)
            {
                best = Some((cost, row));
            }
        }
        let [a, d, k, p] = best.map_or([0.0; 4], |(_, row)| row);
        Coefficients { a, d, k, p }
    }

    /// Steps observed.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The estimate with the parts of this set at zero, and by how much it fits worse. `None`: another
    /// part is negative then, or the figures are no numbers any more.
    fn with_zeros(&self, zeros: u32) -> Option<(f64, Row)> {
        let fixed: Vec<usize> = (0..4).filter(|i| zeros >> i & 1 == 1).collect();
        let shift = solve(&fixed, &self.cov, &self.theta)?;
        let cost: f64 = fixed.iter().zip(&shift).map(|(i, s)| self.theta[*i] * s).sum();
        let mut row = self.theta;
        for (i, value) in row.iter_mut().enumerate() {
            *value -= fixed.iter().zip(&shift).map(|(j, s)| self.cov[i][*j] * s).sum::<f64>();
        }
        fixed.iter().for_each(|i| row[*i] = 0.0);
        (cost.is_finite() && row.iter().all(|value| value.is_finite() && *value >= 0.0)).then_some((cost, row))
    }
}

fn dot(a: &Row, b: &Row) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Solves `cov · x = theta` for these rows and columns alone, by elimination with the largest pivot.
fn solve(rows: &[usize], cov: &[Row; 4], theta: &Row) -> Option<Vec<f64>> {
    let n = rows.len();
    let mut m: Vec<Vec<f64>> =
        rows.iter().map(|i| rows.iter().map(|j| cov[*i][*j]).chain([theta[*i]]).collect()).collect();
    for at in 0..n {
        let pivot = (at..n).max_by(|a, b| m[*a][at].abs().total_cmp(&m[*b][at].abs()))?;
        m.swap(at, pivot);
        if m[at][at] == 0.0 {
            return None;
        }
        for below in at + 1..n {
            let factor = m[below][at] / m[at][at];
            let pivot = m[at].clone();
            m[below].iter_mut().zip(&pivot).skip(at).for_each(|(value, of_pivot)| *value -= factor * of_pivot);
        }
    }
    let mut x = vec![0.0; n];
    for at in (0..n).rev() {
        let rest: f64 = (at + 1..n).map(|column| m[at][column] * x[column]).sum();
        x[at] = (m[at][n] - rest) / m[at][at];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a pseudo-random order, so that a failure repeats.
    struct Steps(u64);

    impl Steps {
        fn below(&mut self, n: u64) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % n) as usize
        }
    }

    fn millis(c: Coefficients, decodes: usize, kv: usize, prefill: usize) -> f64 {
        c.a + c.d * decodes as f64 + (c.k * kv as f64 + c.p * prefill as f64) / 1e3
    }

    /// The steps shown to a fit, each with the weight that it has at the end.
    fn learn(truth: Coefficients, noise: f64, count: usize, seed: u64) -> (CostFit, Vec<(Row, f64, f64)>) {
        let (mut fit, mut steps, mut shown) = (CostFit::default(), Steps(seed), Vec::new());
        for at in 0..count {
            let (decodes, kv) = (steps.below(60), steps.below(100_000));
            let prefill = if steps.below(3) == 0 { steps.below(8000) } else { 0 };
            let error = noise * (steps.below(2001) as f64 / 1000.0 - 1.0);
            let time = (millis(truth, decodes, kv, prefill) + error).max(0.0);
            fit.observe(decodes, kv, prefill, time);
            let x = [1.0, decodes as f64, kv as f64 / 1e3, prefill as f64 / 1e3];
            shown.push((x, time, FORGETTING.powi((count - 1 - at) as i32)));
        }
        (fit, shown)
    }

    fn squares(shown: &[(Row, f64, f64)], c: [f64; 4]) -> f64 {
        shown.iter().map(|(x, y, weight)| weight * (y - dot(x, &c)).powi(2)).sum()
    }

    /// Least squares without negative parts, by descent along one part after another.
    fn brute_force(shown: &[(Row, f64, f64)]) -> [f64; 4] {
        let mut c = [0.0; 4];
        for _ in 0..5_000 {
            for i in 0..4 {
                let (mut num, mut den) = (0.0, 0.0);
                for (x, y, weight) in shown {
                    num += weight * x[i] * (y - dot(x, &c) + c[i] * x[i]);
                    den += weight * x[i] * x[i];
                }
                c[i] = (num / den).max(0.0);
            }
        }
        c
    }

    #[test]
    fn estimate_without_negative_parts_fits_as_well_as_any_other_without() {
        let truths = [
            Coefficients::REFERENCE,
            Coefficients { a: 11.0, d: 0.0, k: 0.03, p: 45.0 },
            Coefficients { a: 0.5, d: 0.0, k: 0.0, p: 20.0 },
            Coefficients { a: 5.0, d: 0.3, k: 0.0, p: 0.0 },
        ];
        for (at, truth) in truths.into_iter().enumerate() {
            for noise in [0.0, 1.0, 10.0] {
                let (fit, shown) = learn(truth, noise, 300, at as u64 + 1);
                let Coefficients { a, d, k, p } = fit.coefficients();
                assert!([a, d, k, p].iter().all(|part| *part >= 0.0));
                let (ours, best) = (squares(&shown, [a, d, k, p]), squares(&shown, brute_force(&shown)));
                assert!(ours <= best * 1.001 + 1e-3, "{truth:?} ±{noise}: {ours} against {best}");
            }
        }
    }

    #[test]
    fn fit_that_was_written_and_read_goes_on_as_before() {
        let (mut fit, _) = learn(Coefficients::REFERENCE, 1.0, 50, 9);
        let mut read: CostFit = serde_json::from_str(&serde_json::to_string(&fit).unwrap()).unwrap();
        fit.observe(3, 4000, 100, 17.0);
        read.observe(3, 4000, 100, 17.0);
        // Text keeps a float to its last but one digit.
        let (one, other) = (fit.coefficients(), read.coefficients());
        for (one, other) in [(one.a, other.a), (one.d, other.d), (one.k, other.k), (one.p, other.p)] {
            assert!((one - other).abs() <= 1e-9 * one, "{fit:?} {read:?}");
        }
    }
}

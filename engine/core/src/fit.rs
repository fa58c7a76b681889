//! The cost model's coefficients, learnt from the steps of this engine. Routing and autoscaling read the
//! result from the load report.

pub use stowage_contracts::fit::CostFit;
pub use stowage_contracts::load::Coefficients;

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

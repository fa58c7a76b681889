//! What a step costs on a variant: fitted to the steps that its replicas reported, or from a table.
//!
//! A fit counts from 200 steps on. A part that is zero is unknown, never free: it comes from the table,
//! or, for the parts of decoding, from the reference row scaled by the cost of a step.

use stowage_contracts::fit::CostFit;
use stowage_contracts::load::Coefficients;

use crate::demand::verdict::{Frozen, Problem, Signal};
use crate::snapshot::{CostOrigin, Deployment, EngineSignals, Memory, Replica, StepSample};

/// Steps that a fit needs before it counts.
const LEAST_STEPS: u64 = 200;

pub(super) struct Cost {
    pub variant: String,
    pub coefficients: Coefficients,
    pub origin: CostOrigin,
}

impl Memory {
    /// Follows the steps of these signals; the same signals are followed once.
    pub(super) fn learn(&mut self, d: &Deployment, engines: &EngineSignals) {
        if self.learned_ms.is_some_and(|at| engines.at_ms <= at) {
            return;
        }
        self.learned_ms = Some(engines.at_ms);
        self.fits.retain(|(variant, _)| d.variants.iter().any(|v| v.name == *variant));
        for StepSample { variant, decodes, kv_tokens, prefill_tokens, millis } in &engines.steps {
            if !d.variants.iter().any(|v| v.name == *variant) {
                continue;
            }
            let at = self.fits.iter().position(|(name, _)| name == variant).unwrap_or_else(|| {
                self.fits.push((variant.clone(), CostFit::default()));
                self.fits.len() - 1
            });
            self.fits[at].1.observe(*decodes as usize, *kv_tokens as usize, *prefill_tokens as usize, *millis);
        }
    }
}

/// The cost on the variant that most replicas run on, or on the first whose cost is known.
pub(super) fn cost(d: &Deployment, memory: &Memory) -> Result<Cost, Frozen> {
    let on = |variant: &str| {
        let runs = |r: &&Replica| r.placement.as_ref().is_some_and(|p| p.variant == variant);
        d.replicas.iter().filter(runs).count()
    };
    let known = d.variants.iter().filter_map(|v| of_variant(d, memory, &v.name));
    let best = known.enumerate().min_by_key(|(place, cost)| (std::cmp::Reverse(on(&cost.variant)), *place));
    let missing = Frozen { signal: Signal::Cost, problem: Problem::Missing };
    best.map(|(_, cost)| cost).ok_or(missing)
}

/// The cost on one variant; `None`: neither fitted nor in a table.
pub(super) fn of_variant(d: &Deployment, memory: &Memory, variant: &str) -> Option<Cost> {
    let table = d.signals.costs.iter().find(|c| c.variant == variant);
    let fit = memory.fits.iter().find(|(name, fit)| name == variant && fit.steps() >= LEAST_STEPS);
    let (coefficients, origin) = match (fit, table) {
        (Some((_, fit)), table) => {
            let known = table.map_or(Coefficients::default(), |t| t.coefficients);
            (fit.coefficients().or_known(known), CostOrigin::Fitted)
        }
        (None, Some(table)) => (table.coefficients, table.origin),
        (None, None) => return None,
    };
    Some(Cost { variant: variant.to_owned(), coefficients: with_unknown_parts(coefficients), origin })
}

/// The step and the prefill have to be known; what decoding costs is taken from the reference row.
pub(super) fn with_unknown_parts(cost: Coefficients) -> Coefficients {
    let scale = cost.a / Coefficients::REFERENCE.a;
    let other = |value: f64, reference: f64| if value == 0.0 { reference * scale } else { value };
    let Coefficients { d, k, .. } = Coefficients::REFERENCE;
    Coefficients { d: other(cost.d, d), k: other(cost.k, k), ..cost }
}

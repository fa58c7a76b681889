//! What the operator learns of a deployment while it watches: what a step costs on each variant. Lost in a crash and
//! learned again.

use std::collections::BTreeMap;

use stowage_contracts::load::Coefficients;
use stowage_planner::snapshot::{CostOrigin, TimeMs, VariantCost};

/// Of one deployment.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    /// By variant.
    costs: BTreeMap<String, VariantCost>,
}

impl Learned {
    /// An engine reported what its steps cost.
    pub fn cost(&mut self, variant: &str, coefficients: Coefficients, at_ms: TimeMs) {
        if self.costs.get(variant).is_none_or(|known| known.at_ms < at_ms) {
            let (variant, origin) = (variant.to_owned(), CostOrigin::Fitted);
            self.costs.insert(variant.clone(), VariantCost { variant, coefficients, origin, at_ms });
        }
    }

    pub fn costs(&self) -> Vec<VariantCost> {
        self.costs.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_cost_of_a_variant_counts() {
        let mut learned = Learned::default();
        let cost = |a: f64| Coefficients { a, ..Coefficients::default() };
        learned.cost("v", cost(1.0), 20);
        learned.cost("v", cost(2.0), 10);
        assert_eq!((learned.costs().len(), learned.costs()[0].coefficients.a), (1, 1.0));
        learned.cost("v", cost(3.0), 30);
        assert_eq!(learned.costs()[0].coefficients.a, 3.0);
    }
}

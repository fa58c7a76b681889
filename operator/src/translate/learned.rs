//! What the operator learns of a deployment while it watches: what a step costs on each variant, and how long a
//! replica takes from its creation until it serves. Lost in a crash and learned again.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::core::v1::Pod;
use stowage_contracts::load::Coefficients;
use stowage_planner::snapshot::{ColdStart, CostOrigin, TimeMs, VariantCost};

use crate::translate::snapshot::replicas::{condition, millis};

/// Starts that are remembered.
const STARTS: usize = 20;
/// A pod that became Ready after longer was Ready before: the operator has only just begun to watch.
const LONGEST_START_MS: u64 = 3_600_000;

/// Of one deployment.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    /// By variant.
    costs: BTreeMap<String, VariantCost>,
    /// From creation to Ready, the latest last.
    starts_ms: VecDeque<u64>,
}

impl Learned {
    /// An engine reported what its steps cost.
    pub fn cost(&mut self, variant: &str, coefficients: Coefficients, at_ms: TimeMs) {
        if self.costs.get(variant).is_none_or(|known| known.at_ms < at_ms) {
            let (variant, origin) = (variant.to_owned(), CostOrigin::Fitted);
            self.costs.insert(variant.clone(), VariantCost { variant, coefficients, origin, at_ms });
        }
    }

    /// A pod became Ready for the first time.
    pub fn started(&mut self, pod: &Pod) {
        let created = pod.metadata.creation_timestamp.as_ref();
        let ready = condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
        let (Some(created), Some(ready)) = (created, ready) else { return };
        let took = millis(ready.0).saturating_sub(millis(created.0));
        if took <= LONGEST_START_MS {
            self.starts_ms.push_back(took);
            self.starts_ms.drain(..self.starts_ms.len().saturating_sub(STARTS));
        }
    }

    pub fn costs(&self) -> Vec<VariantCost> {
        self.costs.values().cloned().collect()
    }

    /// The time within which nine of ten starts were over. Whether the weights lay on the node is not looked at, so
    /// that it stands for both tiers.
    pub fn cold_start(&self) -> ColdStart {
        let mut sorted: Vec<u64> = self.starts_ms.iter().copied().collect();
        sorted.sort_unstable();
        let at = (sorted.len() * 9).div_ceil(10).saturating_sub(1);
        let p90 = sorted.get(at).copied();
        ColdStart { cached_ms: p90, remote_ms: p90, ..ColdStart::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(created: &str, ready: &str) -> Pod {
        let yaml = format!(
            "{{metadata: {{creationTimestamp: '{created}'}}, \
             status: {{conditions: [{{type: Ready, status: 'True', lastTransitionTime: '{ready}'}}]}}}}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    #[test]
    fn nine_of_ten_starts_are_within_the_cold_start() {
        let mut learned = Learned::default();
        assert_eq!(learned.cold_start(), ColdStart::default());
        for second in 1..=10 {
            learned.started(&pod("2026-01-01T00:00:00Z", &format!("2026-01-01T00:00:{second:02}Z")));
        }
        assert_eq!(learned.cold_start().cached_ms, Some(9_000));
        learned.started(&pod("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"));
        assert_eq!(learned.cold_start().cached_ms, Some(9_000), "it was Ready before it was watched");
    }

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

//! The idle time against brute force over the gaps themselves.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use stowage_planner::demand::idle_after_ms;
use stowage_planner::snapshot::Gaps;

fn seen(gaps: &[f64]) -> Gaps {
    let mut all = Gaps::default();
    gaps.iter().for_each(|gap| all.note(*gap));
    all
}

/// What the gaps would have cost, in seconds of an idle replica; a cold start costs five times its length.
fn cost(gaps: &[f64], idle_after: f64, cold_start: f64) -> f64 {
    gaps.iter().map(|gap| if *gap > idle_after { idle_after + 5.0 * cold_start } else { *gap }).sum()
}

#[test]
fn five_minutes_until_enough_gaps_were_seen() {
    assert_eq!(idle_after_ms(&Gaps::default(), 10_000), 300_000);
    assert_eq!(idle_after_ms(&seen(&[3600.0; 5]), 10_000), 300_000);
}

#[test]
fn long_gaps_are_not_waited_for_and_short_ones_are() {
    assert_eq!(idle_after_ms(&seen(&[7200.0; 20]), 10_000), 60_000, "the shortest idle time");
    let usual = idle_after_ms(&seen(&[200.0; 20]), 60_000);
    assert!((200_000..300_000).contains(&usual), "{usual}");
}

#[test]
fn idle_time_is_never_shorter_than_the_cold_start() {
    assert_eq!(idle_after_ms(&seen(&[60_000.0; 20]), 400_000), 400_000);
}

#[test]
fn values_that_are_no_lengths_are_ignored() {
    let mut gaps = Gaps::default();
    [f64::NAN, f64::INFINITY, -1.0, 0.0].iter().for_each(|gap| gaps.note(*gap));
    assert_eq!(gaps, Gaps::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Buckets grow by the square root of two and the idle time is at least a minute: that is all that is
    /// lost against the best choice with all gaps at hand. Few gaps, so that hardly any has decayed.
    #[test]
    fn idle_time_costs_at_most_a_bucket_more_than_the_best(gaps in prop::collection::vec(20.0..20_000.0f64, 10..30), cold_start in 5.0..50.0f64) {
        let ours = idle_after_ms(&seen(&gaps), (cold_start * 1000.0) as u64) as f64 / 1000.0;
        let best = (0..400).map(|step| cost(&gaps, 60.0 * 1.02f64.powi(step), cold_start)).fold(f64::INFINITY, f64::min);
        prop_assert!(cost(&gaps, ours, cold_start) <= 2.0 * best, "{} against {best}", cost(&gaps, ours, cold_start));
    }
}

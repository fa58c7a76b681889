//! A plan that follows another is the plan made anew, to the byte, over random histories.
#![allow(clippy::unwrap_used)]

mod common;

use common::random::*;
use proptest::prelude::*;
use stowage_planner::check::check;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, plan};

/// What changes besides pods and specs.
#[derive(Clone, Debug)]
enum Change {
    Happens(Event),
    Ages(u64),
    Cordons(usize, bool),
    Cached(usize, bool),
    Joins(Site),
    Leaves(usize),
    Softness(bool),
    Isolates(usize, Isolation),
    Priced(u64),
    AnotherClass(usize),
    /// The same snapshot, sharing nothing with the one before.
    ReadAgain,
}

fn change() -> impl Strategy<Value = Change> {
    let isolation = prop::sample::select(vec![Isolation::Shared, Isolation::DedicatedGpu, Isolation::DedicatedNode]);
    prop_oneof![
        12 => event().prop_map(Change::Happens),
        1 => (0..50_000u64).prop_map(Change::Ages),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, b)| Change::Cordons(n, b)),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, b)| Change::Cached(n, b)),
        1 => site().prop_map(Change::Joins),
        1 => (0..4usize).prop_map(Change::Leaves),
        1 => any::<bool>().prop_map(Change::Softness),
        1 => (0..4usize, isolation).prop_map(|(d, i)| Change::Isolates(d, i)),
        1 => (1..100u64).prop_map(Change::Priced),
        1 => (0..4usize).prop_map(Change::AnotherClass),
        1 => Just(Change::ReadAgain),
    ]
}

fn make(s: &mut Snapshot, change: &Change) {
    match change {
        Change::Happens(event) => happen(s, event),
        Change::Ages(age_ms) => {
            for n in &mut s.nodes {
                if matches!(n.freshness, Freshness::Fresh { .. }) {
                    n.freshness = Freshness::Fresh { age_ms: *age_ms };
                }
            }
        }
        Change::Cordons(n, cordoned) => {
            if let Some(n) = s.nodes.get_mut(*n) {
                n.cordoned = *cordoned
            }
        }
        Change::Cached(n, holds) => {
            if let Some(n) = s.nodes.get_mut(*n) {
                n.cached_models = if *holds { vec![ModelKey::read("m")] } else { vec![] }
            }
            s.deployments.iter_mut().for_each(|d| d.model_key = ModelKey::read("m"));
        }
        Change::Joins(site) => {
            let name = (0..).find(|i| s.nodes.iter().all(|n| n.name != format!("n{i}"))).unwrap();
            s.nodes.push(node(name, site).into());
        }
        Change::Leaves(n) => {
            // Only an empty one, so that no replica stands on a node that the history knows nothing of.
            if s.nodes.get(*n).is_some_and(|n| n.used.pods == 0) {
                s.nodes.remove(*n);
            }
        }
        Change::Softness(soft) => s.classes[0].allow_soft_sharing = *soft,
        Change::Isolates(d, isolation) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                d.isolation = *isolation
            }
        }
        Change::Priced(price) => s.classes[0].price_per_hour_micros = Some(*price),
        Change::AnotherClass(d) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                let mut other = d.variants[0].clone();
                other.name = "w".into();
                if let Accelerator::Gpu { class, .. } = &mut other.accelerator {
                    *class = "l".into();
                }
                d.variants.truncate(1);
                d.variants.push(other);
            }
        }
        Change::ReadAgain => *s = serde_json::from_str(&serde_json::to_string(s).unwrap()).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn warm_plan_equals_cold_plan(s in random_snapshot(), changes in prop::collection::vec(change(), 60)) {
        let mut s = s;
        let mut prepared = Prepared::default();
        let policy = Policy { max_moves: 1, ..Policy::default() };
        let mut now = common::NOW;
        for c in &changes {
            make(&mut s, c);
            s.sequence += 1;
            // Long enough for replicas to move.
            now += 30_000;
            let cold = plan(&s, &policy, now);
            let warm = prepared.plan(&s, &policy, now);
            prop_assert_eq!(&warm.0, &cold.0, "after {:?}", c);
            prop_assert_eq!(check(&s, &cold.0), vec![], "after {:?}", c);
            let text = |r| serde_json::to_string(r).unwrap();
            prop_assert_eq!(text(&warm.1), text(&cold.1), "after {:?}", c);
            apply(&mut s, &cold.0.actions, now);
            (s.waiting, s.recent_moves) = (cold.1.waiting, cold.1.recent_moves);
        }
    }
}

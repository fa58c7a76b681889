//! The choice of variants against brute force over all counts.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use stowage_planner::demand::mix::{Kind, cheapest};

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let kind = (1..40u32, 1..100u64, 0..6u32);
    let kind = kind.prop_map(|(c, price, most)| Kind { capacity: f64::from(c) / 8.0, price_micros: Some(price), most });
    prop::collection::vec(kind, 1..5)
}

fn price(kinds: &[Kind], counts: &[u32]) -> u64 {
    kinds.iter().zip(counts).map(|(kind, n)| kind.price_micros.unwrap() * u64::from(*n)).sum()
}

fn carries(kinds: &[Kind], counts: &[u32]) -> f64 {
    kinds.iter().zip(counts).map(|(kind, n)| kind.capacity * f64::from(*n)).sum()
}

/// The least price over all counts that carry the load; `None`: none does.
fn least_price(load: f64, kinds: &[Kind]) -> Option<u64> {
    let mut all = vec![Vec::new()];
    for kind in kinds {
        all = all.iter().flat_map(|c: &Vec<u32>| (0..=kind.most).map(|n| [c.as_slice(), &[n]].concat())).collect();
    }
    all.iter().filter(|counts| carries(kinds, counts) >= load).map(|counts| price(kinds, counts)).min()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn load_is_carried_wherever_it_can_be_for_at_most_one_replica_more_than_the_least_price(kinds in kinds(), eighths in 0..200u32) {
        let load = f64::from(eighths) / 8.0;
        let counts = cheapest(load, &kinds);
        prop_assert!(counts.iter().zip(&kinds).all(|(n, kind)| *n <= kind.most), "{counts:?}");
        match least_price(load, &kinds) {
            None => prop_assert!(counts.iter().zip(&kinds).all(|(n, kind)| *n == kind.most), "{counts:?}"),
            Some(least) => {
                prop_assert!(carries(&kinds, &counts) >= load, "{counts:?}");
                let one_more = kinds.iter().filter_map(|kind| kind.price_micros).max().unwrap();
                prop_assert!(price(&kinds, &counts) <= least + one_more, "{counts:?}, least {least}");
            }
        }
    }
}

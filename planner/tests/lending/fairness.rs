//! What a cohort lends, over long random histories: no GPU is idle while a replica waits for it, no borrower
//! starves, and in the long run each has its part by weight, whichever of them held everything at the beginning.

use crate::common;
use crate::common::random::*;
use proptest::prelude::*;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check};

const GPUS: u32 = 8;
const WEIGHTS: [u32; 3] = [1, 2, 1];
const TURN_MS: u64 = 60_000;
const TURNS: usize = 600;
/// The history that the first borrower begins alone is forgotten then.
const SETTLED: usize = 240;

/// A lender of everything, and borrowers that each want all of it.
fn cluster(first: usize) -> Snapshot {
    let mut text = format!("class h\nnode n1 gpu=h*{GPUS} cpu=64\ntenant lender ns=lender cohort=c h={GPUS}\n");
    for (t, weight) in WEIGHTS.iter().enumerate() {
        let want = if t == first { GPUS } else { 0 };
        text += &format!("tenant t{t} ns=t{t} cohort=c weight={weight} h=0\ndeployment t{t}/d want={want} ask=h*1\n");
    }
    common::parse(&text)
}

fn held(s: &Snapshot, tenant: usize) -> u32 {
    let of = TenantId(format!("t{tenant}"));
    s.nodes[0].gpus.iter().flat_map(|g| &g.slices).filter(|x| x.tenant.as_ref() == Some(&of)).count() as u32
}

fn turn(s: &mut Snapshot, prepared: &mut Prepared, now: u64) {
    // What ends in one plan is gone in the next, which fills its room.
    for _ in 0..2 {
        s.sequence += 1;
        let (p, report) = prepared.plan(s, &Policy::default(), now);
        assert_eq!(check(s, &p), []);
        s.shares = report.shares;
        apply(s, &p.actions, now);
        settle(s);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_lent_goes_by_weight_and_never_lies_idle(
        first in 0..WEIGHTS.len(),
        ends in prop::collection::vec(0..GPUS as usize, TURNS),
    ) {
        let mut s = cluster(first);
        let mut prepared = Prepared::default();
        let mut now = common::NOW;
        turn(&mut s, &mut prepared, now);
        prop_assert_eq!(held(&s, first), GPUS, "the only one that asks gets all");
        s.deployments.iter_mut().for_each(|d| d.wanted = GPUS);
        let mut sums = [0u32; WEIGHTS.len()];
        let mut without = [0usize; WEIGHTS.len()];
        for (at, which) in ends.iter().enumerate() {
            let mut running: Vec<&mut Replica> = s.deployments.iter_mut().flat_map(|d| d.replicas.iter_mut()).collect();
            let n = running.len();
            running[which % n].phase = Phase::Failed { reason: "done".into() };
            now += TURN_MS;
            turn(&mut s, &mut prepared, now);
            let all: Vec<u32> = (0..WEIGHTS.len()).map(|t| held(&s, t)).collect();
            prop_assert_eq!(all.iter().sum::<u32>(), GPUS, "a GPU is idle in turn {}: {:?}", at, all);
            for t in 0..WEIGHTS.len() {
                without[t] = if all[t] == 0 { without[t] + 1 } else { 0 };
                prop_assert!(without[t] < 60, "t{} has had nothing for an hour in turn {}: {:?}", t, at, all);
                sums[t] += if at >= SETTLED { all[t] } else { 0 };
            }
        }
        let weights: u32 = WEIGHTS.iter().sum();
        for t in 0..WEIGHTS.len() {
            let mean = f64::from(sums[t]) / (TURNS - SETTLED) as f64;
            let due = f64::from(GPUS * WEIGHTS[t]) / f64::from(weights);
            prop_assert!((mean - due).abs() < 1.0, "t{t} holds {mean:.2} of {due:.2} GPUs due; began with {first}");
        }
    }
}

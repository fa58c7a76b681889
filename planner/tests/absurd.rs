//! Absurd snapshots: contradictory quota, classes that exist nowhere, sizes of zero and beyond all bounds, clocks
//! that jump, names twice. Each is planned and reported without a panic, keeps the invariants, and gives the same
//! plan warm as cold. `STOWAGE_TEST_CASES` sets how many are tried.
#![allow(clippy::unwrap_used)]

mod common;

use common::random::*;
use proptest::prelude::*;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check, plan};

fn cases() -> u32 {
    std::env::var("STOWAGE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

/// One field of one thing, with a number that nobody would write.
#[derive(Clone, Debug)]
struct Absurd {
    field: u8,
    at: usize,
    number: u64,
}

fn absurd() -> impl Strategy<Value = Absurd> {
    let number = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::from(u32::MAX)),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 62),
        0..5000u64,
        any::<u64>()
    ];
    (0..34u8, 0..8usize, number).prop_map(|(field, at, number)| Absurd { field, at, number })
}

fn distort(s: &mut Snapshot, a: &Absurd) {
    let (x, small) = (a.number, a.number as u32);
    let nodes = s.nodes.len();
    let node: &mut Node = &mut s.nodes[a.at % nodes];
    let deployments = s.deployments.len();
    let d: &mut Deployment = &mut s.deployments[a.at % deployments];
    let tenants = s.tenants.len();
    let t = &mut s.tenants[a.at % tenants];
    match a.field {
        0 => node.gpus.iter_mut().for_each(|g| g.memory_bytes = x),
        1 => node.gpus.iter_mut().for_each(|g| g.memory_step_bytes = x),
        2 => node.gpus.iter_mut().for_each(|g| g.sm_percent = small),
        3 => node.gpus.iter_mut().flat_map(|g| &mut g.slices).for_each(|s| s.memory_bytes = x),
        4 => node.gpus.iter_mut().flat_map(|g| &mut g.slices).for_each(|s| s.sm_percent = small),
        5 => node.gpus.iter_mut().for_each(|g| g.class = None),
        6 => node.gpus.iter_mut().for_each(|g| g.class = Some("of nobody".into())),
        7 => node.gpus.iter_mut().for_each(|g| g.uuid = "the same".into()),
        8 => node.gpus.clear(),
        9 => node.allocatable = Resources { cpu_milli: x, memory_bytes: x, pods: small },
        10 => node.used = Resources { cpu_milli: x, memory_bytes: x, pods: small },
        11 => node.freshness = Freshness::Fresh { age_ms: x },
        12 => s.nodes.push(s.nodes[a.at % nodes].clone()),
        13 => t.quotas[0].nominal_milli = x,
        14 => t.quotas[0].borrowing_limit_milli = Some(x),
        15 => t.quotas[0].lending_limit_milli = Some(x),
        16 => t.quotas[0].class = "nowhere".into(),
        17 => t.weight = small,
        18 => t.spend_limit = Some(Money { micros: x, currency: "USD".into() }),
        19 => t.min_runtime_ms = Some(x),
        20 => t.reclaim_grace_ms = Some(x),
        21 => t.cohort = None,
        22 => s.tenants.push(s.tenants[a.at % tenants].clone()),
        23 => d.wanted = small,
        24 => d.variants.clear(),
        25 => {
            let number = x;
            for v in &mut d.variants {
                v.accelerator = Accelerator::Gpu {
                    class: "h".into(),
                    count: number as u32,
                    memory_bytes: Some(number),
                    sm_percent: Some(number as u32),
                };
            }
        }
        26 => d.needs = Needs { cpu_milli: x, memory_bytes: x, host_ports: vec![1, 1] },
        27 => d.created_ms = x,
        28 => d.replicas.iter_mut().for_each(|r| r.created_ms = x),
        29 => d.slots.push(Slot { index: small, incarnation: small, failures: small, last_failure_ms: x }),
        30 => d.tenant = Some(TenantId("unheard of".into())),
        31 => s.deployments.push(s.deployments[a.at % deployments].clone()),
        32 => s.classes.iter_mut().for_each(|c| c.price_per_hour_micros = Some(x)),
        _ => {
            s.shares = vec![DecayedShare { tenant: t.id.clone(), share_billionths: x, at_ms: x }];
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn absurd_snapshot_is_planned_and_reported(
        s in random_snapshot(),
        steps in prop::collection::vec((prop::collection::vec(absurd(), 0..4), prop_oneof![Just(0u64), Just(u64::MAX), 0..1u64 << 45]), 1..5),
    ) {
        let mut s = s;
        let mut prepared = Prepared::default();
        for (absurds, now) in &steps {
            absurds.iter().for_each(|a| distort(&mut s, a));
            s.sequence += 1;
            s.deployments.iter_mut().filter(|d| d.wanted > 20).for_each(|d| d.wanted = 20 + d.wanted % 3);
            let (p, report) = prepared.plan(&s, &Policy::default(), *now);
            let cold = plan(&s, &Policy::default(), *now);
            prop_assert_eq!(&p, &cold.0);
            let text = |r| serde_json::to_string(r).unwrap();
            prop_assert_eq!(text(&report), text(&cold.1));
            // Of two nodes, deployments or GPUs with one name the checker may see the other: it must not panic.
            let found = check(&s, &p);
            let twice = absurds.iter().any(|a| [7, 12, 22, 31].contains(&a.field));
            let known_twice = steps.iter().flat_map(|(a, _)| a).any(|a| [7, 12, 22, 31].contains(&a.field));
            prop_assert!(twice || known_twice || found.is_empty(), "{found:?}");
            for r in &report.deployments {
                let _ = stowage_planner::render::condition_message(r);
                prop_assert!(r.counts.desired <= r.counts.wanted.max(r.counts.current), "{:?}", r.counts);
            }
            if !known_twice && p.actions.len() < 50 {
                apply(&mut s, &p.actions, *now);
            }
        }
    }
}

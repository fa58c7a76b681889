//! Absurd snapshots: contradictory quota, classes that exist nowhere, sizes of zero and beyond all bounds, clocks
//! that jump, names twice. Each is planned and reported without a panic, keeps the invariants, and gives the same
//! plan warm as cold. `STOWAGE_TEST_CASES` sets how many snapshots are tried at least.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::random::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
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
    (0..39u8, 0..8usize, number).prop_map(|(field, at, number)| Absurd { field, at, number })
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
        3 => node.gpus.iter_mut().flat_map(|g| &mut g.slices).for_each(|s| s.promise.memory_bytes = x),
        4 => node.gpus.iter_mut().flat_map(|g| &mut g.slices).for_each(|s| s.promise.sm_percent = small),
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
                    partition: Partition::slice(number, number as u32),
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
        33 => node.gpus.iter_mut().for_each(|g| g.mig = if x % 2 == 0 { None } else { Some(Vec::new()) }),
        34 => node.gpus.iter_mut().flat_map(|g| g.mig.iter_mut().flatten()).for_each(|p| p.slices = small),
        35 => node.gpus.iter_mut().flat_map(|g| g.mig.iter_mut().flatten()).for_each(|p| p.starts.push(small)),
        36 => node.gpus.iter_mut().flat_map(|g| g.mig.iter_mut().flatten()).for_each(|p| p.memory_bytes = x),
        37 => {
            let device = MigDevice { profile: "1g.10gb".into(), start: small };
            node.gpus.iter_mut().flat_map(|g| &mut g.slices).for_each(|s| s.promise.mig = Some(device.clone()));
        }
        _ => {
            s.shares = vec![DecayedShare { tenant: t.id.clone(), share_billionths: x, at_ms: x }];
        }
    }
}

/// A history of one snapshot: what becomes absurd in it, and the time then.
type Steps = Vec<(Vec<Absurd>, TimeMs)>;

fn steps() -> impl Strategy<Value = Steps> {
    let time = prop_oneof![Just(0u64), Just(u64::MAX), 0..1u64 << 45];
    prop::collection::vec((prop::collection::vec(absurd(), 0..4), time), 1..5)
}

fn is_planned_and_reported(mut s: Snapshot, steps: &Steps) -> Result<(), TestCaseError> {
    let mut prepared = Prepared::default();
    for (absurds, now) in steps {
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
        let known_twice = steps.iter().flat_map(|(a, _)| a).any(|a| [7, 12, 22, 31].contains(&a.field));
        prop_assert!(known_twice || found.is_empty(), "{found:?}");
        for r in &report.deployments {
            let _ = stowage_planner::render::condition_message(r);
            prop_assert!(r.counts.desired <= r.counts.wanted.max(r.counts.current), "{:?}", r.counts);
        }
        if !known_twice && p.actions.len() < 50 {
            apply(&mut s, &p.actions, *now);
        }
    }
    Ok(())
}

/// Each thread tries its part, from a seed of its own; snapshots are counted, not histories.
#[test]
fn absurd_snapshot_is_planned_and_reported() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let (start, wanted) = (Instant::now(), cases());
    let tried = AtomicU32::new(0);
    let part = || {
        let config = ProptestConfig { cases: u32::MAX, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = TestRunner::new(config);
        let strategy = (prop_oneof![2 => random_snapshot(), 1 => common::mig::snapshot()], steps());
        while tried.load(Ordering::Relaxed) < wanted {
            let case = strategy.new_tree(&mut runner).unwrap();
            let run = |(s, steps): (Snapshot, Steps)| {
                tried.fetch_add(steps.len() as u32, Ordering::Relaxed);
                is_planned_and_reported(s, &steps)
            };
            if let Err(why) = runner.run_one(case, run) {
                let before = tried.swap(wanted, Ordering::Relaxed);
                panic!("{why}\nafter {before} snapshots");
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(part))));
    println!("{} snapshots in {:.0} s", tried.into_inner(), start.elapsed().as_secs_f64());
}

/// A GPU that shrank below what is promised on it takes a replica that asks nothing more of what is short.
#[test]
fn promises_that_were_made_before_are_not_the_plans() {
    let mut s = common::parse(
        "class h soft\nnode n1 gpu=h*1\nforeign n1 0 1Gi 1\ntenant a ns=a h=4\ndeployment a/d want=1 ask=h*1,1Gi",
    );
    s.nodes[0].gpus[0].sm_percent = 0;
    let (p, _) = plan(&s, &Policy::default(), common::NOW);
    assert_eq!(p.actions.len(), 1, "{:?}", p.actions);
    assert_eq!(check(&s, &p), []);
}

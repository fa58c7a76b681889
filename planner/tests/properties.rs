//! Properties of `plan` over random snapshots and histories, against oracles that share no code with
//! it: brute force decides what is possible, the checker what is allowed.
#![allow(clippy::unwrap_used)]

mod common;

use common::random::*;
use proptest::prelude::*;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::{Outcome, PlacementVerdict};
use stowage_planner::snapshot::*;
use stowage_planner::{check::check, plan};

// === oracles ===

/// Whether one replica of `d` could stand on some node, by trying every set of GPUs. Quota aside.
fn possible(s: &Snapshot, d: &Deployment) -> bool {
    let Accelerator::Gpu { count, partition, .. } = &d.variants[0].accelerator else { return false };
    let memory = partition.memory_bytes().map_or(GPU, |m| m.div_ceil(STEP) * STEP);
    let sm = partition.sm_percent().unwrap_or(100);
    let soft = s.classes[0].allow_soft_sharing;
    s.nodes.iter().any(|n| {
        let fresh = matches!(n.freshness, Freshness::Fresh { .. });
        let room = n.used.cpu_milli + d.needs.cpu_milli <= n.allocatable.cpu_milli;
        let dedicated = n.gpus.iter().flat_map(|g| &g.slices).all(|x| {
            let of_other = x.tenant.is_none() || x.tenant != d.tenant;
            !of_other || (d.isolation != Isolation::DedicatedNode && x.isolation != Isolation::DedicatedNode)
        });
        let good = |g: &Gpu| {
            g.health == Health::Healthy
                && g.slices.iter().map(|x| x.promise.memory_bytes).sum::<u64>() + memory <= g.memory_bytes
                && g.slices.iter().map(|x| x.promise.sm_percent).sum::<u32>() + sm <= 100
                && g.slices.iter().all(|x| {
                    let of_other = x.tenant.is_none() || x.tenant != d.tenant;
                    let other = !matches!(&x.owner, SliceOwner::Replica(r) if r.deployment == d.id);
                    (soft || !of_other)
                        && !(other
                            && (d.isolation == Isolation::DedicatedGpu || x.isolation == Isolation::DedicatedGpu))
                })
        };
        fresh
            && room
            && dedicated
            && (0u32..1 << n.gpus.len()).any(|set| {
                let chosen: Vec<&Gpu> =
                    n.gpus.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, g)| g).collect();
                chosen.len() as u32 == *count
                    && chosen.iter().all(|g| good(g))
                    && chosen.iter().all(|g| g.island == chosen[0].island)
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn snapshot_in_another_order_gives_the_same_bytes(s in random_snapshot(), by in 0..7usize) {
        let policy = Policy::default();
        let bytes = |s: &Snapshot| {
            let (p, r) = plan(s, &policy, common::NOW);
            (serde_json::to_string(&p).unwrap(), serde_json::to_string(&r).unwrap())
        };
        let mut other = s.clone();
        other.nodes.rotate_left(by % s.nodes.len());
        other.tenants.reverse();
        other.deployments.rotate_left(by % s.deployments.len());
        for n in &mut other.nodes { n.gpus.reverse(); }
        prop_assert_eq!(bytes(&s), bytes(&s));
        prop_assert_eq!(bytes(&s), bytes(&other));
    }

    #[test]
    fn placed_replica_is_allowed_and_refused_one_fits_nowhere(s in random_snapshot()) {
        let (p, report) = plan(&s, &Policy::default(), common::NOW);
        prop_assert_eq!(check(&s, &p), vec![]);
        let mut after = s.clone();
        apply(&mut after, &p.actions, common::NOW);
        for r in &report.deployments {
            let d = after.deployments.iter().find(|d| d.id == r.deployment).unwrap();
            let short = r.counts.desired < r.counts.wanted;
            prop_assert_eq!(short, matches!(r.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota | Outcome::StaleInput));
            // Refused for room although quota allows one more: brute force must find no room either.
            if short && r.counts.granted > r.counts.desired {
                prop_assert!(!possible(&after, d), "{} would fit", d.id);
            }
            let mut verdicts = r.placements.iter().filter(|v| v.winner.is_none());
            let counted = |v: &PlacementVerdict| v.refusals.iter().map(|g| g.nodes).sum::<u32>() as usize;
            prop_assert!(verdicts.all(|v| counted(v) == s.nodes.len()), "every node is counted in one group");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cheapest_variant_that_fits_somewhere_is_taken(s in random_snapshot(), prices in (1..100u64, 1..100u64).prop_map(|(h, l)| (h * 1_000_000, l * 1_000_000))) {
        let mut s = s;
        for node in s.nodes.iter_mut().skip(1) {
            node.gpus.iter_mut().for_each(|g| g.class = Some("l".into()));
        }
        s.classes[0].price_per_hour_micros = Some(prices.0);
        s.classes.push(Class { name: "l".into(), price_per_hour_micros: Some(prices.1), ..s.classes[0].clone() });
        let quota = |class: &str| Quota {
            class: class.into(),
            nominal_milli: 1 << 30,
            borrowing_limit_milli: None,
            lending_limit_milli: None,
        };
        s.tenants.iter_mut().for_each(|t| t.quotas = vec![quota("h"), quota("l")]);
        s.deployments.iter_mut().for_each(|d| d.wanted = 0);
        let d = &mut s.deployments[0];
        let mut other = d.variants[0].clone();
        other.name = "w".into();
        if let Accelerator::Gpu { class, .. } = &mut other.accelerator { *class = "l".into(); }
        d.variants.push(other);
        (d.wanted, d.objective) = (1, Objective::Cost);
        let d = d.clone();
        let (p, _) = plan(&s, &Policy::default(), common::NOW);
        // Both variants are charged alike, so the class with the lower price is the cheaper one.
        let fits_on = |class: &str| {
            let mut only = s.clone();
            only.nodes.retain(|n| n.gpus.iter().any(|g| g.class.as_deref() == Some(class)));
            possible(&only, &d)
        };
        let mut expected: Vec<(u64, &str)> = Vec::new();
        if fits_on("h") { expected.push((prices.0, "v")); }
        if fits_on("l") { expected.push((prices.1, "w")); }
        let taken: Vec<&str> = p.actions.iter().filter_map(|a| match a {
            Action::Create { placement, .. } => Some(placement.variant.as_str()),
            _ => None,
        }).collect();
        match expected.iter().map(|(price, _)| *price).min() {
            None => prop_assert!(taken.is_empty()),
            Some(least) => {
                prop_assert_eq!(taken.len(), 1);
                prop_assert!(expected.contains(&(least, taken[0])), "{taken:?} of {expected:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn long_history_over_commits_no_gpu(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 120),
        step_ms in prop::sample::select(vec![1_000u64, 40_000]),
    ) {
        let policy = Policy { max_moves: 1, ..Policy::default() };
        let mut s = s;
        let mut now = common::NOW;
        for e in &events {
            happen(&mut s, e);
            now += step_ms;
            s.sequence += 1;
            let (p, report) = plan(&s, &policy, now);
            prop_assert_eq!(check(&s, &p), vec![]);
            never_too_few_ready(&s, &p.actions)?;
            nothing_ends_on_stale_data(&s, &p.actions)?;
            (s.waiting, s.recent_moves) = (report.waiting, report.recent_moves);
            apply(&mut s, &p.actions, now);
            for gpu in s.nodes.iter().flat_map(|n| &n.gpus) {
                prop_assert!(gpu.slices.iter().map(|x| x.promise.memory_bytes).sum::<u64>() <= gpu.memory_bytes);
                prop_assert!(gpu.slices.iter().map(|x| x.promise.sm_percent).sum::<u32>() <= gpu.sm_percent);
            }
        }
    }

    #[test]
    fn history_without_further_events_ends_without_actions(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 30),
    ) {
        let policy = Policy::default();
        let mut s = s;
        let mut now = common::NOW;
        for e in &events {
            happen(&mut s, e);
            now += 1_000;
            let (p, _) = plan(&s, &policy, now);
            apply(&mut s, &p.actions, now);
        }
        let mut quiet = 0;
        for _ in 0..200 {
            settle(&mut s);
            now += 3_000;
            let (p, _) = plan(&s, &policy, now);
            quiet = if p.actions.is_empty() { quiet + 1 } else { 0 };
            apply(&mut s, &p.actions, now);
            if quiet == 3 { break; }
        }
        prop_assert_eq!(quiet, 3, "still busy");
        for d in s.deployments.iter().filter(|d| d.deleting) {
            prop_assert!(d.replicas.is_empty());
        }
    }
}

/// A rollout alone never leaves fewer than wanted − 1 slots Ready that were Ready before.
fn never_too_few_ready(s: &Snapshot, actions: &[Action]) -> Result<(), TestCaseError> {
    for d in s.deployments.iter().filter(|d| !d.deleting) {
        let drained = |r: &Replica, why: fn(EndReason) -> bool| {
            actions.iter().any(|a| match a {
                Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. } => {
                    replica.deployment == d.id
                        && (replica.index, replica.incarnation) == (r.index, r.incarnation)
                        && why(*reason)
                }
                Action::Create { .. } | Action::Resume { .. } => false,
            })
        };
        let ready: Vec<&Replica> = d.replicas.iter().filter(|r| r.phase == Phase::Ready).collect();
        // Only judge plans in which nothing but rollout ends Ready pods of this deployment.
        if ready.iter().any(|r| drained(r, |why| why != EndReason::Rollout)) {
            continue;
        }
        if !ready.iter().any(|r| drained(r, |why| why == EndReason::Rollout)) {
            continue;
        }
        let slots = |keep: &dyn Fn(&&&Replica) -> bool| -> usize {
            ready.iter().filter(keep).map(|r| r.index).collect::<std::collections::BTreeSet<_>>().len()
        };
        let live = d
            .replicas
            .iter()
            .filter(|r| !matches!(r.phase, Phase::Failed { .. }))
            .map(|r| r.index)
            .collect::<std::collections::BTreeSet<_>>()
            .len();
        let after = slots(&|r| !drained(r, |_| true));
        // The older of two Ready pods in one slot may go whatever the other slots do.
        if after == slots(&|_| true) {
            continue;
        }
        let target = (d.wanted as usize).min(live);
        let pods: Vec<_> = d.replicas.iter().map(|r| (r.index, r.incarnation, &r.spec_hash, &r.phase)).collect();
        prop_assert!(
            after + 1 >= target,
            "{}: {after} Ready of {target}, {pods:?} of {}: {actions:?}",
            d.id,
            d.spec_hash
        );
    }
    Ok(())
}

fn nothing_ends_on_stale_data(s: &Snapshot, actions: &[Action]) -> Result<(), TestCaseError> {
    for a in actions {
        let (Action::Drain { replica: id, reason, .. } | Action::Remove { replica: id, reason, .. }) = a else {
            continue;
        };
        if !matches!(reason, EndReason::UnhealthyGpu | EndReason::Overshoot) {
            continue;
        }
        let d = s.deployments.iter().find(|d| d.id == id.deployment).unwrap();
        let r = d.replicas.iter().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap();
        let n = s.nodes.iter().find(|n| n.name == r.placement.as_ref().unwrap().node).unwrap();
        let fresh = matches!(n.freshness, Freshness::Fresh { .. });
        prop_assert!(fresh, "ended on stale data");
    }
    Ok(())
}

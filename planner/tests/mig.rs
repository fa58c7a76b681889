//! MIG devices over random snapshots and histories, against an oracle that tries every place on every GPU.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::mig::snapshot;
use common::random::*;
use proptest::prelude::*;
use stowage_planner::report::{NoCounterfactual, Outcome};
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check, plan};

/// Memory slices that devices on the GPU take; `None`: one of them is none that the GPU has.
fn taken(g: &Gpu) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for x in &g.slices {
        let device = x.promise.mig.as_ref()?;
        let profile = g.mig.as_ref()?.iter().find(|p| p.name == device.profile)?;
        all.extend(device.start..device.start + profile.slices);
    }
    Some(all)
}

/// Whether one device could be cut somewhere for the deployment. Quota aside.
fn possible(s: &Snapshot, d: &Deployment, profile: &str) -> bool {
    let of_other = |x: &Slice| x.tenant.is_none() || x.tenant != d.tenant;
    let of_deployment = |x: &Slice| matches!(&x.owner, SliceOwner::Replica(r) if r.deployment == d.id);
    let good = |g: &Gpu| {
        let free = |start: &u32, n: u32, taken: &BTreeSet<u32>| (*start..start + n).all(|at| !taken.contains(&at));
        let offered = g.mig.iter().flatten().filter(|p| p.name == profile);
        g.health == Health::Healthy
            && g.slices
                .iter()
                .filter(|x| !of_deployment(x))
                .all(|x| d.isolation != Isolation::DedicatedGpu && x.isolation != Isolation::DedicatedGpu)
            && taken(g).is_some_and(|taken| {
                offered
                    .flat_map(|p| p.starts.iter().map(move |start| (start, p.slices)))
                    .any(|(at, n)| free(at, n, &taken))
            })
    };
    s.nodes.iter().any(|n| {
        let dedicated = |x: &Slice| d.isolation == Isolation::DedicatedNode || x.isolation == Isolation::DedicatedNode;
        matches!(n.freshness, Freshness::Fresh { .. })
            && n.used.cpu_milli + d.needs.cpu_milli <= n.allocatable.cpu_milli
            && !n.gpus.iter().flat_map(|g| &g.slices).any(|x| of_other(x) && dedicated(x))
            && n.gpus.iter().any(good)
    })
}

fn asked(d: &Deployment) -> Option<(&str, u32)> {
    match &d.variants[0].accelerator {
        Accelerator::Gpu { partition: Partition::Mig { profile }, count, .. } => Some((profile, *count)),
        _ => None,
    }
}

/// No memory slice is taken twice by what plans created.
fn cut_cleanly(s: &Snapshot) -> Result<(), TestCaseError> {
    for g in s.nodes.iter().flat_map(|n| &n.gpus).filter(|g| g.mig.is_some()) {
        let mut all = BTreeSet::new();
        for x in &g.slices {
            let device = x.promise.mig.as_ref().unwrap();
            let profile = g.mig.iter().flatten().find(|p| p.name == device.profile).unwrap();
            prop_assert!(profile.starts.contains(&device.start), "{device:?}");
            for at in device.start..device.start + profile.slices {
                prop_assert!(all.insert(at), "{}: memory slice {at} twice in {:?}", g.uuid, g.slices);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn placed_device_is_allowed_and_refused_one_fits_nowhere(s in snapshot()) {
        let (p, report) = plan(&s, &Policy::default(), common::NOW);
        prop_assert_eq!(check(&s, &p), vec![]);
        let mut after = s.clone();
        apply(&mut after, &p.actions, common::NOW);
        cut_cleanly(&after)?;
        for r in &report.deployments {
            let d = after.deployments.iter().find(|d| d.id == r.deployment).unwrap();
            let Some((profile, count)) = asked(d) else { continue };
            let short = r.counts.desired < r.counts.wanted;
            prop_assert_eq!(short, matches!(r.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota | Outcome::StaleInput));
            if count > 1 || profile == "5g.50gb" {
                prop_assert_eq!(r.counts.desired, 0);
            } else if short && r.counts.granted > r.counts.desired {
                prop_assert!(!possible(&after, d, profile), "{} would fit", d.id);
            }
            if let Some(NoCounterfactual::NoSuchProfile { offered, .. }) = &r.no_counterfactual {
                prop_assert!(!offered.iter().any(|name| name == profile));
            }
            let _ = stowage_planner::render::condition_message(r);
        }
    }

    #[test]
    fn snapshot_in_another_order_gives_the_same_bytes(s in snapshot(), by in 0..7usize) {
        let bytes = |s: &Snapshot| {
            let (p, r) = plan(s, &Policy::default(), common::NOW);
            (serde_json::to_string(&p).unwrap(), serde_json::to_string(&r).unwrap())
        };
        let mut other = s.clone();
        other.nodes.rotate_left(by % s.nodes.len());
        other.deployments.rotate_left(by % s.deployments.len());
        for n in &mut other.nodes { n.gpus.reverse(); }
        prop_assert_eq!(bytes(&s), bytes(&other));
        let read: Snapshot = serde_json::from_str(&serde_json::to_string(&s).unwrap()).unwrap();
        prop_assert_eq!(read, s, "what is written is read as it was");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn long_history_cuts_no_memory_slice_twice_and_plans_warm_as_cold(
        s in snapshot(),
        events in prop::collection::vec((event(), prop::option::weighted(0.1, (0..3usize, 0..4usize))), 80),
    ) {
        let policy = Policy::default();
        let mut s = s;
        let mut now = common::NOW;
        let mut prepared = Prepared::default();
        for (event, switched) in &events {
            happen(&mut s, event);
            // An empty GPU is switched into MIG mode, or out of it.
            if let Some(g) = switched.and_then(|(n, g)| s.nodes.get_mut(n)?.gpus.get_mut(g)).filter(|g| g.slices.is_empty()) {
                g.mig = if g.mig.is_some() { None } else { Some(common::h100::h100()) };
            }
            now += 1_000;
            s.sequence += 1;
            let (p, report) = prepared.plan(&s, &policy, now);
            let cold = plan(&s, &policy, now);
            prop_assert_eq!(&p, &cold.0);
            prop_assert_eq!(serde_json::to_string(&report).unwrap(), serde_json::to_string(&cold.1).unwrap());
            prop_assert_eq!(check(&s, &p), vec![]);
            apply(&mut s, &p.actions, now);
            cut_cleanly(&s)?;
        }
    }
}

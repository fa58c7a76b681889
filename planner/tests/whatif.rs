//! Counterfactuals against the cluster itself: each change is made on the snapshot by code that shares
//! nothing with the planner, plans are carried out until nothing moves, and the deployment must have
//! got what it was promised; the same change one step smaller must not help.
#![allow(clippy::unwrap_used)]

mod common;

use common::random::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use stowage_planner::report::{Change, DecisionRecord, DeploymentReport, Outcome};
use stowage_planner::snapshot::*;
use stowage_planner::{plan, render};

fn tenant_quota<'a>(s: &'a mut Snapshot, tenant: &TenantId) -> &'a mut Quota {
    &mut s.tenants.iter_mut().find(|t| &t.id == tenant).unwrap().quotas[0]
}

/// Makes the change; `None`: not one that this test knows how to make.
fn make(s: &mut Snapshot, of: &DeploymentId, change: &Change) -> Option<()> {
    match change {
        Change::RaiseNominal { tenant, to_milli, .. } => tenant_quota(s, tenant).nominal_milli = *to_milli,
        Change::RaiseBorrowingLimit { tenant, to_milli, .. } => {
            tenant_quota(s, tenant).borrowing_limit_milli = Some(*to_milli);
        }
        Change::ScaleIn { deployment, to, .. } => {
            s.deployments.iter_mut().find(|d| &d.id == deployment).unwrap().wanted = *to;
        }
        Change::RemoveClaim { claim } => {
            for gpu in s.nodes.iter_mut().flat_map(|n| &mut n.gpus) {
                gpu.slices.retain(|x| !matches!(&x.owner, SliceOwner::Foreign { claim: c } if c == claim));
            }
        }
        Change::NodeFresh { node } => {
            s.nodes.iter_mut().find(|n| &n.name == node).unwrap().freshness = Freshness::Fresh { age_ms: 0 };
        }
        Change::GpuHealthy { gpu, .. } => {
            s.nodes.iter_mut().flat_map(|n| &mut n.gpus).find(|g| &g.uuid == gpu).unwrap().health = Health::Healthy;
        }
        Change::AllowSoftSharing { .. } => s.classes[0].allow_soft_sharing = true,
        Change::LowerMemory { to_bytes } => match &mut own(s, of).variants[0].accelerator {
            Accelerator::Gpu { partition: Partition::Slice { memory_bytes, .. }, .. } => {
                *memory_bytes = Some(*to_bytes)
            }
            _ => return None,
        },
        Change::LowerCompute { to_percent } => match &mut own(s, of).variants[0].accelerator {
            Accelerator::Gpu { partition: Partition::Slice { sm_percent, .. }, .. } => *sm_percent = Some(*to_percent),
            _ => return None,
        },
        Change::AddNode { like, count } => {
            let like = s.nodes.iter().find(|n| &n.name == like).unwrap().clone();
            for n in 0..*count {
                let mut node = like.clone();
                node.name = format!("new{n}");
                node.freshness = Freshness::Fresh { age_ms: 0 };
                node.used = Resources::default();
                for gpu in &mut node.gpus {
                    gpu.uuid = format!("{}-new{n}", gpu.uuid);
                    gpu.health = Health::Healthy;
                    gpu.slices.clear();
                }
                s.nodes.push(node);
            }
        }
        _ => return None,
    }
    Some(())
}

fn own<'a>(s: &'a mut Snapshot, id: &DeploymentId) -> &'a mut Deployment {
    s.deployments.iter_mut().find(|d| &d.id == id).unwrap()
}

/// The same change, a little smaller; `None`: there is no smaller one.
fn smaller(change: &Change) -> Option<Change> {
    let mut change = change.clone();
    match &mut change {
        Change::RaiseNominal { to_milli, .. } | Change::RaiseBorrowingLimit { to_milli, .. } if *to_milli > 0 => {
            *to_milli -= 1;
        }
        Change::ScaleIn { by, to, .. } if *by > 1 => (*by, *to) = (*by - 1, *to + 1),
        Change::AddNode { count, .. } if *count > 1 => *count -= 1,
        Change::LowerMemory { to_bytes } => *to_bytes += STEP,
        Change::LowerCompute { to_percent } => *to_percent += 1,
        _ => return None,
    }
    Some(change)
}

/// Pods created for the deployment after the change, until the cluster rests.
fn gained(s: &Snapshot, now: TimeMs, of: &DeploymentId, change: &Change) -> Option<u32> {
    let mut s = s.clone();
    make(&mut s, of, change)?;
    let (_, created) = come_to_rest(&mut s, now);
    Some(created.get(of).copied().unwrap_or(0))
}

/// All that a record puts into events and status.
fn said(r: &DecisionRecord) -> String {
    format!("{} {}", r.message, r.counterfactual.as_ref().map(render::would_fit).unwrap_or_default())
}

fn waits(r: &DeploymentReport) -> bool {
    matches!(r.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota | Outcome::StaleInput | Outcome::NoTenant)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_261_129),
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_change_helps_when_it_is_made_and_a_smaller_one_does_not(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 0..12),
    ) {
        let mut s = s;
        let (mut now, _) = come_to_rest(&mut s, common::NOW);
        events.iter().for_each(|e| happen(&mut s, e));
        (now, _) = come_to_rest(&mut s, now);
        let (_, report) = plan(&s, &Policy::default(), now);
        let waiting = report.deployments.iter().filter(|r| waits(r)).count();
        for r in &report.deployments {
            prop_assert_eq!(
                waits(r),
                !r.counterfactuals.is_empty() || r.no_counterfactual.is_some(),
                "{} is {:?}: {:?}", r.deployment, r.outcome, r.no_counterfactual
            );
            // A rollout that ends its old pod first may lose the place to another deployment that waits.
            if r.counts.current >= r.counts.wanted && waiting > 1 {
                continue;
            }
            for c in &r.counterfactuals {
                let Some(gained) = gained(&s, now, &r.deployment, &c.change) else { continue };
                prop_assert!(gained >= 1, "{} gets nothing from {:?}", r.deployment, c.change);
            }
            for c in &r.counterfactuals {
                let Some(less) = smaller(&c.change) else { continue };
                prop_assert_eq!(gained_or_zero(&s, now, &r.deployment, &less), 0, "{} needs less than {:?}", r.deployment, c.change);
            }
        }
    }

    #[test]
    fn what_is_said_names_no_deployment_of_another_tenant(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 0..12),
    ) {
        let mut s = s;
        let (mut now, _) = come_to_rest(&mut s, common::NOW);
        events.iter().for_each(|e| happen(&mut s, e));
        for _ in 0..4 {
            let (p, report) = plan(&s, &Policy::default(), now);
            let records = report.records.iter().map(|r| (&r.object, said(r)));
            let conditions = report.deployments.iter().map(|r| (&r.deployment, render::condition_message(r)));
            for (id, text) in records.chain(conditions) {
                let named = s.deployments.iter().find(|d| d.id.namespace != id.namespace && text.contains(&d.id.to_string()));
                prop_assert!(named.is_none(), "{id} reads: {text}");
            }
            apply(&mut s, &p.actions, now);
            now += 10_000;
        }
    }

    #[test]
    fn slot_that_waits_only_for_an_ending_pod_is_filled_without_any_change(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 1..12),
    ) {
        let mut s = s;
        let (now, _) = come_to_rest(&mut s, common::NOW);
        events.iter().for_each(|e| happen(&mut s, e));
        let (p, report) = plan(&s, &Policy::default(), now);
        let ending = |r: &DeploymentReport| {
            r.waits.iter().filter(|w| matches!(w, stowage_planner::report::Wait::Ending { .. })).count() as u32
        };
        let before: u32 = report.deployments.iter().map(ending).sum();
        apply(&mut s, &p.actions, now);
        let (_, created) = come_to_rest(&mut s, now);
        prop_assert!(created.values().sum::<u32>() >= before, "{before} slots were to be filled, {created:?} were: {:?} {:?}", p.actions, report.deployments.iter().map(|r| (&r.deployment, &r.waits, r.counts)).collect::<Vec<_>>());
    }
}

fn gained_or_zero(s: &Snapshot, now: TimeMs, of: &DeploymentId, change: &Change) -> u32 {
    gained(s, now, of, change).unwrap_or(0)
}

//! Puts a decided [`Draft`] into the report's terms. Decides nothing.

use std::collections::BTreeSet;

use crate::decide::{Case, Draft};
use crate::explain::records::records;
use crate::explain::report::{
    ClusterReport, Counterfactual, Counts, DecisionReport, DeploymentReport, Outcome, PlacementVerdict, QuotaVerdict,
    Refusal, TenantReport, Wait,
};
use crate::plan::BasedOn;
use crate::snapshot::world::{World, charge, promised};
use crate::snapshot::{Freshness, Health, Snapshot, TimeMs};

pub(crate) fn report(
    snapshot: &Snapshot,
    based_on: BasedOn,
    draft: &Draft<'_>,
    counterfactuals: Vec<Vec<Counterfactual>>,
    now: TimeMs,
) -> DecisionReport {
    let deployments: Vec<DeploymentReport> =
        draft.cases.iter().zip(counterfactuals).map(|(case, found)| deployment(draft, case, found)).collect();
    let records = records(draft, &deployments, now);
    DecisionReport {
        at: now,
        based_on,
        tenants: tenants(snapshot, draft),
        cluster: cluster(draft),
        records,
        wake_at: wake_at(draft, now),
        deployments,
    }
}

fn deployment(draft: &Draft<'_>, case: &Case<'_>, found: Vec<Counterfactual>) -> DeploymentReport {
    let desired = case.desired();
    let granted = (desired + case.allowed).min(case.wanted.max(desired));
    let placements: Vec<PlacementVerdict> =
        case.creates.iter().map(|c| c.verdict.clone()).chain(case.failed.iter().cloned()).collect();
    let (oldest_input_ms, stale_nodes) = inputs(&draft.world, case);
    DeploymentReport {
        deployment: case.d.id.clone(),
        generation: case.d.generation,
        tenant: case.d.tenant.clone(),
        outcome: outcome(case),
        counts: Counts {
            wanted: case.wanted,
            granted,
            current: case.life.current,
            ready: case.life.ready,
            updated_ready: case.life.updated_ready,
            desired,
        },
        scale: case.scale.clone(),
        quota: quota(draft, case, granted),
        placements,
        waits: case.life.waits.clone(),
        counterfactuals: found,
        oldest_input_ms,
        stale_nodes,
        troubles: case.life.troubles.clone(),
    }
}

fn outcome(case: &Case<'_>) -> Outcome {
    if case.d.deleting {
        return Outcome::Draining;
    }
    let stuck = case.unfilled > 0 || !case.failed.is_empty() || case.limit.is_some();
    if stuck && case.d.tenant.is_none() {
        return Outcome::NoTenant;
    }
    if stuck && case.failed.is_empty() && case.limit.is_some() {
        return Outcome::WaitingForQuota;
    }
    if stuck {
        return if only_stale(&case.failed) { Outcome::StaleInput } else { Outcome::WaitingForGPU };
    }
    if case.life.waits.iter().any(|w| matches!(w, Wait::BackOff { .. })) {
        return Outcome::BackOff;
    }
    if !case.life.ends.is_empty() || !case.creates.is_empty() || !case.life.renew.is_empty() {
        return Outcome::Progressing;
    }
    if case.life.updated_ready >= case.wanted { Outcome::OnTarget } else { Outcome::Starting }
}

/// Every node that could have served it was refused for the age of its data.
fn only_stale(failed: &[PlacementVerdict]) -> bool {
    let mut relevant =
        failed.iter().flat_map(|v| &v.refusals).filter(|r| !matches!(r.reason, Refusal::NoSuchClass { .. })).peekable();
    relevant.peek().is_some() && relevant.all(|r| matches!(r.reason, Refusal::Stale { .. } | Refusal::NoData))
}

fn quota(draft: &Draft<'_>, case: &Case<'_>, granted: u32) -> QuotaVerdict {
    let Some(tenant) = &case.d.tenant else {
        return QuotaVerdict::NoTenant { namespace: case.d.id.namespace.clone() };
    };
    if !case.needs_gpu() {
        return QuotaVerdict::NotNeeded;
    }
    if let Some(limit) = &case.limit
        && granted < case.wanted
    {
        return QuotaVerdict::Partial { granted, asked: case.wanted, limit: limit.clone() };
    }
    let classes: BTreeSet<_> = case.asks.iter().filter_map(|(a, _)| a.class.as_ref()).collect();
    let borrowed_milli = classes.into_iter().map(|c| draft.ledger.borrowed(tenant, c)).sum();
    QuotaVerdict::Granted { borrowed_milli }
}

/// Ages of the nodes that have what is asked for, whether or not they fit.
fn inputs(world: &World, case: &Case<'_>) -> (u64, Vec<String>) {
    let mut oldest = 0;
    let mut stale = Vec::new();
    for node in &world.nodes {
        let relevant = case.asks.iter().any(|(a, _)| a.class.is_some() && node.gpus.iter().any(|g| g.class == a.class));
        if !relevant {
            continue;
        }
        match node.freshness {
            Freshness::Fresh { age_ms } => oldest = oldest.max(age_ms),
            Freshness::Stale { .. } | Freshness::Missing => stale.push(node.name.clone()),
        }
    }
    (oldest, stale)
}

fn tenants(snapshot: &Snapshot, draft: &Draft<'_>) -> Vec<TenantReport> {
    let mut ids: Vec<_> = snapshot.tenants.iter().map(|t| t.id.clone()).collect();
    ids.sort();
    ids.dedup();
    ids.into_iter()
        .map(|tenant| {
            let mut waiting: Vec<&Case<'_>> =
                draft.cases.iter().filter(|c| c.d.tenant.as_ref() == Some(&tenant) && c.unfilled > 0).collect();
            waiting.sort_by_key(|c| (std::cmp::Reverse(c.d.priority), c.d.created_ms, &c.d.id));
            TenantReport {
                usage: draft.ledger.usage(&tenant),
                waiting: waiting.into_iter().map(|c| c.d.id.clone()).collect(),
                tenant,
            }
        })
        .collect()
}

fn cluster(draft: &Draft<'_>) -> ClusterReport {
    let mut out = ClusterReport::default();
    for node in &draft.world.nodes {
        if !node.gpus.is_empty() && !matches!(node.freshness, Freshness::Fresh { .. }) {
            out.stale_nodes += 1;
        }
        for gpu in &node.gpus {
            let (memory, sm) = promised(gpu);
            out.gpus += 1;
            out.healthy_gpus += u32::from(gpu.health == Health::Healthy);
            out.total_milli += 1000;
            out.promised_milli += charge(gpu, memory, sm);
        }
        let cpu = node.allocatable.cpu_milli.saturating_sub(node.used.cpu_milli);
        let free = draft.expected.free_gpus(node);
        let lost = crate::place::frag::fragmentation(cpu as i64, &free, &draft.expected.demand.shapes);
        out.fragmented_milli += lost.round() as u64;
    }
    out
}

fn wake_at(draft: &Draft<'_>, now: TimeMs) -> Option<TimeMs> {
    let exclusions = draft.world.exclusions.iter().map(|e| e.until_ms);
    let lives = draft.cases.iter().flat_map(|c| c.life.wakes.iter().copied());
    let drains = draft.cases.iter().flat_map(|c| c.life.ends.iter().filter_map(|e| e.drain_until));
    exclusions.chain(lives).chain(drains).filter(|t| *t > now).min()
}

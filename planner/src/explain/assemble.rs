//! Puts a decided [`Draft`] into the report's terms. Decides nothing.

use std::collections::BTreeSet;

use crate::decide::Draft;
use crate::decide::case::Case;
use crate::explain::records::records;
use crate::explain::report::{
    ClusterReport, Counts, DecisionReport, DeploymentReport, MoveVerdict, Outcome, PlacementVerdict, QuotaVerdict,
    Refusal, TenantReport, Wait,
};
use crate::explain::whatif::Findings;
use crate::place::MAX_EXAMPLES;
use crate::plan::BasedOn;
use crate::snapshot::index::Index;
use crate::snapshot::{Freshness, Snapshot, TimeMs};

pub(crate) fn report(
    snapshot: &Snapshot,
    based_on: BasedOn,
    draft: &mut Draft<'_>,
    findings: Vec<Findings>,
    now: TimeMs,
) -> DecisionReport {
    let cluster = cluster(draft);
    let draft = &*draft;
    let ages = ages(&draft.placer.index);
    let deployments: Vec<DeploymentReport> =
        draft.cases.iter().zip(findings).map(|(case, found)| deployment(draft, &ages, case, found)).collect();
    let records = records(draft, &deployments, now);
    DecisionReport {
        at: now,
        based_on,
        tenants: tenants(snapshot, draft),
        cluster,
        shares: draft.ledger.shares(now),
        waiting: draft.cases.iter().filter_map(|case| case.waiting(now)).collect(),
        recent_moves: draft.recent_moves.clone(),
        records,
        wake_at: wake_at(draft, now),
        deployments,
    }
}

fn deployment(draft: &Draft<'_>, ages: &[Ages], case: &Case<'_>, found: Findings) -> DeploymentReport {
    let desired = case.desired();
    let granted = (desired + case.allowed).min(case.wanted.max(desired));
    let placements: Vec<PlacementVerdict> =
        case.creates.iter().map(|c| c.verdict.clone()).chain(case.failed.iter().cloned()).collect();
    let (oldest_input_ms, stale_nodes) = inputs(ages, case);
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
        scale: case.verdict(),
        prediction: case.prediction(),
        quota: quota(draft, case, granted),
        placements,
        waits: waits(draft, case),
        moves: case.moves.clone().filter(|m| matches!(m, MoveVerdict::Moves { .. }) || case.is_refused()),
        capacity: case.capacity.clone(),
        counterfactuals: found.counterfactuals,
        no_counterfactual: found.none,
        oldest_input_ms,
        stale_nodes,
        troubles: case.life.troubles.clone(),
    }
}

fn outcome(case: &Case<'_>) -> Outcome {
    if case.d.deleting {
        return Outcome::Draining;
    }
    let stuck = case.is_refused();
    if stuck && case.d.tenant.is_none() {
        return Outcome::NoTenant;
    }
    if stuck && case.failed.is_empty() && case.limit.is_some() {
        return Outcome::WaitingForQuota;
    }
    if stuck {
        return if only_stale(&case.failed) { Outcome::StaleInput } else { Outcome::WaitingForGPU };
    }
    if case.life.waits.iter().any(|w| matches!(w, Wait::Refused { .. })) {
        return Outcome::Refused;
    }
    if case.life.waits.iter().any(|w| matches!(w, Wait::BackOff { .. })) {
        return Outcome::BackOff;
    }
    let fills = !case.creates.is_empty() || !case.resumes.is_empty();
    let replaces = !case.life.renew.is_empty() || !case.life.moving.is_empty();
    let changes = !case.life.ends.is_empty() || fills || replaces;
    if changes || !case.awaiting.is_empty() {
        return Outcome::Progressing;
    }
    if case.life.updated_ready >= case.wanted { Outcome::OnTarget } else { Outcome::Starting }
}

/// What the slots wait for, besides quota and room.
fn waits(draft: &Draft<'_>, case: &Case<'_>) -> Vec<Wait> {
    let mut waits = case.life.waits.clone();
    let leaving: Vec<_> = case.leaving().collect();
    for index in &case.awaiting {
        if let Some((_, pods)) = case.reclaims.iter().find(|(slot, _)| slot == index) {
            waits.push(Wait::Reclaiming { index: *index, pods: pods.clone() });
            continue;
        }
        let pods = case.awaited_node.as_deref().map_or(Vec::new(), |node| draft.moving_from(node));
        if leaving.is_empty() && !pods.is_empty() {
            waits.push(Wait::Moving { index: *index, pods });
            continue;
        }
        // Its own predecessor if there is one; otherwise any pod of the deployment that ends.
        let pod = leaving.iter().find(|r| r.index == *index).or(leaving.first());
        let pod = pod.map(|r| r.name.clone()).unwrap_or_default();
        waits.push(Wait::Ending { index: *index, pod });
    }
    waits
}

/// Every node that could have served it was refused for the age of its data.
fn only_stale(failed: &[PlacementVerdict]) -> bool {
    let reasons = failed.iter().flat_map(|v| &v.refusals).filter_map(|g| g.examples.first()).map(|r| &r.reason);
    let mut relevant = reasons.filter(|r| !matches!(r, Refusal::NoSuchClass { .. })).peekable();
    relevant.peek().is_some() && relevant.all(|r| matches!(r, Refusal::Stale { .. } | Refusal::NoData))
}

fn quota(draft: &Draft<'_>, case: &Case<'_>, granted: u32) -> QuotaVerdict {
    let Some(tenant) = &case.d.tenant else {
        return QuotaVerdict::NoTenant { namespace: case.d.id.namespace.clone() };
    };
    if !case.needs_gpu() {
        return QuotaVerdict::NotNeeded;
    }
    // A pod that cannot be renewed runs, but not as the present spec asks.
    let granted = granted.min(case.wanted.saturating_sub(case.stuck_renewals.len() as u32));
    if let Some(limit) = &case.limit
        && granted < case.wanted
    {
        return QuotaVerdict::Partial { granted, asked: case.wanted, limit: limit.clone() };
    }
    let class = |n: usize| case.alternatives[n].ask.class.as_ref();
    let classes = || (0..case.alternatives.len()).filter(|n| (0..*n).all(|m| class(m) != class(*n))).filter_map(class);
    let borrowed: u64 = classes().map(|c| draft.ledger.borrowed(tenant, c)).fold(0, u64::saturating_add);
    QuotaVerdict::Granted { borrowed_milli: borrowed }
}

/// Ages of the nodes that have GPUs of one class.
#[derive(Clone, Default)]
struct Ages {
    oldest_ms: u64,
    stale: BTreeSet<String>,
}

/// By class.
fn ages(index: &Index) -> Vec<Ages> {
    let mut ages = vec![Ages::default(); index.classes().len()];
    for row in index.rows() {
        let mut before = None;
        for class in row.taken.gpus.iter().filter_map(|g| g.class) {
            // Most nodes have GPUs of one class.
            if before.replace(class) == Some(class) {
                continue;
            }
            match row.node.freshness {
                Freshness::Fresh { age_ms } => ages[class].oldest_ms = ages[class].oldest_ms.max(age_ms),
                Freshness::Stale { .. } | Freshness::Missing => {
                    ages[class].stale.insert(row.node.name.clone());
                }
            }
        }
    }
    ages
}

/// Ages of the nodes that have what is asked for, whether or not they fit.
fn inputs(ages: &[Ages], case: &Case<'_>) -> (u64, Vec<String>) {
    let of = || case.alternatives.iter().filter_map(|a| ages.get(a.class?));
    let stale: BTreeSet<&String> = of().flat_map(|a| a.stale.iter().take(MAX_EXAMPLES)).collect();
    (of().map(|a| a.oldest_ms).max().unwrap_or(0), stale.into_iter().take(MAX_EXAMPLES).cloned().collect())
}

fn tenants(snapshot: &Snapshot, draft: &Draft<'_>) -> Vec<TenantReport> {
    let mut ids: Vec<_> = snapshot.tenants.iter().map(|t| t.id.clone()).collect();
    ids.sort();
    ids.dedup();
    ids.into_iter()
        .map(|tenant| {
            let mut waiting: Vec<&Case<'_>> =
                draft.cases.iter().filter(|c| c.unfilled > 0 && c.d.tenant.as_ref() == Some(&tenant)).collect();
            waiting.sort_by_key(|c| (std::cmp::Reverse(c.d.priority), c.d.created_ms, &c.d.id));
            TenantReport {
                usage: draft.ledger.usage(&tenant),
                waiting: waiting.into_iter().map(|c| c.d.id.clone()).collect(),
                tenant,
            }
        })
        .collect()
}

fn cluster(draft: &mut Draft<'_>) -> ClusterReport {
    let mut out = ClusterReport::default();
    let (index, expected) = (&draft.placer.index, &mut draft.placer.expected);
    for state in index.live_states() {
        let members = index.members(state);
        let Some(at) = members.first() else { continue };
        let (nodes, facts) = (members.len() as u32, index.facts(state));
        out.stale_nodes += nodes * u32::from(facts.stale);
        out.gpus += nodes * facts.gpus;
        out.healthy_gpus += nodes * facts.healthy_gpus;
        out.total_milli += u64::from(nodes * facts.gpus) * 1000;
        out.promised_milli = out.promised_milli.saturating_add(facts.promised_milli.saturating_mul(nodes.into()));
        out.fragmented_milli += u64::from(nodes) * expected.fragmentation(index, *at).round() as u64;
    }
    out
}

fn wake_at(draft: &Draft<'_>, now: TimeMs) -> Option<TimeMs> {
    let exclusions = draft.placer.index.exclusions_end();
    let lives = draft.cases.iter().flat_map(|c| c.life.wakes.iter().copied());
    let drains = draft.cases.iter().flat_map(|c| c.life.ends.iter().filter_map(|e| e.drain_until));
    exclusions.chain(lives).chain(drains).filter(|t| *t > now).min()
}

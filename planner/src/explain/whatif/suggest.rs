//! Which changes might help, from the reasons of a refusal; and why none does.

use std::collections::BTreeSet;

use crate::decide::Draft;
use crate::decide::case::Case;
use crate::explain::report::{Change, IsolationRule, NoCounterfactual, QuotaBinding, Refusal};
use crate::explain::whatif::{Limit, Part, Step, TRIES};
use crate::snapshot::index::mig::MigRow;
use crate::snapshot::index::{Size, Usability};
use crate::snapshot::{DeploymentId, Gpu, MigProfile, Partition, ScalingMode, SliceOwner};

/// In the order of preference: nothing but time, one's own doing, the platform's, other people's.
pub(super) fn suggestions(draft: &Draft<'_>, at: usize) -> Vec<Step> {
    let case = &draft.cases[at];
    let mut steps = Vec::new();
    quota_steps(case, &mut steps);
    let refusals = case.failed.iter().flat_map(|v| &v.refusals).flat_map(|g| &g.examples);
    let mut room: Vec<Change> = refusals.filter_map(|r| node_change(draft, &r.node, &r.reason)).collect();
    room.sort();
    room.dedup();
    steps.extend(room.into_iter().take(TRIES / 2).map(|change| match change {
        Change::Tolerate { .. } => Step::Own(at, change),
        _ => Step::Once(change),
    }));
    scale_ins(draft, at, &mut steps);
    smaller(draft, at, &mut steps);
    if !case.failed.is_empty() {
        let name = |at: usize| draft.placer.index.rows()[at].node.name.clone();
        steps.extend(draft.likes(case).into_iter().map(|at| Step::AddNodes { like: name(at) }));
    }
    steps
}

fn quota_steps(case: &Case<'_>, steps: &mut Vec<Step>) {
    let Some(tenant) = case.d.tenant.clone() else {
        if let Some(first) = case.alternatives.iter().find(|a| a.ask.class.is_some()) {
            steps.push(Step::Once(Change::AddTenantQuota {
                namespace: case.d.id.namespace.clone(),
                class: first.ask.class.clone().unwrap_or_default(),
                nominal_milli: first.charge.saturating_mul(case.unfilled.max(1).into()),
            }));
        }
        return;
    };
    let Some(limit) = &case.limit else { return };
    let class = limit.class.clone();
    if let Some(spend) = limit.spend {
        let to_micros = spend.replica_micros.map(|more| spend.spent_micros.saturating_add(more));
        steps.extend(to_micros.map(|to_micros| Step::Once(Change::RaiseSpendLimit { tenant, to_micros })));
        return;
    }
    if limit.binding == QuotaBinding::BorrowingLimit {
        steps.push(Step::Raise { tenant: tenant.clone(), class: class.clone(), limit: Limit::Borrowing });
    }
    steps.push(Step::Raise { tenant, class, limit: Limit::Nominal });
}

fn node_change(draft: &Draft<'_>, node: &str, refusal: &Refusal) -> Option<Change> {
    let row = draft.placer.index.row(node)?;
    let node = node.to_owned();
    Some(match refusal {
        Refusal::NotReady => Change::NodeReady { node },
        Refusal::Cordoned => Change::Uncordon { node },
        Refusal::Stale { .. } => Change::NodeFresh { node },
        Refusal::NoData if !row.node.gpus.is_empty() => Change::NodeFresh { node },
        Refusal::Taint { key, .. } => Change::Tolerate { node, key: key.clone() },
        Refusal::Unhealthy { gpu, .. } => Change::GpuHealthy { node, gpu: gpu.clone() },
        Refusal::Excluded { until_ms, .. } => Change::WaitUntil { at: *until_ms },
        Refusal::OtherTenant { gpu: Some(gpu), rule: IsolationRule::SoftSharingNotAllowed, .. } => {
            let class = row.node.gpus.iter().find(|g| &g.uuid == gpu)?.class.clone()?;
            Change::AllowSoftSharing { class }
        }
        _ => return None,
    })
}

/// Replicas by which the case may be scaled in: where its rule decides, down to the least that its spec allows.
pub(super) fn can_lose(case: &Case<'_>) -> u32 {
    let least = match case.d.scaling.mode {
        ScalingMode::Manual => 0,
        ScalingMode::Active | ScalingMode::Advisory => case.d.scaling.min_replicas.max(1),
    };
    case.life.current.saturating_sub(least)
}

/// Others that hold what is asked for: the tenant's own first. Then foreign claims.
fn scale_ins(draft: &Draft<'_>, at: usize, steps: &mut Vec<Step>) {
    let case = &draft.cases[at];
    let classes: Vec<_> = case.alternatives.iter().map(|a| a.class).collect();
    let room = !case.failed.is_empty() || case.limit.is_none();
    let mut holders: Vec<(bool, &DeploymentId, usize)> = Vec::new();
    for (n, other) in draft.cases.iter().enumerate().filter(|(n, c)| *n != at && can_lose(c) > 0) {
        let own = other.d.tenant == case.d.tenant;
        // Past quota only one's own replicas make room.
        let holds = (room || own) && other.alternatives.iter().any(|a| classes.contains(&a.class));
        if holds {
            holders.push((!own, &other.d.id, n));
        }
    }
    holders.sort();
    steps.extend(holders.into_iter().take(TRIES / 3).map(|(.., case)| Step::ScaleIn { case }));
    if !room {
        return;
    }
    let slices = draft.placer.index.rows().iter().flat_map(|r| &r.node.gpus).flat_map(|g| &g.slices);
    let mut claims: Vec<&String> = slices
        .filter_map(|s| match &s.owner {
            SliceOwner::Foreign { claim } => Some(claim),
            SliceOwner::Replica(_) => None,
        })
        .collect();
    claims.sort();
    claims.dedup();
    steps.extend(claims.into_iter().take(2).map(|c| Step::Once(Change::RemoveClaim { claim: c.clone() })));
}

/// The largest slice that some GPU of the class has free, where size is what refused.
fn smaller(draft: &Draft<'_>, at: usize, steps: &mut Vec<Step>) {
    let case = &draft.cases[at];
    let (mut memory, mut compute, mut device) = (0, 0, None);
    for alternative in case.alternatives.iter().filter(|a| case.failed.iter().any(|v| v.ask == a.ask)) {
        let ask = &alternative.ask;
        for row in draft.placer.index.rows() {
            for (gpu, g) in row.node.gpus.iter().zip(&row.taken.gpus) {
                if g.class != alternative.class || g.class.is_none() || g.usable != Usability::Healthy {
                    continue;
                }
                if let (Partition::Mig { profile }, Some(mig)) = (&ask.partition, &g.mig) {
                    device = device.max(smaller_device(gpu, mig, profile));
                }
                let Partition::Slice { memory_bytes, sm_percent } = ask.partition else { continue };
                if g.mig.is_some() {
                    continue;
                }
                let (bytes, sm) = Size::new(gpu, None).promise(memory_bytes, sm_percent);
                if g.free_sm >= sm && g.free_bytes < bytes {
                    memory = memory.max(g.free_bytes - g.free_bytes % gpu.memory_step_bytes.max(1));
                }
                if g.free_bytes >= bytes && g.free_sm < sm {
                    compute = compute.max(g.free_sm);
                }
            }
        }
    }
    if let Some((.., profile)) = device {
        steps.push(Step::Own(at, Change::SmallerProfile { profile: profile.clone() }));
    }
    if memory > 0 {
        steps.push(Step::Lower { case: at, what: Part::Memory, free: memory });
    }
    if compute > 0 {
        steps.push(Step::Lower { case: at, what: Part::Compute, free: compute.into() });
    }
}

/// Of the devices smaller than this profile that could be cut now, the largest: memory, SMs, name.
fn smaller_device<'a>(gpu: &'a Gpu, mig: &MigRow, than: &str) -> Option<(u64, u32, &'a String)> {
    let size = |p: &MigProfile| (p.memory_bytes, p.sm_percent);
    let asked = gpu.mig.iter().flatten().find(|p| p.name == than).map(size)?;
    let fits = |p: &&MigProfile| size(p) < asked && mig.layout.places(&p.name, mig.taken).next().is_some();
    gpu.mig.iter().flatten().filter(fits).map(|p| (p.memory_bytes, p.sm_percent, &p.name)).max()
}

pub(super) fn why_none(draft: &Draft<'_>, at: usize, tried: u32, spent: bool) -> NoCounterfactual {
    let case = &draft.cases[at];
    for verdict in &case.failed {
        let Some(class) = &verdict.ask.class else { continue };
        let Some(row) = draft.placer.index.class(class).map(|c| &draft.placer.index.classes()[c]) else { continue };
        if row.gpus == 0 {
            return NoCounterfactual::NoSuchClass { class: class.clone() };
        }
        let largest = row.sizes.keys().map(|s| s.memory_bytes).max().unwrap_or(0);
        if let Partition::Mig { profile } = &verdict.ask.partition {
            let layouts = draft.placer.index.rows().iter().flat_map(|r| r.node.gpus.iter().zip(&r.taken.gpus));
            let of_class =
                layouts.filter(|(gpu, _)| gpu.class.as_ref() == Some(class)).filter_map(|(_, g)| g.mig.as_ref());
            let offered: BTreeSet<String> = of_class.flat_map(|mig| mig.layout.profiles().cloned()).collect();
            if !offered.contains(profile) {
                let (class, profile) = (class.clone(), profile.clone());
                return NoCounterfactual::NoSuchProfile { class, profile, offered: offered.into_iter().collect() };
            }
        }
        if let Some(asked) = verdict.ask.partition.memory_bytes().filter(|asked| *asked > largest) {
            return NoCounterfactual::LargerThanAnyGpu {
                class: class.clone(),
                asked_bytes: asked,
                largest_bytes: largest,
            };
        }
    }
    if spent { NoCounterfactual::TooManyWait } else { NoCounterfactual::NoSingleChange { tried } }
}

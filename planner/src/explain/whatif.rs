//! What would change the answer.
//!
//! From the reasons of a refusal follow changes that might help; each is applied to a copy of the
//! snapshot *as it will be once this plan is carried out*, and the decision is made again. Only what
//! then places more replicas is reported, so a counterfactual is true by construction: it says what
//! the planner would do, not what somebody believes it would. Single changes only; where two are
//! needed, none is named.

use std::collections::BTreeMap;

use crate::decide::{Case, Draft, decide, release};
use crate::explain::report::{Change, Counterfactual, QuotaBinding, Refusal};
use crate::lifecycle::assess;
use crate::plan::EndReason;
use crate::snapshot::world::{World, free, owned_by, share_on};
use crate::snapshot::{
    Accelerator, Deployment, DeploymentId, Freshness, Health, Phase, Placement, Policy, Quota, Replica, SliceOwner,
    Snapshot, Taint, Tenant, TenantId, TimeMs, Toleration,
};

/// Changes named per deployment.
const KEEP: usize = 3;
/// Decisions made again per deployment, and per plan: a plan must stay fast when hundreds wait.
const TRIES: usize = 16;
const TRIES_PER_PLAN: usize = 64;

/// For each case of the draft, in its order.
pub(crate) fn counterfactuals(
    snapshot: &Snapshot,
    draft: &Draft<'_>,
    policy: &Policy,
    now: TimeMs,
) -> Vec<Vec<Counterfactual>> {
    let mut found: Vec<Vec<Counterfactual>> = draft.cases.iter().map(|_| Vec::new()).collect();
    if !draft.cases.iter().any(waits) {
        return found;
    }
    let settled = settled(snapshot, draft, now);
    let mut trials = Trials::new(&settled, policy, now, TRIES_PER_PLAN);
    for (case, found) in draft.cases.iter().zip(&mut found) {
        if !waits(case) {
            continue;
        }
        for change in suggestions(snapshot, draft, case).into_iter().take(TRIES) {
            if found.len() == KEEP {
                break;
            }
            found.extend(trials.verify(&case.d.id, &change));
        }
    }
    found
}

fn waits(case: &Case<'_>) -> bool {
    case.unfilled > 0 || !case.failed.is_empty() || case.limit.is_some()
}

/// Decides again with the change applied, once the plan for `snapshot` is carried out. `None` if it
/// does not help.
pub fn verify_change(
    snapshot: &Snapshot,
    id: &DeploymentId,
    change: &Change,
    policy: &Policy,
    now: TimeMs,
) -> Option<Counterfactual> {
    let settled = settled(snapshot, &decide(snapshot, policy, now), now);
    Trials::new(&settled, policy, now, 1).verify(id, change)
}

/// Placements of what a decision would create, by deployment.
type Created = BTreeMap<DeploymentId, Vec<Option<Placement>>>;

/// Decisions made again on changed copies of one snapshot. Where hundreds wait for the same thing the same change
/// is suggested for each, and tried once.
struct Trials<'a> {
    settled: &'a Snapshot,
    policy: &'a Policy,
    now: TimeMs,
    base: Created,
    /// `None`: the change makes no sense. With the deployment where the change is to its own spec.
    tried: BTreeMap<(Option<DeploymentId>, Change), Option<Created>>,
    left: usize,
}

impl<'a> Trials<'a> {
    fn new(settled: &'a Snapshot, policy: &'a Policy, now: TimeMs, left: usize) -> Self {
        let base = created(&decide(settled, policy, now));
        Trials { settled, policy, now, base, tried: BTreeMap::new(), left }
    }

    fn verify(&mut self, id: &DeploymentId, change: &Change) -> Option<Counterfactual> {
        let before = self.base.get(id).map_or(0, Vec::len);
        let after = self.outcome(id, change)?.get(id)?;
        let gains = after.len().checked_sub(before).filter(|n| *n > 0)?;
        Some(Counterfactual { change: change.clone(), gains: gains as u32, placement: after[before].clone()? })
    }

    fn outcome(&mut self, id: &DeploymentId, change: &Change) -> Option<&Created> {
        let own = matches!(change, Change::Tolerate { .. } | Change::LowerMemory { .. } | Change::LowerCompute { .. });
        let key = (own.then(|| id.clone()), change.clone());
        if !self.tried.contains_key(&key) {
            self.left = self.left.checked_sub(1)?;
            let outcome = self.try_out(id, change);
            self.tried.insert(key.clone(), outcome);
        }
        self.tried.get(&key)?.as_ref()
    }

    fn try_out(&self, id: &DeploymentId, change: &Change) -> Option<Created> {
        let mut changed = self.settled.clone();
        let at = match change {
            Change::WaitUntil { at } => *at,
            _ => self.now,
        };
        apply(&mut changed, id, change, self.policy, self.now)?;
        Some(created(&decide(&changed, self.policy, at)))
    }
}

fn created(draft: &Draft<'_>) -> Created {
    let some = draft.cases.iter().filter(|case| !case.creates.is_empty());
    some.map(|case| {
        let winners = case.creates.iter().map(|create| create.verdict.winner.as_ref());
        (case.d.id.clone(), winners.map(|winner| winner.map(|w| w.placement.clone())).collect())
    })
    .collect()
}

/// The snapshot once the draft's plan is carried out: what it creates is starting, what it ends is on
/// its way out and holds its slice.
fn settled(snapshot: &Snapshot, draft: &Draft<'_>, now: TimeMs) -> Snapshot {
    let mut s = snapshot.clone();
    s.nodes.clone_from(&draft.world.nodes);
    s.exclusions.clone_from(&draft.world.exclusions);
    for case in &draft.cases {
        let Some(d) = deployment_mut(&mut s, &case.d.id) else { continue };
        for end in &case.life.ends {
            let same = |r: &&mut Replica| (r.index, r.incarnation) == (end.replica.index, end.replica.incarnation);
            if let Some(r) = d.replicas.iter_mut().find(same) {
                r.phase = match end.drain_until {
                    Some(_) => Phase::Draining { since_ms: now, in_flight: None },
                    None => Phase::Terminating,
                };
            }
        }
        d.replicas.extend(case.creates.iter().map(|c| Replica {
            index: c.replica.index,
            incarnation: c.replica.incarnation,
            name: c.replica.to_string(),
            spec_hash: case.d.spec_hash.clone(),
            phase: Phase::Starting,
            placement: c.verdict.winner.as_ref().map(|w| w.placement.clone()),
            created_ms: now,
            node_lost: false,
            overshoot: None,
        }));
    }
    s
}

/// In the order of preference: nothing but time, one's own doing, the platform's, other people's.
fn suggestions(snapshot: &Snapshot, draft: &Draft<'_>, case: &Case<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    quota_changes(case, &mut changes);
    let mut room = Vec::new();
    for refusal in case.failed.iter().flat_map(|v| &v.refusals) {
        node_change(snapshot, &refusal.node, &refusal.reason, &mut room);
    }
    room.sort();
    room.dedup();
    changes.extend(room.into_iter().take(TRIES / 2));
    changes.extend(scale_ins(snapshot, draft, case));
    smaller(draft, case, &mut changes);
    for verdict in &case.failed {
        let like = draft
            .world
            .nodes
            .iter()
            .find(|n| n.gpus.iter().any(|g| g.class == verdict.ask.class) || verdict.ask.class.is_none());
        changes.extend(like.map(|n| Change::AddNode { like: n.name.clone() }));
    }
    changes.dedup();
    changes
}

fn quota_changes(case: &Case<'_>, changes: &mut Vec<Change>) {
    let Some(tenant) = case.d.tenant.clone() else {
        if let Some((ask, x)) = case.asks.first() {
            changes.push(Change::AddTenantQuota {
                namespace: case.d.id.namespace.clone(),
                class: ask.class.clone().unwrap_or_default(),
                nominal_milli: x.saturating_mul(case.unfilled.into()),
            });
        }
        return;
    };
    let Some(limit) = &case.limit else { return };
    let need = limit.held_milli.saturating_add(limit.replica_milli);
    if limit.binding == QuotaBinding::BorrowingLimit {
        changes.push(Change::RaiseBorrowingLimit {
            tenant: tenant.clone(),
            class: limit.class.clone(),
            to_milli: need.saturating_sub(limit.nominal_milli),
        });
    }
    changes.push(Change::RaiseNominal { tenant, class: limit.class.clone(), to_milli: need });
}

fn node_change(snapshot: &Snapshot, node: &str, refusal: &Refusal, changes: &mut Vec<Change>) {
    let node = node.to_owned();
    let change = match refusal {
        Refusal::NotReady => Change::NodeReady { node },
        Refusal::Cordoned => Change::Uncordon { node },
        Refusal::Stale { .. } => Change::NodeFresh { node },
        Refusal::NoData => {
            let known = snapshot.nodes.iter().any(|n| n.name == node && !n.gpus.is_empty());
            if !known {
                return;
            }
            Change::NodeFresh { node }
        }
        Refusal::Taint { key, .. } => Change::Tolerate { node, key: key.clone() },
        Refusal::Unhealthy { gpu, .. } => Change::GpuHealthy { node, gpu: gpu.clone() },
        Refusal::Excluded { until_ms, .. } => Change::WaitUntil { at: *until_ms },
        Refusal::OtherTenant { gpu: Some(gpu), rule, .. } => {
            if *rule != crate::explain::report::IsolationRule::SoftSharingNotAllowed {
                return;
            }
            let gpus = snapshot.nodes.iter().flat_map(|n| &n.gpus);
            match gpus.filter(|g| &g.uuid == gpu).find_map(|g| g.class.clone()) {
                Some(class) => Change::AllowSoftSharing { class },
                None => return,
            }
        }
        _ => return,
    };
    changes.push(change);
}

/// Others that hold what is asked for: the tenant's own first, the smallest step first.
fn scale_ins(snapshot: &Snapshot, draft: &Draft<'_>, case: &Case<'_>) -> Vec<Change> {
    let classes: Vec<&String> = case.asks.iter().filter_map(|(a, _)| a.class.as_ref()).collect();
    let mut holders: Vec<(bool, &DeploymentId, u32)> = Vec::new();
    for other in draft.cases.iter().filter(|c| c.d.id != case.d.id && c.life.current > 0) {
        let own = other.d.tenant == case.d.tenant;
        // Past quota only one's own replicas make room.
        if case.failed.is_empty() && case.limit.is_some() && !own {
            continue;
        }
        let holds = draft.world.slices().any(|(gpu, s)| {
            owned_by(s, &other.d.id).is_some() && gpu.class.as_ref().is_some_and(|c| classes.contains(&c))
        });
        if holds || case.asks.iter().all(|(a, _)| a.class.is_none()) {
            holders.push((!own, &other.d.id, other.life.current));
        }
    }
    holders.sort();
    let mut changes: Vec<Change> = Vec::new();
    for all in [false, true] {
        for (_, id, current) in holders.iter().take(TRIES / 2) {
            let by = if all { *current } else { 1 };
            if all && *current == 1 {
                continue;
            }
            let deployment = (*id).clone();
            changes.push(Change::ScaleIn { deployment, by, to: current - by });
        }
    }
    let foreign = snapshot.nodes.iter().flat_map(|n| &n.gpus).flat_map(|g| &g.slices);
    let mut claims: Vec<Change> = foreign
        .filter_map(|s| match &s.owner {
            SliceOwner::Foreign { claim } => Some(Change::RemoveClaim { claim: claim.clone() }),
            SliceOwner::Replica(_) => None,
        })
        .collect();
    claims.sort();
    claims.dedup();
    changes.extend(claims.into_iter().take(2));
    changes
}

/// The largest slice that some GPU of the class has free, where size is what refused.
fn smaller(draft: &Draft<'_>, case: &Case<'_>, changes: &mut Vec<Change>) {
    for verdict in &case.failed {
        let gpus = draft.world.nodes.iter().flat_map(|n| &n.gpus);
        let of_class = gpus.filter(|g| g.class == verdict.ask.class && g.health == Health::Healthy);
        let (mut memory, mut compute) = (0, 0);
        for gpu in of_class {
            let want = share_on(gpu, verdict.ask.memory_bytes, verdict.ask.sm_percent);
            let (free_bytes, free_sm) = free(gpu);
            if free_sm >= want.sm_percent && free_bytes < want.memory_bytes {
                memory = memory.max(free_bytes - free_bytes % gpu.memory_step_bytes.max(1));
            }
            if free_bytes >= want.memory_bytes && free_sm < want.sm_percent {
                compute = compute.max(free_sm);
            }
        }
        if memory > 0 {
            changes.push(Change::LowerMemory { to_bytes: memory });
        }
        if compute > 0 {
            changes.push(Change::LowerCompute { to_percent: compute });
        }
    }
}

/// `None`: the change makes no sense here.
fn apply(s: &mut Snapshot, id: &DeploymentId, change: &Change, policy: &Policy, now: TimeMs) -> Option<()> {
    match change {
        Change::WaitUntil { .. } => {}
        Change::AddTenantQuota { namespace, class, nominal_milli } => {
            add_tenant(s, namespace, class, *nominal_milli);
        }
        Change::RaiseNominal { tenant, class, to_milli } => {
            quota_mut(s, tenant, class)?.nominal_milli = *to_milli;
        }
        Change::RaiseBorrowingLimit { tenant, class, to_milli } => {
            quota_mut(s, tenant, class)?.borrowing_limit_milli = Some(*to_milli);
        }
        Change::ScaleIn { deployment, to, .. } => scale_in(s, deployment, *to, policy, now)?,
        Change::RemoveClaim { claim } => {
            let gone = SliceOwner::Foreign { claim: claim.clone() };
            for gpu in s.nodes.iter_mut().flat_map(|n| &mut n.gpus) {
                gpu.slices.retain(|slice| slice.owner != gone);
            }
        }
        Change::NodeFresh { node } => node_mut(s, node)?.freshness = Freshness::Fresh { age_ms: 0 },
        Change::NodeReady { node } => node_mut(s, node)?.ready = true,
        Change::Uncordon { node } => node_mut(s, node)?.cordoned = false,
        Change::Tolerate { key, .. } => {
            deployment_mut(s, id)?.tolerations.push(Toleration { key: Some(key.clone()), value: None, effect: None })
        }
        Change::GpuHealthy { node, gpu } => {
            let gpus = &mut node_mut(s, node)?.gpus;
            gpus.iter_mut().find(|g| &g.uuid == gpu)?.health = Health::Healthy;
        }
        Change::AllowSoftSharing { class } => {
            s.classes.iter_mut().find(|c| &c.name == class)?.allow_soft_sharing = true;
        }
        Change::LowerMemory { to_bytes } => {
            for v in &mut deployment_mut(s, id)?.variants {
                if let Accelerator::Gpu { memory_bytes, .. } = &mut v.accelerator {
                    *memory_bytes = Some(*to_bytes);
                }
            }
        }
        Change::LowerCompute { to_percent } => {
            for v in &mut deployment_mut(s, id)?.variants {
                if let Accelerator::Gpu { sm_percent, .. } = &mut v.accelerator {
                    *sm_percent = Some(*to_percent);
                }
            }
        }
        Change::AddNode { like } => add_node(s, like)?,
    }
    Some(())
}

fn add_tenant(s: &mut Snapshot, namespace: &str, class: &str, nominal_milli: u64) {
    let id = TenantId(namespace.to_owned());
    let quota =
        Quota { class: class.to_owned(), nominal_milli, borrowing_limit_milli: None, lending_limit_milli: None };
    s.tenants.push(Tenant {
        id: id.clone(),
        namespaces: vec![namespace.to_owned()],
        cohort: None,
        weight: 1,
        quotas: vec![quota],
    });
    for d in s.deployments.iter_mut().filter(|d| d.id.namespace == namespace) {
        d.tenant = Some(id.clone());
    }
}

/// The replicas that a scale-in would choose, gone with all that they hold.
fn scale_in(s: &mut Snapshot, id: &DeploymentId, to: u32, policy: &Policy, now: TimeMs) -> Option<()> {
    let d = deployment_mut(s, id)?;
    d.wanted = to;
    let d = d.clone();
    let life = assess(&d, to, &World::new(s), policy, now);
    let ends = life.ends.iter().filter(|e| e.reason == EndReason::ScaleIn);
    let gone: Vec<_> = ends.map(|e| e.replica.clone()).collect();
    for replica in &gone {
        let placed = d
            .replicas
            .iter()
            .find(|r| (r.index, r.incarnation) == (replica.index, replica.incarnation))
            .and_then(|r| r.placement.clone());
        if let Some(node) = placed.and_then(|p| s.nodes.iter_mut().find(|n| n.name == p.node)) {
            release(node, &d);
        }
        let owner = SliceOwner::Replica(replica.clone());
        for gpu in s.nodes.iter_mut().flat_map(|n| &mut n.gpus) {
            gpu.slices.retain(|slice| slice.owner != owner);
        }
    }
    let replicas = &mut deployment_mut(s, id)?.replicas;
    replicas.retain(|r| !gone.iter().any(|g| (g.index, g.incarnation) == (r.index, r.incarnation)));
    Some(())
}

fn add_node(s: &mut Snapshot, like: &str) -> Option<()> {
    let mut node = s.nodes.iter().find(|n| n.name == like)?.clone();
    node.name = format!("{like}-another");
    (node.ready, node.cordoned) = (true, false);
    node.freshness = Freshness::Fresh { age_ms: 0 };
    node.used = Default::default();
    node.host_ports.clear();
    node.taints.retain(|t: &Taint| !t.key.starts_with("node.kubernetes.io/"));
    for gpu in &mut node.gpus {
        gpu.uuid = format!("{}-another", gpu.uuid);
        gpu.health = Health::Healthy;
        gpu.slices.clear();
    }
    s.nodes.push(node);
    Some(())
}

fn quota_mut<'a>(s: &'a mut Snapshot, tenant: &TenantId, class: &str) -> Option<&'a mut Quota> {
    let quotas = &mut s.tenants.iter_mut().find(|t| &t.id == tenant)?.quotas;
    if !quotas.iter().any(|q| q.class == class) {
        quotas.push(Quota {
            class: class.to_owned(),
            nominal_milli: 0,
            borrowing_limit_milli: None,
            lending_limit_milli: None,
        });
    }
    quotas.iter_mut().find(|q| q.class == class)
}

fn node_mut<'a>(s: &'a mut Snapshot, name: &str) -> Option<&'a mut crate::snapshot::Node> {
    s.nodes.iter_mut().find(|n| n.name == name)
}

fn deployment_mut<'a>(s: &'a mut Snapshot, id: &DeploymentId) -> Option<&'a mut Deployment> {
    s.deployments.iter_mut().find(|d| &d.id == id)
}

//! Judges a finished plan against the snapshot it was made from, without looking at how it was made.
//!
//! The operator refuses to carry out a plan that has a violation, and the property tests ask for none.
//! It shares no code with the stages beyond the arithmetic of a charge, so that a mistake there does
//! not excuse itself here.

mod moves;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::plan::{Action, CreateReason, EndReason, Plan};
use crate::snapshot::index::charge;
use crate::snapshot::{
    Deployment, DeploymentId, Freshness, Gpu, Health, Node, Partition, Phase, Placement, Promise, Quota, Replica,
    ReplicaId, SliceOwner, Snapshot, Tenant, TenantId,
};

/// One invariant that the plan would break.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Violation {
    /// The plan was made from another snapshot.
    WrongSnapshot {
        plan: u64,
        snapshot: u64,
    },
    MemoryOverPromised {
        gpu: String,
        promised: u64,
        has: u64,
    },
    ComputeOverPromised {
        gpu: String,
        promised: u32,
        has: u32,
    },
    QuotaExceeded {
        tenant: TenantId,
        class: String,
        held: u64,
        limit: u64,
    },
    /// A tenant borrows what its cohort does not have: its members' balances sum to less than zero.
    CohortExhausted {
        cohort: String,
        class: String,
        missing: u64,
    },
    /// What is reclaimed takes a tenant below its own quota, or it borrows nothing.
    ReclaimedNominal {
        tenant: TenantId,
        class: String,
        left: u64,
        nominal: u64,
    },
    NoTenant {
        replica: ReplicaId,
    },
    /// Created twice, or exists already.
    DuplicateReplica {
        replica: ReplicaId,
    },
    UnknownDeployment {
        replica: ReplicaId,
    },
    UnknownReplica {
        replica: ReplicaId,
    },
    UnknownNode {
        replica: ReplicaId,
        node: String,
    },
    UnknownGpu {
        replica: ReplicaId,
        gpu: String,
    },
    /// The same GPU twice in one placement, or another number of GPUs than the variant asks.
    WrongGpus {
        replica: ReplicaId,
    },
    /// Placed on a node or GPU that must not take anything.
    UnusableNode {
        replica: ReplicaId,
        node: String,
    },
    UnusableGpu {
        replica: ReplicaId,
        gpu: String,
    },
    SplitIsland {
        replica: ReplicaId,
    },
    /// A slice on a GPU in MIG mode, a MIG device on another, one that the GPU does not offer there, or another
    /// than the variant asks.
    WrongPartition {
        replica: ReplicaId,
        gpu: String,
    },
    /// Two MIG devices have a memory slice in common.
    MigOverlap {
        gpu: String,
    },
    /// Two tenants on one GPU of a class that forbids it.
    TenantsMixedOnGpu {
        gpu: String,
    },
    NodeOverCommitted {
        node: String,
    },
    /// A replica is to move that is not Ready, alone in its slot and of the present specification, or two of one
    /// deployment; one ends for a move although nothing that is Ready takes over from it; a replacement is given up
    /// although no other pod of its slot served; or one of a moving replica's pods ends although it could go on and
    /// the other one does not end.
    WrongMove {
        replica: ReplicaId,
    },
    /// A cancelled drain of what does not drain.
    ResumedNotDraining {
        replica: ReplicaId,
    },
    /// A drain or removal of what is already on its way out (a reclaim may end it sooner), or a pod that is both
    /// ended and resumed.
    EndedTwice {
        replica: ReplicaId,
    },
}

/// Empty: the plan keeps every invariant.
pub fn check(snapshot: &Snapshot, plan: &Plan) -> Vec<Violation> {
    let mut checker = Checker {
        snapshot,
        nodes: snapshot.nodes.iter().map(|n| (n.name.as_str(), &**n)).collect(),
        deployments: snapshot.deployments.iter().map(|d| (&d.id, &**d)).collect(),
        ends: ending(plan),
        found: Vec::new(),
    };
    if plan.based_on.snapshot != snapshot.sequence {
        checker.found.push(Violation::WrongSnapshot { plan: plan.based_on.snapshot, snapshot: snapshot.sequence });
    }
    checker.references(plan);
    checker.gpus(plan);
    checker.quotas(plan);
    checker.moves(plan);
    checker.nodes(plan);
    checker.found
}

struct Checker<'a> {
    snapshot: &'a Snapshot,
    nodes: BTreeMap<&'a str, &'a Node>,
    deployments: BTreeMap<&'a DeploymentId, &'a Deployment>,
    ends: BTreeMap<PodKey<'a>, EndReason>,
    found: Vec<Violation>,
}

/// Deployment, index and incarnation.
type PodKey<'a> = (&'a DeploymentId, u32, u32);

/// A created replica with its deployment.
struct Created<'a> {
    replica: &'a ReplicaId,
    placement: &'a Placement,
    reason: CreateReason,
    deployment: &'a Deployment,
}

/// What one created replica adds to a GPU.
type Added<'a> = (&'a Created<'a>, &'a Promise);

impl<'a> Checker<'a> {
    fn creates(&self, plan: &'a Plan) -> Vec<Created<'a>> {
        let found = plan.actions.iter().filter_map(|a| match a {
            Action::Create { replica, placement, reason, .. } => {
                let deployment = self.deployment(replica)?;
                Some(Created { replica, placement, reason: *reason, deployment })
            }
            _ => None,
        });
        found.collect()
    }

    fn deployment(&self, replica: &ReplicaId) -> Option<&'a Deployment> {
        self.deployments.get(&replica.deployment).copied()
    }

    fn gpu(&self, node: &str, uuid: &str) -> Option<&'a Gpu> {
        let node = self.nodes.get(node)?;
        node.gpus.iter().find(|g| g.uuid == uuid)
    }

    fn references(&mut self, plan: &'a Plan) {
        let mut created = BTreeSet::new();
        let mut ended = BTreeSet::new();
        for action in &plan.actions {
            let replica = action.replica().clone();
            let Some(d) = self.deployment(&replica) else {
                self.found.push(Violation::UnknownDeployment { replica });
                continue;
            };
            let existing = d.replicas.iter().find(|r| (r.index, r.incarnation) == (replica.index, replica.incarnation));
            match action {
                Action::Create { placement, .. } => {
                    if existing.is_some() || !created.insert(replica.clone()) {
                        self.found.push(Violation::DuplicateReplica { replica: replica.clone() });
                    }
                    self.placement(&replica, d, placement);
                }
                Action::Resume { .. } | Action::Drain { .. } | Action::Remove { .. } => {
                    let Some(existing) = existing else {
                        self.found.push(Violation::UnknownReplica { replica });
                        continue;
                    };
                    let draining = matches!(existing.phase, Phase::Draining { .. });
                    if matches!(action, Action::Resume { .. }) && !draining {
                        self.found.push(Violation::ResumedNotDraining { replica: replica.clone() });
                    }
                    let hastened = matches!(action, Action::Remove { .. })
                        && matches!(existing.phase, Phase::Terminating { until_ms: Some(_) });
                    let leaving = existing.phase.is_terminating() || draining && matches!(action, Action::Drain { .. });
                    if leaving && !hastened && !reclaimed_sooner(d, existing, action) || !ended.insert(replica.clone())
                    {
                        self.found.push(Violation::EndedTwice { replica });
                    }
                }
            }
        }
    }

    fn placement(&mut self, replica: &ReplicaId, d: &Deployment, placement: &Placement) {
        let replica = replica.clone();
        if d.tenant.is_none() {
            self.found.push(Violation::NoTenant { replica: replica.clone() });
        }
        let Some(node) = self.nodes.get(placement.node.as_str()) else {
            let node = placement.node.clone();
            self.found.push(Violation::UnknownNode { replica, node });
            return;
        };
        let fresh = matches!(node.freshness, Freshness::Fresh { .. }) || placement.gpus.is_empty();
        if !node.ready || node.cordoned || !fresh {
            let node = node.name.clone();
            self.found.push(Violation::UnusableNode { replica: replica.clone(), node });
        }
        let uuids: BTreeSet<_> = placement.gpus.iter().map(|g| &g.uuid).collect();
        let wanted = d.variants.iter().find(|v| v.name == placement.variant).map(gpu_count);
        if uuids.len() != placement.gpus.len() || wanted != Some(uuids.len() as u32) {
            self.found.push(Violation::WrongGpus { replica: replica.clone() });
        }
        let mut islands = BTreeSet::new();
        for uuid in uuids {
            let Some(gpu) = self.gpu(&placement.node, uuid) else {
                let (replica, gpu) = (replica.clone(), uuid.clone());
                self.found.push(Violation::UnknownGpu { replica, gpu });
                continue;
            };
            islands.insert(gpu.island.as_ref().unwrap_or(&gpu.uuid));
            let asked = d.variants.iter().find(|v| v.name == placement.variant).and_then(partition);
            let promise = placement.gpus.iter().find(|s| &s.uuid == uuid).map(|s| &s.promise);
            if !asked.zip(promise).is_some_and(|(asked, promise)| is_a(gpu, asked, promise)) {
                let (replica, gpu) = (replica.clone(), uuid.clone());
                self.found.push(Violation::WrongPartition { replica, gpu });
            }
            if matches!(gpu.health, Health::Unhealthy { .. }) || gpu.class.is_none() {
                let (replica, gpu) = (replica.clone(), uuid.clone());
                self.found.push(Violation::UnusableGpu { replica, gpu });
            }
        }
        if islands.len() > 1 {
            self.found.push(Violation::SplitIsland { replica });
        }
    }

    /// Sums and neighbours of each GPU that the plan adds to.
    fn gpus(&mut self, plan: &'a Plan) {
        let mut added: BTreeMap<(&str, &str), Vec<Added<'_>>> = BTreeMap::new();
        let creates = self.creates(plan);
        for c in &creates {
            for share in &c.placement.gpus {
                let key = (c.placement.node.as_str(), share.uuid.as_str());
                added.entry(key).or_default().push((c, &share.promise));
            }
        }
        for ((node, uuid), shares) in added {
            let Some(gpu) = self.gpu(node, uuid) else { continue };
            let promises = || gpu.slices.iter().map(|s| &s.promise).chain(shares.iter().map(|s| s.1));
            let memory = promises().map(|p| p.memory_bytes).fold(0, u64::saturating_add);
            let sm = promises().map(|p| p.sm_percent).fold(0, u32::saturating_add);
            // What was promised before is not this plan's, also where the GPU has shrunk since.
            let adds_memory = shares.iter().any(|(_, promise)| promise.memory_bytes > 0);
            let adds_sm = shares.iter().any(|(_, promise)| promise.sm_percent > 0);
            let gpu_id = uuid.to_owned();
            if gpu.mig.is_some() {
                // What the profiles add up to in memory and SMs is the hardware's affair.
                if overlap(gpu, promises()) {
                    self.found.push(Violation::MigOverlap { gpu: gpu_id });
                }
                continue;
            }
            if memory > gpu.memory_bytes && adds_memory {
                let (promised, has) = (memory, gpu.memory_bytes);
                self.found.push(Violation::MemoryOverPromised { gpu: gpu_id.clone(), promised, has });
            }
            if sm > gpu.sm_percent && adds_sm {
                let (promised, has) = (sm, gpu.sm_percent);
                self.found.push(Violation::ComputeOverPromised { gpu: gpu_id.clone(), promised, has });
            }
            let soft =
                self.snapshot.classes.iter().any(|c| Some(&c.name) == gpu.class.as_ref() && c.allow_soft_sharing);
            let tenants: BTreeSet<_> = gpu
                .slices
                .iter()
                .map(|s| s.tenant.as_ref())
                .chain(shares.iter().map(|s| s.0.deployment.tenant.as_ref()))
                .collect();
            if !soft && tenants.len() > 1 {
                self.found.push(Violation::TenantsMixedOnGpu { gpu: gpu_id });
            }
        }
    }

    /// Only what is above a tenant's nominal quota is reclaimed.
    fn reclaimed(&mut self, plan: &'a Plan, held: &Held<'a>, uncharged: &BTreeSet<ReplicaId>) {
        let mut left = held.clone();
        let mut from: BTreeSet<(&TenantId, &str)> = BTreeSet::new();
        let reclaimed: BTreeSet<&ReplicaId> = plan
            .actions
            .iter()
            .filter_map(|a| match a {
                Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. } => {
                    (*reason == EndReason::Reclaimed).then_some(replica)
                }
                Action::Create { .. } | Action::Resume { .. } => None,
            })
            .collect();
        if reclaimed.is_empty() {
            return;
        }
        for gpu in self.snapshot.nodes.iter().flat_map(|n| &n.gpus) {
            for s in &gpu.slices {
                if let (Some(tenant), Some(class), SliceOwner::Replica(owner)) = (&s.tenant, &gpu.class, &s.owner)
                    && reclaimed.contains(owner)
                {
                    let sum = left.entry((tenant, class)).or_default();
                    let given = if uncharged.contains(owner) { 0 } else { charge(gpu, &s.promise) };
                    *sum = sum.saturating_sub(given);
                    from.insert((tenant, class));
                }
            }
        }
        for (tenant, class) in from {
            let left = left.get(&(tenant, class)).copied().unwrap_or(0);
            let of = self.snapshot.tenants.iter().find(|t| &t.id == tenant);
            let nominal = of.and_then(|t| quota(t, class)).map_or(0, |q| q.nominal_milli);
            if left < nominal {
                let (tenant, class) = (tenant.clone(), class.to_owned());
                self.found.push(Violation::ReclaimedNominal { tenant, class, left, nominal });
            }
        }
    }

    /// A tenant to which the plan adds stays within nominal quota and borrowing limit. What it held
    /// before may be above (quota was lowered); then nothing may be added. A replica that moves is counted where it
    /// goes.
    fn quotas(&mut self, plan: &'a Plan) {
        let mut held: Held<'a> = BTreeMap::new();
        let mut grows: BTreeSet<(&TenantId, &str)> = BTreeSet::new();
        let uncharged = self.uncharged();
        let counts = |owner: &SliceOwner| !matches!(owner, SliceOwner::Replica(id) if uncharged.contains(id));
        for gpu in self.snapshot.nodes.iter().flat_map(|n| &n.gpus) {
            for s in gpu.slices.iter().filter(|s| counts(&s.owner)) {
                if let (Some(tenant), Some(class)) = (&s.tenant, &gpu.class) {
                    add(&mut held, (tenant, class), charge(gpu, &s.promise));
                }
            }
        }
        let mut before = held.clone();
        self.reclaimed(plan, &before, &uncharged);
        for c in self.creates(plan) {
            for s in &c.placement.gpus {
                let gpu = self.gpu(&c.placement.node, &s.uuid);
                if let (Some(gpu), Some(tenant)) = (gpu, &c.deployment.tenant)
                    && let Some(class) = &gpu.class
                {
                    add(&mut held, (tenant, class), charge(gpu, &s.promise));
                    grows.insert((tenant, class));
                }
            }
            self.leaves(&c, &mut held);
            // What it leaves may be lent at once.
            self.leaves(&c, &mut before);
        }
        for (tenant, class) in &grows {
            let held = held[&(*tenant, *class)];
            let limit = self.limit(tenant, class);
            if held > limit {
                let (tenant, class) = ((*tenant).clone(), (*class).to_owned());
                self.found.push(Violation::QuotaExceeded { tenant, class, held, limit });
            }
        }
        self.cohorts(&before, &held, &grows);
    }

    /// A tenant that ends above its nominal quota and grew has borrowed, and the cohort must have had it to
    /// lend when the last of them did. By then the debts were as they are after the plan; members that
    /// stay within their nominal quota may have taken theirs later, so what they held before counts.
    fn cohorts(&mut self, before: &Held<'_>, after: &Held<'_>, grows: &BTreeSet<(&TenantId, &str)>) {
        let of = |held: &Held<'_>, tenant: &TenantId, class: &str| held.get(&(tenant, class)).copied().unwrap_or(0);
        let mut judged = BTreeSet::new();
        for (tenant, class) in grows {
            let Some(t) = self.snapshot.tenants.iter().find(|t| &t.id == *tenant) else { continue };
            let borrows = of(after, tenant, class) > quota(t, class).map_or(0, |q| q.nominal_milli);
            let Some(cohort) = t.cohort.as_ref().filter(|_| borrows) else { continue };
            if !judged.insert((cohort, class)) {
                continue;
            }
            let members = self.snapshot.tenants.iter().filter(|m| m.cohort.as_ref() == Some(cohort));
            let balance: i128 = members
                .map(|m| {
                    let nominal = i128::from(quota(m, class).map_or(0, |q| q.nominal_milli));
                    let debt = nominal - i128::from(of(after, &m.id, class));
                    if debt < 0 {
                        return debt;
                    }
                    let unused = nominal - i128::from(of(before, &m.id, class));
                    let lends = quota(m, class).and_then(|q| q.lending_limit_milli);
                    lends.map_or(unused, |limit| unused.min(limit.into()))
                })
                .sum();
            if balance < 0 {
                let missing = u64::try_from(-balance).unwrap_or(u64::MAX);
                self.found.push(Violation::CohortExhausted {
                    cohort: cohort.clone(),
                    class: (*class).to_owned(),
                    missing,
                });
            }
        }
    }

    /// Takes out what the created replica's predecessor holds, where it moves off a cordoned node or makes room.
    fn leaves(&self, c: &Created<'a>, held: &mut Held<'a>) {
        let of_slot =
            c.deployment.replicas.iter().filter(|r| {
                r.index == c.replica.index && r.spec_hash == c.deployment.spec_hash && r.phase == Phase::Ready
            });
        for old in of_slot {
            let node = old.placement.as_ref().and_then(|p| self.nodes.get(p.node.as_str()));
            let id = ReplicaId { incarnation: old.incarnation, ..c.replica.clone() };
            let owner = SliceOwner::Replica(id);
            let moves = c.reason == CreateReason::Move;
            for gpu in node.filter(|node| node.cordoned || moves).iter().flat_map(|node| &node.gpus) {
                for s in gpu.slices.iter().filter(|s| s.owner == owner) {
                    if let (Some(tenant), Some(class)) = (&s.tenant, &gpu.class)
                        && let Some(held) = held.get_mut(&(tenant, class.as_str()))
                    {
                        *held = held.saturating_sub(charge(gpu, &s.promise));
                    }
                }
            }
        }
    }

    fn limit(&self, tenant: &TenantId, class: &str) -> u64 {
        let Some(t) = self.snapshot.tenants.iter().find(|t| &t.id == tenant) else { return 0 };
        let Some(q) = quota(t, class) else { return 0 };
        let borrow = match &t.cohort {
            Some(_) => q.borrowing_limit_milli.unwrap_or(u64::MAX),
            None => 0,
        };
        q.nominal_milli.saturating_add(borrow)
    }

    fn nodes(&mut self, plan: &'a Plan) {
        let mut added: BTreeMap<&str, (u64, u64, u32)> = BTreeMap::new();
        for c in self.creates(plan) {
            let extra = c.deployment.variants.iter().find(|v| v.name == c.placement.variant);
            let (cpu, memory) = extra.map_or((0, 0), cpu_extra);
            let sum = added.entry(c.placement.node.as_str()).or_default();
            sum.0 = sum.0.saturating_add(c.deployment.needs.cpu_milli).saturating_add(cpu);
            sum.1 = sum.1.saturating_add(c.deployment.needs.memory_bytes).saturating_add(memory);
            sum.2 = sum.2.saturating_add(1);
        }
        for (name, (cpu, memory, pods)) in added {
            let Some(n) = self.nodes.get(name) else { continue };
            // Of what is over-committed already, only an ask of nothing more is allowed, as by the scheduler.
            let over = |used: u64, more: u64, has: u64| more > 0 && used.saturating_add(more) > has;
            let over = over(n.used.cpu_milli, cpu, n.allocatable.cpu_milli)
                || over(n.used.memory_bytes, memory, n.allocatable.memory_bytes)
                || over(n.used.pods.into(), pods.into(), n.allocatable.pods.into());
            if over {
                self.found.push(Violation::NodeOverCommitted { node: name.to_owned() });
            }
        }
    }
}

/// The pods that the plan ends, and why.
fn ending(plan: &Plan) -> BTreeMap<PodKey<'_>, EndReason> {
    let ends = plan.actions.iter().filter_map(|action| match action {
        Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. } => {
            Some(((&replica.deployment, replica.index, replica.incarnation), *reason))
        }
        Action::Create { .. } | Action::Resume { .. } => None,
    });
    ends.collect()
}

fn ends(action: &Action) -> bool {
    matches!(action, Action::Drain { .. } | Action::Remove { .. })
}

/// Whether the action is a reclaim that brings the end of what is on its way out forward.
fn reclaimed_sooner(d: &Deployment, existing: &Replica, action: &Action) -> bool {
    let Action::Drain { deadline_ms, reason: EndReason::Reclaimed, .. } = action else { return false };
    existing.phase.ends_ms(d.drain_timeout_ms).is_some_and(|end| *deadline_ms < end)
}

/// Charges by tenant and class, in thousandths of a GPU.
type Held<'a> = BTreeMap<(&'a TenantId, &'a str), u64>;

fn add<'a>(held: &mut Held<'a>, whose: (&'a TenantId, &'a str), x: u64) {
    let sum = held.entry(whose).or_default();
    *sum = sum.saturating_add(x);
}

fn quota<'a>(tenant: &'a Tenant, class: &str) -> Option<&'a Quota> {
    tenant.quotas.iter().find(|q| q.class == class)
}

fn gpu_count(v: &crate::snapshot::Variant) -> u32 {
    match &v.accelerator {
        crate::snapshot::Accelerator::Gpu { count, .. } => (*count).max(1),
        crate::snapshot::Accelerator::Cpu { .. } => 0,
    }
}

fn partition(v: &crate::snapshot::Variant) -> Option<&Partition> {
    match &v.accelerator {
        crate::snapshot::Accelerator::Gpu { partition, .. } => Some(partition),
        crate::snapshot::Accelerator::Cpu { .. } => None,
    }
}

/// Whether the promise is of the kind that is asked for, and one that the GPU has.
fn is_a(gpu: &Gpu, asked: &Partition, promise: &Promise) -> bool {
    match (asked, &gpu.mig, &promise.mig) {
        (Partition::Slice { memory_bytes, sm_percent }, None, None) => {
            promise.memory_bytes >= memory_bytes.unwrap_or(gpu.memory_bytes)
                && promise.sm_percent >= sm_percent.unwrap_or(gpu.sm_percent)
        }
        (Partition::Mig { profile }, Some(profiles), Some(device)) => profiles.iter().any(|p| {
            (&p.name, &p.name) == (profile, &device.profile)
                && p.starts.contains(&device.start)
                && (p.memory_bytes, p.sm_percent) == (promise.memory_bytes, promise.sm_percent)
        }),
        _ => false,
    }
}

/// Whether two of the promises take one memory slice, or one takes what no device of the GPU can have.
fn overlap<'a>(gpu: &Gpu, promises: impl Iterator<Item = &'a Promise>) -> bool {
    let mut taken = BTreeSet::new();
    for promise in promises {
        let Some(device) = &promise.mig else { return true };
        let profile = gpu.mig.iter().flatten().find(|p| p.name == device.profile);
        let Some(slices) = profile.map(|p| p.slices.min(1 << 10)) else { return true };
        if !(0..slices).all(|n| taken.insert(u64::from(device.start) + u64::from(n))) {
            return true;
        }
    }
    false
}

fn cpu_extra(v: &crate::snapshot::Variant) -> (u64, u64) {
    match &v.accelerator {
        crate::snapshot::Accelerator::Gpu { .. } => (0, 0),
        crate::snapshot::Accelerator::Cpu { cpu_milli, memory_bytes } => (*cpu_milli, *memory_bytes),
    }
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan breaks an invariant: {self:?}")
    }
}

//! For comparison: Kueue's admission and preemption, re-implemented from its documents, and best-fit placement.
//!
//! One queue per tenant in one cohort, BestEffortFIFO, `reclaimWithinCohort: Any`, no borrowing limits. Quota is of
//! GPUs in all: where they are is not its affair, so that an admitted pod may wait for a node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use stowage_planner::snapshot::*;

use crate::mixed::{World, charge};

#[derive(Default)]
pub struct Queues {
    admitted: BTreeMap<DeploymentId, Admitted>,
    admissions: u64,
}

#[derive(Clone)]
struct Admitted {
    tenant: usize,
    priority: i32,
    milli: u64,
    /// Counts the admissions.
    number: u64,
    placed: bool,
}

/// A workload that waits for quota.
struct Head {
    id: DeploymentId,
    tenant: usize,
    priority: i32,
    arrived_s: u64,
    milli: u64,
}

impl Queues {
    /// Admits what quota allows and places what a node takes. Returns the evictions.
    pub fn cycle(&mut self, world: &mut World) -> u32 {
        self.admitted.retain(|id, _| world.stays.contains_key(id));
        let evicted = self.admit(world);
        let mut unplaced: Vec<_> =
            self.admitted.iter().filter(|(_, a)| !a.placed).map(|(id, a)| (a.number, id.clone())).collect();
        unplaced.sort();
        for (_, id) in unplaced {
            if let Some(placement) = best_fit(&world.snapshot, &id) {
                let incarnation = world.stays[&id].incarnations;
                world.place(ReplicaId { deployment: id.clone(), index: 0, incarnation }, placement);
                self.admitted.entry(id).and_modify(|a| a.placed = true);
            }
        }
        evicted
    }

    fn nominal(world: &World, tenant: usize) -> u64 {
        world.snapshot.tenants[tenant].quotas[0].nominal_milli
    }

    fn used(&self, tenant: usize) -> u64 {
        self.admitted.values().filter(|a| a.tenant == tenant).map(|a| a.milli).sum()
    }

    /// What the cohort has left.
    fn unused(&self, world: &World) -> u64 {
        let all: u64 = (0..world.snapshot.tenants.len()).map(|t| Self::nominal(world, t)).sum();
        all.saturating_sub(self.admitted.values().map(|a| a.milli).sum())
    }

    fn admit(&mut self, world: &mut World) -> u32 {
        let mut evicted = 0;
        let mut set_aside: BTreeSet<DeploymentId> = BTreeSet::new();
        loop {
            let Some(head) = self.next_head(world, &set_aside) else { return evicted };
            let own = self.used(head.tenant) + head.milli <= Self::nominal(world, head.tenant);
            if head.milli > self.unused(world) {
                let victims = if own { self.victims(world, &head) } else { None };
                let Some(victims) = victims else {
                    set_aside.insert(head.id);
                    continue;
                };
                evicted += victims.len() as u32;
                for id in victims {
                    self.admitted.remove(&id);
                    world.evict(&id);
                }
            }
            self.admissions += 1;
            let Head { id, tenant, priority, milli, .. } = head;
            let admitted = Admitted { tenant, priority, milli, number: self.admissions, placed: false };
            self.admitted.insert(id, admitted);
        }
    }

    /// Of the first of each queue: those that do not borrow, then by priority and age.
    fn next_head(&self, world: &World, set_aside: &BTreeSet<DeploymentId>) -> Option<Head> {
        let waiting = world.stays.iter().filter(|(id, _)| !self.admitted.contains_key(id) && !set_aside.contains(id));
        let mut first: BTreeMap<usize, Head> = BTreeMap::new();
        for (id, s) in waiting {
            let head =
                Head { id: id.clone(), tenant: s.tenant, priority: s.priority, arrived_s: s.arrived_s, milli: s.milli };
            let order = |h: &Head| (Reverse(h.priority), h.arrived_s, h.id.clone());
            if first.get(&s.tenant).is_none_or(|other| order(&head) < order(other)) {
                first.insert(s.tenant, head);
            }
        }
        let borrows = |h: &Head| self.used(h.tenant) + h.milli > Self::nominal(world, h.tenant);
        first.into_values().min_by_key(|h| (borrows(h), Reverse(h.priority), h.arrived_s, h.id.clone()))
    }

    /// Workloads of borrowers, lowest priority and youngest first, until the head fits; less those that it fits without.
    fn victims(&self, world: &World, head: &Head) -> Option<Vec<DeploymentId>> {
        let mut used: Vec<u64> = (0..world.snapshot.tenants.len()).map(|t| self.used(t)).collect();
        let mut unused = self.unused(world);
        let mut candidates: Vec<_> = self.admitted.iter().filter(|(_, a)| a.tenant != head.tenant).collect();
        candidates.sort_by_key(|(id, a)| (a.priority, Reverse(a.number), (*id).clone()));
        let mut victims: Vec<(&DeploymentId, &Admitted)> = Vec::new();
        for (id, a) in candidates {
            if unused >= head.milli {
                break;
            }
            if used[a.tenant] > Self::nominal(world, a.tenant) {
                used[a.tenant] -= a.milli;
                unused += a.milli;
                victims.push((id, a));
            }
        }
        if unused < head.milli {
            return None;
        }
        for at in (0..victims.len()).rev() {
            if unused - victims[at].1.milli >= head.milli {
                unused -= victims[at].1.milli;
                victims.remove(at);
            }
        }
        Some(victims.into_iter().map(|(id, _)| id.clone()).collect())
    }
}

/// The node, the island and the GPU with the least left.
fn best_fit(s: &Snapshot, id: &DeploymentId) -> Option<Placement> {
    let d = s.deployments.iter().find(|d| &d.id == id)?;
    let Accelerator::Gpu { count, partition, .. } = &d.variants[0].accelerator else { return None };
    let mut best: Option<((u64, u64), Placement)> = None;
    for node in s.nodes.iter().filter(|n| n.used.cpu_milli + d.needs.cpu_milli <= n.allocatable.cpu_milli) {
        let left_on_node: u64 = node.gpus.iter().map(left).sum();
        for (left, gpus) in choices(node, *count as usize, partition) {
            let rank = (left, left_on_node);
            if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                best = Some((rank, Placement { node: node.name.clone(), variant: "only".to_owned(), gpus }));
            }
        }
    }
    best.map(|(_, placement)| placement)
}

fn left(gpu: &Gpu) -> u64 {
    1000u64.saturating_sub(gpu.slices.iter().map(|x| charge(&x.promise)).sum())
}

/// Ways to take so many GPUs of one node, with what is left on them before.
fn choices(node: &Node, count: usize, partition: &Partition) -> Vec<(u64, Vec<GpuShare>)> {
    let promise = |gpu: &Gpu| match (partition, &gpu.mig) {
        (Partition::Slice { memory_bytes, sm_percent }, None) => {
            let promise = Promise::slice(memory_bytes.unwrap_or(gpu.memory_bytes), sm_percent.unwrap_or(100));
            (charge(&promise) <= left(gpu)).then_some(promise)
        }
        (Partition::Mig { profile }, Some(profiles)) => {
            let profile = profiles.iter().find(|p| &p.name == profile)?;
            let start = profile.starts.iter().find(|start| is_free(gpu, profiles, **start, profile.slices))?;
            Some(Promise::device(profile, *start))
        }
        _ => None,
    };
    let mut islands: BTreeMap<&str, Vec<(u64, GpuShare)>> = BTreeMap::new();
    for gpu in &node.gpus {
        if let Some(promise) = promise(gpu) {
            let island = gpu.island.as_deref().unwrap_or(&gpu.uuid);
            islands.entry(island).or_default().push((left(gpu), GpuShare { uuid: gpu.uuid.clone(), promise }));
        }
    }
    if count == 1 {
        return islands.into_values().flatten().map(|(left, share)| (left, vec![share])).collect();
    }
    let enough = islands.into_values().filter(|of| of.len() >= count);
    enough.map(|of| (of.len() as u64, of.into_iter().take(count).map(|(_, share)| share).collect())).collect()
}

fn is_free(gpu: &Gpu, profiles: &[MigProfile], start: u32, slices: u32) -> bool {
    gpu.slices.iter().filter_map(|x| x.promise.mig.as_ref()).all(|device| {
        let taken = profiles.iter().find(|p| p.name == device.profile).map_or(8, |p| p.slices);
        device.start + taken <= start || start + slices <= device.start
    })
}

//! The working copy that placement takes from while a plan is made.
//!
//! Starts as the snapshot in a fixed order and only ever fills up: what a plan ends is not given away
//! by the same plan, because the slice is taken until its claim is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::snapshot::{
    Class, Deployment, DeploymentId, Exclusion, Freshness, Gpu, GpuShare, Health, Node, Placement, ReplicaId, Slice,
    SliceOwner, Snapshot, TenantId,
};

#[derive(Clone)]
pub(crate) struct World {
    /// By name; the GPUs of each by index.
    pub nodes: Vec<Node>,
    pub classes: BTreeMap<String, Class>,
    pub exclusions: Vec<Exclusion>,
    /// The distinct sizes of GPU in each class: few, however many GPUs there are.
    pub sizes: BTreeMap<String, BTreeSet<Size>>,
}

/// What a GPU can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    pub memory_bytes: u64,
    pub step_bytes: u64,
    pub sm_percent: u32,
}

impl World {
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut nodes = snapshot.nodes.clone();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        for node in &mut nodes {
            node.gpus.sort_by(|a, b| (a.index, &a.uuid).cmp(&(b.index, &b.uuid)));
        }
        let classes = snapshot.classes.iter().map(|c| (c.name.clone(), c.clone())).collect();
        let mut sizes: BTreeMap<String, BTreeSet<Size>> = BTreeMap::new();
        for gpu in nodes.iter().flat_map(|n| &n.gpus) {
            if let Some(class) = &gpu.class {
                match sizes.get_mut(class) {
                    Some(known) => drop(known.insert(size(gpu))),
                    None => drop(sizes.insert(class.clone(), BTreeSet::from([size(gpu)]))),
                }
            }
        }
        World { nodes, classes, exclusions: snapshot.exclusions.clone(), sizes }
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        let at = self.nodes.binary_search_by(|n| n.name.as_str().cmp(name)).ok()?;
        Some(&self.nodes[at])
    }

    /// Age of the data of a node; `None`: no such node, or it never reported.
    pub fn age_ms(&self, node: &str) -> Option<u64> {
        match self.node(node)?.freshness {
            Freshness::Fresh { age_ms } | Freshness::Stale { age_ms } => Some(age_ms),
            Freshness::Missing => None,
        }
    }

    /// All slices with the GPU that they are on.
    pub fn slices(&self) -> impl Iterator<Item = (&Gpu, &Slice)> {
        self.nodes.iter().flat_map(|n| &n.gpus).flat_map(|g| g.slices.iter().map(move |s| (g, s)))
    }

    /// Takes what a new replica is promised.
    pub fn take(
        &mut self,
        d: &Deployment,
        replica: &ReplicaId,
        placement: &Placement,
        cpu_milli: u64,
        memory_bytes: u64,
    ) {
        let Some(node) = self.nodes.iter_mut().find(|n| n.name == placement.node) else { return };
        node.used.cpu_milli += cpu_milli;
        node.used.memory_bytes += memory_bytes;
        node.used.pods += 1;
        node.host_ports.extend(&d.needs.host_ports);
        for share in &placement.gpus {
            if let Some(gpu) = node.gpus.iter_mut().find(|g| g.uuid == share.uuid) {
                gpu.slices.push(Slice {
                    owner: SliceOwner::Replica(replica.clone()),
                    tenant: d.tenant.clone(),
                    memory_bytes: share.memory_bytes,
                    sm_percent: share.sm_percent,
                    isolation: d.isolation,
                });
            }
        }
    }
}

fn size(gpu: &Gpu) -> Size {
    Size { memory_bytes: gpu.memory_bytes, step_bytes: gpu.memory_step_bytes, sm_percent: gpu.sm_percent }
}

impl Size {
    /// What is promised for an ask: omitted is whole, memory is rounded up to the step.
    pub fn promise(&self, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> (u64, u32) {
        let step = self.step_bytes.max(1);
        let rounded = |m: u64| m.div_ceil(step).saturating_mul(step).max(step);
        let memory = memory_bytes.map_or(self.memory_bytes, rounded);
        (memory, sm_percent.map_or(self.sm_percent, |s| s.max(1)))
    }

    /// What a slice costs: the larger of its two shares, in milli-GPU, rounded up. A GPU without
    /// memory or SMs costs a whole one.
    pub fn charge(&self, memory_bytes: u64, sm_percent: u32) -> u64 {
        let share = |part: u64, whole: u64| {
            if whole == 0 { 1000 } else { (u128::from(part) * 1000).div_ceil(whole.into()) as u64 }
        };
        share(memory_bytes, self.memory_bytes).max(share(sm_percent.into(), self.sm_percent.into()))
    }
}

/// [`Size::charge`] on one GPU.
pub(crate) fn charge(gpu: &Gpu, memory_bytes: u64, sm_percent: u32) -> u64 {
    size(gpu).charge(memory_bytes, sm_percent)
}

pub(crate) fn promised(gpu: &Gpu) -> (u64, u32) {
    gpu.slices.iter().fold((0, 0), |(memory, sm), s| {
        (u64::saturating_add(memory, s.memory_bytes), u32::saturating_add(sm, s.sm_percent))
    })
}

pub(crate) fn free(gpu: &Gpu) -> (u64, u32) {
    let (memory, sm) = promised(gpu);
    (gpu.memory_bytes.saturating_sub(memory), gpu.sm_percent.saturating_sub(sm))
}

/// Free thousandths as the packing score sees them; nothing is free on a GPU that may not be used.
pub(crate) fn free_milli(gpu: &Gpu) -> i64 {
    if matches!(gpu.health, Health::Unhealthy { .. }) || gpu.class.is_none() {
        return 0;
    }
    let (memory, sm) = promised(gpu);
    1000 - (charge(gpu, memory, sm).min(1000) as i64)
}

/// [`Size::promise`] on one GPU.
pub(crate) fn share_on(gpu: &Gpu, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> GpuShare {
    let (memory_bytes, sm_percent) = size(gpu).promise(memory_bytes, sm_percent);
    GpuShare { uuid: gpu.uuid.clone(), memory_bytes, sm_percent }
}

pub(crate) fn owned_by<'a>(slice: &'a Slice, d: &DeploymentId) -> Option<&'a ReplicaId> {
    match &slice.owner {
        SliceOwner::Replica(r) if &r.deployment == d => Some(r),
        _ => None,
    }
}

pub(crate) fn stranger(slice: &Slice, tenant: Option<&TenantId>) -> bool {
    slice.tenant.is_none() || slice.tenant.as_ref() != tenant
}

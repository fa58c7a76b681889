//! Stage three, first half: which nodes, and which GPUs on them, could take one replica.
//!
//! Filters are hard. A node that does not fit is refused with the reason nearest to success: of its
//! GPUs the one that came furthest speaks for all. Not here: which of those that fit is best
//! (`choose`).

use std::collections::BTreeMap;

use crate::place::verdict::{Ask, IsolationRule, Refusal};
use crate::snapshot::world::{World, free, share_on, stranger};
use crate::snapshot::{
    Accelerator, Deployment, Freshness, Gpu, GpuShare, Health, Isolation, Node, SliceOwner, Taint, TaintEffect, TimeMs,
    Variant,
};

/// One GPU that could hold a share of the replica.
pub(crate) struct Usable {
    /// Position in the node's list.
    pub at: usize,
    pub share: GpuShare,
    pub degraded: bool,
}

/// GPUs by island, each large enough; the only one, empty, if no GPU is needed.
pub(crate) type Islands = Vec<Vec<Usable>>;

pub(crate) fn ask(d: &Deployment, v: &Variant) -> Ask {
    let base = Ask {
        variant: v.name.clone(),
        class: None,
        gpus: 0,
        memory_bytes: None,
        sm_percent: None,
        cpu_milli: d.needs.cpu_milli,
        node_memory_bytes: d.needs.memory_bytes,
    };
    match &v.accelerator {
        Accelerator::Gpu { class, count, memory_bytes, sm_percent } => Ask {
            class: Some(class.clone()),
            gpus: (*count).max(1),
            memory_bytes: *memory_bytes,
            sm_percent: *sm_percent,
            ..base
        },
        Accelerator::Cpu { cpu_milli, memory_bytes } => Ask {
            cpu_milli: base.cpu_milli.saturating_add(*cpu_milli),
            node_memory_bytes: base.node_memory_bytes.saturating_add(*memory_bytes),
            ..base
        },
    }
}

/// Everything about one replica that the filters look at.
pub(crate) struct Seeker<'a> {
    pub deployment: &'a Deployment,
    pub index: u32,
    pub ask: &'a Ask,
    pub now: TimeMs,
}

impl Seeker<'_> {
    pub fn fit(&self, world: &World, node: &Node) -> Result<Islands, Refusal> {
        self.has_class(node)?;
        self.node_is_usable(node)?;
        self.admitted(node)?;
        self.not_excluded(world, node)?;
        self.node_isolation(node)?;
        let islands = self.gpus(world, node)?;
        self.node_has_room(node)?;
        Ok(islands)
    }

    fn has_class(&self, node: &Node) -> Result<(), Refusal> {
        let Some(class) = &self.ask.class else { return Ok(()) };
        if node.gpus.iter().any(|g| g.class.as_ref() == Some(class)) {
            return Ok(());
        }
        if node.gpus.is_empty() && node.freshness == Freshness::Missing {
            return Err(Refusal::NoData);
        }
        let mut have: Vec<String> =
            node.gpus.iter().map(|g| g.class.clone().unwrap_or_else(|| g.product.clone())).collect();
        have.sort();
        have.dedup();
        Err(Refusal::NoSuchClass { have })
    }

    fn node_is_usable(&self, node: &Node) -> Result<(), Refusal> {
        match node.freshness {
            _ if !node.ready => Err(Refusal::NotReady),
            _ if node.cordoned => Err(Refusal::Cordoned),
            // A CPU replica needs nothing that the agent reports.
            _ if self.ask.class.is_none() => Ok(()),
            Freshness::Stale { age_ms } => Err(Refusal::Stale { age_ms }),
            Freshness::Missing => Err(Refusal::NoData),
            Freshness::Fresh { .. } => Ok(()),
        }
    }

    fn admitted(&self, node: &Node) -> Result<(), Refusal> {
        for (key, want) in &self.deployment.node_selector {
            let have = node.labels.get(key);
            if have != Some(want) {
                let (key, want) = (key.clone(), want.clone());
                return Err(Refusal::Selector { key, want, have: have.cloned() });
            }
        }
        match node.taints.iter().find(|t| repels(t, self.deployment)) {
            Some(t) => Err(Refusal::Taint { key: t.key.clone(), value: t.value.clone() }),
            None => Ok(()),
        }
    }

    fn not_excluded(&self, world: &World, node: &Node) -> Result<(), Refusal> {
        let excluded = world
            .exclusions
            .iter()
            .filter(|e| e.deployment == self.deployment.id && e.index == self.index)
            .filter(|e| e.node == node.name && e.until_ms > self.now)
            .max_by_key(|e| (e.until_ms, &e.reason));
        match excluded {
            Some(e) => Err(Refusal::Excluded { until_ms: e.until_ms, message: e.reason.clone() }),
            None => Ok(()),
        }
    }

    fn node_isolation(&self, node: &Node) -> Result<(), Refusal> {
        let own = self.deployment.isolation == Isolation::DedicatedNode;
        for slice in node.gpus.iter().flat_map(|g| &g.slices) {
            if !stranger(slice, self.deployment.tenant.as_ref()) {
                continue;
            }
            let rule = match slice.isolation {
                Isolation::DedicatedNode => IsolationRule::TheirIsolation,
                _ if own => IsolationRule::OwnIsolation,
                _ => continue,
            };
            return Err(Refusal::OtherTenant { gpu: None, tenant: slice.tenant.clone(), rule });
        }
        Ok(())
    }

    fn gpus(&self, world: &World, node: &Node) -> Result<Islands, Refusal> {
        if self.ask.class.is_none() {
            return Ok(vec![Vec::new()]);
        }
        let need = self.ask.gpus;
        let mut islands: BTreeMap<&str, Vec<Usable>> = BTreeMap::new();
        let mut nearest: Option<(u8, u64, Refusal)> = None;
        for (at, gpu) in node.gpus.iter().enumerate() {
            match self.gpu(world, gpu) {
                Ok(share) => {
                    let degraded = matches!(gpu.health, Health::Degraded { .. });
                    let island = gpu.island.as_deref().unwrap_or(&gpu.uuid);
                    islands.entry(island).or_default().push(Usable { at, share, degraded });
                }
                Err(near) => {
                    if nearest.as_ref().is_none_or(|n| (near.0, near.1) > (n.0, n.1)) {
                        nearest = Some(near);
                    }
                }
            }
        }
        let largest = islands.values().map(Vec::len).max().unwrap_or(0) as u32;
        if largest >= need {
            return Ok(islands.into_values().filter(|i| i.len() as u32 >= need).collect());
        }
        match nearest {
            Some((_, _, refusal)) if largest == 0 => Err(refusal),
            _ => Err(Refusal::Island { need, largest }),
        }
    }

    /// The share that this GPU would promise, or how far it came: (stage, how near), and why not.
    fn gpu(&self, world: &World, gpu: &Gpu) -> Result<GpuShare, (u8, u64, Refusal)> {
        if gpu.class != self.ask.class {
            return Err((0, 0, Refusal::NoSuchClass { have: gpu.class.iter().cloned().collect() }));
        }
        if let Health::Unhealthy { reason } = &gpu.health {
            let (gpu, message) = (gpu.uuid.clone(), reason.clone());
            return Err((1, 0, Refusal::Unhealthy { gpu, message }));
        }
        let share = share_on(gpu, self.ask.memory_bytes, self.ask.sm_percent);
        let (memory, sm) = free(gpu);
        if let Some(refusal) = self.neighbours(world, gpu) {
            return Err((2, memory, refusal));
        }
        let uuid = gpu.uuid.clone();
        if share.memory_bytes > memory {
            let need_bytes = share.memory_bytes;
            return Err((3, memory, Refusal::Memory { need_bytes, free_bytes: memory, gpu: uuid }));
        }
        if share.sm_percent > sm {
            let need_percent = share.sm_percent;
            return Err((4, sm.into(), Refusal::Compute { need_percent, free_percent: sm, gpu: uuid }));
        }
        Ok(share)
    }

    fn neighbours(&self, world: &World, gpu: &Gpu) -> Option<Refusal> {
        let soft = gpu.class.as_ref().and_then(|c| world.classes.get(c)).is_some_and(|c| c.allow_soft_sharing);
        let d = self.deployment;
        for slice in &gpu.slices {
            let same = matches!(&slice.owner, SliceOwner::Replica(r) if r.deployment == d.id);
            let rule = if !same && slice.isolation == Isolation::DedicatedGpu {
                IsolationRule::TheirIsolation
            } else if !same && d.isolation == Isolation::DedicatedGpu {
                IsolationRule::OwnIsolation
            } else if !soft && stranger(slice, d.tenant.as_ref()) {
                IsolationRule::SoftSharingNotAllowed
            } else {
                continue;
            };
            let gpu = Some(gpu.uuid.clone());
            return Some(Refusal::OtherTenant { gpu, tenant: slice.tenant.clone(), rule });
        }
        None
    }

    fn node_has_room(&self, node: &Node) -> Result<(), Refusal> {
        let (have, used) = (&node.allocatable, &node.used);
        let cpu = have.cpu_milli.saturating_sub(used.cpu_milli);
        if self.ask.cpu_milli > cpu {
            return Err(Refusal::NodeCpu { need_milli: self.ask.cpu_milli, free_milli: cpu });
        }
        let memory = have.memory_bytes.saturating_sub(used.memory_bytes);
        if self.ask.node_memory_bytes > memory {
            let need_bytes = self.ask.node_memory_bytes;
            return Err(Refusal::NodeMemory { need_bytes, free_bytes: memory });
        }
        if used.pods >= have.pods {
            return Err(Refusal::NodePods { limit: have.pods });
        }
        let ports = &self.deployment.needs.host_ports;
        match ports.iter().find(|p| node.host_ports.contains(p)) {
            Some(port) => Err(Refusal::HostPort { port: *port }),
            None => Ok(()),
        }
    }
}

fn repels(taint: &Taint, d: &Deployment) -> bool {
    if taint.effect == TaintEffect::PreferNoSchedule {
        return false;
    }
    !d.tolerations.iter().any(|t| {
        t.key.as_ref().is_none_or(|k| k == &taint.key)
            && t.value.as_ref().is_none_or(|v| v == &taint.value)
            && t.effect.is_none_or(|e| e == taint.effect)
    })
}

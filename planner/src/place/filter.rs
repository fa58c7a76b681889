//! Stage three, first half: which nodes, and which GPUs on them, could take one replica.
//!
//! Filters are hard. A node that does not fit is refused with the reason nearest to success: of its
//! GPUs the one that came furthest speaks for all. Not here: which of those that fit is best
//! (`choose`).

use std::collections::BTreeMap;

use crate::place::verdict::{IsolationRule, Refusal};
use crate::snapshot::index::mig::profile;
use crate::snapshot::index::{ClassAt, GpuRow, Index, Resident, Row, Usability, charge, promise_on};
use crate::snapshot::{
    Accelerator, Deployment, Freshness, Health, Isolation, Partition, Promise, Taint, TaintEffect, Toleration, Variant,
};

/// Everything about one replica that the filters and the score look at, exclusions and model aside.
/// Equal needs fit the same nodes and rank them equally.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Need {
    /// `None`: CPU only.
    pub class: Option<ClassAt>,
    /// At least 1 with a class, otherwise 0.
    pub gpus: u32,
    /// Of each GPU.
    pub partition: Partition,
    pub cpu_milli: u64,
    pub node_memory_bytes: u64,
    pub ports: Vec<u16>,
    pub selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub isolation: Isolation,
    /// Where filters distinguish tenants; otherwise `None`.
    pub tenant: Option<usize>,
    /// Its deployment, where slices may be dedicated to one; otherwise `None`.
    pub deployment: Option<usize>,
    /// Some variant exists for every class, so that the scarce ones are kept for others.
    pub flexible: bool,
    /// A trial: as if the class allowed soft sharing.
    pub assume_soft: bool,
}

impl Need {
    pub fn new(index: &mut Index, d: &Deployment, v: &Variant, flexible: bool) -> Self {
        let (class, gpus, partition, cpu, memory) = match &v.accelerator {
            Accelerator::Gpu { class, count, partition } => {
                (index.class(class), (*count).max(1), partition.clone(), 0, 0)
            }
            Accelerator::Cpu { cpu_milli, memory_bytes } => (None, 0, Partition::WHOLE, *cpu_milli, *memory_bytes),
        };
        let tenant = d.tenant.as_ref().map(|t| index.tenant(t)).filter(|_| index.tenants_matter());
        let number = index.deployment(&d.id);
        let deployment = index.dedicates(number, d.isolation).then_some(number);
        Need {
            class,
            gpus,
            partition,
            cpu_milli: d.needs.cpu_milli.saturating_add(cpu),
            node_memory_bytes: d.needs.memory_bytes.saturating_add(memory),
            ports: d.needs.host_ports.clone(),
            selector: d.node_selector.clone(),
            tolerations: d.tolerations.clone(),
            isolation: d.isolation,
            tenant,
            deployment,
            flexible,
            assume_soft: false,
        }
    }

    /// Empty: it asks for no MIG device.
    fn mig_profile(&self) -> String {
        match &self.partition {
            Partition::Mig { profile } => profile.clone(),
            Partition::Slice { .. } => String::new(),
        }
    }
}

/// One GPU that could hold a share of the replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usable {
    /// Position in the node's list.
    pub at: usize,
    /// What it would be charged, in thousandths of this GPU.
    pub milli: i64,
    pub degraded: bool,
}

/// GPUs by island, each large enough; the only one, empty, if no GPU is needed.
pub(crate) type Islands = Vec<Vec<Usable>>;

/// Why a node does not fit, as numbers; [`Refused::spell`] makes a [`Refusal`] of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotReady,
    Cordoned,
    Stale,
    NoData,
    /// Position in the selector.
    Selector(usize),
    /// Position in the node's taints.
    Taint(usize),
    NoSuchClass,
    Unhealthy {
        gpu: usize,
    },
    OtherTenant {
        gpu: Option<usize>,
        tenant: Option<usize>,
        rule: IsolationRule,
    },
    Memory {
        need: u64,
        free: u64,
        gpu: usize,
    },
    Compute {
        need: u32,
        free: u32,
        gpu: usize,
    },
    Island {
        need: u32,
        largest: u32,
    },
    /// A slice is asked for, and the GPU is in MIG mode.
    InMigMode {
        gpu: usize,
    },
    /// The GPU has no such MIG device, whatever is taken of it.
    NoMigProfile {
        gpu: usize,
    },
    MigSlices {
        gpu: usize,
    },
    NodeCpu,
    NodeMemory,
    NodePods,
    HostPort(u16),
}

/// The GPUs that could be used, or why the node cannot take the replica.
pub(crate) fn fit(need: &Need, row: &Row, index: &Index) -> Result<Islands, Refused> {
    has_class(need, row)?;
    node_is_usable(need, row)?;
    admitted(need, row)?;
    node_isolation(need, row)?;
    let islands = gpus(need, row, index)?;
    node_has_room(need, row)?;
    Ok(islands)
}

/// Whether the node could take such a replica whatever stands on it.
pub(crate) fn could_fit(need: &Need, row: &Row) -> bool {
    let of_class = |gpu: &&GpuRow| gpu.class == need.class && gpu.usable != Usability::Unhealthy;
    let gpus = || row.taken.gpus.iter().filter(of_class).count();
    let enough = need.class.is_none() || gpus() >= need.gpus as usize;
    enough && node_is_usable(need, row).is_ok() && is_admitted(need, row)
}

/// Whether selector and tolerations let the replica onto the node.
pub(crate) fn is_admitted(need: &Need, row: &Row) -> bool {
    admitted(need, row).is_ok()
}

fn has_class(need: &Need, row: &Row) -> Result<(), Refused> {
    if need.class.is_none() || row.taken.gpus.iter().any(|g| g.class == need.class) {
        return Ok(());
    }
    let unknown = row.node.gpus.is_empty() && row.node.freshness == Freshness::Missing;
    Err(if unknown { Refused::NoData } else { Refused::NoSuchClass })
}

fn node_is_usable(need: &Need, row: &Row) -> Result<(), Refused> {
    match row.node.freshness {
        _ if !row.node.ready => Err(Refused::NotReady),
        _ if row.node.cordoned => Err(Refused::Cordoned),
        // A CPU replica needs nothing that the agent reports.
        _ if need.class.is_none() => Ok(()),
        Freshness::Stale { .. } => Err(Refused::Stale),
        Freshness::Missing => Err(Refused::NoData),
        Freshness::Fresh { .. } => Ok(()),
    }
}

fn admitted(need: &Need, row: &Row) -> Result<(), Refused> {
    if let Some(at) = need.selector.iter().position(|(key, want)| row.node.labels.get(key) != Some(want)) {
        return Err(Refused::Selector(at));
    }
    match row.node.taints.iter().position(|t| repels(t, &need.tolerations)) {
        Some(at) => Err(Refused::Taint(at)),
        None => Ok(()),
    }
}

fn node_isolation(need: &Need, row: &Row) -> Result<(), Refused> {
    let own = need.isolation == Isolation::DedicatedNode;
    for resident in row.taken.gpus.iter().flat_map(|g| &g.residents).filter(|r| r.is_of_other(need.tenant)) {
        let rule = match resident.isolation {
            Isolation::DedicatedNode => IsolationRule::TheirIsolation,
            _ if own => IsolationRule::OwnIsolation,
            _ => continue,
        };
        return Err(Refused::OtherTenant { gpu: None, tenant: resident.tenant, rule });
    }
    Ok(())
}

fn gpus(need: &Need, row: &Row, index: &Index) -> Result<Islands, Refused> {
    if need.class.is_none() {
        return Ok(vec![Vec::new()]);
    }
    let mut islands: Islands = Vec::new();
    let mut nearest: Option<(u8, u64, Refused)> = None;
    for (at, gpu) in row.taken.gpus.iter().enumerate() {
        match one_gpu(need, row, index, at, gpu) {
            Ok(usable) => {
                if islands.len() <= gpu.island {
                    islands.resize_with(gpu.island + 1, Vec::new);
                }
                islands[gpu.island].push(usable);
            }
            Err(near) => {
                if nearest.as_ref().is_none_or(|n| (near.0, near.1) > (n.0, n.1)) {
                    nearest = Some(near);
                }
            }
        }
    }
    let mut largest = islands.iter().map(Vec::len).max().unwrap_or(0) as u32;
    if matches!(need.partition, Partition::Mig { .. }) {
        // A process sees one MIG device, and no two of them are linked.
        largest = largest.min(1);
    }
    if largest >= need.gpus {
        islands.retain(|i| i.len() as u32 >= need.gpus);
        return Ok(islands);
    }
    match nearest {
        Some((_, _, refused)) if largest == 0 => Err(refused),
        _ => Err(Refused::Island { need: need.gpus, largest }),
    }
}

/// Whether this GPU could be used, or how far it came: (stage, how near), and why not.
fn one_gpu(need: &Need, row: &Row, index: &Index, at: usize, gpu: &GpuRow) -> Result<Usable, (u8, u64, Refused)> {
    if gpu.class != need.class {
        return Err((0, 0, Refused::NoSuchClass));
    }
    if gpu.usable == Usability::Unhealthy {
        return Err((1, 0, Refused::Unhealthy { gpu: at }));
    }
    let device = &row.node.gpus[at];
    let partition = match (&need.partition, &gpu.mig) {
        (Partition::Slice { .. }, Some(_)) => Err(Refused::InMigMode { gpu: at }),
        (Partition::Mig { profile }, mig) if !mig.as_ref().is_some_and(|m| m.layout.offers(profile)) => {
            Err(Refused::NoMigProfile { gpu: at })
        }
        _ => promise_on(device, &need.partition, 0).ok_or(Refused::NoMigProfile { gpu: at }),
    };
    let promise = partition.map_err(|refused| (1, 1, refused))?;
    if let Some(refused) = neighbours(need, index, at, gpu) {
        return Err((2, gpu.free_bytes, refused));
    }
    has_room(need, gpu, &promise, at)?;
    let milli = charge(device, &promise).min(1 << 50) as i64;
    Ok(Usable { at, milli, degraded: gpu.usable == Usability::Degraded })
}

fn has_room(need: &Need, gpu: &GpuRow, promise: &Promise, at: usize) -> Result<(), (u8, u64, Refused)> {
    if let (Partition::Mig { profile }, Some(mig)) = (&need.partition, &gpu.mig) {
        let none = mig.layout.places(profile, mig.taken).next().is_none();
        return if none { Err((3, mig.free_slices().into(), Refused::MigSlices { gpu: at })) } else { Ok(()) };
    }
    let (memory, sm) = (promise.memory_bytes, promise.sm_percent);
    if memory > gpu.free_bytes {
        return Err((3, gpu.free_bytes, Refused::Memory { need: memory, free: gpu.free_bytes, gpu: at }));
    }
    if sm > gpu.free_sm {
        return Err((4, gpu.free_sm.into(), Refused::Compute { need: sm, free: gpu.free_sm, gpu: at }));
    }
    Ok(())
}

fn neighbours(need: &Need, index: &Index, at: usize, gpu: &GpuRow) -> Option<Refused> {
    // MIG devices are apart in hardware.
    let soft = need.assume_soft || gpu.mig.is_some() || gpu.class.is_some_and(|c| index.classes()[c].soft);
    let rule = |r: &Resident| {
        let own = need.deployment.is_some() && r.owner.map(|o| o.deployment) == need.deployment;
        if !own && r.isolation == Isolation::DedicatedGpu {
            Some(IsolationRule::TheirIsolation)
        } else if !own && need.isolation == Isolation::DedicatedGpu {
            Some(IsolationRule::OwnIsolation)
        } else if !soft && r.is_of_other(need.tenant) {
            Some(IsolationRule::SoftSharingNotAllowed)
        } else {
            None
        }
    };
    gpu.residents.iter().find_map(|r| {
        let rule = rule(r)?;
        Some(Refused::OtherTenant { gpu: Some(at), tenant: r.tenant, rule })
    })
}

fn node_has_room(need: &Need, row: &Row) -> Result<(), Refused> {
    if need.cpu_milli > row.cpu_free() {
        return Err(Refused::NodeCpu);
    }
    if need.node_memory_bytes > row.memory_free() {
        return Err(Refused::NodeMemory);
    }
    if !row.has_pod_slot() {
        return Err(Refused::NodePods);
    }
    match need.ports.iter().find(|p| row.taken.ports.contains(p)) {
        Some(port) => Err(Refused::HostPort(*port)),
        None => Ok(()),
    }
}

pub(super) fn repels(taint: &Taint, tolerations: &[Toleration]) -> bool {
    if taint.effect == TaintEffect::PreferNoSchedule {
        return false;
    }
    !tolerations.iter().any(|t| {
        t.key.as_ref().is_none_or(|k| k == &taint.key)
            && t.value.as_ref().is_none_or(|v| v == &taint.value)
            && t.effect.is_none_or(|e| e == taint.effect)
    })
}

/// MIG profiles of one GPU.
fn offered(row: &Row, gpu: usize) -> Vec<String> {
    row.node.gpus[gpu].mig.iter().flatten().map(|p| p.name.clone()).collect()
}

impl Refused {
    /// The refusal of this node in full, with names.
    pub fn spell(self, need: &Need, row: &Row, index: &Index) -> Refusal {
        let uuid = |at: usize| row.node.gpus.get(at).map(|g| g.uuid.clone()).unwrap_or_default();
        match self {
            Refused::NotReady => Refusal::NotReady,
            Refused::Cordoned => Refusal::Cordoned,
            Refused::Stale => match row.node.freshness {
                Freshness::Stale { age_ms } | Freshness::Fresh { age_ms } => Refusal::Stale { age_ms },
                Freshness::Missing => Refusal::NoData,
            },
            Refused::NoData => Refusal::NoData,
            Refused::Selector(at) => {
                let (key, want) = need.selector.iter().nth(at).map(|(k, w)| (k.clone(), w.clone())).unwrap_or_default();
                let have = row.node.labels.get(&key).cloned();
                Refusal::Selector { key, want, have }
            }
            Refused::Taint(at) => {
                let taint = row.node.taints.get(at);
                let (key, value) = taint.map(|t| (t.key.clone(), t.value.clone())).unwrap_or_default();
                Refusal::Taint { key, value }
            }
            Refused::NoSuchClass => {
                let name = |g: &crate::snapshot::Gpu| g.class.clone().unwrap_or_else(|| g.product.clone());
                let mut have: Vec<String> = row.node.gpus.iter().map(name).collect();
                have.sort();
                have.dedup();
                Refusal::NoSuchClass { have }
            }
            Refused::Unhealthy { gpu } => {
                let message = match row.node.gpus.get(gpu).map(|g| &g.health) {
                    Some(Health::Unhealthy { reason }) => reason.clone(),
                    _ => String::new(),
                };
                Refusal::Unhealthy { gpu: uuid(gpu), message }
            }
            Refused::OtherTenant { gpu, tenant, rule } => {
                let tenant = tenant.and_then(|t| index.tenant_name(t)).cloned();
                Refusal::OtherTenant { gpu: gpu.map(uuid), tenant, rule }
            }
            Refused::Memory { need, free, gpu } => {
                Refusal::Memory { need_bytes: need, free_bytes: free, gpu: uuid(gpu) }
            }
            Refused::Compute { need, free, gpu } => {
                Refusal::Compute { need_percent: need, free_percent: free, gpu: uuid(gpu) }
            }
            Refused::Island { need, largest } => Refusal::Island { need, largest },
            Refused::InMigMode { gpu } => Refusal::InMigMode { gpu: uuid(gpu), offered: offered(row, gpu) },
            Refused::NoMigProfile { gpu } => {
                Refusal::NoMigProfile { profile: need.mig_profile(), gpu: uuid(gpu), offered: offered(row, gpu) }
            }
            Refused::MigSlices { gpu } => {
                let wanted = profile(&row.node.gpus[gpu], &need.mig_profile());
                let mig = row.taken.gpus[gpu].mig.as_ref();
                Refusal::MigSlices {
                    profile: need.mig_profile(),
                    need_slices: wanted.map_or(0, |p| p.slices),
                    free_slices: mig.map_or(0, |m| m.free_slices()),
                    gpu: uuid(gpu),
                }
            }
            Refused::NodeCpu => Refusal::NodeCpu { need_milli: need.cpu_milli, free_milli: row.cpu_free() },
            Refused::NodeMemory => {
                Refusal::NodeMemory { need_bytes: need.node_memory_bytes, free_bytes: row.memory_free() }
            }
            Refused::NodePods => Refusal::NodePods { limit: row.node.allocatable.pods },
            Refused::HostPort(port) => Refusal::HostPort { port },
        }
    }
}

//! The working copy of the cluster that a plan takes from, and can give back to.
//!
//! Built from a snapshot in a fixed order, and changed to follow the next one ([`Index::follow`]) where little
//! differs. Everything that is compared often is a number: class, tenant and deployment names are interned. Two nodes that no filter and no score distinguishes have
//! the same *state*, so that a ranking looks at each state once, however many nodes share it.
//! [`Index::mark`] and [`Index::rollback`] undo changes in reverse order, so that a trial costs what it
//! touches and not a copy of the cluster.
//!
//! A plan does not free what it ends: the slice is taken until its claim is gone.

mod follow;
pub(crate) mod mig;
mod size;
mod state;
mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mig::{Layout, MigRow};
pub(crate) use size::{Size, charge, promise_on, share_on};
use trial::Undo;
pub(crate) use trial::{ANOTHER, Mark};

use crate::snapshot::{
    Class, DeploymentId, Exclusion, Freshness, Gpu, GpuShare, Health, Isolation, MigProfile, ModelKey, Node, Promise,
    ReplicaId, Shared, Slice, SliceOwner, Snapshot, TenantId, TimeMs,
};

/// Position of a node; nodes are sorted by name.
pub(crate) type NodeAt = usize;
/// Number of a class, in the order of names.
pub(crate) type ClassAt = usize;
/// Number of a node state, see [`Index::state`].
pub(crate) type StateAt = usize;

pub(crate) struct Index {
    rows: Vec<Row>,
    /// Rows of the snapshot by name; later ones were added by a trial.
    names: HashMap<String, NodeAt>,
    /// As in the snapshot.
    given_classes: Vec<Class>,
    classes: Vec<ClassRow>,
    class_names: BTreeMap<String, ClassAt>,
    tenants: Names<TenantId>,
    deployments: Names<DeploymentId>,
    /// Names of MIG profiles.
    profiles: Names<String>,
    /// What GPUs in MIG mode can be cut into, with the number of each layout.
    layouts: BTreeMap<Vec<MigProfile>, (usize, Arc<Layout>)>,
    /// By deployment number and slot.
    exclusions: BTreeMap<(usize, u32), Vec<Exclusion>>,
    /// Nodes that hold a model's weights, by model key; sorted.
    cached: BTreeMap<ModelKey, Vec<NodeAt>>,
    /// What of a neighbour is part of a node's state.
    matters: Matters,
    /// Slices that are dedicated to a deployment, by its number.
    dedicated: BTreeMap<usize, u32>,
    /// Slices of the snapshot that keep others off their GPU, and other tenants off their node.
    dedicated_gpus: u32,
    dedicated_nodes: u32,
    /// Charges of the snapshot's slices.
    held: BTreeMap<(usize, ClassAt), u128>,
    states: HashMap<Vec<u64>, StateAt>,
    members: Vec<BTreeSet<NodeAt>>,
    /// States that some node is in.
    live: BTreeSet<StateAt>,
    facts: Vec<StateFacts>,
    /// Nodes in the order in which they changed; a ranking reads on from where it stopped.
    changes: Vec<NodeAt>,
    /// Grows when states are numbered anew, so that nothing kept by number is valid any more.
    epoch: u64,
    /// Counts the snapshots followed.
    round: u64,
    /// Grows when a class gains or loses a size of GPU, or its first or last GPU.
    class_version: u64,
    kind_numbers: HashMap<Vec<u8>, u64>,
    /// The highest number of a kind.
    kinds: u64,
    undo: Vec<Undo>,
    recording: bool,
}

/// Whether filters look at the owners and at the tenants of slices. What they do not look at is left out
/// of needs and states, so that fewer are distinct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matters {
    /// Some slice or deployment wants its GPUs for itself.
    owners: bool,
    /// Some class must not be shared by tenants, or some tenant wants a node for itself.
    tenants: bool,
}

/// What the report counts of each node in one state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StateFacts {
    pub gpus: u32,
    pub healthy_gpus: u32,
    pub promised_milli: u64,
    /// It has GPUs and its data are not fresh.
    pub stale: bool,
}

/// One node: its data in the snapshot, and what is taken of it now.
#[derive(Clone)]
pub(crate) struct Row {
    /// As in the snapshot.
    source: Shared<Node>,
    /// GPUs sorted by index. `used`, `host_ports` and the GPUs' `slices` are as in the snapshot.
    pub node: Shared<Node>,
    pub taken: Taken,
    /// Number of the group of nodes that are equal in all that never changes during a plan.
    kind: u64,
    state: StateAt,
    /// The round in which more than its age last changed.
    pub changed: u64,
}

/// The changing part of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub pods: u32,
    /// Sorted.
    pub ports: Vec<u16>,
    pub gpus: Vec<GpuRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuRow {
    pub class: Option<ClassAt>,
    /// Dense number of the NVLink island inside the node.
    pub island: usize,
    pub usable: Usability,
    pub free_bytes: u64,
    pub free_sm: u32,
    /// Free thousandths as the packing score sees them; nothing is free on a GPU that may not be used.
    pub free_milli: i64,
    pub residents: Vec<Resident>,
    /// `None`: not in MIG mode.
    pub mig: Option<MigRow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Usability {
    Healthy,
    Degraded,
    Unhealthy,
}

/// One slice on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    /// `None`: a foreign claim.
    pub owner: Option<Owner>,
    pub tenant: Option<usize>,
    pub isolation: Isolation,
    pub promise: Promise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub deployment: usize,
    pub index: u32,
    pub incarnation: u32,
}

#[derive(Clone)]
pub(crate) struct ClassRow {
    pub name: String,
    /// Two tenants may share one GPU of the class.
    pub soft: bool,
    /// Per hour of a whole GPU; `None`: not priced.
    pub price_micros: Option<u64>,
    /// GPUs of the class, usable or not.
    pub gpus: u64,
    /// The distinct sizes of GPU in the class, with their number: few, however many GPUs there are.
    pub sizes: BTreeMap<Size, u64>,
}

/// What one replica takes of a node.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub owner: Owner,
    pub tenant: Option<usize>,
    pub isolation: Isolation,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub ports: Vec<u16>,
    /// Position of each GPU in its node, and what it promises.
    pub gpus: Vec<(usize, GpuShare)>,
}

/// Names as numbers, in the order in which they are met.
#[derive(Clone)]
struct Names<T> {
    numbers: BTreeMap<T, usize>,
    list: Vec<T>,
}

impl<T: Ord + Clone> Names<T> {
    fn number(&mut self, name: &T) -> usize {
        if let Some(n) = self.numbers.get(name) {
            return *n;
        }
        let n = self.list.len();
        self.numbers.insert(name.clone(), n);
        self.list.push(name.clone());
        n
    }
}

impl Index {
    pub fn new(snapshot: &Snapshot) -> Self {
        let class_names = class_names(snapshot);
        let mut index = Index {
            rows: Vec::with_capacity(snapshot.nodes.len()),
            names: HashMap::new(),
            given_classes: snapshot.classes.clone(),
            classes: class_rows(snapshot, &class_names),
            class_names,
            tenants: Names { numbers: BTreeMap::new(), list: Vec::new() },
            deployments: Names { numbers: BTreeMap::new(), list: Vec::new() },
            profiles: Names { numbers: BTreeMap::new(), list: Vec::new() },
            layouts: BTreeMap::new(),
            exclusions: BTreeMap::new(),
            cached: BTreeMap::new(),
            matters: Matters { owners: false, tenants: false },
            dedicated: BTreeMap::new(),
            dedicated_gpus: 0,
            dedicated_nodes: 0,
            held: BTreeMap::new(),
            states: HashMap::new(),
            members: Vec::new(),
            live: BTreeSet::new(),
            facts: Vec::new(),
            changes: Vec::new(),
            epoch: 0,
            round: 0,
            class_version: 0,
            kind_numbers: HashMap::new(),
            kinds: 0,
            undo: Vec::new(),
            recording: false,
        };
        for source in follow::in_order(snapshot) {
            index.append(source.clone());
        }
        index.names = index.rows.iter().enumerate().map(|(at, row)| (row.node.name.clone(), at)).collect();
        index.matters = index.what_matters(snapshot);
        index.number_states();
        snapshot.exclusions.iter().for_each(|e| index.exclude(e.clone()));
        index
    }

    /// Keeps a slot away from a node from now on.
    pub fn exclude(&mut self, exclusion: Exclusion) {
        let deployment = self.deployments.number(&exclusion.deployment);
        self.exclusions.entry((deployment, exclusion.index)).or_default().push(exclusion);
    }

    /// What keeps this slot away from nodes at this time.
    pub fn exclusions(&self, deployment: usize, slot: u32, now: TimeMs) -> impl Iterator<Item = &Exclusion> {
        let of = self.exclusions.get(&(deployment, slot)).into_iter().flatten();
        of.filter(move |e| e.until_ms > now)
    }

    /// When the exclusions end.
    pub fn exclusions_end(&self) -> impl Iterator<Item = TimeMs> {
        self.exclusions.values().flatten().map(|e| e.until_ms)
    }

    /// A row without a state.
    fn append(&mut self, source: Shared<Node>) {
        let at = self.rows.len();
        let node = follow::sorted(&source);
        let kind = self.kind(&node);
        let taken = self.taken_of(&node);
        self.rows.push(Row { source, node, taken, kind, state: 0, changed: self.round });
        self.count(at, true);
    }

    fn taken_of(&mut self, node: &Node) -> Taken {
        let mut islands: BTreeMap<&str, usize> = BTreeMap::new();
        let mut gpus = Vec::with_capacity(node.gpus.len());
        for gpu in &node.gpus {
            let next = islands.len();
            let island = *islands.entry(gpu.island.as_deref().unwrap_or(&gpu.uuid)).or_insert(next);
            let class = gpu.class.as_ref().and_then(|c| self.class_names.get(c)).copied();
            let residents = gpu.slices.iter().map(|s| self.resident(s)).collect();
            let usable = usability(gpu);
            let mig = gpu.mig.as_ref().map(|profiles| self.layout(profiles));
            let mut row = GpuRow { class, island, usable, free_bytes: 0, free_sm: 0, free_milli: 0, residents, mig };
            row.settle(gpu);
            gpus.push(row);
        }
        let mut ports = node.host_ports.clone();
        ports.sort_unstable();
        let used = node.used;
        Taken { cpu_milli: used.cpu_milli, memory_bytes: used.memory_bytes, pods: used.pods, ports, gpus }
    }

    fn resident(&mut self, slice: &Slice) -> Resident {
        let owner = match &slice.owner {
            SliceOwner::Replica(r) => Some(self.owner(r)),
            SliceOwner::Foreign { .. } => None,
        };
        Resident {
            owner,
            tenant: slice.tenant.as_ref().map(|t| self.tenants.number(t)),
            isolation: slice.isolation,
            promise: slice.promise.clone(),
        }
    }

    // === names ===

    pub fn owner(&mut self, replica: &ReplicaId) -> Owner {
        let deployment = self.deployments.number(&replica.deployment);
        Owner { deployment, index: replica.index, incarnation: replica.incarnation }
    }

    pub fn tenant(&mut self, tenant: &TenantId) -> usize {
        self.tenants.number(tenant)
    }

    pub fn deployment(&mut self, id: &DeploymentId) -> usize {
        self.deployments.number(id)
    }

    /// The tenant's name, of a number that [`Index::tenant`] gave.
    pub fn tenant_name(&self, number: usize) -> Option<&TenantId> {
        self.tenants.list.get(number)
    }

    pub fn class(&self, name: &str) -> Option<ClassAt> {
        self.class_names.get(name).copied()
    }

    pub fn classes(&self) -> &[ClassRow] {
        &self.classes
    }

    // === nodes ===

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub fn at(&self, name: &str) -> Option<NodeAt> {
        self.names.get(name).copied()
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        Some(&self.rows[self.at(name)?])
    }

    /// Age of the data of a node; `None`: no such node, or it never reported.
    pub fn age_ms(&self, node: &str) -> Option<u64> {
        match self.row(node)?.node.freshness {
            Freshness::Fresh { age_ms } | Freshness::Stale { age_ms } => Some(age_ms),
            Freshness::Missing => None,
        }
    }

    /// Nodes that hold the weights of this model; none for the empty key.
    pub fn holders(&self, model_key: &ModelKey) -> &[NodeAt] {
        if model_key.is_unknown() { &[] } else { self.cached.get(model_key).map_or(&[], Vec::as_slice) }
    }

    /// Whether filters must distinguish this deployment's slices from others'.
    pub fn dedicates(&self, deployment: usize, isolation: Isolation) -> bool {
        isolation == Isolation::DedicatedGpu || self.dedicated.contains_key(&deployment)
    }

    /// Whether filters distinguish tenants.
    pub fn tenants_matter(&self) -> bool {
        self.matters.tenants
    }

    /// Whether filters distinguish deployments.
    pub fn owners_matter(&self) -> bool {
        self.matters.owners
    }

    // === states ===

    /// States that some node is in, in the order of their numbers.
    pub fn live_states(&self) -> impl Iterator<Item = StateAt> {
        self.live.iter().copied()
    }

    /// Number of states met so far; each is less.
    pub fn states(&self) -> usize {
        self.members.len()
    }

    pub fn state(&self, at: NodeAt) -> StateAt {
        self.rows[at].state
    }

    /// Nodes that are in this state now, by position.
    pub fn members(&self, state: StateAt) -> &BTreeSet<NodeAt> {
        &self.members[state]
    }

    pub fn facts(&self, state: StateAt) -> StateFacts {
        self.facts[state]
    }

    /// What is kept by state is valid while this is equal.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Nodes in the order in which they changed.
    pub fn changes(&self) -> &[NodeAt] {
        &self.changes
    }

    fn moved(&mut self, at: NodeAt) {
        let state = self.state_of(at);
        let old = std::mem::replace(&mut self.rows[at].state, state);
        self.leave(at, old);
        self.enter(at, state);
        self.changes.push(at);
    }

    // === changes ===

    fn change(&mut self, at: NodeAt, by: impl FnOnce(&mut Row)) {
        if self.recording {
            self.undo.push(Undo::Taken { node: at, taken: self.rows[at].taken.clone() });
        }
        by(&mut self.rows[at]);
        self.moved(at);
    }

    /// Takes what a new replica is promised.
    pub fn take(&mut self, at: NodeAt, take: &Take) {
        self.change(at, |Row { node, taken, .. }| {
            taken.cpu_milli = taken.cpu_milli.saturating_add(take.cpu_milli);
            taken.memory_bytes = taken.memory_bytes.saturating_add(take.memory_bytes);
            taken.pods = taken.pods.saturating_add(1);
            taken.ports.extend(&take.ports);
            taken.ports.sort_unstable();
            for (gpu, share) in &take.gpus {
                taken.gpus[*gpu].residents.push(Resident {
                    owner: Some(take.owner),
                    tenant: take.tenant,
                    isolation: take.isolation,
                    promise: share.promise.clone(),
                });
                taken.gpus[*gpu].settle(&node.gpus[*gpu]);
            }
        });
    }

    /// Gives back one replica's slices on this node, and what its pod requested of it.
    pub fn release(&mut self, at: NodeAt, owner: Owner, cpu_milli: u64, memory_bytes: u64, ports: &[u16]) {
        self.change(at, |row| row.release(owner, cpu_milli, memory_bytes, ports));
    }

    /// What tenants hold of classes in the snapshot.
    pub fn held(&self) -> impl Iterator<Item = (&TenantId, &str, u64)> {
        self.held.iter().map(|((tenant, class), x)| {
            let x = u64::try_from(*x).unwrap_or(u64::MAX);
            (&self.tenants.list[*tenant], self.classes[*class].name.as_str(), x)
        })
    }

    /// What one replica's slices on this node are charged.
    pub fn charges_of(&self, at: NodeAt, owner: Owner) -> Vec<(TenantId, String, u64)> {
        let own = self.charges_on(&self.rows[at]).filter(|(by, ..)| *by == Some(owner));
        own.map(|(_, tenant, class, x)| (tenant.clone(), class.to_owned(), x)).collect()
    }

    fn charges_on<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = (Option<Owner>, &'a TenantId, &'a str, u64)> {
        row.node.gpus.iter().zip(&row.taken.gpus).flat_map(move |(gpu, g)| {
            g.residents.iter().filter_map(move |r| {
                let tenant = self.tenants.list.get(r.tenant?)?;
                let class = self.classes.get(g.class?)?;
                Some((r.owner, tenant, class.name.as_str(), charge(gpu, &r.promise)))
            })
        })
    }
}

fn class_names(snapshot: &Snapshot) -> BTreeMap<String, ClassAt> {
    let mut names: BTreeSet<&String> = snapshot.classes.iter().map(|c| &c.name).collect();
    names.extend(snapshot.nodes.iter().flat_map(|n| &n.gpus).filter_map(|g| g.class.as_ref()));
    for d in &snapshot.deployments {
        names.extend(d.variants.iter().filter_map(|v| v.accelerator.class()));
    }
    names.into_iter().enumerate().map(|(at, name)| (name.clone(), at)).collect()
}

fn class_rows(snapshot: &Snapshot, names: &BTreeMap<String, ClassAt>) -> Vec<ClassRow> {
    let of = |name: &String| snapshot.classes.iter().find(|c: &&Class| &c.name == name);
    names
        .keys()
        .map(|name| ClassRow {
            name: name.clone(),
            soft: of(name).is_some_and(|c| c.allow_soft_sharing),
            price_micros: of(name).and_then(|c| c.price_per_hour_micros),
            gpus: 0,
            sizes: BTreeMap::new(),
        })
        .collect()
}

fn usability(gpu: &Gpu) -> Usability {
    match gpu.health {
        Health::Healthy => Usability::Healthy,
        Health::Degraded { .. } => Usability::Degraded,
        Health::Unhealthy { .. } => Usability::Unhealthy,
    }
}

impl Row {
    pub fn cpu_free(&self) -> u64 {
        self.node.allocatable.cpu_milli.saturating_sub(self.taken.cpu_milli)
    }

    pub fn memory_free(&self) -> u64 {
        self.node.allocatable.memory_bytes.saturating_sub(self.taken.memory_bytes)
    }

    pub fn has_pod_slot(&self) -> bool {
        self.taken.pods < self.node.allocatable.pods
    }

    /// Gives back one replica's slices, and what its pod requested.
    pub fn release(&mut self, owner: Owner, cpu_milli: u64, memory_bytes: u64, ports: &[u16]) {
        let taken = &mut self.taken;
        taken.cpu_milli = taken.cpu_milli.saturating_sub(cpu_milli);
        taken.memory_bytes = taken.memory_bytes.saturating_sub(memory_bytes);
        taken.pods = taken.pods.saturating_sub(1);
        taken.ports.retain(|p| !ports.contains(p));
        self.evict(|r| r.owner == Some(owner));
    }

    fn evict(&mut self, gone: impl Fn(&Resident) -> bool) {
        for (gpu, taken) in self.node.gpus.iter().zip(&mut self.taken.gpus) {
            taken.residents.retain(|r| !gone(r));
            taken.settle(gpu);
        }
    }
}

impl GpuRow {
    /// Recomputes what is free from the residents.
    fn settle(&mut self, gpu: &Gpu) {
        let (memory, sm) = self.promised();
        self.free_bytes = gpu.memory_bytes.saturating_sub(memory);
        self.free_sm = gpu.sm_percent.saturating_sub(sm);
        let may_be_used = self.usable != Usability::Unhealthy && self.class.is_some();
        let charge = charge(gpu, &Promise::slice(memory, sm)).min(1000) as i64;
        self.free_milli = if may_be_used { 1000 - charge } else { 0 };
        if let Some(row) = &mut self.mig {
            row.taken = self.residents.iter().fold(0, |taken, r| taken | mig::taken_by(gpu, &r.promise));
        }
    }

    /// What all residents together are promised.
    pub fn promised(&self) -> (u64, u32) {
        self.residents.iter().fold((0, 0), |(memory, sm), r| {
            let Promise { memory_bytes, sm_percent, .. } = r.promise;
            (u64::saturating_add(memory, memory_bytes), u32::saturating_add(sm, sm_percent))
        })
    }
}

impl Resident {
    /// Of no tenant, or of another than this.
    pub fn is_of_other(&self, tenant: Option<usize>) -> bool {
        self.tenant.is_none() || self.tenant != tenant
    }
}

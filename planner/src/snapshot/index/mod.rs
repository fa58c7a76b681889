//! The working copy of the cluster that a plan takes from, and can give back to.
//!
//! Built once from a snapshot, in a fixed order. Everything that is compared often is a number: class,
//! tenant and deployment names are interned. Two nodes that no filter and no score distinguishes have
//! the same *state*, so that a ranking looks at each state once, however many nodes share it.
//! [`Index::mark`] and [`Index::rollback`] undo changes in reverse order, so that a trial costs what it
//! touches and not a copy of the cluster.
//!
//! A plan does not free what it ends: the slice is taken until its claim is gone.

mod size;
mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) use size::{Size, charge, share_on, size};
pub(crate) use trial::Mark;
use trial::Undo;

use crate::snapshot::{
    Class, DeploymentId, Exclusion, Freshness, Gpu, GpuShare, Health, Isolation, ModelKey, Node, ReplicaId, Resources,
    Slice, SliceOwner, Snapshot, Taint, TenantId, TimeMs,
};

/// Position of a node; nodes are sorted by name.
pub(crate) type NodeAt = usize;
/// Number of a class, in the order of names.
pub(crate) type ClassAt = usize;
/// Number of a node state, see [`Index::state`].
pub(crate) type StateAt = usize;

#[derive(Clone)]
pub(crate) struct Index {
    rows: Vec<Row>,
    /// Rows of the snapshot; later ones were added by a trial.
    named: usize,
    classes: Vec<ClassRow>,
    class_names: BTreeMap<String, ClassAt>,
    tenants: Names<TenantId>,
    deployments: Names<DeploymentId>,
    /// By deployment number and slot.
    exclusions: BTreeMap<(usize, u32), Vec<Exclusion>>,
    /// Nodes that hold a model's weights, by model key.
    cached: BTreeMap<ModelKey, Vec<NodeAt>>,
    /// Some slice or deployment wants its GPUs for itself, so owners are part of a node's state.
    owners_matter: bool,
    /// Deployments that own a slice which is dedicated to them.
    dedicated: BTreeSet<usize>,
    states: HashMap<Vec<u64>, StateAt>,
    members: Vec<BTreeSet<NodeAt>>,
    /// Nodes in the order in which they changed; a ranking reads on from where it stopped.
    changes: Vec<NodeAt>,
    /// The highest number of a kind.
    kinds: u64,
    undo: Vec<Undo>,
    recording: bool,
}

/// One node: its data in the snapshot, and what is taken of it now.
#[derive(Clone)]
pub(crate) struct Row {
    /// GPUs sorted by index. `used`, `host_ports` and the GPUs' `slices` are as in the snapshot.
    pub node: Node,
    pub taken: Taken,
    /// Number of the group of nodes that are equal in all that never changes during a plan.
    kind: u64,
    state: StateAt,
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
    pub memory_bytes: u64,
    pub sm_percent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The distinct sizes of GPU in the class: few, however many GPUs there are.
    pub sizes: BTreeSet<Size>,
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
        let mut nodes: Vec<Node> = snapshot.nodes.clone();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.dedup_by(|a, b| a.name == b.name);
        for node in &mut nodes {
            node.gpus.sort_by(|a, b| (a.index, &a.uuid).cmp(&(b.index, &b.uuid)));
        }
        let class_names = class_names(snapshot);
        let mut index = Index {
            rows: Vec::with_capacity(nodes.len()),
            named: 0,
            classes: class_rows(snapshot, &class_names),
            class_names,
            tenants: Names { numbers: BTreeMap::new(), list: Vec::new() },
            deployments: Names { numbers: BTreeMap::new(), list: Vec::new() },
            exclusions: BTreeMap::new(),
            cached: BTreeMap::new(),
            owners_matter: owners_matter(snapshot),
            dedicated: BTreeSet::new(),
            states: HashMap::new(),
            members: Vec::new(),
            changes: Vec::new(),
            kinds: 0,
            undo: Vec::new(),
            recording: false,
        };
        let mut numbers: HashMap<KindKey<'_>, u64> = HashMap::new();
        let number = |node| {
            let next = numbers.len() as u64;
            *numbers.entry(kind_key(node)).or_insert(next)
        };
        let kinds: Vec<u64> = nodes.iter().map(number).collect();
        drop(numbers);
        for (node, kind) in nodes.into_iter().zip(kinds) {
            index.kinds = index.kinds.max(kind);
            index.add(node, kind);
        }
        index.named = index.rows.len();
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

    fn add(&mut self, node: Node, kind: u64) {
        let at = self.rows.len();
        let taken = self.taken_of(&node);
        for model in &node.cached_models {
            self.cached.entry(model.clone()).or_default().push(at);
        }
        self.rows.push(Row { node, taken, kind, state: 0 });
        let state = self.state_of(at);
        self.rows[at].state = state;
        self.members[state].insert(at);
        self.changes.push(at);
    }

    fn taken_of(&mut self, node: &Node) -> Taken {
        let mut islands: BTreeMap<&str, usize> = BTreeMap::new();
        let mut gpus = Vec::with_capacity(node.gpus.len());
        for gpu in &node.gpus {
            let next = islands.len();
            let island = *islands.entry(gpu.island.as_deref().unwrap_or(&gpu.uuid)).or_insert(next);
            let class = gpu.class.as_ref().and_then(|c| self.class_names.get(c)).copied();
            if let Some(class) = class {
                self.classes[class].gpus += 1;
                self.classes[class].sizes.insert(size(gpu));
            }
            let residents = gpu.slices.iter().map(|s| self.resident(s)).collect();
            let usable = usability(gpu);
            let mut row = GpuRow { class, island, usable, free_bytes: 0, free_sm: 0, free_milli: 0, residents };
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
        if let (Some(owner), Isolation::DedicatedGpu) = (owner, slice.isolation) {
            self.dedicated.insert(owner.deployment);
        }
        Resident {
            owner,
            tenant: slice.tenant.as_ref().map(|t| self.tenants.number(t)),
            isolation: slice.isolation,
            memory_bytes: slice.memory_bytes,
            sm_percent: slice.sm_percent,
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
        self.rows[..self.named].binary_search_by(|r| r.node.name.as_str().cmp(name)).ok()
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
        isolation == Isolation::DedicatedGpu || self.dedicated.contains(&deployment)
    }

    // === states ===

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

    /// Nodes that changed since the log had this length.
    pub fn changes(&self) -> &[NodeAt] {
        &self.changes
    }

    fn state_of(&mut self, at: NodeAt) -> StateAt {
        let key = self.state_key(at);
        if let Some(state) = self.states.get(&key) {
            return *state;
        }
        let state = self.members.len();
        self.states.insert(key, state);
        self.members.push(BTreeSet::new());
        state
    }

    /// Everything that a filter or a score reads of a node, as numbers.
    fn state_key(&self, at: NodeAt) -> Vec<u64> {
        let row = &self.rows[at];
        let ports = &row.taken.ports;
        let mut key = vec![row.kind, row.cpu_free(), row.memory_free(), row.has_pod_slot().into(), ports.len() as u64];
        key.extend(ports.iter().map(|p| u64::from(*p)));
        for gpu in &row.taken.gpus {
            let mut residents: Vec<[u64; 3]> = gpu
                .residents
                .iter()
                .map(|r| {
                    let owner = r.owner.filter(|_| self.owners_matter).map_or(0, |o| o.deployment as u64 + 1);
                    [r.tenant.map_or(0, |t| t as u64 + 1), r.isolation as u64, owner]
                })
                .collect();
            residents.sort_unstable();
            residents.dedup();
            key.extend([gpu.free_bytes, u64::from(gpu.free_sm), residents.len() as u64]);
            key.extend(residents.into_iter().flatten());
        }
        key
    }

    fn moved(&mut self, at: NodeAt) {
        let state = self.state_of(at);
        let old = std::mem::replace(&mut self.rows[at].state, state);
        self.members[old].remove(&at);
        self.members[state].insert(at);
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
                    memory_bytes: share.memory_bytes,
                    sm_percent: share.sm_percent,
                });
                taken.gpus[*gpu].settle(&node.gpus[*gpu]);
            }
        });
    }

    /// Gives back one replica's slices on this node, and what its pod requested of it.
    pub fn release(&mut self, at: NodeAt, owner: Owner, cpu_milli: u64, memory_bytes: u64, ports: &[u16]) {
        self.change(at, |row| {
            let taken = &mut row.taken;
            taken.cpu_milli = taken.cpu_milli.saturating_sub(cpu_milli);
            taken.memory_bytes = taken.memory_bytes.saturating_sub(memory_bytes);
            taken.pods = taken.pods.saturating_sub(1);
            taken.ports.retain(|p| !ports.contains(p));
            row.evict(|r| r.owner == Some(owner));
        });
    }

    /// All slices that belong to a tenant, with the class of their GPU and what they are charged.
    pub fn charges(&self) -> impl Iterator<Item = (&TenantId, &str, u64)> {
        self.rows.iter().flat_map(|row| self.charges_on(row)).map(|(_, tenant, class, x)| (tenant, class, x))
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
                Some((r.owner, tenant, class.name.as_str(), charge(gpu, r.memory_bytes, r.sm_percent)))
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
            sizes: BTreeSet::new(),
        })
        .collect()
}

fn owners_matter(snapshot: &Snapshot) -> bool {
    let slices = snapshot.nodes.iter().flat_map(|n| &n.gpus).flat_map(|g| &g.slices);
    slices
        .map(|s| s.isolation)
        .chain(snapshot.deployments.iter().map(|d| d.isolation))
        .any(|i| i == Isolation::DedicatedGpu)
}

/// Nodes with equal keys differ in nothing but their names, ages, messages and what is taken of them.
type KindKey<'a> = (bool, bool, u8, &'a BTreeMap<String, String>, Vec<&'a Taint>, Resources, Vec<GpuKind<'a>>);

/// Class, product, usability, island and size of one GPU.
type GpuKind<'a> = (Option<&'a str>, &'a str, Usability, usize, Size);

fn kind_key(node: &Node) -> KindKey<'_> {
    let freshness = match node.freshness {
        Freshness::Fresh { .. } => 0,
        Freshness::Stale { .. } => 1,
        Freshness::Missing => 2,
    };
    let mut islands: BTreeMap<&str, usize> = BTreeMap::new();
    let mut gpus = Vec::with_capacity(node.gpus.len());
    for gpu in &node.gpus {
        let next = islands.len();
        let island = *islands.entry(gpu.island.as_deref().unwrap_or(&gpu.uuid)).or_insert(next);
        gpus.push((gpu.class.as_deref(), gpu.product.as_str(), usability(gpu), island, size(gpu)));
    }
    (node.ready, node.cordoned, freshness, &node.labels, node.taints.iter().collect(), node.allocatable, gpus)
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
        let memory = self.residents.iter().fold(0u64, |sum, r| sum.saturating_add(r.memory_bytes));
        let sm = self.residents.iter().fold(0u32, |sum, r| sum.saturating_add(r.sm_percent));
        self.free_bytes = gpu.memory_bytes.saturating_sub(memory);
        self.free_sm = gpu.sm_percent.saturating_sub(sm);
        let may_be_used = self.usable != Usability::Unhealthy && self.class.is_some();
        self.free_milli = if may_be_used { 1000 - (charge(gpu, memory, sm).min(1000) as i64) } else { 0 };
    }

    /// What all residents together are promised.
    pub fn promised(&self) -> (u64, u32) {
        self.residents.iter().fold((0, 0), |(memory, sm), r| {
            (u64::saturating_add(memory, r.memory_bytes), u32::saturating_add(sm, r.sm_percent))
        })
    }
}

impl Resident {
    /// Of no tenant, or of another than this.
    pub fn is_of_other(&self, tenant: Option<usize>) -> bool {
        self.tenant.is_none() || self.tenant != tenant
    }
}

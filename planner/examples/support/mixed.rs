//! The cluster, the arrivals and the measures of the mixed protocol.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use stowage_contracts::charge::gpu_milli;
use stowage_planner::snapshot::*;

use crate::h100::h100;

pub const TICK_S: u64 = 10;
const START_S: u64 = 60;
const DRAIN_S: u64 = 20;
const MEAN_LIFE_S: f64 = 7200.0;
const NODES: u32 = 16;
const GPUS: u32 = 8;
const MEMORY: u64 = 80 << 30;
const TENANTS: [&str; 3] = ["a", "b", "c"];
/// Parts of the arrivals, and of the GPUs as nominal quota.
const ARRIVALS: [f64; 3] = [0.40, 0.35, 0.25];
const NOMINAL: [u64; 3] = [50, 25, 25];
const PRIORITY_PART: f64 = 0.2;

/// Command line of the bench.
pub struct Options {
    pub seeds: Range<u64>,
    pub hours: u64,
    pub load: f64,
    pub policy: String,
}

/// A deployment that is there.
pub struct Stay {
    pub tenant: usize,
    pub priority: i32,
    pub arrived_s: u64,
    pub milli: u64,
    lives_s: u64,
    first_placed_s: Option<u64>,
    /// It has no replica that stays, since then; and whether it was within its tenant's nominal quota.
    waits: Option<(u64, bool)>,
    /// Of that time, while other tenants had borrowed as much as it asks.
    lent_s: u64,
    pub incarnations: u32,
}

/// How long a replica waited.
#[derive(Clone, Copy)]
struct Wait {
    seconds: u64,
    /// Within its tenant's nominal quota when it began.
    own: bool,
    lent_s: u64,
}

struct Arrival {
    at_s: u64,
    lives_s: u64,
    tenant: usize,
    priority: i32,
    kind: usize,
}

pub struct World {
    pub snapshot: Snapshot,
    pub now_s: u64,
    pub stays: BTreeMap<DeploymentId, Stay>,
    pub placed: u32,
    kinds: Vec<Kind>,
    arrivals: VecDeque<Arrival>,
    arrived: u32,
    waited: Vec<Wait>,
}

/// A kind of replica: its part of the arrivals, its GPUs, what it asks of each, what all cost.
struct Kind {
    part: f64,
    gpus: u32,
    partition: Partition,
    milli: u64,
}

impl Options {
    pub fn parse() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let given: BTreeMap<&str, &str> = args
            .chunks(2)
            .map(|pair| match pair {
                [name, value] => (name.trim_start_matches('-'), value.as_str()),
                _ => fail(&format!("{} needs a value", pair[0])),
            })
            .collect();
        let number = |name: &str, or: &str| {
            let text = given.get(name).copied().unwrap_or(or);
            text.parse::<f64>().unwrap_or_else(|_| fail(&format!("--{name} {text} is no number")))
        };
        let seeds = given.get("seeds").copied().unwrap_or("1..4");
        let ends = seeds.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
        let policy = given.get("policy").copied().unwrap_or("stowage");
        if !["stowage", "kueue-bestfit"].contains(&policy) {
            fail(&format!("--policy {policy} is not known"));
        }
        Options {
            seeds: ends.unwrap_or_else(|| fail("--seeds has the form 1..4")),
            hours: number("hours", "24") as u64,
            load: number("load", "1.1"),
            policy: policy.to_owned(),
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}\nusage: [--seeds 1..4] [--hours 24] [--load 1.1] [--policy stowage|kueue-bestfit]");
    std::process::exit(2);
}

fn kinds() -> Vec<Kind> {
    let mig = |name: &str| Partition::Mig { profile: name.to_owned() };
    let slice = |gib: u64, sm: u32| Partition::slice(gib << 30, sm);
    let all = [
        (0.25, 1, slice(20, 25)),
        (0.15, 1, slice(40, 50)),
        (0.22, 1, Partition::WHOLE),
        (0.12, 2, Partition::WHOLE),
        (0.08, 4, Partition::WHOLE),
        (0.09, 1, mig("1g.10gb")),
        (0.05, 1, mig("2g.20gb")),
        (0.04, 1, mig("3g.40gb")),
    ];
    let milli = |partition: &Partition| {
        let (memory, sm) = match partition {
            Partition::Slice { memory_bytes, sm_percent } => {
                (memory_bytes.unwrap_or(MEMORY), sm_percent.unwrap_or(100))
            }
            Partition::Mig { profile } => {
                let p = h100().into_iter().find(|p| &p.name == profile).unwrap();
                (p.memory_bytes, p.sm_percent)
            }
        };
        gpu_milli(memory, MEMORY, sm, 100)
    };
    let kind = |(part, gpus, partition): (f64, u32, Partition)| {
        let milli = milli(&partition) * u64::from(gpus);
        Kind { part, gpus, partition, milli }
    };
    all.map(kind).into_iter().collect()
}

fn arrivals(options: &Options, kinds: &[Kind], seed: u64) -> VecDeque<Arrival> {
    let mut random = Random(seed);
    let mean_milli: f64 = kinds.iter().map(|k| k.part * k.milli as f64).sum();
    let capacity = f64::from(NODES * GPUS) * 1000.0;
    let gap_s = mean_milli * MEAN_LIFE_S / (options.load * capacity);
    let end_s = (options.hours * 3600) as f64;
    let mut at = 0.0;
    let mut all = VecDeque::new();
    loop {
        at += gap_s * random.exponential();
        if at >= end_s {
            return all;
        }
        let drawn = random.pick(&ARRIVALS);
        let tenant = if drawn == 0 && at < end_s / 3.0 { 1 } else { drawn };
        let parts: Vec<f64> = kinds.iter().map(|k| k.part).collect();
        all.push_back(Arrival {
            at_s: at as u64,
            lives_s: (MEAN_LIFE_S * random.exponential()) as u64 + 1,
            tenant,
            priority: i32::from(random.part() < PRIORITY_PART),
            kind: random.pick(&parts),
        });
    }
}

impl World {
    pub fn new(options: &Options, seed: u64) -> Self {
        let kinds = kinds();
        let total = u64::from(NODES * GPUS) * 1000;
        let tenant = |t: usize| Tenant {
            id: TenantId(TENANTS[t].to_owned()),
            namespaces: vec![TENANTS[t].to_owned()],
            cohort: Some("all".to_owned()),
            weight: 1,
            quotas: vec![Quota {
                class: "h100".to_owned(),
                nominal_milli: total * NOMINAL[t] / 100,
                borrowing_limit_milli: None,
                lending_limit_milli: None,
            }],
            min_runtime_ms: None,
            reclaim_grace_ms: None,
            spend_limit: None,
        };
        let class = Class {
            name: "h100".to_owned(),
            allow_soft_sharing: true,
            price_per_hour_micros: None,
            currency: String::new(),
        };
        let snapshot = Snapshot {
            nodes: (0..NODES).map(|n| node(n).into()).collect(),
            tenants: (0..TENANTS.len()).map(tenant).collect(),
            classes: vec![class],
            ..Snapshot::default()
        };
        let arrivals = arrivals(options, &kinds, seed);
        let (stays, waited) = (BTreeMap::new(), Vec::new());
        World { snapshot, now_s: 0, stays, placed: 0, kinds, arrivals, arrived: 0, waited }
    }

    /// Ten seconds pass: what has ended is gone, what started is Ready, some leave and some come.
    pub fn tick(&mut self) {
        self.now_s += TICK_S;
        self.snapshot.sequence += 1;
        let now_ms = self.now_s * 1000;
        let mut gone = Vec::new();
        for d in &mut self.snapshot.deployments {
            if d.replicas.iter().all(|r| r.phase == Phase::Ready) {
                continue;
            }
            let id = d.id.clone();
            for r in &mut d.replicas {
                match &mut r.phase {
                    Phase::Starting if now_ms >= r.created_ms + START_S * 1000 => r.phase = Phase::Ready,
                    Phase::Draining { since_ms, in_flight, .. } if now_ms >= *since_ms + DRAIN_S * 1000 => {
                        *in_flight = Some(0);
                    }
                    Phase::Terminating { .. } => {
                        gone.push(ReplicaId { deployment: id.clone(), index: r.index, incarnation: r.incarnation });
                    }
                    _ => {}
                }
            }
        }
        gone.iter().for_each(|id| self.vanish(id));
        self.leave();
        self.come();
    }

    fn leave(&mut self) {
        let over = |s: &Stay| s.first_placed_s.is_some_and(|at| at + s.lives_s <= self.now_s);
        let leaving: Vec<DeploymentId> = self.stays.iter().filter(|(_, s)| over(s)).map(|(id, _)| id.clone()).collect();
        for id in leaving {
            self.replicas(&id).iter().for_each(|r| self.vanish(r));
            self.snapshot.deployments.retain(|d| d.id != id);
            self.stays.remove(&id);
        }
    }

    fn come(&mut self) {
        while self.arrivals.front().is_some_and(|a| a.at_s <= self.now_s) {
            let Some(arrival) = self.arrivals.pop_front() else { break };
            let id = DeploymentId::new(TENANTS[arrival.tenant], format!("j{:06}", self.arrived));
            self.arrived += 1;
            let kind = &self.kinds[arrival.kind];
            let milli = kind.milli;
            self.snapshot.deployments.push(deployment(&id, &arrival, kind).into());
            let stay = Stay {
                tenant: arrival.tenant,
                priority: arrival.priority,
                arrived_s: arrival.at_s,
                milli,
                lives_s: arrival.lives_s,
                first_placed_s: None,
                waits: None,
                lent_s: 0,
                incarnations: 0,
            };
            self.stays.insert(id.clone(), stay);
            self.begin_to_wait(&id);
        }
    }

    /// Replicas of the deployment, whatever their phase.
    pub fn replicas(&self, id: &DeploymentId) -> Vec<ReplicaId> {
        let d = self.snapshot.deployments.iter().filter(|d| &d.id == id);
        let of = d.flat_map(|d| &d.replicas);
        of.map(|r| ReplicaId { deployment: id.clone(), index: r.index, incarnation: r.incarnation }).collect()
    }

    fn begin_to_wait(&mut self, id: &DeploymentId) {
        let Some(stay) = self.stays.get(id).filter(|s| s.waits.is_none()) else { return };
        let nominal = self.snapshot.tenants[stay.tenant].quotas[0].nominal_milli;
        let own = self.held_milli(stay.tenant) + stay.milli <= nominal;
        let now_s = self.now_s;
        self.stays.entry(id.clone()).and_modify(|s| s.waits = Some((now_s, own)));
    }

    fn held_milli(&self, tenant: usize) -> u64 {
        let of = |x: &&Slice| x.tenant.as_ref().is_some_and(|t| t.0 == TENANTS[tenant]);
        let gpus = self.snapshot.nodes.iter().flat_map(|n| &n.gpus);
        gpus.flat_map(|g| &g.slices).filter(of).map(|x| charge(&x.promise)).sum()
    }

    fn replica_mut(&mut self, id: &ReplicaId) -> Option<&mut Replica> {
        let d = self.snapshot.deployments.iter_mut().find(|d| d.id == id.deployment)?;
        d.replicas.iter_mut().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation))
    }

    /// A replica is created.
    pub fn place(&mut self, id: ReplicaId, placement: Placement) {
        let now_s = self.now_s;
        let Some(stay) = self.stays.get_mut(&id.deployment) else { return };
        stay.incarnations = stay.incarnations.max(id.incarnation + 1);
        stay.first_placed_s.get_or_insert(now_s);
        self.waited.extend(stay.end_of_wait(now_s));
        self.placed += 1;
        let d: &mut Deployment = self.snapshot.deployments.iter_mut().find(|d| d.id == id.deployment).unwrap();
        let node: &mut Node = self.snapshot.nodes.iter_mut().find(|n| n.name == placement.node).unwrap();
        node.used.cpu_milli += d.needs.cpu_milli;
        node.used.memory_bytes += d.needs.memory_bytes;
        node.used.pods += 1;
        for share in &placement.gpus {
            node.gpus.iter_mut().find(|g| g.uuid == share.uuid).unwrap().slices.push(Slice {
                owner: SliceOwner::Replica(id.clone()),
                tenant: d.tenant.clone(),
                promise: share.promise.clone(),
                isolation: Isolation::Shared,
            });
        }
        d.replicas.push(Replica {
            index: id.index,
            incarnation: id.incarnation,
            name: id.to_string(),
            spec_hash: d.spec_hash.clone(),
            phase: Phase::Starting,
            placement: Some(placement),
            created_ms: now_s * 1000,
            node_lost: false,
            overshoot: None,
            in_flight: None,
            takes_over: false,
        });
    }

    pub fn drain(&mut self, id: &ReplicaId, deadline_ms: TimeMs, may_resume: bool) {
        let since_ms = self.now_s * 1000;
        if let Some(r) = self.replica_mut(id) {
            r.phase = Phase::Draining { since_ms, until_ms: Some(deadline_ms), in_flight: Some(1), may_resume };
        }
        self.begin_to_wait(&id.deployment);
    }

    /// The drain is cancelled: it waited only while it drained.
    pub fn resume(&mut self, id: &ReplicaId) {
        if let Some(r) = self.replica_mut(id) {
            r.phase = Phase::Ready;
        }
        let now_s = self.now_s;
        let stay = self.stays.get_mut(&id.deployment);
        self.waited.extend(stay.and_then(|stay| stay.end_of_wait(now_s)));
    }

    pub fn remove(&mut self, id: &ReplicaId) {
        if let Some(r) = self.replica_mut(id) {
            r.phase = Phase::Terminating { until_ms: None };
        }
        self.begin_to_wait(&id.deployment);
    }

    /// Pod and claim end at once.
    pub fn evict(&mut self, id: &DeploymentId) {
        self.replicas(id).iter().for_each(|r| self.vanish(r));
        self.begin_to_wait(id);
    }

    fn vanish(&mut self, id: &ReplicaId) {
        let Some(d) = self.snapshot.deployments.iter_mut().find(|d| d.id == id.deployment) else { return };
        let at = d.replicas.iter().position(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap();
        let needs = d.needs.clone();
        let placement = d.replicas.remove(at).placement.unwrap();
        let node: &mut Node = self.snapshot.nodes.iter_mut().find(|n| n.name == placement.node).unwrap();
        node.used.cpu_milli -= needs.cpu_milli;
        node.used.memory_bytes -= needs.memory_bytes;
        node.used.pods -= 1;
        let owner = SliceOwner::Replica(id.clone());
        node.gpus.iter_mut().for_each(|g| g.slices.retain(|s| s.owner != owner));
    }

    // === measures ===

    pub fn free_milli(&self) -> u64 {
        let total = u64::from(NODES * GPUS) * 1000;
        total.saturating_sub((0..TENANTS.len()).map(|t| self.held_milli(t)).sum())
    }

    pub fn waiting_milli(&self) -> u64 {
        self.stays.values().filter(|s| s.waits.is_some()).map(|s| s.milli).sum()
    }

    /// A tick has passed: what waits for its tenant's own waits for what others have borrowed, where they have.
    pub fn note_lent(&mut self) {
        let debt = |t: usize| self.held_milli(t).saturating_sub(self.snapshot.tenants[t].quotas[0].nominal_milli);
        let debts: Vec<u64> = (0..TENANTS.len()).map(debt).collect();
        let total: u64 = debts.iter().sum();
        for stay in self.stays.values_mut() {
            let lent = total - debts[stay.tenant];
            if stay.waits.is_some_and(|(_, own)| own) && lent >= stay.milli {
                stay.lent_s += TICK_S;
            }
        }
    }

    /// Seconds waited, sorted: of all, of those within nominal quota, and of these while others had borrowed.
    pub fn waits(&self) -> [Vec<u64>; 3] {
        let still = self.stays.values().filter_map(|stay| stay.wait(self.now_s));
        let all: Vec<Wait> = self.waited.iter().copied().chain(still).collect();
        let own = || all.iter().filter(|w| w.own);
        let mut figures = [
            all.iter().map(|w| w.seconds).collect::<Vec<u64>>(),
            own().map(|w| w.seconds).collect(),
            own().map(|w| w.lent_s).collect(),
        ];
        figures.iter_mut().for_each(|of| of.sort_unstable());
        figures
    }
}

impl Stay {
    fn wait(&self, now_s: u64) -> Option<Wait> {
        self.waits.map(|(since, own)| Wait { seconds: now_s - since, own, lent_s: self.lent_s })
    }

    fn end_of_wait(&mut self, now_s: u64) -> Option<Wait> {
        let wait = self.wait(now_s);
        (self.waits, self.lent_s) = (None, 0);
        wait
    }
}

/// What a promise on an H100 costs.
pub fn charge(promise: &Promise) -> u64 {
    gpu_milli(promise.memory_bytes, MEMORY, promise.sm_percent, 100)
}

fn node(n: u32) -> Node {
    let gpu = |index: u32| Gpu {
        uuid: format!("GPU-{n:02}-{index}"),
        index,
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        class: Some("h100".to_owned()),
        memory_bytes: MEMORY,
        memory_step_bytes: 256 << 20,
        sm_percent: 100,
        health: Health::Healthy,
        island: Some((index / 4).to_string()),
        numa: None,
        mig: (n.is_multiple_of(4) && index < 4).then(h100),
        slices: Vec::new(),
    };
    Node {
        name: format!("n{n:02}"),
        ready: true,
        cordoned: false,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable: Resources { cpu_milli: 128_000, memory_bytes: 1 << 40, pods: 250 },
        used: Resources::default(),
        host_ports: Vec::new(),
        freshness: Freshness::Fresh { age_ms: 0 },
        gpus: (0..GPUS).map(gpu).collect(),
        cached_models: Vec::new(),
    }
}

fn deployment(id: &DeploymentId, arrival: &Arrival, kind: &Kind) -> Deployment {
    let accelerator =
        Accelerator::Gpu { class: "h100".to_owned(), count: kind.gpus, partition: kind.partition.clone() };
    Deployment {
        id: id.clone(),
        uid: id.to_string(),
        generation: 1,
        tenant: Some(TenantId(TENANTS[arrival.tenant].to_owned())),
        priority: arrival.priority,
        created_ms: arrival.at_s * 1000,
        wanted: 1,
        scaling: Scaling::default(),
        signals: Signals::default(),
        memory: Memory::default(),
        variants: vec![Variant { name: "only".to_owned(), accelerator, itl_us: None }],
        objective: Objective::Packing,
        needs: Needs { cpu_milli: 2_000, memory_bytes: 8 << 30, host_ports: Vec::new() },
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        spread: Vec::new(),
        isolation: Isolation::Shared,
        model_key: ModelKey::default(),
        spec_hash: "v1".to_owned(),
        replicas: Vec::new(),
        slots: Vec::new(),
        held: None,
        deleting: false,
        force_delete: false,
        drain_timeout_ms: 60_000,
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to below 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// With a mean of 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.part()).ln()
    }

    /// A position, by these parts of the whole.
    fn pick(&mut self, parts: &[f64]) -> usize {
        let mut left = self.part() * parts.iter().sum::<f64>();
        for (at, part) in parts.iter().enumerate() {
            left -= part;
            if left < 0.0 {
                return at;
            }
        }
        parts.len() - 1
    }
}

//! Random snapshots and histories, and what happens in the cluster when a plan is carried out.
#![allow(clippy::unwrap_used, dead_code)]

use proptest::prelude::*;
use stowage_planner::plan;
use stowage_planner::plan::{Action, CreateReason, EndReason};
use stowage_planner::snapshot::*;

pub const STEP: u64 = 1 << 30;
pub const GPU: u64 = 8 * STEP;

#[derive(Clone, Debug)]
pub struct Want {
    tenant: usize,
    replicas: u32,
    gpus: u32,
    memory: Option<u64>,
    sm: Option<u32>,
    isolation: Isolation,
    priority: i32,
}

#[derive(Clone, Debug)]
pub struct Site {
    gpus: u32,
    islands: u32,
    cpu: u64,
    stale: bool,
    unhealthy: Option<u32>,
    foreign: Option<(u32, u64, u32)>,
}

pub fn site() -> impl Strategy<Value = Site> {
    (
        1..=4u32,
        1..=2u32,
        1..=6u64,
        prop::bool::weighted(0.1),
        prop::option::weighted(0.2, 0..4u32),
        prop::option::weighted(0.3, (0..4u32, 1..=8u64, 1..=100u32)),
    )
        .prop_map(|(gpus, islands, cpu, stale, unhealthy, foreign)| Site {
            gpus,
            islands: islands.min(gpus),
            cpu,
            stale,
            unhealthy,
            foreign,
        })
}

pub fn want() -> impl Strategy<Value = Want> {
    (
        0..3usize,
        0..=3u32,
        prop::sample::select(vec![1, 1, 1, 2, 3]),
        prop::option::weighted(0.8, 1..=9 * STEP),
        prop::option::weighted(0.8, 1..=100u32),
        prop::sample::select(vec![
            Isolation::Shared,
            Isolation::Shared,
            Isolation::DedicatedGpu,
            Isolation::DedicatedNode,
        ]),
        -1..=1i32,
    )
        .prop_map(|(tenant, replicas, gpus, memory, sm, isolation, priority)| Want {
            tenant,
            replicas,
            gpus,
            memory,
            sm,
            isolation,
            priority,
        })
}

pub fn snapshot(sites: &[Site], wants: &[Want], quotas: &[(u64, u64)], soft: bool) -> Snapshot {
    Snapshot {
        sequence: 1,
        nodes: sites.iter().enumerate().map(|(i, s)| node(i, s).into()).collect(),
        tenants: quotas
            .iter()
            .enumerate()
            .map(|(i, (nominal, borrow))| Tenant {
                id: TenantId(format!("t{i}")),
                namespaces: vec![format!("t{i}")],
                cohort: Some("all".into()),
                weight: 1,
                quotas: vec![Quota {
                    class: "h".into(),
                    nominal_milli: *nominal,
                    borrowing_limit_milli: Some(*borrow),
                    lending_limit_milli: None,
                }],
                min_runtime_ms: None,
                reclaim_grace_ms: None,
                spend_limit: None,
            })
            .collect(),
        deployments: wants.iter().enumerate().map(|(i, w)| deployment(i, w, quotas.len()).into()).collect(),
        classes: vec![Class {
            name: "h".into(),
            allow_soft_sharing: soft,
            price_per_hour_micros: None,
            currency: String::new(),
        }],
        exclusions: vec![],
        shares: vec![],
        waiting: vec![],
        recent_moves: vec![],
    }
}

pub fn node(i: usize, s: &Site) -> Node {
    let gpus = (0..s.gpus).map(|index| Gpu {
        uuid: format!("GPU-{i}-{index}"),
        index,
        product: "H".into(),
        class: Some("h".into()),
        memory_bytes: GPU,
        memory_step_bytes: STEP,
        sm_percent: 100,
        health: match s.unhealthy {
            Some(unhealthy) if unhealthy == index => Health::Unhealthy { reason: "Xid".into() },
            _ => Health::Healthy,
        },
        island: Some(format!("{}", index * s.islands / s.gpus)),
        numa: (s.gpus > 1).then_some(index % 2),
        mig: None,
        slices: match s.foreign {
            Some((at, memory, sm)) if at == index => vec![Slice {
                owner: SliceOwner::Foreign { claim: format!("x/{i}") },
                tenant: None,
                promise: Promise::slice(memory * STEP, sm),
                isolation: Isolation::Shared,
            }],
            _ => vec![],
        },
    });
    Node {
        name: format!("n{i}"),
        ready: true,
        cordoned: false,
        labels: Default::default(),
        taints: vec![],
        allocatable: Resources { cpu_milli: s.cpu * 1000, memory_bytes: 1 << 40, pods: 100 },
        used: Resources::default(),
        host_ports: vec![],
        freshness: if s.stale { Freshness::Stale { age_ms: 90_000 } } else { Freshness::Fresh { age_ms: 100 } },
        gpus: gpus.collect(),
        cached_models: vec![],
    }
}

pub fn deployment(i: usize, w: &Want, tenants: usize) -> Deployment {
    let t = w.tenant % tenants.max(1);
    Deployment {
        id: DeploymentId::new(format!("t{t}"), format!("d{i}")),
        uid: format!("u{i}"),
        generation: 1,
        tenant: Some(TenantId(format!("t{t}"))),
        priority: w.priority,
        created_ms: i as u64,
        wanted: w.replicas,
        scaling: Scaling::default(),
        signals: Signals::default(),
        memory: Memory::default(),
        variants: vec![Variant {
            name: "v".into(),
            accelerator: Accelerator::Gpu {
                class: "h".into(),
                count: w.gpus,
                partition: Partition::slice(w.memory, w.sm),
            },
            itl_us: None,
        }],
        objective: Objective::Packing,
        needs: Needs { cpu_milli: 1000, memory_bytes: 1, host_ports: vec![] },
        node_selector: Default::default(),
        tolerations: vec![],
        spread: Vec::new(),
        isolation: w.isolation,
        model_key: Default::default(),
        spec_hash: "v1".into(),
        replicas: vec![],
        slots: vec![],
        deleting: false,
        force_delete: false,
        held: None,
        drain_timeout_ms: 5_000,
    }
}

pub fn random_snapshot() -> impl Strategy<Value = Snapshot> {
    (
        prop::collection::vec(site(), 1..4),
        prop::collection::vec(want(), 1..5),
        prop::collection::vec((0..=4_000u64, 0..=2_000u64), 1..4),
        any::<bool>(),
    )
        .prop_map(|(s, w, q, soft)| snapshot(&s, &w, &q, soft))
}

// === the cluster: what happens when a plan is carried out ===

pub fn apply(s: &mut Snapshot, actions: &[Action], now: TimeMs) {
    for action in actions {
        let id = action.replica().clone();
        let d = s.deployments.iter().position(|d| d.id == id.deployment).unwrap();
        match action {
            Action::Create { placement, spec_hash, reason, .. } => {
                let d = &mut s.deployments[d];
                let node = s.nodes.iter_mut().find(|n| n.name == placement.node).unwrap();
                node.used.cpu_milli += d.needs.cpu_milli;
                node.used.memory_bytes += d.needs.memory_bytes;
                node.used.pods += 1;
                for share in &placement.gpus {
                    node.gpus.iter_mut().find(|g| g.uuid == share.uuid).unwrap().slices.push(Slice {
                        owner: SliceOwner::Replica(id.clone()),
                        tenant: d.tenant.clone(),
                        promise: share.promise.clone(),
                        isolation: d.isolation,
                    });
                }
                d.replicas.push(Replica {
                    index: id.index,
                    incarnation: id.incarnation,
                    name: format!("{id}"),
                    spec_hash: spec_hash.clone(),
                    phase: Phase::Starting,
                    placement: Some(placement.clone()),
                    created_ms: now,
                    node_lost: false,
                    overshoot: None,
                    in_flight: None,
                    takes_over: *reason == CreateReason::Move,
                });
            }
            Action::Resume { .. } => replica(&mut s.deployments[d], &id).phase = Phase::Ready,
            Action::Drain { reason, deadline_ms, .. } => match &mut replica(&mut s.deployments[d], &id).phase {
                Phase::Draining { until_ms, .. } | Phase::Terminating { until_ms } => *until_ms = Some(*deadline_ms),
                phase => {
                    let may_resume = matches!(reason, EndReason::ScaleIn | EndReason::Reclaimed);
                    *phase =
                        Phase::Draining { since_ms: now, until_ms: Some(*deadline_ms), in_flight: Some(0), may_resume };
                }
            },
            Action::Remove { .. } => replica(&mut s.deployments[d], &id).phase = Phase::Terminating { until_ms: None },
        }
    }
}

pub fn replica<'a>(d: &'a mut Deployment, id: &ReplicaId) -> &'a mut Replica {
    d.replicas.iter_mut().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap()
}

/// The pod is gone, its claim too.
pub fn vanish(s: &mut Snapshot, d: usize, at: usize) {
    let deployment = &mut s.deployments[d];
    let r = deployment.replicas.remove(at);
    let id = ReplicaId { deployment: deployment.id.clone(), index: r.index, incarnation: r.incarnation };
    let node = s.nodes.iter_mut().find(|n| n.name == r.placement.as_ref().unwrap().node).unwrap();
    node.used.cpu_milli -= deployment.needs.cpu_milli;
    node.used.memory_bytes -= deployment.needs.memory_bytes;
    node.used.pods -= 1;
    for gpu in &mut node.gpus {
        gpu.slices.retain(|s| s.owner != SliceOwner::Replica(id.clone()));
    }
}

/// Claims of pods that end are gone, and pods that start are Ready.
pub fn settle(s: &mut Snapshot) {
    for d in 0..s.deployments.len() {
        while let Some(at) = s.deployments[d].replicas.iter().position(|r| r.phase.is_terminating()) {
            vanish(s, d, at);
        }
        for r in &mut s.deployments[d].replicas {
            if r.phase == Phase::Starting {
                r.phase = Phase::Ready;
            }
        }
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    Scale(usize, u32),
    NewSpec(usize, u8),
    Ready(usize),
    Crash(usize),
    Gone(usize),
    Unhealthy(usize, usize, bool),
    Stale(usize, bool),
    Quota(usize, u64),
    Delete(usize),
    Memory(usize, u64),
}

pub fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..4usize, 0..4u32).prop_map(|(d, n)| Event::Scale(d, n)),
        1 => (0..4usize, 0..3u8).prop_map(|(d, n)| Event::NewSpec(d, n)),
        4 => (0..20usize).prop_map(Event::Ready),
        1 => (0..20usize).prop_map(Event::Crash),
        4 => (0..20usize).prop_map(Event::Gone),
        1 => (0..3usize, 0..4usize, any::<bool>()).prop_map(|(n, g, b)| Event::Unhealthy(n, g, b)),
        1 => (0..3usize, any::<bool>()).prop_map(|(n, b)| Event::Stale(n, b)),
        1 => (0..3usize, 0..=4_000u64).prop_map(|(t, q)| Event::Quota(t, q)),
        1 => (0..4usize).prop_map(Event::Delete),
        1 => (0..4usize, 1..=8 * STEP).prop_map(|(d, m)| Event::Memory(d, m)),
    ]
}

pub fn happen(s: &mut Snapshot, event: &Event) {
    let pods = |s: &Snapshot, phase: fn(&Phase) -> bool| -> Vec<(usize, usize)> {
        let of = |(d, x): (usize, &Shared<Deployment>)| {
            let at = x.replicas.iter().enumerate().filter(|(_, r)| phase(&r.phase)).map(move |(i, _)| (d, i));
            at.collect::<Vec<_>>()
        };
        s.deployments.iter().enumerate().flat_map(of).collect()
    };
    match event {
        Event::Scale(d, n) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                d.wanted = *n
            }
        }
        Event::NewSpec(d, n) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                d.spec_hash = format!("v{n}");
                d.generation += 1;
            }
        }
        Event::Memory(d, m) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                if let Accelerator::Gpu { partition: Partition::Slice { memory_bytes, .. }, .. } =
                    &mut d.variants[0].accelerator
                {
                    *memory_bytes = Some(*m);
                }
                d.spec_hash = format!("m{m}");
                d.generation += 1;
            }
        }
        Event::Delete(d) => {
            if let Some(d) = s.deployments.get_mut(*d) {
                d.deleting = true
            }
        }
        Event::Ready(n) => {
            let all = pods(s, |p| *p == Phase::Starting);
            if let Some((d, r)) = all.get(n % all.len().max(1)) {
                s.deployments[*d].replicas[*r].phase = Phase::Ready;
            }
        }
        Event::Crash(n) => {
            let all = pods(s, |p| matches!(p, Phase::Ready | Phase::Starting));
            if let Some((d, r)) = all.get(n % all.len().max(1)) {
                s.deployments[*d].replicas[*r].phase = Phase::Failed { reason: "exit 1".into() };
            }
        }
        Event::Gone(n) => {
            let all = pods(s, Phase::is_terminating);
            if let Some((d, r)) = all.get(n % all.len().max(1)) {
                vanish(s, *d, *r);
            }
        }
        Event::Unhealthy(n, g, unhealthy) => {
            if let Some(gpu) = s.nodes.get_mut(*n).and_then(|n| n.gpus.get_mut(*g)) {
                gpu.health = if *unhealthy { Health::Unhealthy { reason: "Xid".into() } } else { Health::Healthy };
            }
        }
        Event::Stale(n, stale) => {
            if let Some(n) = s.nodes.get_mut(*n) {
                n.freshness = if *stale { Freshness::Stale { age_ms: 90_000 } } else { Freshness::Fresh { age_ms: 1 } };
            }
        }
        Event::Quota(t, q) => {
            if let Some(t) = s.tenants.get_mut(*t) {
                t.quotas[0].nominal_milli = *q
            }
        }
    }
}

/// Carries out plans until nothing changes any more: drains end, pods start, claims go. Returns the
/// time then, and how many pods were created for each deployment.
pub fn come_to_rest(s: &mut Snapshot, mut now: TimeMs) -> (TimeMs, std::collections::BTreeMap<DeploymentId, u32>) {
    let policy = Policy::default();
    let mut created = std::collections::BTreeMap::new();
    let mut quiet = 0;
    for _ in 0..200 {
        settle(s);
        now += 3_000;
        let (p, _) = plan(s, &policy, now);
        quiet = if p.actions.is_empty() { quiet + 1 } else { 0 };
        for a in p.actions.iter().filter(|a| matches!(a, Action::Create { .. })) {
            *created.entry(a.replica().deployment.clone()).or_default() += 1;
        }
        apply(s, &p.actions, now);
        if quiet == 3 {
            return (now, created);
        }
    }
    panic!("the cluster does not come to rest");
}

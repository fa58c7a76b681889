//! Properties of `plan` over random snapshots and histories, against oracles that share no code with
//! it: brute force says what is possible, the checker says what is allowed.
#![allow(clippy::unwrap_used)]

mod common;

use proptest::prelude::*;
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::report::Outcome;
use stowage_planner::snapshot::*;
use stowage_planner::{check::check, plan, verify_change};

const STEP: u64 = 1 << 30;
const GPU: u64 = 8 * STEP;

#[derive(Clone, Debug)]
struct Want {
    tenant: usize,
    replicas: u32,
    gpus: u32,
    memory: Option<u64>,
    sm: Option<u32>,
    isolation: Isolation,
    priority: i32,
}

#[derive(Clone, Debug)]
struct Site {
    gpus: u32,
    islands: u32,
    cpu: u64,
    stale: bool,
    sick: Option<u32>,
    foreign: Option<(u32, u64, u32)>,
}

fn site() -> impl Strategy<Value = Site> {
    (
        1..=4u32,
        1..=2u32,
        1..=6u64,
        prop::bool::weighted(0.1),
        prop::option::weighted(0.2, 0..4u32),
        prop::option::weighted(0.3, (0..4u32, 1..=8u64, 1..=100u32)),
    )
        .prop_map(|(gpus, islands, cpu, stale, sick, foreign)| Site {
            gpus,
            islands: islands.min(gpus),
            cpu,
            stale,
            sick,
            foreign,
        })
}

fn want() -> impl Strategy<Value = Want> {
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

fn snapshot(sites: &[Site], wants: &[Want], quotas: &[(u64, u64)], soft: bool) -> Snapshot {
    Snapshot {
        sequence: 1,
        nodes: sites.iter().enumerate().map(|(i, s)| node(i, s)).collect(),
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
            })
            .collect(),
        deployments: wants.iter().enumerate().map(|(i, w)| deployment(i, w, quotas.len())).collect(),
        classes: vec![Class { name: "h".into(), allow_soft_sharing: soft, price_per_hour_micros: None }],
        exclusions: vec![],
    }
}

fn node(i: usize, s: &Site) -> Node {
    let gpus = (0..s.gpus).map(|index| Gpu {
        uuid: format!("GPU-{i}-{index}"),
        index,
        product: "H".into(),
        class: Some("h".into()),
        memory_bytes: GPU,
        memory_step_bytes: STEP,
        sm_percent: 100,
        health: match s.sick {
            Some(sick) if sick == index => Health::Unhealthy { reason: "Xid".into() },
            _ => Health::Healthy,
        },
        island: Some(format!("{}", index * s.islands / s.gpus)),
        slices: match s.foreign {
            Some((at, memory, sm)) if at == index => vec![Slice {
                owner: SliceOwner::Foreign { claim: format!("x/{i}") },
                tenant: None,
                memory_bytes: memory * STEP,
                sm_percent: sm,
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

fn deployment(i: usize, w: &Want, tenants: usize) -> Deployment {
    let t = w.tenant % tenants.max(1);
    Deployment {
        id: DeploymentId::new(format!("t{t}"), format!("d{i}")),
        uid: format!("u{i}"),
        generation: 1,
        tenant: Some(TenantId(format!("t{t}"))),
        priority: w.priority,
        created_ms: i as u64,
        wanted: w.replicas,
        variants: vec![Variant {
            name: "v".into(),
            accelerator: Accelerator::Gpu {
                class: "h".into(),
                count: w.gpus,
                memory_bytes: w.memory,
                sm_percent: w.sm,
            },
        }],
        needs: Needs { cpu_milli: 1000, memory_bytes: 1, host_ports: vec![] },
        node_selector: Default::default(),
        tolerations: vec![],
        isolation: w.isolation,
        model_key: String::new(),
        spec_hash: "v1".into(),
        replicas: vec![],
        slots: vec![],
        deleting: false,
        force_delete: false,
        drain_timeout_ms: 5_000,
    }
}

fn random_snapshot() -> impl Strategy<Value = Snapshot> {
    (
        prop::collection::vec(site(), 1..4),
        prop::collection::vec(want(), 1..5),
        prop::collection::vec((0..=4_000u64, 0..=2_000u64), 1..4),
        any::<bool>(),
    )
        .prop_map(|(s, w, q, soft)| snapshot(&s, &w, &q, soft))
}

// === the world's side: what happens when a plan is carried out ===

fn apply(s: &mut Snapshot, actions: &[Action], now: TimeMs) {
    for action in actions {
        let id = action.replica().clone();
        let d = s.deployments.iter().position(|d| d.id == id.deployment).unwrap();
        match action {
            Action::Create { placement, spec_hash, .. } => {
                let d = &mut s.deployments[d];
                let node = s.nodes.iter_mut().find(|n| n.name == placement.node).unwrap();
                node.used.cpu_milli += d.needs.cpu_milli;
                node.used.memory_bytes += d.needs.memory_bytes;
                node.used.pods += 1;
                for share in &placement.gpus {
                    node.gpus.iter_mut().find(|g| g.uuid == share.uuid).unwrap().slices.push(Slice {
                        owner: SliceOwner::Replica(id.clone()),
                        tenant: d.tenant.clone(),
                        memory_bytes: share.memory_bytes,
                        sm_percent: share.sm_percent,
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
                });
            }
            Action::Drain { .. } => {
                replica(&mut s.deployments[d], &id).phase = Phase::Draining { since_ms: now, in_flight: Some(0) };
            }
            Action::Remove { .. } => replica(&mut s.deployments[d], &id).phase = Phase::Terminating,
        }
    }
}

fn replica<'a>(d: &'a mut Deployment, id: &ReplicaId) -> &'a mut Replica {
    d.replicas.iter_mut().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap()
}

/// The pod is gone, its claim too.
fn vanish(s: &mut Snapshot, d: usize, at: usize) {
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

#[derive(Clone, Debug)]
enum Event {
    Scale(usize, u32),
    NewSpec(usize, u8),
    Ready(usize),
    Crash(usize),
    Gone(usize),
    Sick(usize, usize, bool),
    Stale(usize, bool),
    Quota(usize, u64),
    Delete(usize),
    Memory(usize, u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..4usize, 0..4u32).prop_map(|(d, n)| Event::Scale(d, n)),
        1 => (0..4usize, 0..3u8).prop_map(|(d, n)| Event::NewSpec(d, n)),
        4 => (0..20usize).prop_map(Event::Ready),
        1 => (0..20usize).prop_map(Event::Crash),
        4 => (0..20usize).prop_map(Event::Gone),
        1 => (0..3usize, 0..4usize, any::<bool>()).prop_map(|(n, g, b)| Event::Sick(n, g, b)),
        1 => (0..3usize, any::<bool>()).prop_map(|(n, b)| Event::Stale(n, b)),
        1 => (0..3usize, 0..=4_000u64).prop_map(|(t, q)| Event::Quota(t, q)),
        1 => (0..4usize).prop_map(Event::Delete),
        1 => (0..4usize, 1..=8 * STEP).prop_map(|(d, m)| Event::Memory(d, m)),
    ]
}

fn happen(s: &mut Snapshot, event: &Event) {
    let pods = |s: &Snapshot, phase: fn(&Phase) -> bool| -> Vec<(usize, usize)> {
        let of = |(d, x): (usize, &Deployment)| {
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
                if let Accelerator::Gpu { memory_bytes, .. } = &mut d.variants[0].accelerator {
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
            let all = pods(s, |p| *p == Phase::Terminating);
            if let Some((d, r)) = all.get(n % all.len().max(1)) {
                vanish(s, *d, *r);
            }
        }
        Event::Sick(n, g, sick) => {
            if let Some(gpu) = s.nodes.get_mut(*n).and_then(|n| n.gpus.get_mut(*g)) {
                gpu.health = if *sick { Health::Unhealthy { reason: "Xid".into() } } else { Health::Healthy };
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

// === oracles ===

/// Whether one replica of `d` could stand on some node, by trying every set of GPUs. Quota aside.
fn possible(s: &Snapshot, d: &Deployment) -> bool {
    let Accelerator::Gpu { count, memory_bytes, sm_percent, .. } = &d.variants[0].accelerator else { return false };
    let memory = memory_bytes.map_or(GPU, |m| m.div_ceil(STEP) * STEP);
    let sm = sm_percent.unwrap_or(100);
    let soft = s.classes[0].allow_soft_sharing;
    s.nodes.iter().any(|n| {
        let fresh = matches!(n.freshness, Freshness::Fresh { .. });
        let room = n.used.cpu_milli + d.needs.cpu_milli <= n.allocatable.cpu_milli;
        let dedicated = n.gpus.iter().flat_map(|g| &g.slices).all(|x| {
            let alien = x.tenant.is_none() || x.tenant != d.tenant;
            !alien || (d.isolation != Isolation::DedicatedNode && x.isolation != Isolation::DedicatedNode)
        });
        let good = |g: &Gpu| {
            g.health == Health::Healthy
                && g.slices.iter().map(|x| x.memory_bytes).sum::<u64>() + memory <= g.memory_bytes
                && g.slices.iter().map(|x| x.sm_percent).sum::<u32>() + sm <= 100
                && g.slices.iter().all(|x| {
                    let alien = x.tenant.is_none() || x.tenant != d.tenant;
                    let other = !matches!(&x.owner, SliceOwner::Replica(r) if r.deployment == d.id);
                    (soft || !alien)
                        && !(other
                            && (d.isolation == Isolation::DedicatedGpu || x.isolation == Isolation::DedicatedGpu))
                })
        };
        fresh
            && room
            && dedicated
            && (0u32..1 << n.gpus.len()).any(|set| {
                let chosen: Vec<&Gpu> =
                    n.gpus.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, g)| g).collect();
                chosen.len() as u32 == *count
                    && chosen.iter().all(|g| good(g))
                    && chosen.iter().all(|g| g.island == chosen[0].island)
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_input_gives_the_same_bytes_in_any_order(s in random_snapshot(), by in 0..7usize) {
        let policy = Policy::default();
        let bytes = |s: &Snapshot| {
            let (p, r) = plan(s, &policy, common::NOW);
            (serde_json::to_string(&p).unwrap(), serde_json::to_string(&r).unwrap())
        };
        let mut other = s.clone();
        other.nodes.rotate_left(by % s.nodes.len());
        other.tenants.reverse();
        other.deployments.rotate_left(by % s.deployments.len());
        for n in &mut other.nodes { n.gpus.reverse(); }
        prop_assert_eq!(bytes(&s), bytes(&s));
        prop_assert_eq!(bytes(&s), bytes(&other));
    }

    #[test]
    fn what_is_placed_is_allowed_and_what_is_refused_is_impossible(s in random_snapshot()) {
        let (p, report) = plan(&s, &Policy::default(), common::NOW);
        prop_assert_eq!(check(&s, &p), vec![]);
        let mut after = s.clone();
        apply(&mut after, &p.actions, common::NOW);
        for r in &report.deployments {
            let d = after.deployments.iter().find(|d| d.id == r.deployment).unwrap();
            let short = r.counts.desired < r.counts.wanted;
            prop_assert_eq!(short, matches!(r.outcome, Outcome::WaitingForGPU | Outcome::WaitingForQuota | Outcome::StaleInput));
            // Refused for room although quota allows one more: brute force must find no room either.
            if short && r.counts.granted > r.counts.desired {
                prop_assert!(!possible(&after, d), "{} would fit", d.id);
            }
            let mut verdicts = r.placements.iter().filter(|v| v.winner.is_none());
            prop_assert!(verdicts.all(|v| v.refusals.len() == s.nodes.len()), "every node says why");
        }
    }

    #[test]
    fn counterfactuals_are_true(s in random_snapshot()) {
        let policy = Policy::default();
        let (p, report) = plan(&s, &policy, common::NOW);
        for r in &report.deployments {
            for c in &r.counterfactuals {
                let again = verify_change(&s, &r.deployment, &c.change, &policy, common::NOW);
                prop_assert_eq!(again.as_ref(), Some(c));
            }
        }
        // One that is easy to act out: another deployment really goes away.
        let mut after = s.clone();
        apply(&mut after, &p.actions, common::NOW);
        let (_, settled) = plan(&after, &policy, common::NOW);
        for r in &settled.deployments {
            for c in &r.counterfactuals {
                let stowage_planner::report::Change::ScaleIn { deployment, to: 0, .. } = &c.change else { continue };
                let mut acted = after.clone();
                let at = acted.deployments.iter().position(|d| &d.id == deployment).unwrap();
                acted.deployments[at].wanted = 0;
                while !acted.deployments[at].replicas.is_empty() { vanish(&mut acted, at, 0); }
                let (then, _) = plan(&acted, &policy, common::NOW);
                let gained = then.actions.iter().any(|a| matches!(a, Action::Create { .. }) && a.replica().deployment == r.deployment);
                prop_assert!(gained, "{} was promised room once {deployment} is gone", r.deployment);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_over_committed_over_long_histories(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 120),
    ) {
        let policy = Policy::default();
        let mut s = s;
        let mut now = common::NOW;
        for e in &events {
            happen(&mut s, e);
            now += 1_000;
            s.sequence += 1;
            let (p, report) = plan(&s, &policy, now);
            prop_assert_eq!(check(&s, &p), vec![]);
            never_too_few_ready(&s, &p.actions)?;
            nothing_ends_on_stale_data(&s, &p.actions)?;
            drop(report);
            apply(&mut s, &p.actions, now);
            for gpu in s.nodes.iter().flat_map(|n| &n.gpus) {
                prop_assert!(gpu.slices.iter().map(|x| x.memory_bytes).sum::<u64>() <= gpu.memory_bytes);
                prop_assert!(gpu.slices.iter().map(|x| x.sm_percent).sum::<u32>() <= gpu.sm_percent);
            }
        }
    }

    #[test]
    fn left_alone_every_history_comes_to_rest(
        s in random_snapshot(),
        events in prop::collection::vec(event(), 30),
    ) {
        let policy = Policy::default();
        let mut s = s;
        let mut now = common::NOW;
        for e in &events {
            happen(&mut s, e);
            now += 1_000;
            let (p, _) = plan(&s, &policy, now);
            apply(&mut s, &p.actions, now);
        }
        let mut quiet = 0;
        for _ in 0..200 {
            for d in 0..s.deployments.len() {
                while let Some(at) = s.deployments[d].replicas.iter().position(|r| r.phase == Phase::Terminating) {
                    vanish(&mut s, d, at);
                }
                for r in &mut s.deployments[d].replicas {
                    if r.phase == Phase::Starting { r.phase = Phase::Ready; }
                }
            }
            now += 3_000;
            let (p, _) = plan(&s, &policy, now);
            quiet = if p.actions.is_empty() { quiet + 1 } else { 0 };
            apply(&mut s, &p.actions, now);
            if quiet == 3 { break; }
        }
        prop_assert_eq!(quiet, 3, "still busy");
        for d in s.deployments.iter().filter(|d| d.deleting) {
            prop_assert!(d.replicas.is_empty());
        }
    }
}

/// A rollout alone never leaves fewer than wanted − 1 slots Ready that were Ready before.
fn never_too_few_ready(s: &Snapshot, actions: &[Action]) -> Result<(), TestCaseError> {
    for d in s.deployments.iter().filter(|d| !d.deleting) {
        let drained = |r: &Replica, why: fn(EndReason) -> bool| {
            actions.iter().any(|a| match a {
                Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. } => {
                    replica.deployment == d.id
                        && (replica.index, replica.incarnation) == (r.index, r.incarnation)
                        && why(*reason)
                }
                Action::Create { .. } => false,
            })
        };
        let ready: Vec<&Replica> = d.replicas.iter().filter(|r| r.phase == Phase::Ready).collect();
        // Only judge plans in which nothing but rollout ends Ready pods of this deployment.
        if ready.iter().any(|r| drained(r, |why| why != EndReason::Rollout)) {
            continue;
        }
        if !ready.iter().any(|r| drained(r, |why| why == EndReason::Rollout)) {
            continue;
        }
        let slots = |keep: &dyn Fn(&&&Replica) -> bool| -> usize {
            ready.iter().filter(keep).map(|r| r.index).collect::<std::collections::BTreeSet<_>>().len()
        };
        let live = d
            .replicas
            .iter()
            .filter(|r| !matches!(r.phase, Phase::Failed { .. }))
            .map(|r| r.index)
            .collect::<std::collections::BTreeSet<_>>()
            .len();
        let after = slots(&|r| !drained(r, |_| true));
        // The older of two Ready pods in one slot may go whatever the other slots do.
        if after == slots(&|_| true) {
            continue;
        }
        let target = (d.wanted as usize).min(live);
        let pods: Vec<_> = d.replicas.iter().map(|r| (r.index, r.incarnation, &r.spec_hash, &r.phase)).collect();
        prop_assert!(
            after + 1 >= target,
            "{}: {after} Ready of {target}, {pods:?} of {}: {actions:?}",
            d.id,
            d.spec_hash
        );
    }
    Ok(())
}

fn nothing_ends_on_stale_data(s: &Snapshot, actions: &[Action]) -> Result<(), TestCaseError> {
    for a in actions {
        let (Action::Drain { replica: id, reason, .. } | Action::Remove { replica: id, reason, .. }) = a else {
            continue;
        };
        if !matches!(reason, EndReason::UnhealthyGpu | EndReason::Overshoot) {
            continue;
        }
        let d = s.deployments.iter().find(|d| d.id == id.deployment).unwrap();
        let r = d.replicas.iter().find(|r| (r.index, r.incarnation) == (id.index, id.incarnation)).unwrap();
        let n = s.nodes.iter().find(|n| n.name == r.placement.as_ref().unwrap().node).unwrap();
        let fresh = matches!(n.freshness, Freshness::Fresh { .. });
        prop_assert!(fresh, "ended on stale data");
    }
    Ok(())
}

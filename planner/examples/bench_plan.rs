//! How long one plan takes: a cold one that places every replica, and the next after one deployment
//! was changed. One JSON line per size and a last one with `"summary": true`. One thread.
//! `read_again`: the same, with a snapshot that was read anew and shares nothing with the one before.
//!
//! ```text
//! cargo xtask bench planner --nodes 5000 --gpus 8 --replicas 20000
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use stowage_planner::difference::{Decision, difference};
use stowage_planner::plan::Action;
use stowage_planner::snapshot::*;
use stowage_planner::{Prepared, check::check};

/// Replicas per deployment.
const EACH: u32 = 10;
/// Plans after one change each.
const ROUNDS: usize = 40;
const GIB: u64 = 1 << 30;
/// Memory in GiB, SMs in per cent, GPUs: what deployments ask, in turn; 0 is a whole GPU.
const ASKS: [(u64, u32, u32); 12] = [
    (2, 10, 1),
    (4, 10, 1),
    (8, 15, 1),
    (10, 20, 1),
    (16, 25, 1),
    (20, 30, 1),
    (24, 40, 1),
    (40, 50, 1),
    (0, 0, 1),
    (0, 0, 2),
    (0, 0, 4),
    (12, 20, 1),
];

fn main() {
    let [nodes, gpus, replicas] = options();
    for size in [50, 200, 1000, 5000] {
        if size < nodes {
            run(size, gpus, (u64::from(replicas) * u64::from(size) / u64::from(nodes)).max(1) as u32);
        }
    }
    let (cold_ms, p99_ms) = run(nodes, gpus, replicas.max(1));
    println!(
        "{{\"bench\":\"planner\",\"summary\":true,\"nodes\":{nodes},\"gpus\":{gpus},\"replicas\":{replicas},\"cold_ms\":{:.1},\"incremental_p99_ms\":{:.1},\"rss_mib\":{}}}",
        cold_ms,
        p99_ms,
        rss_mib()
    );
}

/// `--nodes`, `--gpus` (per node) and `--replicas`.
fn options() -> [u32; 3] {
    let mut given =
        BTreeMap::from([("--nodes".to_owned(), 5000), ("--gpus".to_owned(), 8), ("--replicas".to_owned(), 20_000)]);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().and_then(|v| v.parse::<u32>().ok());
        match (given.get_mut(&name), value) {
            (Some(slot), Some(value)) => *slot = value,
            _ => {
                eprintln!("usage: --nodes N --gpus N --replicas N");
                std::process::exit(2);
            }
        }
    }
    [given["--nodes"], given["--gpus"], given["--replicas"]]
}

/// Cold milliseconds, and the 99th percentile of the plans after one change each.
fn run(nodes: u32, gpus: u32, replicas: u32) -> (f64, f64) {
    let policy = Policy::default();
    let mut snapshot = fleet(nodes, gpus, replicas);
    let start = Instant::now();
    let mut prepared = Prepared::default();
    let (cold, report) = prepared.plan(&snapshot, &policy, 1_000_000);
    let cold_ms = start.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(check(&snapshot, &cold), []);
    let placed = cold.actions.len();
    let waiting = report.deployments.iter().filter(|d| d.counts.desired < d.counts.wanted).count();
    drop(report);
    carry_out(&mut snapshot, &cold.actions);
    // What the cold plan placed is read once; what is measured is one change after another.
    let settled = time(&mut prepared, &mut snapshot, &policy);
    let [p50, p99] = rounds(&mut prepared, &mut snapshot, &policy, |_| ());
    let [again_p50, again_p99] = rounds(&mut prepared, &mut snapshot, &policy, |s| {
        s.nodes = s.nodes.iter().map(|n| Shared::new(Node::clone(n))).collect();
        s.deployments = s.deployments.iter().map(|d| Shared::new(Deployment::clone(d))).collect();
    });
    let dry_run_ms = dry_run(&snapshot, &policy);
    println!(
        "{{\"bench\":\"planner\",\"nodes\":{nodes},\"gpus\":{gpus},\"replicas\":{replicas},\"dry_run_ms\":{dry_run_ms:.1},\"placed\":{placed},\"waiting_deployments\":{waiting},\"cold_ms\":{cold_ms:.1},\"carried_out_ms\":{settled:.1},\"incremental_p50_ms\":{p50:.1},\"incremental_p99_ms\":{p99:.1},\"read_again_p50_ms\":{again_p50:.1},\"read_again_p99_ms\":{again_p99:.1},\"rss_mib\":{}}}",
        rss_mib()
    );
    (cold_ms, p99)
}

/// Milliseconds of a dry run of one more replica: a plan that knows nothing of the one before, and the comparison.
fn dry_run(snapshot: &Snapshot, policy: &Policy) -> f64 {
    let (plan, report) = stowage_planner::plan(snapshot, policy, 1_000_000);
    let before = Decision { snapshot, plan: &plan, report: &report };
    let mut changed = before.snapshot.clone();
    changed.deployments[0].wanted += 1;
    let start = Instant::now();
    let (next, next_report) = stowage_planner::plan(&changed, policy, 1_000_000);
    let after = Decision { snapshot: &changed, plan: &next, report: &next_report };
    let asked = BTreeSet::from([changed.deployments[0].id.clone()]);
    let found = difference(&asked, &BTreeSet::new(), before, after);
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(found.deployments.len(), 1);
    ms
}

/// Milliseconds of one plan, which is then carried out.
fn time(prepared: &mut Prepared, snapshot: &mut Snapshot, policy: &Policy) -> f64 {
    let start = Instant::now();
    let (next, _) = prepared.plan(snapshot, policy, 1_000_000);
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    carry_out(snapshot, &next.actions);
    ms
}

/// Median and longest of plans after one more replica is wanted each.
fn rounds(
    prepared: &mut Prepared,
    snapshot: &mut Snapshot,
    policy: &Policy,
    before: impl Fn(&mut Snapshot),
) -> [f64; 2] {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let at = round * 7 % snapshot.deployments.len();
            snapshot.deployments[at].wanted += 1;
            before(snapshot);
            time(prepared, snapshot, policy)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [times[ROUNDS / 2], times[ROUNDS - 1]]
}

/// Two classes, three tenants in one cohort, deployments of ten replicas each.
fn fleet(nodes: u32, gpus: u32, replicas: u32) -> Snapshot {
    let class = |node: u32| if node % 4 == 3 { "h200-141g" } else { "h100-80g" };
    let gpu = |node: u32, index: u32| Gpu {
        uuid: format!("GPU-{node:05}-{index}"),
        index,
        product: class(node).to_owned(),
        class: Some(class(node).to_owned()),
        memory_bytes: if node % 4 == 3 { 141 * GIB } else { 80 * GIB },
        memory_step_bytes: 256 << 20,
        sm_percent: 100,
        health: Health::Healthy,
        island: Some(format!("{}", index / 4)),
        numa: None,
        mig: None,
        slices: Vec::new(),
    };
    let node = |n: u32| Node {
        name: format!("node{n:05}"),
        ready: true,
        cordoned: false,
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", n % 3))]),
        taints: Vec::new(),
        allocatable: Resources { cpu_milli: 128_000, memory_bytes: 1024 * GIB, pods: 110 },
        used: Resources { cpu_milli: 2_000, memory_bytes: 8 * GIB, pods: 12 },
        host_ports: Vec::new(),
        freshness: Freshness::Fresh { age_ms: u64::from(n % 1000) },
        gpus: (0..gpus).map(|index| gpu(n, index)).collect(),
        cached_models: (0..3).map(|m| ModelKey::image(&format!("model-{}", (n + m) % 40))).collect(),
    };
    let each = u64::from(nodes * gpus) * 1000 / 3;
    let quota = |class: &str| Quota {
        class: class.to_owned(),
        nominal_milli: each,
        borrowing_limit_milli: None,
        lending_limit_milli: None,
    };
    let tenant = |t: u32| Tenant {
        id: TenantId(format!("team-{t}")),
        namespaces: vec![format!("team-{t}")],
        cohort: Some("all".to_owned()),
        weight: 1,
        quotas: vec![quota("h100-80g"), quota("h200-141g")],
        min_runtime_ms: None,
        reclaim_grace_ms: None,
        spend_limit: None,
    };
    let class = |name: &str| Class {
        name: name.to_owned(),
        allow_soft_sharing: true,
        price_per_hour_micros: None,
        currency: String::new(),
    };
    Snapshot {
        sequence: 1,
        nodes: (0..nodes).map(node).map(Shared::new).collect(),
        tenants: (0..3).map(tenant).collect(),
        deployments: (0..replicas.div_ceil(EACH)).map(deployment).map(Shared::new).collect(),
        classes: vec![class("h100-80g"), class("h200-141g")],
        exclusions: Vec::new(),
        shares: Vec::new(),
        waiting: Vec::new(),
        recent_moves: Vec::new(),
    }
}

fn deployment(n: u32) -> Deployment {
    let (memory, sm, count) = ASKS[n as usize % ASKS.len()];
    let variant = |class: &str| Variant {
        name: class.to_owned(),
        accelerator: Accelerator::Gpu {
            class: class.to_owned(),
            count,
            partition: Partition::slice((memory > 0).then_some(memory * GIB), (sm > 0).then_some(sm)),
        },
        itl_us: None,
    };
    let variants = match n % 3 {
        0 => vec![variant("h100-80g"), variant("h200-141g")],
        1 => vec![variant("h100-80g")],
        _ => vec![variant("h200-141g"), variant("h100-80g")],
    };
    let namespace = format!("team-{}", n % 3);
    Deployment {
        id: DeploymentId::new(namespace.clone(), format!("d{n:05}")),
        uid: format!("uid-{n}"),
        generation: 1,
        tenant: Some(TenantId(namespace)),
        priority: 0,
        created_ms: u64::from(n),
        wanted: EACH,
        scaling: Default::default(),
        signals: Default::default(),
        memory: Default::default(),
        variants,
        objective: Objective::Packing,
        needs: Needs { cpu_milli: 2_000, memory_bytes: 8 * GIB, host_ports: Vec::new() },
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        spread: Vec::new(),
        isolation: Isolation::Shared,
        model_key: ModelKey::image(&format!("model-{}", n % 200)),
        spec_hash: "v1".to_owned(),
        replicas: Vec::new(),
        slots: Vec::new(),
        deleting: false,
        force_delete: false,
        held: None,
        drain_timeout_ms: 60_000,
    }
}

fn carry_out(s: &mut Snapshot, actions: &[Action]) {
    let nodes: BTreeMap<String, usize> = s.nodes.iter().enumerate().map(|(at, n)| (n.name.clone(), at)).collect();
    let deployments: BTreeMap<DeploymentId, usize> =
        s.deployments.iter().enumerate().map(|(at, d)| (d.id.clone(), at)).collect();
    for action in actions {
        let Action::Create { replica, placement, spec_hash, .. } = action else { continue };
        let d: &mut Deployment = &mut s.deployments[deployments[&replica.deployment]];
        let node: &mut Node = &mut s.nodes[nodes[&placement.node]];
        node.used.cpu_milli += d.needs.cpu_milli;
        node.used.memory_bytes += d.needs.memory_bytes;
        node.used.pods += 1;
        for share in &placement.gpus {
            node.gpus.iter_mut().find(|g| g.uuid == share.uuid).unwrap().slices.push(Slice {
                owner: SliceOwner::Replica(replica.clone()),
                tenant: d.tenant.clone(),
                promise: share.promise.clone(),
                isolation: d.isolation,
            });
        }
        d.replicas.push(Replica {
            index: replica.index,
            incarnation: replica.incarnation,
            name: replica.to_string(),
            spec_hash: spec_hash.clone(),
            phase: Phase::Ready,
            placement: Some(placement.clone()),
            created_ms: 1,
            node_lost: false,
            overshoot: None,
            in_flight: None,
            takes_over: false,
        });
    }
}

/// Largest memory of this process so far.
fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

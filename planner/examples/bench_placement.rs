//! The placement protocol of the ATC'23 fragmentation paper ("Monte-Carlo workload inflation"), run
//! through [`plan`]: each pod of the list becomes a deployment of one replica, older ones first; one
//! that names no GPU type has a variant per class of the cluster. Node names are permuted per seed.
//!
//! Pods are shuffled by seed, and random pods of the same list are appended until the requested GPUs
//! reach 130 % of the cluster's. Pods come one by one, never leave, and are dropped when they fit
//! nowhere. Random streams differ from the reference simulator's, so compare means over ten seeds.
//!
//! ```text
//! cargo run --release -p stowage-planner --example bench_placement -- \
//!     --nodes openb_node_list_gpu_node.csv.gz --pods openb_pod_list_default.csv.gz --seeds 42..52
//! ```
//! `--policy fgd|bestfit|random`: a published policy instead, on the same pods in the same order.
//! `--learn N`: besides, plan again after every N pods, so that the expected demand is what came so far.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/baselines.rs"]
mod baselines;
#[path = "support/openb.rs"]
mod openb;

use std::collections::BTreeMap;
use std::time::Instant;

use openb::{Options, Pod, Trace};
use stowage_planner::plan::Action;
use stowage_planner::snapshot::*;
use stowage_planner::{check::check, plan};

/// What one run reached.
struct Run {
    alloc_100: f64,
    alloc_130: f64,
    failed_100: u32,
    frag_100: f64,
}

fn main() {
    let options = Options::parse();
    let trace = Trace::load(&options.nodes, &options.pods);
    let mut runs = Vec::new();
    let mut learned = Vec::new();
    for seed in options.seeds.clone() {
        let start = Instant::now();
        let pods = trace.inflate(seed);
        let run = match options.policy.as_str() {
            "stowage" => stowage(&trace, seed, &pods),
            "fgd" => published(&trace, seed, &pods, baselines::Policy::Fgd),
            "bestfit" => published(&trace, seed, &pods, baselines::Policy::BestFit),
            "random" => published(&trace, seed, &pods, baselines::Policy::Random),
            other => openb::fail(&format!("--policy {other} is not known; write stowage, fgd, bestfit or random")),
        };
        println!(
            "{{\"bench\":\"placement\",\"policy\":\"{}\",\"seed\":{seed},\"pods\":{},\"alloc_100\":{:.2},\"alloc_130\":{:.2},\"failed_100\":{},\"frag_100\":{:.2},\"seconds\":{:.1}}}",
            options.policy,
            pods.len(),
            run.alloc_100,
            run.alloc_130,
            run.failed_100,
            run.frag_100,
            start.elapsed().as_secs_f64()
        );
        runs.push(run);
        if let Some(chunk) = options.learn {
            learned.push(learning(&trace, seed, &pods, chunk));
        }
    }
    let mean = |runs: &[Run], f: &dyn Fn(&Run) -> f64| runs.iter().map(f).sum::<f64>() / runs.len().max(1) as f64;
    let online = if learned.is_empty() {
        String::new()
    } else {
        format!(
            ",\"learned_alloc_100_mean\":{:.2},\"learned_alloc_130_mean\":{:.2}",
            mean(&learned, &|r| r.alloc_100),
            mean(&learned, &|r| r.alloc_130)
        )
    };
    println!(
        "{{\"bench\":\"placement\",\"summary\":true,\"policy\":\"{}\",\"seeds\":{},\"alloc_100_mean\":{:.2},\"alloc_130_mean\":{:.2},\"failed_100_mean\":{:.1},\"frag_100_mean\":{:.2}{online}}}",
        options.policy,
        runs.len(),
        mean(&runs, &|r| r.alloc_100),
        mean(&runs, &|r| r.alloc_130),
        mean(&runs, &|r| f64::from(r.failed_100)),
        mean(&runs, &|r| r.frag_100),
    );
}

/// A published policy.
fn published(trace: &Trace, seed: u64, pods: &[Pod], policy: baselines::Policy) -> Run {
    let (placed, fragmented) = baselines::run(trace, seed, pods, policy);
    Run { frag_100: 100.0 * fragmented / trace.total_milli() as f64, ..judge(trace, pods, &placed) }
}

/// One plan for all pods; and one for those that ask for the first 100 %, for its fragmentation.
fn stowage(trace: &Trace, seed: u64, pods: &[Pod]) -> Run {
    let mut snapshot = cluster(trace, seed);
    snapshot.deployments = pods.iter().enumerate().map(|(n, p)| deployment(trace, n, p).into()).collect();
    let (plan_made, report) = plan(&snapshot, &Policy::default(), 1);
    assert_eq!(check(&snapshot, &plan_made), []);
    let placed: Vec<bool> = report.deployments.iter().map(|r| r.counts.desired == 1).collect();
    let mut run = judge(trace, pods, &placed);
    let mut asked = 0;
    let first = pods
        .iter()
        .take_while(|p| {
            asked += p.milli * p.gpus;
            asked <= trace.total_milli()
        })
        .count();
    snapshot.deployments.truncate(first);
    let (_, report) = plan(&snapshot, &Policy::default(), 1);
    run.frag_100 = 100.0 * report.cluster.fragmented_milli as f64 / trace.total_milli() as f64;
    run
}

/// A plan after every `chunk` pods, each carried out before the next.
fn learning(trace: &Trace, seed: u64, pods: &[Pod], chunk: usize) -> Run {
    let mut snapshot = cluster(trace, seed);
    let mut placed = vec![false; pods.len()];
    for start in (0..pods.len()).step_by(chunk) {
        let end = (start + chunk).min(pods.len());
        // What came before runs or was dropped: it counts as demand and is not placed again.
        snapshot.deployments.extend((start..end).map(|n| deployment(trace, n, &pods[n]).into()));
        let (plan_made, _) = plan(&snapshot, &Policy::default(), 1);
        for action in &plan_made.actions {
            let Action::Create { replica, placement, .. } = action else { continue };
            let n: usize = replica.deployment.name[1..].parse().unwrap();
            if n >= start {
                placed[n] = true;
                carry_out(&mut snapshot, n, replica, placement);
            }
        }
        for d in &mut snapshot.deployments[start..end] {
            if d.replicas.is_empty() {
                // Dropped: no tenant may place it later.
                d.tenant = None;
            }
        }
    }
    judge(trace, pods, &placed)
}

fn carry_out(snapshot: &mut Snapshot, n: usize, replica: &ReplicaId, placement: &Placement) {
    let d: &mut Deployment = &mut snapshot.deployments[n];
    let node = snapshot.nodes.iter_mut().find(|x| x.name == placement.node).unwrap();
    node.used.cpu_milli += d.needs.cpu_milli;
    node.used.memory_bytes += d.needs.memory_bytes;
    node.used.pods += 1;
    for share in &placement.gpus {
        node.gpus.iter_mut().find(|g| g.uuid == share.uuid).unwrap().slices.push(Slice {
            owner: SliceOwner::Replica(replica.clone()),
            tenant: d.tenant.clone(),
            promise: share.promise.clone(),
            isolation: Isolation::Shared,
        });
    }
    d.replicas.push(Replica {
        index: 0,
        incarnation: 0,
        name: d.id.name.clone(),
        spec_hash: d.spec_hash.clone(),
        phase: Phase::Ready,
        placement: Some(placement.clone()),
        created_ms: 1,
        node_lost: false,
        overshoot: None,
        in_flight: None,
        takes_over: false,
    });
}

/// Shares of the cluster that are allocated while 100 % and 130 % are asked for.
fn judge(trace: &Trace, pods: &[Pod], placed: &[bool]) -> Run {
    let total = trace.total_milli();
    let (mut asked, mut allocated, mut failed_100) = (0, 0, 0);
    let mut samples: BTreeMap<i64, (f64, u32)> = BTreeMap::new();
    for (pod, placed) in pods.iter().zip(placed) {
        asked += pod.milli * pod.gpus;
        if *placed {
            allocated += pod.milli * pod.gpus;
        } else if asked < total {
            failed_100 += 1;
        }
        let per_cent = (100.0 * asked as f64 / total as f64).round_ties_even() as i64;
        let sample = samples.entry(per_cent).or_default();
        sample.0 += 100.0 * allocated as f64 / total as f64;
        sample.1 += 1;
    }
    let mean = |at: i64| samples.get(&at).map_or(f64::NAN, |(sum, n)| sum / f64::from(*n));
    Run { alloc_100: mean(100), alloc_130: mean(130), failed_100, frag_100: f64::NAN }
}

fn cluster(trace: &Trace, seed: u64) -> Snapshot {
    let names = trace.permutation(seed);
    let node = |(at, n): (usize, &openb::Node)| Node {
        name: format!("n{:05}", names[at]),
        ready: true,
        cordoned: false,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable: Resources { cpu_milli: n.cpu as u64, memory_bytes: n.memory as u64, pods: u32::MAX },
        used: Resources::default(),
        host_ports: Vec::new(),
        freshness: Freshness::Fresh { age_ms: 0 },
        gpus: (0..n.gpus as u32)
            .map(|index| Gpu {
                uuid: format!("GPU-{at}-{index}"),
                index,
                product: n.model.clone(),
                class: Some(n.model.clone()),
                memory_bytes: 1000,
                memory_step_bytes: 1,
                sm_percent: 1000,
                health: Health::Healthy,
                island: Some("node".into()),
                numa: None,
                mig: None,
                slices: Vec::new(),
            })
            .collect(),
        cached_models: Vec::new(),
    };
    let quota = |class: &String| Quota {
        class: class.clone(),
        nominal_milli: 1 << 40,
        borrowing_limit_milli: None,
        lending_limit_milli: None,
    };
    Snapshot {
        sequence: 1,
        nodes: trace.nodes.iter().enumerate().map(node).map(Shared::new).collect(),
        tenants: vec![Tenant {
            id: TenantId("all".into()),
            namespaces: vec!["all".into()],
            cohort: None,
            weight: 1,
            quotas: trace.models.iter().map(quota).collect(),
            min_runtime_ms: None,
            reclaim_grace_ms: None,
            spend_limit: None,
        }],
        ..Snapshot::default()
    }
}

fn deployment(trace: &Trace, n: usize, pod: &Pod) -> Deployment {
    let gpu = |class: &String| Variant {
        name: class.clone(),
        accelerator: Accelerator::Gpu {
            class: class.clone(),
            count: pod.gpus as u32,
            partition: Partition::slice(pod.milli as u64, pod.milli as u32),
        },
        itl_us: None,
    };
    let cpu = Accelerator::Cpu { cpu_milli: 0, memory_bytes: 0 };
    let variants = match (pod.gpus, pod.types.as_slice()) {
        (0, _) => vec![Variant { name: "cpu".into(), accelerator: cpu, itl_us: None }],
        (_, []) => trace.models.iter().map(gpu).collect(),
        (_, named) => named.iter().map(gpu).collect(),
    };
    Deployment {
        id: DeploymentId::new("all", format!("p{n:06}")),
        uid: format!("{n}"),
        generation: 1,
        tenant: Some(TenantId("all".into())),
        priority: 0,
        created_ms: n as u64,
        wanted: 1,
        scaling: Default::default(),
        signals: Default::default(),
        memory: Default::default(),
        variants,
        objective: Objective::Packing,
        needs: Needs { cpu_milli: pod.cpu as u64, memory_bytes: pod.memory as u64, host_ports: Vec::new() },
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        spread: Vec::new(),
        isolation: Isolation::Shared,
        model_key: Default::default(),
        spec_hash: "v1".into(),
        replicas: Vec::new(),
        slots: Vec::new(),
        deleting: false,
        force_delete: false,
        held: None,
        drain_timeout_ms: 0,
    }
}

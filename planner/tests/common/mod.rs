//! A small language for snapshots, so that a scenario fits on a screen. A line is a word and
//! `key=value` pairs:
//!
//! ```text
//! class h100 soft
//! node n1 gpu=h100*2 size=80Gi cpu=16 mem=64Gi pods=110 islands=1 age=1200 cached=smol
//! health n1 0 unhealthy Xid 79
//! foreign n1 0 10Gi 20
//! tenant a ns=a cohort=prod h100=4+1
//! deployment a/chat want=2 ask=h100*1,2Gi,10|l4*1,2Gi,20 goal=Cost prio=0 hash=v1
//! replica a/chat 0 n1 0 ready serves=3
//! node m1 gpu=h100*2 mig=1 numa=2
//! deployment a/small ask=h100*1,mig:1g.10gb
//! replica a/small 0 m1 0 ready cut=3
//! ```
#![allow(clippy::unwrap_used, dead_code)]

pub mod h100;
pub mod mig;
pub mod random;
pub mod scaling;

use stowage_planner::snapshot::*;

pub const NOW: TimeMs = 50_000_000;

pub fn parse(text: &str) -> Snapshot {
    let mut s = Snapshot { sequence: 1, ..Snapshot::default() };
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "class" => s.classes.push(Class {
                name: words[1].into(),
                allow_soft_sharing: words.contains(&"soft"),
                price_per_hour_micros: value(&words, "price").map(|p| p.parse().unwrap()),
                currency: String::new(),
            }),
            "node" => s.nodes.push(node(&words).into()),
            "health" => health(&mut s, &words),
            "foreign" => foreign(&mut s, &words),
            "tenant" => s.tenants.push(tenant(&words)),
            "deployment" => {
                let d = deployment(&s, &words);
                s.deployments.push(d.into());
            }
            "replica" => replica(&mut s, &words),
            "slot" => slot(&mut s, &words),
            "waiting" => s.waiting.push(Waiting {
                deployment: id(words[1]),
                index: words[2].parse().unwrap(),
                since_ms: NOW - number(&words, "for", 0),
            }),
            "moved" => s.recent_moves.push(RecentMove {
                at_ms: NOW - number(&words, "ago", 0),
                claimant: TenantId(words[1].into()),
                deployment: id(words[2]),
                index: words[3].parse().unwrap(),
            }),
            "exclude" => s.exclusions.push(Exclusion {
                deployment: id(words[1]),
                index: words[2].parse().unwrap(),
                node: words[3].into(),
                until_ms: NOW + words[4].parse::<u64>().unwrap(),
                reason: words[5..].join(" "),
            }),
            _ if scaling::line(&mut s, &words) => {}
            other => panic!("unknown word {other} in: {line}"),
        }
    }
    s
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str, default: u64) -> u64 {
    value(words, key).map_or(default, size)
}

pub fn size(s: &str) -> u64 {
    let split = s.find(|c: char| c.is_alphabetic()).unwrap_or(s.len());
    let n: u64 = s[..split].parse().unwrap_or_else(|_| panic!("not a size: {s}"));
    n * match &s[split..] {
        "" => 1,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        other => panic!("unknown unit {other}"),
    }
}

fn id(s: &str) -> DeploymentId {
    let (namespace, name) = s.split_once('/').unwrap();
    DeploymentId::new(namespace, name)
}

fn node(w: &[&str]) -> Node {
    let name = w[1].to_owned();
    let gpus = value(w, "gpu").map_or(Vec::new(), |g| {
        let (class, n) = g.split_once('*').unwrap();
        let n: u32 = n.parse().unwrap();
        let islands = number(w, "islands", 1) as u32;
        (0..n)
            .map(|index| Gpu {
                uuid: format!("GPU-{name}.{index}"),
                index,
                product: "NVIDIA H100 80GB HBM3".into(),
                class: Some(class.to_owned()),
                memory_bytes: number(w, "size", 80 << 30),
                memory_step_bytes: 256 << 20,
                sm_percent: 100,
                health: Health::Healthy,
                island: Some(format!("nv{}", index * islands / n)),
                numa: (number(w, "numa", 1) > 1).then(|| index * number(w, "numa", 1) as u32 / n),
                mig: (u64::from(index) < number(w, "mig", 0)).then(h100::h100),
                slices: Vec::new(),
            })
            .collect()
    });
    let freshness = match (value(w, "stale"), w.contains(&"missing")) {
        (Some(age), _) => Freshness::Stale { age_ms: age.parse().unwrap() },
        (None, true) => Freshness::Missing,
        (None, false) => Freshness::Fresh { age_ms: number(w, "age", 400) },
    };
    Node {
        name,
        ready: !w.contains(&"notready"),
        cordoned: w.contains(&"cordoned"),
        labels: value(w, "label")
            .map(|l| l.split_once(':').unwrap())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect(),
        taints: value(w, "taint")
            .map(|key| Taint { key: key.into(), value: String::new(), effect: TaintEffect::NoSchedule })
            .into_iter()
            .collect(),
        allocatable: Resources {
            cpu_milli: number(w, "cpu", 16) * 1000,
            memory_bytes: number(w, "mem", 64 << 30),
            pods: number(w, "pods", 110) as u32,
        },
        used: Resources::default(),
        host_ports: Vec::new(),
        freshness,
        gpus,
        cached_models: value(w, "cached").map(ModelKey::read).into_iter().collect(),
    }
}

fn gpu_mut<'a>(s: &'a mut Snapshot, node: &str, index: &str) -> &'a mut Gpu {
    let node = s.nodes.iter_mut().find(|n| n.name == node).unwrap();
    &mut node.gpus[index.parse::<usize>().unwrap()]
}

fn health(s: &mut Snapshot, w: &[&str]) {
    let reason = w[4..].join(" ");
    gpu_mut(s, w[1], w[2]).health = match w[3] {
        "unhealthy" => Health::Unhealthy { reason },
        "degraded" => Health::Degraded { reason },
        other => panic!("unknown health {other}"),
    };
}

fn foreign(s: &mut Snapshot, w: &[&str]) {
    let slice = Slice {
        owner: SliceOwner::Foreign { claim: value(w, "claim").unwrap_or("other/claim").into() },
        tenant: value(w, "tenant").map(|t| TenantId(t.into())),
        promise: Promise::slice(size(w[3]), w[4].parse().unwrap()),
        isolation: isolation(w),
    };
    gpu_mut(s, w[1], w[2]).slices.push(slice);
}

fn isolation(w: &[&str]) -> Isolation {
    match value(w, "iso") {
        None => Isolation::Shared,
        Some("gpu") => Isolation::DedicatedGpu,
        Some("node") => Isolation::DedicatedNode,
        Some(other) => panic!("unknown isolation {other}"),
    }
}

fn tenant(w: &[&str]) -> Tenant {
    let known = ["ns", "cohort", "weight", "minruntime", "grace", "spend"];
    let quotas = w[2..]
        .iter()
        .filter_map(|p| p.split_once('='))
        .filter(|(k, _)| !known.contains(k))
        .map(|(class, q)| {
            let (q, lend) = q.split_once('~').map_or((q, None), |(q, l)| (q, Some(l)));
            let (nominal, borrow) = q.split_once('+').map_or((q, None), |(q, b)| (q, Some(b)));
            let milli = |s: &str| (s.parse::<f64>().unwrap() * 1000.0) as u64;
            Quota {
                class: class.into(),
                nominal_milli: milli(nominal),
                borrowing_limit_milli: borrow.map(milli),
                lending_limit_milli: lend.map(milli),
            }
        })
        .collect();
    Tenant {
        id: TenantId(w[1].into()),
        namespaces: value(w, "ns").unwrap_or(w[1]).split(',').map(str::to_owned).collect(),
        cohort: value(w, "cohort").map(str::to_owned),
        weight: number(w, "weight", 1) as u32,
        quotas,
        min_runtime_ms: value(w, "minruntime").map(size),
        reclaim_grace_ms: value(w, "grace").map(size),
        spend_limit: value(w, "spend").map(|x| Money { micros: size(x), currency: String::new() }),
    }
}

fn deployment(s: &Snapshot, w: &[&str]) -> Deployment {
    let id = id(w[1]);
    let tenant = s.tenants.iter().find(|t| t.namespaces.contains(&id.namespace)).map(|t| t.id.clone());
    let ask = value(w, "ask").unwrap();
    let variants = ask.split('|').enumerate().map(|(n, ask)| {
        let mut parts = ask.split(',');
        let (class, count) = parts.next().unwrap().split_once('*').unwrap();
        let first = parts.next();
        let partition = match first.and_then(|p| p.strip_prefix("mig:")) {
            Some(profile) => Partition::Mig { profile: profile.into() },
            None => {
                Partition::slice(first.filter(|p| !p.is_empty()).map(size), parts.next().map(|p| p.parse().unwrap()))
            }
        };
        let accelerator = Accelerator::Gpu { class: class.into(), count: count.parse().unwrap(), partition };
        let name = if n == 0 { "only".to_owned() } else { format!("on-{class}") };
        Variant { name, accelerator, itl_us: None }
    });
    let objective = match value(w, "goal") {
        None | Some("Packing") => Objective::Packing,
        Some("Cost") => Objective::Cost,
        Some("Latency") => Objective::Latency,
        Some(other) => panic!("unknown goal {other}"),
    };
    Deployment {
        uid: format!("uid-{id}"),
        id,
        generation: 1,
        tenant,
        priority: value(w, "prio").map_or(0, |p| p.parse().unwrap()),
        created_ms: number(w, "created", 1000),
        wanted: number(w, "want", 1) as u32,
        scaling: Scaling::default(),
        signals: Signals::default(),
        memory: Memory::default(),
        variants: variants.collect(),
        objective,
        needs: Needs {
            cpu_milli: number(w, "cpu", 1) * 1000,
            memory_bytes: number(w, "mem", 2 << 30),
            host_ports: value(w, "port").map(|p| p.parse().unwrap()).into_iter().collect(),
        },
        node_selector: value(w, "select")
            .map(|l| l.split_once(':').unwrap())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect(),
        tolerations: value(w, "tolerate")
            .map(|key| Toleration { key: Some(key.into()), value: None, effect: None })
            .into_iter()
            .collect(),
        spread: value(w, "spread")
            .map(|s| s.split_once(':').unwrap())
            .map(|(key, skew)| Spread { topology_key: key.to_owned(), max_skew: skew.parse().unwrap() })
            .into_iter()
            .collect(),
        isolation: isolation(w),
        model_key: value(w, "model").map(ModelKey::read).unwrap_or_default(),
        spec_hash: value(w, "hash").unwrap_or("v1").into(),
        replicas: Vec::new(),
        slots: Vec::new(),
        deleting: w.contains(&"deleting"),
        force_delete: w.contains(&"force"),
        held: None,
        drain_timeout_ms: number(w, "drain", 60_000),
    }
}

/// `replica ns/name INDEX NODE GPUS PHASE [inc=] [hash=] [lost] [over=USED]`; GPUS is `0` or `0,1`.
fn replica(s: &mut Snapshot, w: &[&str]) {
    let d = s.deployments.iter().find(|d| d.id == id(w[1])).unwrap().clone();
    let Accelerator::Gpu { partition, .. } = &d.variants[0].accelerator else { panic!() };
    let index: u32 = w[2].parse().unwrap();
    let incarnation = number(w, "inc", 0) as u32;
    let replica = ReplicaId { deployment: d.id.clone(), index, incarnation };
    let mut gpus = Vec::new();
    for at in w[4].split(',') {
        let gpu = gpu_mut(s, w[3], at);
        let promise = match partition {
            Partition::Slice { memory_bytes, sm_percent } => {
                Promise::slice(memory_bytes.unwrap_or(gpu.memory_bytes), sm_percent.unwrap_or(100))
            }
            Partition::Mig { profile } => {
                let profile = gpu.mig.iter().flatten().find(|p| &p.name == profile).unwrap();
                Promise::device(profile, number(w, "cut", 0) as u32)
            }
        };
        gpu.slices.push(Slice {
            owner: SliceOwner::Replica(replica.clone()),
            tenant: d.tenant.clone(),
            promise: promise.clone(),
            isolation: d.isolation,
        });
        gpus.push(GpuShare { uuid: gpu.uuid.clone(), promise });
    }
    let overshoot = value(w, "over").map(|used| Overshoot {
        gpu: gpus[0].uuid.clone(),
        promised_bytes: gpus[0].promise.memory_bytes,
        used_bytes: size(used),
        samples: 5,
        source: "NVML".into(),
        headroom: w.contains(&"headroom"),
    });
    let node = s.nodes.iter_mut().find(|n| n.name == w[3]).unwrap();
    node.used.cpu_milli += d.needs.cpu_milli;
    node.used.memory_bytes += d.needs.memory_bytes;
    node.used.pods += 1;
    let since = NOW - number(w, "for", 0);
    let phase = match w[5] {
        "ready" => Phase::Ready,
        "starting" => Phase::Starting,
        "unready" => Phase::Unready,
        "terminating" => {
            Phase::Terminating { until_ms: value(w, "until").map(|ms| NOW.saturating_add_signed(ms.parse().unwrap())) }
        }
        "failed" => Phase::Failed { reason: "engine exited with code 1".into() },
        "draining" => Phase::Draining {
            since_ms: since,
            until_ms: value(w, "until").map(|ms| NOW.saturating_add_signed(ms.parse().unwrap())),
            in_flight: value(w, "inflight").map(|n| n.parse().unwrap()),
            may_resume: w.contains(&"resumable"),
        },
        "unscheduled" => Phase::Unscheduled {
            since_ms: since,
            message: "0/3 nodes are available: 3 cannot allocate all claims.".into(),
        },
        "unlooked" => Phase::Unscheduled { since_ms: since, message: String::new() },
        "unprepared" => {
            Phase::Unprepared { since_ms: since, message: format!("{}: cannot write the checkpoint: disk full", w[3]) }
        }
        other => panic!("unknown phase {other}"),
    };
    let r = Replica {
        index,
        incarnation,
        name: format!("{}-{index}{incarnation}", d.id.name),
        spec_hash: value(w, "hash").unwrap_or(&d.spec_hash).into(),
        phase,
        placement: Some(Placement { node: w[3].into(), variant: value(w, "variant").unwrap_or("only").into(), gpus }),
        created_ms: number(w, "created", 2000),
        node_lost: w.contains(&"lost"),
        overshoot,
        in_flight: value(w, "serves").map(|n| n.parse().unwrap()),
        takes_over: w.contains(&"takesover"),
    };
    s.deployments.iter_mut().find(|d| d.id == r_id(w)).unwrap().replicas.push(r);
}

fn r_id(w: &[&str]) -> DeploymentId {
    id(w[1])
}

fn slot(s: &mut Snapshot, w: &[&str]) {
    let slot = Slot {
        index: w[2].parse().unwrap(),
        incarnation: number(w, "inc", 0) as u32,
        failures: number(w, "failures", 0) as u32,
        last_failure_ms: NOW - number(w, "ago", 0),
    };
    s.deployments.iter_mut().find(|d| d.id == id(w[1])).unwrap().slots.push(slot);
}

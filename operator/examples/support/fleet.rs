//! A fleet of nodes with eight H100 each, on which all replicas run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::ToSpan;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use stowage_contracts::names::{ANNOTATION_PLACEMENT, DRAIN_FINALIZER};
use stowage_operator::execute::build::prepare;
use stowage_operator::execute::case::cases;
use stowage_operator::execute::case::rest::Rest;
use stowage_operator::execute::status;
use stowage_operator::observe::agents::AgentReport;
use stowage_operator::observe::view::View;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::report::DeploymentReport;
use stowage_planner::snapshot::{DeploymentId, Policy, Snapshot};
use stowage_planner::{Prepared, check};

use super::{objects, write};

const TENANTS: usize = 20;
/// Memory and per cent of the SMs, in turn.
const ASKS: [(&str, u32); 5] = [("2Gi", 10), ("8Gi", 15), ("16Gi", 25), ("24Gi", 30), ("40Gi", 50)];
/// Turns with one change each.
const ROUNDS: usize = 100;

pub fn main() {
    let given = options();
    let (nodes, deployments) = (given["--nodes"], given["--deployments"]);
    let mut operator = Operator::default();
    let mut view = fleet(nodes, deployments, given["--replicas"]);
    let cold = operator.turn(&mut view);
    let pods = view.pods.len();
    // Until all run and their statuses say so.
    for _ in 0..3 {
        run(&mut view);
        operator.turn(&mut view);
    }
    let mut turns: Vec<Parts> = (0..ROUNDS)
        .map(|round| {
            one_more(&mut view, round * 7 % deployments);
            let parts = operator.turn(&mut view);
            run(&mut view);
            parts
        })
        .collect();
    turns.sort_by(|a, b| a.total().total_cmp(&b.total()));
    let (median, longest) = (&turns[ROUNDS / 2], &turns[ROUNDS - 1]);
    println!(
        "{{\"bench\":\"turn\",\"summary\":true,\"nodes\":{nodes},\"deployments\":{deployments},\"pods\":{pods},\"cold_ms\":{:.0},\"p50_ms\":{:.1},\"p99_ms\":{:.1},\"build_ms\":{:.1},\"plan_ms\":{:.1},\"check_ms\":{:.1},\"report_ms\":{:.1},\"rss_mib\":{}}}",
        cold.total(),
        median.total(),
        longest.total(),
        median.build,
        median.plan,
        median.check,
        median.report,
        rss_mib()
    );
}

fn options() -> BTreeMap<String, usize> {
    let mut given =
        BTreeMap::from([("--nodes", 5000), ("--deployments", 5000), ("--replicas", 4)].map(|(k, v)| (k.to_owned(), v)));
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        match (given.get_mut(&name), args.next().and_then(|value| value.parse().ok())) {
            (Some(slot), Some(value)) => *slot = value,
            _ => {
                eprintln!("usage: --nodes N --deployments N --replicas N");
                std::process::exit(2);
            }
        }
    }
    given
}

/// Milliseconds of one turn.
struct Parts {
    build: f64,
    plan: f64,
    check: f64,
    report: f64,
}

impl Parts {
    fn total(&self) -> f64 {
        self.build + self.plan + self.check + self.report
    }
}

/// What the loop keeps from one turn to the next.
#[derive(Default)]
struct Operator {
    memory: Memory,
    prepared: Prepared,
    policy: Policy,
    sequence: u64,
    before: Snapshot,
    rests: BTreeMap<DeploymentId, Rest>,
}

impl Operator {
    /// One turn, carried out.
    fn turn(&mut self, given: &mut View) -> Parts {
        self.sequence += 1;
        let start = Instant::now();
        let view = &Arc::new(given.clone());
        let now = millis(view.now);
        self.memory.observe(view, now);
        let mut built = build(view, &self.memory, self.sequence);
        built.snapshot.share(&self.before);
        self.before = built.snapshot.clone();
        self.memory.keep(view, &built);
        let _basis = self.memory.clone();
        let building = start.elapsed();
        let (plan, report) = self.prepared.plan(&built.snapshot, &self.policy, now);
        self.memory.learn(&built.judged, &view.deployments);
        self.memory.remember(&built.snapshot, &plan);
        self.memory.bottlenecks(&built.snapshot, now);
        let planned = start.elapsed();
        assert_eq!(check::check(&built.snapshot, &plan), []);
        let checked = start.elapsed();
        let reports: BTreeMap<&DeploymentId, &DeploymentReport> =
            report.deployments.iter().map(|report| (&report.deployment, report)).collect();
        let (mut due, mut statuses) = (Vec::new(), Vec::new());
        for case in cases(view, &built, &plan, &report) {
            let report = reports.get(&case.id).copied();
            if self.rests.get(&case.id).is_some_and(|rest| rest.holds(&case, report, start)) {
                continue;
            }
            let (id, prepared) = (case.id.clone(), prepare(&case, view.now));
            let status = status::render(&case, report, &[], None, view.now);
            if !prepared.is_empty() {
                due.push(prepared);
            } else if !status::differs(&case.stored.raw_status(), &status) {
                let rest = Rest::begin(case, report.cloned(), start);
                self.rests.extend(rest.map(|rest| (id, rest)));
                continue;
            }
            statuses.push((id, status));
        }
        let reported = start.elapsed();
        write(given, due);
        say(given, statuses);
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        Parts {
            build: ms(building),
            plan: ms(planned - building),
            check: ms(checked - planned),
            report: ms(reported - checked),
        }
    }
}

/// The statuses are as they were written.
fn say(view: &mut View, statuses: Vec<(DeploymentId, Value)>) {
    for (id, status) in statuses {
        let stored = view.deployments.get_mut(&(id.namespace, id.name)).unwrap();
        let next = stored.as_ref().clone().with_status(status);
        *stored = Arc::new(next);
    }
}

/// What scheduler and kubelets do, at once; then five seconds pass.
fn run(view: &mut View) {
    for pod in view.pods.values_mut() {
        if pod.status.as_ref().is_none_or(|status| status.phase.as_deref() != Some("Running")) {
            *pod = Arc::new(ready(pod).into());
        }
    }
    view.now = view.now.checked_add(5.seconds()).unwrap();
    // As fresh as the agents keep them.
    let observed = view.now.to_string();
    let first = view.now.as_second() as usize / 5 % 12;
    for node in view.gpu_nodes.values_mut().skip(first).step_by(12) {
        let mut fresh = node.as_ref().clone();
        let status = fresh.status.as_mut().unwrap();
        status.observed_time = serde_json::from_value(json!(observed)).unwrap();
        *node = Arc::new(fresh);
    }
}

fn ready(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    let placement: Value =
        serde_json::from_str(&pod.metadata.annotations.as_ref().unwrap()[ANNOTATION_PLACEMENT]).unwrap();
    let now = objects::NOW;
    pod.spec.as_mut().unwrap().node_name = placement["node"].as_str().map(str::to_owned);
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    pod.status =
        Some(serde_json::from_value(json!({"phase": "Running", "startTime": now, "conditions": conditions})).unwrap());
    pod
}

fn one_more(view: &mut View, deployment: usize) {
    let key = view.deployments.keys().nth(deployment).unwrap().clone();
    let stored = view.deployments.get_mut(&key).unwrap();
    let mut next = stored.as_ref().clone();
    next.spec.as_mut().unwrap().replicas += 1;
    next.meta.generation = next.meta.generation.map(|generation| generation + 1);
    *stored = Arc::new(next);
}

fn fleet(nodes: usize, deployments: usize, replicas: usize) -> View {
    let mut view = objects::view(include_str!("../../tests/golden/quickstart.in.yaml"));
    let one = view.deployments.iter().find(|(key, _)| key.1 == "chat").unwrap().1.as_ref().clone();
    let quota = view.quotas.values().next().unwrap().as_ref().clone();
    (view.pods, view.claims, view.deployments, view.quotas) = Default::default();
    (view.nodes, view.gpu_nodes, view.slices) = Default::default();
    let mut text = String::new();
    for n in 0..nodes {
        for object in machine(&format!("node{n:05}")) {
            text += &format!("---\n{object}\n");
        }
    }
    let machines = objects::view(&text);
    (view.nodes, view.gpu_nodes, view.slices) = (machines.nodes, machines.gpu_nodes, machines.slices);
    // Agents send something every ten seconds.
    let heard = |(_, node): &(String, String)| (node.clone(), AgentReport { age_ms: 4_000, ..AgentReport::default() });
    view.agents = view.nodes.keys().map(heard).collect();
    for tenant in 0..TENANTS {
        let name = format!("team-{tenant}");
        let mut next = quota.clone();
        next.meta.name = Some(name.clone());
        let spec = next.spec.as_mut().unwrap();
        spec.namespaces = vec![name.clone()];
        spec.gpus[0].nominal_quota = serde_json::from_value(json!((nodes * 8).to_string())).unwrap();
        view.quotas.insert((String::new(), name), Arc::new(next));
    }
    for n in 0..deployments {
        let (namespace, name) = (format!("team-{}", n % TENANTS), format!("model-{n:05}"));
        let mut next = one.clone();
        next.meta.name = Some(name.clone());
        next.meta.namespace = Some(namespace.clone());
        next.meta.uid = Some(format!("7f1d3c1e-0000-4000-8000-{n:012}"));
        next.meta.finalizers = Some(vec![DRAIN_FINALIZER.to_owned()]);
        let spec = next.spec.as_mut().unwrap();
        spec.model.name = None;
        spec.replicas = u32::try_from(replicas).unwrap();
        let (memory, compute) = ASKS[n % ASKS.len()];
        let variant = json!([{"name": "slice", "class": "h100-80g", "memory": memory, "compute": compute}]);
        spec.variants = serde_json::from_value(variant).unwrap();
        view.deployments.insert((namespace, name), Arc::new(next));
    }
    view
}

fn machine(node: &str) -> [Value; 3] {
    let (product, uuid) = ("NVIDIA H100 80GB HBM3", |n: usize| format!("GPU-{node}-{n}"));
    let capacity = |value: &str, step: &str| json!({"value": value, "requestPolicy": {"default": value, "validRange": {"min": step, "step": step, "max": value}}});
    let published = |n: usize| {
        json!({"name": format!("gpu-{n}"), "allowMultipleAllocations": true,
            "attributes": {"uuid": {"string": uuid(n)}, "productName": {"string": product}},
            "capacity": {"memory": capacity("80Gi", "256Mi"), "sm": capacity("100", "1")}})
    };
    let device = |n: usize| json!({"uuid": uuid(n), "index": n, "product": product, "memory": "80Gi", "smCount": 132, "island": 0, "verdict": {"health": "Healthy"}});
    [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
            "status": {"allocatable": {"cpu": "192", "memory": "2048Gi", "pods": "250"}, "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": node}, "spec": {},
            "status": {"simulated": true, "observedTime": objects::NOW, "devices": (0..8).map(device).collect::<Vec<_>>()}}),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": format!("{node}-1")},
            "spec": {"driver": "gpu.stowage.dev", "nodeName": node, "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                "devices": (0..8).map(published).collect::<Vec<_>>()}}),
    ]
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

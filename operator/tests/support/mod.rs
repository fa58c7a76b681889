//! A fake cluster for the operator as a whole: see [`server`], [`store`], [`life`].
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

pub mod life;
pub mod server;
pub mod store;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use stowage_operator::config::Config;
use stowage_operator::run::{Clients, Parts};
use tokio_util::sync::CancellationToken;

pub use server::{Link, Server};
pub use store::{Key, Store};

pub const GIB: u64 = 1 << 30;

/// An operator connected by this link.
pub async fn operator(server: &Server, link: &Link) -> Parts {
    stowage_telemetry::install_crypto();
    if std::env::var_os("STOWAGE_LOG").is_some() {
        stowage_telemetry::init_tracing("test");
    }
    let config = Config::parse_from([
        "operator",
        "--admin-address",
        "127.0.0.1:0",
        "--lease-ms",
        "3000",
        "--renew-ms",
        "500",
        "--quiet-decisions",
    ]);
    let clients = Clients { read: server.client(link), write: server.client(link) };
    Parts::start(&config, clients, &CancellationToken::new()).await.unwrap()
}

/// Two nodes with two GPUs each, a class, a tenant and a runtime.
pub fn cluster() -> Server {
    let server = Server::new();
    server.act(|store| {
        for node in ["node1", "node2"] {
            put(store, "nodes", "", &node_yaml(node));
            put(store, "gpunodes", "", &gpu_node_yaml(node));
            put(store, "resourceslices", "", &slice_yaml(node));
        }
        put(store, "gpuclasses", "", CLASS);
        put(store, "tenantquotas", "", QUOTA);
        put(store, "inferenceruntimes", "", RUNTIME);
    });
    server
}

pub fn put(store: &mut Store, plural: &str, namespace: &str, yaml: &str) -> Value {
    let object: Value = serde_yaml::from_str(yaml).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    store.create(&(plural.to_owned(), namespace.to_owned(), name), object).unwrap()
}

pub fn key(plural: &str, name: &str) -> Key {
    (plural.to_owned(), "team-a".to_owned(), name.to_owned())
}

pub fn deployment(server: &Server, name: &str, replicas: u32) {
    let yaml = DEPLOYMENT.replace("NAME", name).replace("REPLICAS", &replicas.to_string());
    server.act(|store| put(store, "inferencedeployments", "team-a", &yaml));
}

/// Changes the spec as `kubectl apply` would.
pub fn patch(server: &Server, name: &str, patch: Value) {
    server.act(|store| store.merge(&key("inferencedeployments", name), patch).unwrap());
}

/// What exists for a deployment, names and UIDs left out, so that two runs can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Slot index → what its pod runs.
    pub pods: BTreeMap<String, Vec<String>>,
    pub claims: usize,
    pub services: usize,
    pub policies: usize,
    pub budgets: usize,
    pub deployments: usize,
    pub ready: bool,
}

pub fn summary(server: &Server) -> Summary {
    let store = server.store();
    let mut pods: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut ready = true;
    for pod in store.of("pods") {
        let index = pod["metadata"]["annotations"]["stowage.dev/replica-index"].as_str().unwrap_or("?").to_owned();
        let alive = pod["metadata"]["deletionTimestamp"].is_null()
            && pod["metadata"]["annotations"]["stowage.dev/draining"].is_null();
        ready &= alive && pod["status"]["phase"] == "Running";
        let runs = format!("{} {}", pod["spec"]["containers"][0]["image"], pod["spec"]["containers"][0]["args"]);
        pods.entry(index).or_default().push(runs);
    }
    Summary {
        pods,
        claims: store.of("resourceclaims").len(),
        services: store.of("services").len(),
        policies: store.of("networkpolicies").len(),
        budgets: store.of("poddisruptionbudgets").len(),
        deployments: store.of("inferencedeployments").len(),
        ready,
    }
}

/// Waits until the condition holds; says what is there instead.
pub async fn until(server: &Server, what: &str, holds: impl Fn(&Summary) -> bool) -> Summary {
    let started = Instant::now();
    loop {
        let now = summary(server);
        if holds(&now) {
            return now;
        }
        if started.elapsed() > Duration::from_secs(120) {
            let statuses: Vec<_> = server
                .store()
                .of("inferencedeployments")
                .iter()
                .map(|object| object["status"]["conditions"].clone())
                .collect();
            panic!("{what}: not reached; there is {now:#?}, conditions {}", json!(statuses));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The condition as `status reason: message`; empty while there is none.
pub fn condition(server: &Server, name: &str, kind: &str) -> String {
    let store = server.store();
    let Some(object) = store.get(&key("inferencedeployments", name)) else { return String::new() };
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    found
        .map(|found| format!("{} {}: {}", text(found, "status"), text(found, "reason"), text(found, "message")))
        .unwrap_or_default()
}

/// Waits until the condition contains this.
pub async fn says(server: &Server, name: &str, kind: &str, expect: &str) {
    let started = Instant::now();
    while !condition(server, name, kind).contains(expect) {
        let now = condition(server, name, kind);
        assert!(started.elapsed() < Duration::from_secs(120), "{kind} should say {expect:?}, and says {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `replicas` Ready pods, one per slot, each with a claim.
pub fn serves(replicas: usize) -> impl Fn(&Summary) -> bool {
    move |now| {
        now.ready
            && now.claims == replicas
            && now.pods.len() == replicas
            && now.pods.values().all(|pods| pods.len() == 1)
            && now.services == 1
            && now.policies == 1
            && now.budgets == 1
    }
}

pub fn nothing_left(now: &Summary) -> bool {
    *now == Summary { ready: true, ..Summary::default() }
}

/// Judges every state that ever was: no GPU promised beyond what it has, no replica twice, no pod
/// without the policy that protects it, no claim of ours without an owner.
pub fn history_is_clean(server: &Server) {
    let store = server.store();
    let mut alive: BTreeMap<Key, &Value> = BTreeMap::new();
    for (version, plural, event, object) in &store.log {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (plural.clone(), text("namespace"), text("name"));
        match *event {
            "DELETED" => drop(alive.remove(&key)),
            _ => drop(alive.insert(key.clone(), object)),
        }
        promises_hold(*version, &alive);
        let protected = alive.keys().any(|(kind, ..)| kind == "networkpolicies");
        assert!(
            *event != "ADDED" || plural != "pods" || protected,
            "version {version}: a pod stands before its network policy"
        );
    }
}

fn promises_hold(version: u64, alive: &BTreeMap<Key, &Value>) {
    let mut promised: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut lives: BTreeMap<(String, String), usize> = BTreeMap::new();
    for ((plural, ..), object) in alive {
        let notes = &object["metadata"]["annotations"];
        if plural == "resourceclaims" {
            let placement: Value = serde_json::from_str(notes["stowage.dev/placement"].as_str().unwrap()).unwrap();
            for gpu in placement["gpus"].as_array().unwrap() {
                let sum = promised.entry(gpu["uuid"].as_str().unwrap().to_owned()).or_default();
                sum.0 += gpu["memoryBytes"].as_u64().unwrap();
                sum.1 += gpu["smPercent"].as_u64().unwrap();
            }
        }
        if plural == "pods" && object["metadata"]["deletionTimestamp"].is_null() {
            let slot = (
                object["metadata"]["labels"]["stowage.dev/deployment"].to_string(),
                notes["stowage.dev/replica-index"].to_string(),
            );
            *lives.entry(slot).or_default() += usize::from(notes["stowage.dev/draining"].is_null());
        }
    }
    for (gpu, (memory, sm)) in promised {
        assert!(
            memory <= 80 * GIB && sm <= 100,
            "version {version}: {gpu} is promised {memory} bytes and {sm} % of its SMs"
        );
    }
    for (slot, pods) in lives {
        // A rollout keeps the old pod until the new one is Ready.
        assert!(pods <= 2, "version {version}: slot {slot:?} has {pods} pods");
    }
}

fn node_yaml(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}, spec: {{}}, \
         status: {{allocatable: {{cpu: '64', memory: 512Gi, pods: '110'}}, conditions: [{{type: Ready, status: 'True'}}]}}}}"
    )
}

pub fn gpus_of(node: &str) -> [String; 2] {
    [format!("GPU-{node}-0"), format!("GPU-{node}-1")]
}

fn gpu_node_yaml(node: &str) -> String {
    let devices: Vec<Value> = gpus_of(node)
        .iter()
        .zip(0..)
        .map(|(uuid, index)| json!({"uuid": uuid, "index": index, "product": "NVIDIA H100 80GB HBM3", "memory": "80Gi", "smCount": 132, "verdict": {"health": "Healthy"}}))
        .collect();
    json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": node}, "spec": {},
        "status": {"devices": devices, "simulated": true}})
    .to_string()
}

fn slice_yaml(node: &str) -> String {
    let device = |uuid: &String| {
        let policy = |default: &str, min: &str, step: &str| json!({"default": default, "validRange": {"min": min, "step": step, "max": default}});
        json!({"name": format!("dev-{uuid}"), "allowMultipleAllocations": true,
            "attributes": {"uuid": {"string": uuid}, "productName": {"string": "NVIDIA H100 80GB HBM3"}},
            "capacity": {"memory": {"value": "80Gi", "requestPolicy": policy("80Gi", "256Mi", "256Mi")}, "sm": {"value": "100", "requestPolicy": policy("100", "1", "1")}}})
    };
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": format!("{node}-slice")},
        "spec": {"driver": "gpu.stowage.dev", "nodeName": node, "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": gpus_of(node).iter().map(device).collect::<Vec<_>>()}})
    .to_string()
}

const CLASS: &str = "{apiVersion: stowage.dev/v1alpha1, kind: GpuClass, metadata: {name: h100-80g}, \
    spec: {selector: {productNames: [NVIDIA H100 80GB HBM3]}, allowSoftSharing: true}}";

const QUOTA: &str = "{apiVersion: stowage.dev/v1alpha1, kind: TenantQuota, metadata: {name: team-a}, \
    spec: {namespaces: [team-a], gpus: [{class: h100-80g, nominalQuota: '4'}]}}";

const RUNTIME: &str = "{apiVersion: stowage.dev/v1alpha1, kind: InferenceRuntime, metadata: {name: stowage-engine}, \
    spec: {adapter: stowage, version: 0.1.0, image: 'stowage/engine:test', capabilities: {prefixCaching: true}}}";

const DEPLOYMENT: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: NAME, namespace: team-a}
spec:
  model: {source: {image: {reference: 'models/smollm2:q4', path: /model.gguf}}}
  runtime: {ref: stowage-engine}
  variants: [{name: small, class: h100-80g, memory: 20Gi, compute: 25}]
  replicas: REPLICAS
  scaling: {mode: Manual, drainTimeout: 10s}
";

//! Simulated nodes: a Node with its Lease, and what a node agent publishes, made by the agent's own functions.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use stowage_crds::GpuNodeStatus;
use stowage_gpu_scenario::Profile;
use stowage_gpu_scenario::scenario::Device;
use stowage_node_agent::device::inventory;
use stowage_node_agent::device::model::GpuFacts;
use stowage_node_agent::dra::slices;
use tokio::task::JoinSet;

use crate::scale::{AT_ONCE, LABEL};
use crate::tools::cluster::Cluster;
use crate::tools::world::merge;

/// As kubelets renew theirs.
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// As node agents write theirs.
const GPU_NODE_EVERY: Duration = Duration::from_millis(stowage_contracts::names::GPU_NODE_WRITTEN_EVERY_MS);

pub fn name(n: u32) -> String {
    format!("sim-{n:05}")
}

/// Creates nodes, leases, slices and GpuNodes.
pub async fn join(cluster: &Cluster, count: u32) -> anyhow::Result<()> {
    join_with(cluster, count, &json!({})).await
}

/// The same with this in each Node.
pub async fn join_with(cluster: &Cluster, count: u32, more: &Value) -> anyhow::Result<()> {
    stream::iter(0..count).map(Ok).try_for_each_concurrent(AT_ONCE, |n| one(cluster, name(n), more)).await
}

async fn one(cluster: &Cluster, name: String, more: &Value) -> anyhow::Result<()> {
    let mut node = node(&name);
    merge(&mut node, more);
    let created = cluster.create("", &node).await.with_context(|| format!("create node {name}"))?;
    cluster.apply_value("kube-node-lease", &lease(&name)).await?;
    let stored: Node = serde_json::from_value(created)?;
    let (owner, facts) = (slices::owner(&stored), facts(&name));
    for slice in slices::plan(&name, owner.as_ref(), &inventory::slice_devices(&facts), &[]).write {
        let mut slice = serde_json::to_value(slice)?;
        slice["apiVersion"] = json!("resource.k8s.io/v1");
        slice["kind"] = json!("ResourceSlice");
        cluster.create("", &slice).await.with_context(|| format!("create the slice of {name}"))?;
    }
    let gpu_node = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": name, "ownerReferences": owner.into_iter().collect::<Vec<_>>()}, "spec": {}});
    cluster.apply_value("", &gpu_node).await?;
    report(cluster, &name).await
}

/// The agent's sign of life.
async fn report(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let known = inventory::node_status(&facts(name), &BTreeMap::new(), Some("580.65.06".to_owned()), true);
    let status = GpuNodeStatus { observed_time: Some(Time(Timestamp::now())), ..known };
    cluster.patch_part("GpuNode", "", name, "status", &json!({"status": status})).await?;
    Ok(())
}

/// Renews leases and reports until dropped, spread over the interval.
pub fn keep_alive(cluster: &Cluster, count: u32) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let of = cluster.clone();
    tasks.spawn(async move {
        in_turn(count, LEASE_EVERY, |n| {
            let (of, name) = (of.clone(), name(n));
            async move { of.apply_value("kube-node-lease", &lease(&name)).await.map(drop) }
        })
        .await;
    });
    let of = cluster.clone();
    tasks.spawn(async move {
        in_turn(count, GPU_NODE_EVERY, |n| {
            let of = of.clone();
            async move { report(&of, &name(n)).await }
        })
        .await;
    });
    tasks
}

/// `act` for each number below `count` once in `every`, for ever. What fails is tried again in its next turn.
async fn in_turn<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    count: u32,
    every: Duration,
    act: impl Fn(u32) -> F,
) {
    let mut tick = tokio::time::interval(every / count.max(1));
    for n in (0..count.max(1)).cycle() {
        tick.tick().await;
        let turn = act(n);
        tokio::spawn(async move {
            if let Err(err) = turn.await {
                eprintln!("a simulated node could not report: {err:#}");
            }
        });
    }
}

fn node(name: &str) -> Value {
    let now = Timestamp::now().to_string();
    let resources = json!({"cpu": "192", "memory": "2048Gi", "pods": "250", "ephemeral-storage": "4Ti"});
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Simulated", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now});
    let conditions: Vec<Value> =
        [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")]
            .map(|(kind, status)| condition(kind, status))
            .into();
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", LABEL: "yes"}},
        "spec": {},
        "status": {"capacity": resources, "allocatable": resources, "conditions": conditions,
            "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "simulated://1", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.3", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""}}})
}

fn lease(name: &str) -> Value {
    // A Lease has microseconds.
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}})
}

/// What the agent would read of the machine.
fn facts(node: &str) -> Vec<GpuFacts> {
    let devices = Profile::H100x8.scenario(node).devices;
    devices.into_iter().zip(0..).map(|(device, index)| read(device, index)).collect()
}

fn read(device: Device, index: u32) -> GpuFacts {
    GpuFacts {
        index,
        uuid: device.uuid,
        product: device.product,
        memory_bytes: device.memory_bytes,
        reserved_bytes: device.reserved_bytes,
        sm_count: device.sm_count,
        architecture: Some(format!("{:?}", device.architecture)),
        numa_node: device.numa,
        pci_bus_id: None,
        nvlink_bus_ids: Vec::new(),
        minor: Some(index),
        mig_enabled: Some(false),
        mig_profiles: Vec::new(),
    }
}

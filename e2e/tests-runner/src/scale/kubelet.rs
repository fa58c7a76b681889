//! Simulated kubelets: a pod that is bound to a simulated node becomes Ready after a time, one that is deleted ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::tools::cluster::Cluster;

/// All kubelets, in one watch; they end with this value.
pub struct Kubelets {
    counts: Arc<Counts>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    started: AtomicUsize,
    failed: AtomicUsize,
}

/// What has been begun, by UID.
#[derive(Default)]
struct Begun {
    starts: BTreeSet<String>,
    ends: BTreeSet<String>,
}

impl Kubelets {
    pub fn start(cluster: &Cluster, start: Duration) -> Self {
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        task.spawn(follow(cluster.clone(), start, Arc::clone(&counts)));
        Self { counts, _task: task }
    }

    pub fn started(&self) -> usize {
        self.counts.started.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> usize {
        self.counts.failed.load(Ordering::Relaxed)
    }
}

async fn follow(cluster: Cluster, start: Duration, counts: Arc<Counts>) {
    let events = watcher(Api::<Pod>::all(cluster.client().clone()), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let (mut begun, mut number) = (Begun::default(), 0_u32);
    while let Some(event) = events.next().await {
        // A broken watch is made anew.
        let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event else { continue };
        let simulated =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|n| n.starts_with("sim-"));
        let uid = pod.uid().unwrap_or_default();
        if !simulated {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if begun.ends.insert(uid) {
                tokio::spawn(end(cluster.clone(), pod, Arc::clone(&counts)));
            }
        } else if begun.starts.insert(uid) {
            number += 1;
            tokio::spawn(run(cluster.clone(), pod, number, start, Arc::clone(&counts)));
        }
    }
}

async fn run(cluster: Cluster, pod: Pod, number: u32, after: Duration, counts: Arc<Counts>) {
    tokio::time::sleep(after).await;
    let status = json!({"status": ready(&pod, number)});
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    match cluster.patch_part("Pod", &namespace, &name, "status", &status).await {
        Ok(_) => counts.started.fetch_add(1, Ordering::Relaxed),
        Err(err) => failed(&counts, &format!("report {namespace}/{name}"), &err),
    };
}

async fn end(cluster: Cluster, pod: Pod, counts: Arc<Counts>) {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), &namespace);
    match api.delete(&name, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(err) => drop(failed(&counts, &format!("end {namespace}/{name}"), &err)),
    }
}

fn failed(counts: &Counts, what: &str, err: &kube::Error) -> usize {
    eprintln!("a simulated kubelet could not {what}: {err}");
    counts.failed.fetch_add(1, Ordering::Relaxed)
}

/// The status of a pod whose containers all run and are ready.
fn ready(pod: &Pod, number: u32) -> Value {
    let now = Timestamp::now().to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
        json!({"name": container.name, "image": container.image, "imageID": "", "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": now}}})
    });
    let ip = format!("10.{}.{}.{}", 128 + (number >> 16 & 63), number >> 8 & 255, number & 255);
    json!({"phase": "Running", "startTime": now, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions,
        "containerStatuses": containers.collect::<Vec<_>>()})
}

//! What was ever true: a watcher keeps every state of claims and pods, and a checker looks for a moment
//! at which something was promised twice or existed twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinSet;

/// One change, in the order in which the watch showed it.
#[derive(Clone, Debug)]
enum Change {
    Claim { name: String, devices: Vec<(String, i64, i64)> },
    ClaimGone { name: String },
    Pod { name: String, index: String, alive: bool },
    PodGone { name: String },
}

/// Watches one namespace until dropped.
pub struct History {
    changes: Arc<Mutex<Vec<Change>>>,
    _tasks: JoinSet<()>,
}

// === impl History ===

impl History {
    pub fn watch(client: &kube::Client, namespace: &str) -> Self {
        let changes: Arc<Mutex<Vec<Change>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let claims = watcher(Api::<ResourceClaim>::namespaced(client.clone(), namespace), watcher::Config::default());
        let log = changes.clone();
        tasks.spawn(async move {
            let follow = claims.default_backoff().for_each(|event| {
                let change = match event {
                    Ok(watcher::Event::Apply(c) | watcher::Event::InitApply(c)) => {
                        Some(Change::Claim { name: c.name_any(), devices: devices(&c) })
                    }
                    Ok(watcher::Event::Delete(c)) => Some(Change::ClaimGone { name: c.name_any() }),
                    // A broken watch is made anew.
                    Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_) => None,
                };
                record(&log, change);
                futures::future::ready(())
            });
            follow.await;
        });
        let pods = watcher(Api::<Pod>::namespaced(client.clone(), namespace), watcher::Config::default());
        let log = changes.clone();
        tasks.spawn(async move {
            let follow = pods.default_backoff().for_each(|event| {
                let change = match event {
                    Ok(watcher::Event::Apply(p) | watcher::Event::InitApply(p)) => Some(pod(&p)),
                    Ok(watcher::Event::Delete(p)) => Some(Change::PodGone { name: p.name_any() }),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_) => None,
                };
                record(&log, change);
                futures::future::ready(())
            });
            follow.await;
        });
        Self { changes, _tasks: tasks }
    }

    /// At no moment was a device promised beyond `memory` bytes or 100 % of its SMs, and no replica
    /// index had two living pods for a reason other than a rollout's overlap of two incarnations.
    pub fn check(&self, memory: i64) -> anyhow::Result<()> {
        let changes = self.changes.lock().map(|c| c.clone()).unwrap_or_default();
        ensure!(!changes.is_empty(), "the history saw nothing");
        let mut claims: BTreeMap<String, Vec<(String, i64, i64)>> = BTreeMap::new();
        let mut pods: BTreeMap<String, String> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Claim { name, devices } => drop(claims.insert(name, devices)),
                Change::ClaimGone { name } => drop(claims.remove(&name)),
                Change::Pod { name, index, alive: true } => drop(pods.insert(name, index)),
                Change::Pod { name, .. } | Change::PodGone { name } => drop(pods.remove(&name)),
            }
            let mut used: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
            for (uuid, bytes, sm) in claims.values().flatten() {
                let entry = used.entry(uuid).or_default();
                *entry = (entry.0 + bytes, entry.1 + sm);
                ensure!(
                    entry.0 <= memory && entry.1 <= 100,
                    "device {uuid} was promised {} bytes and {} % SM at one moment",
                    entry.0,
                    entry.1
                );
            }
            let mut living: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
            pods.iter().for_each(|(pod, index)| living.entry(index).or_default().push(pod));
            let crowded = living.iter().find(|(_, pods)| pods.len() > 2);
            ensure!(crowded.is_none(), "more than two living pods of one replica: {crowded:?}");
        }
        Ok(())
    }
}

fn record(log: &Mutex<Vec<Change>>, change: Option<Change>) {
    if let (Some(change), Ok(mut log)) = (change, log.lock()) {
        log.push(change);
    }
}

fn pod(pod: &Pod) -> Change {
    let index = pod.annotations().get(stowage_contracts::names::ANNOTATION_REPLICA_INDEX).cloned().unwrap_or_default();
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Failed" || p == "Succeeded");
    Change::Pod { name: pod.name_any(), index, alive: !over && pod.metadata.deletion_timestamp.is_none() }
}

/// What a claim holds: (pool/device, bytes, per cent of SMs).
fn devices(claim: &ResourceClaim) -> Vec<(String, i64, i64)> {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref()).and_then(|a| a.devices.as_ref());
    let results = allocation.and_then(|d| d.results.as_ref()).into_iter().flatten();
    results
        .map(|r| {
            let amount = |key: &str| r.consumed_capacity.as_ref().and_then(|c| c.get(key)).map_or(0, |q| bytes(&q.0));
            (format!("{}/{}", r.pool, r.device), amount("memory"), amount("sm"))
        })
        .collect()
}

/// A quantity with a binary suffix, as the scheduler writes them.
fn bytes(quantity: &str) -> i64 {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let found = units.iter().find_map(|(unit, shift)| Some(quantity.strip_suffix(unit)?.parse::<i64>().ok()? << shift));
    found.or_else(|| quantity.parse().ok()).unwrap_or(0)
}

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
use stowage_contracts::names;
use tokio::task::JoinSet;

/// One change, in the order in which the watch showed it.
#[derive(Clone, Debug)]
enum Change {
    Claim { name: String, devices: Vec<(String, i64, i64)> },
    ClaimGone { name: String },
    Pod { name: String, slot: Slot, alive: bool },
    PodGone { name: String },
}

/// What only one living pod may be, unless it drains: deployment, replica index, hash of the spec. During a
/// rollout the pods of the old and the new spec overlap.
type Slot = (String, String, String);

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

    /// At no moment was a device promised beyond `memory` bytes or 100 % of its SMs, and no replica of one
    /// spec had two living pods of which none drained.
    pub fn check(&self, memory: i64) -> anyhow::Result<()> {
        let changes = self.changes.lock().map(|c| c.clone()).unwrap_or_default();
        ensure!(!changes.is_empty(), "the history saw nothing");
        check(changes, memory)
    }
}

fn check(changes: Vec<Change>, memory: i64) -> anyhow::Result<()> {
    let mut claims: BTreeMap<String, Vec<(String, i64, i64)>> = BTreeMap::new();
    let mut pods: BTreeMap<String, Slot> = BTreeMap::new();
    for change in changes {
        match change {
            Change::Claim { name, devices } => drop(claims.insert(name, devices)),
            Change::ClaimGone { name } => drop(claims.remove(&name)),
            Change::Pod { name, slot, alive: true } => drop(pods.insert(name, slot)),
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
        let mut living: BTreeMap<&Slot, Vec<&String>> = BTreeMap::new();
        pods.iter().for_each(|(pod, slot)| living.entry(slot).or_default().push(pod));
        let crowded = living.iter().find(|(_, pods)| pods.len() > 1);
        ensure!(crowded.is_none(), "two living pods of one replica, and none of them drains: {crowded:?}");
    }
    Ok(())
}

fn record(log: &Mutex<Vec<Change>>, change: Option<Change>) {
    if let (Some(change), Ok(mut log)) = (change, log.lock()) {
        log.push(change);
    }
}

/// A pod that drains or is being deleted is not alive: its successor may run beside it.
fn pod(pod: &Pod) -> Change {
    let annotation = |key: &str| pod.annotations().get(key).cloned().unwrap_or_default();
    let deployment = pod.labels().get(names::LABEL_DEPLOYMENT).cloned().unwrap_or_default();
    let slot = (deployment, annotation(names::ANNOTATION_REPLICA_INDEX), annotation(names::ANNOTATION_SPEC_HASH));
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Failed" || p == "Succeeded");
    let ending =
        pod.metadata.deletion_timestamp.is_some() || pod.annotations().contains_key(names::ANNOTATION_DRAINING);
    Change::Pod { name: pod.name_any(), slot, alive: !over && !ending }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn living(name: &str, hash: &str) -> Change {
        Change::Pod { name: name.into(), slot: ("chat".into(), "0".into(), hash.into()), alive: true }
    }

    fn claim(name: &str, bytes: i64, sm: i64) -> Change {
        Change::Claim { name: name.into(), devices: vec![("node1/gpu-a".into(), bytes, sm)] }
    }

    #[test]
    fn two_living_pods_of_one_replica_are_refused() {
        assert!(check(vec![living("chat-a", "1"), living("chat-b", "1")], 100).is_err());
    }
    #[test]
    fn pods_of_two_specs_may_overlap() {
        assert!(check(vec![living("chat-a", "1"), living("chat-b", "2")], 100).is_ok());
    }
    #[test]
    fn successor_of_a_pod_that_drains_is_no_second_one() {
        let draining = Change::Pod { name: "chat-a".into(), slot: <_>::default(), alive: false };
        assert!(check(vec![living("chat-a", "1"), draining, living("chat-b", "1")], 100).is_ok());
        let gone = Change::PodGone { name: "chat-a".into() };
        assert!(check(vec![living("chat-a", "1"), gone, living("chat-b", "1")], 100).is_ok());
    }
    #[test]
    fn device_promised_twice_is_refused() {
        assert!(check(vec![claim("a", 60, 50), claim("b", 40, 50)], 100).is_ok());
        assert!(check(vec![claim("a", 60, 50), claim("b", 41, 50)], 100).is_err());
        assert!(check(vec![claim("a", 10, 60), claim("b", 10, 50)], 100).is_err());
        let gone = Change::ClaimGone { name: "a".into() };
        assert!(check(vec![claim("a", 60, 50), gone, claim("b", 100, 100)], 100).is_ok());
    }
}

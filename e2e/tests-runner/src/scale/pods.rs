//! When pods are bound, seen by a watch.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use stowage_contracts::names;
use tokio::task::JoinSet;

use crate::tools::cluster::{Cluster, wait_for};

/// Watches the pods of all namespaces until dropped.
pub struct Bound {
    seen: Arc<Mutex<std::collections::BTreeMap<String, Instant>>>,
    _task: JoinSet<()>,
}

/// Seconds after the start.
pub struct Times {
    pub first_s: f64,
    pub last_s: f64,
}

impl Bound {
    pub fn watch(cluster: &Cluster) -> Self {
        let seen = Arc::default();
        let mut task = JoinSet::new();
        let (client, found) = (cluster.client().clone(), Arc::clone(&seen));
        task.spawn(async move {
            let ours = watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY));
            let events = watcher(Api::<Pod>::all(client), ours).default_backoff().applied_objects();
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                // A broken watch is made anew.
                let Ok(pod) = event else { continue };
                if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                    note(&found, pod.uid().unwrap_or_default());
                }
            }
        });
        Self { seen, _task: task }
    }

    /// Waits until so many were bound.
    pub async fn all(&self, count: usize, limit: Duration, started: Instant) -> anyhow::Result<Times> {
        wait_for("all pods to be bound", limit, || async {
            let seen = self.seen.lock().map(|seen| seen.clone()).unwrap_or_default();
            let since = |at: Option<&Instant>| at.map_or(0.0, |at| (*at - started).as_secs_f64());
            let times = Times { first_s: since(seen.values().min()), last_s: since(seen.values().max()) };
            Ok(if seen.len() >= count { Ok(times) } else { Err(format!("{} of {count}", seen.len())) })
        })
        .await
    }
}

fn note(seen: &Mutex<std::collections::BTreeMap<String, Instant>>, uid: String) {
    if let Ok(mut seen) = seen.lock() {
        seen.entry(uid).or_insert_with(Instant::now);
    }
}

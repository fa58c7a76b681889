//! Reads the gateways' signals once a second: `GET /stowage/v1/signals` of every gateway that runs. One that does not
//! serve clients any more, or not yet, may still have requests in flight on a draining replica.
//!
//! One task per gateway pod. What an answer means is `signals`' to decide; here are addresses, time limits and the
//! largest answer that is read. NetworkPolicies let the operator alone reach that port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use stowage_contracts::signals::Signals;
use stowage_crds::names::{GATEWAY_ADMIN_PORT, GATEWAY_SERVICE, LABEL_NAME, PATH_SIGNALS, SYSTEM_NAMESPACE};
use stowage_planner::snapshot::{DeploymentId, TimeMs};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::agents::bracketed;
use super::signals::{GatewayReport, SignalBook};
use super::view::{KnownPod, Objects};

const PERIOD: Duration = Duration::from_secs(1);
/// For one answer.
const LIMIT: Duration = Duration::from_secs(3);
/// An answer longer than this is no report: a thousand deployments with four replicas each take two MiB, and those
/// with nothing to report are not listed.
const MAX_BYTES: usize = 32 << 20;

/// The gateways that are read.
#[derive(Debug, Default)]
pub struct Gateways {
    book: Mutex<SignalBook>,
    /// By pod: its address, and the task that reads it.
    tasks: Mutex<HashMap<String, (String, JoinHandle<()>)>>,
}

impl Gateways {
    /// Reads exactly the gateways among these pods that run.
    pub fn follow(
        self: &Arc<Self>,
        pods: &Objects<KnownPod>,
        http: &reqwest::Client,
        changed: &Arc<Notify>,
        now: TimeMs,
    ) {
        let found: Vec<Found> = pods.values().filter_map(|pod| Found::of(pod)).collect();
        let addresses: BTreeMap<&String, &String> = found.iter().map(|found| (&found.pod, &found.address)).collect();
        self.book().expect(&found.iter().map(|found| (found.pod.clone(), found.serves)).collect(), now);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|pod, (address, task)| {
            let keep = addresses.get(pod) == Some(&&*address);
            if !keep {
                task.abort();
            }
            keep
        });
        for Found { pod, address, .. } in &found {
            tasks.entry(pod.clone()).or_insert_with(|| {
                let reader = read(self.clone(), pod.clone(), address.clone(), http.clone(), changed.clone());
                (address.clone(), tokio::spawn(reader))
            });
        }
    }

    /// What they report together. Closes the interval that is complete.
    pub fn take(&self, now: TimeMs) -> GatewayReport {
        self.book().take(now)
    }

    /// The clock was set by so many milliseconds.
    pub fn clock_set(&self, by_ms: i64, now: TimeMs) {
        self.book().clock_set(by_ms, now);
    }

    /// Requests for these deployments are worth a plan at once.
    pub fn watch(&self, deployments: BTreeSet<DeploymentId>) {
        self.book().watch(deployments);
    }

    fn book(&self) -> MutexGuard<'_, SignalBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gateway that runs.
struct Found {
    pod: String,
    address: String,
    /// Clients reach it: it is Ready and not about to end.
    serves: bool,
}

impl Found {
    fn of(pod: &Pod) -> Option<Self> {
        let (meta, status) = (&pod.metadata, pod.status.as_ref()?);
        let gateway = meta.labels.as_ref()?.get(LABEL_NAME).is_some_and(|name| name == GATEWAY_SERVICE);
        let here = meta.namespace.as_deref() == Some(SYSTEM_NAMESPACE);
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let mut containers = status.container_statuses.iter().flatten();
        let process = containers.any(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
        let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let serves = ready && meta.deletion_timestamp.is_none();
        (gateway && here && !ended && (serves || process))
            .then(|| Some(Self { pod: meta.name.clone()?, address: status.pod_ip.clone()?, serves }))?
    }
}

async fn read(gateways: Arc<Gateways>, pod: String, address: String, http: reqwest::Client, changed: Arc<Notify>) {
    let url = format!("http://{}:{GATEWAY_ADMIN_PORT}{PATH_SIGNALS}", bracketed(&address));
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match tokio::time::timeout(LIMIT, one(&http, &url)).await.unwrap_or(Err(ReadError::Slow)) {
            Ok(signals) => {
                let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
                if gateways.book().receive(&pod, signals, now) {
                    changed.notify_one();
                }
            }
            Err(err) => {
                tracing::debug!(pod, %err, "no signals from the gateway");
                gateways.book().failed(&pod, err.to_string());
            }
        }
    }
}

async fn one(http: &reqwest::Client, url: &str) -> Result<Signals, ReadError> {
    let mut body = http.get(url).send().await?.error_for_status()?.bytes_stream();
    let mut answer = Vec::new();
    while let Some(chunk) = body.next().await {
        answer.extend_from_slice(&chunk?);
        if answer.len() > MAX_BYTES {
            return Err(ReadError::TooLong);
        }
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("request failed: {0}")]
    Http(#[from] reqwest::Error),
    #[error("not signals: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no answer came within {LIMIT:?}")]
    Slow,
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLong,
}

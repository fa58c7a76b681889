//! The API server's objects, followed for as long as the process lives.
//!
//! Six watches fill one [`Observed`]; each change makes a new world a few milliseconds later. When the
//! API server is away nothing is forgotten: the watches try again, and requests are served from what
//! was last known. An object that cannot be parsed keeps its last readable form, and the others are not affected.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::core::{ApiResource, DeserializeGuard};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stowage_contracts::lists::{LIST_AGAIN_AFTER, Untrusted};
use stowage_crds::{GpuNode, InferenceDeployment, TenantQuota, names};
use stowage_telemetry::health::Heartbeat;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::world::facts::Facts;
use crate::world::observe::{self, LeanPod, Observed, Table};

/// Changes that come together make one world.
const SETTLE: Duration = Duration::from_millis(10);
/// A watch is asked for this long, so that a connection that died in silence is noticed.
const WATCH_SECONDS: u32 = 30;
/// The heartbeat beats this often while nothing changes.
const BEAT: Duration = Duration::from_secs(5);

/// What the watches share.
struct Shared {
    observed: Mutex<Observed>,
    changed: Notify,
    metrics: Arc<Metrics>,
}

/// Pauses between tries: 0.2 s, doubling up to 5 s. Short, because revoked keys must stop working
/// soon after the API server is back.
#[derive(Default)]
struct Retries(u32);

/// One kind: where it is kept, and how it is read.
struct Kind<K, F> {
    name: &'static str,
    table: fn(&mut Observed) -> &mut Table<F>,
    read: fn(&K) -> Option<F>,
}

/// Follows the cluster and passes each new state to `apply`, the first one when every kind has been
/// listed once. Returns only if a watch ended by itself, which none does unless it panicked.
pub async fn follow(client: Client, metrics: Arc<Metrics>, heartbeat: Heartbeat, mut apply: impl FnMut(&Facts)) {
    let shared = Arc::new(Shared { observed: Mutex::default(), changed: Notify::new(), metrics });
    let mut watches = spawn_watches(&client, &shared);
    loop {
        heartbeat.beat();
        tokio::select! {
            () = shared.changed.notified() => {}
            () = tokio::time::sleep(BEAT) => continue,
            _ = watches.join_next() => return,
        }
        tokio::time::sleep(SETTLE).await;
        let facts = {
            let observed = shared.lock();
            if !observed.synced() {
                tracing::debug!(missing = ?observed.missing(), "waiting for the first lists");
                continue;
            }
            observed.facts()
        };
        apply(&facts);
    }
}

fn spawn_watches(client: &Client, shared: &Arc<Shared>) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let everything = || watcher::Config::default().timeout(WATCH_SECONDS);
    let quotas = Kind { name: "TenantQuota", table: |o| &mut o.quotas, read: observe::quota };
    watches.spawn(watch(
        Api::<DeserializeGuard<TenantQuota>>::all(client.clone()),
        everything(),
        quotas,
        shared.clone(),
    ));

    let deployments = Kind { name: "InferenceDeployment", table: |o| &mut o.deployments, read: observe::deployment };
    watches.spawn(watch(
        Api::<DeserializeGuard<InferenceDeployment>>::all(client.clone()),
        everything(),
        deployments,
        shared.clone(),
    ));

    let nodes = Kind { name: "GpuNode", table: |o| &mut o.nodes, read: observe::unhealthy_gpus };
    watches.spawn(watch(Api::<DeserializeGuard<GpuNode>>::all(client.clone()), everything(), nodes, shared.clone()));

    let ours = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY);
    let pods = Kind::<LeanPod, _> { name: "Pod", table: |o| &mut o.pods, read: observe::pod };
    let api = Api::<DeserializeGuard<LeanPod>>::all_with(client.clone(), &ApiResource::erase::<Pod>(&()));
    watches.spawn(watch(api, everything().labels(&ours), pods, shared.clone()));

    let cache_key = format!("metadata.name={}", names::CACHE_KEY_SECRET);
    let salts = Kind { name: "Secret", table: |o| &mut o.salt_keys, read: observe::salt_key };
    let api = Api::<DeserializeGuard<Secret>>::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
    watches.spawn(watch(api, everything().fields(&cache_key), salts, shared.clone()));

    let type_of_keys = format!("type={}", names::API_KEYS_SECRET_TYPE);
    let secrets = Kind { name: "Secret", table: |o| &mut o.secrets, read: observe::secret };
    let api = Api::<DeserializeGuard<Secret>>::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
    watches.spawn(watch(api, everything().fields(&type_of_keys), secrets, shared.clone()));
    watches
}

async fn watch<K, F>(api: Api<DeserializeGuard<K>>, config: watcher::Config, kind: Kind<K, F>, shared: Arc<Shared>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    F: Clone + PartialEq,
{
    while follow_kind(api.clone(), config.clone(), &kind, &shared).await.is_err() {
        tracing::warn!(kind = kind.name, "an empty list in place of objects is not trusted yet; listing again");
        tokio::time::sleep(LIST_AGAIN_AFTER).await;
    }
}

/// As `watch`, until a list is to be asked for anew.
async fn follow_kind<K, F>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    kind: &Kind<K, F>,
    shared: &Shared,
) -> Result<(), Untrusted>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    F: Clone + PartialEq,
{
    let mut events = pin!(watcher::watcher(api, config).backoff(Retries::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if shared.take(kind, event, Instant::now())? {
                    shared.changed.notify_one();
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(kind = kind.name, error, "watch interrupted, serving what was last known");
            }
        }
    }
    Ok(())
}

impl Iterator for Retries {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(200 << self.0.min(5)).min(Duration::from_secs(5));
        self.0 += 1;
        Some(pause)
    }
}

impl Backoff for Retries {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the event changes anything.
    fn take<K, F>(&self, kind: &Kind<K, F>, event: Event<DeserializeGuard<K>>, now: Instant) -> Result<bool, Untrusted>
    where
        K: Resource,
        F: Clone + PartialEq,
    {
        let mut observed = self.lock();
        let table = (kind.table)(&mut observed);
        match event {
            Event::Init => table.begin(),
            Event::InitDone => return table.complete(now),
            Event::InitApply(object) => {
                let key = key(&object);
                let fact = self.read(kind, object, table);
                table.stage(key, fact);
            }
            Event::Apply(object) => {
                let key = key(&object);
                let fact = self.read(kind, object, table);
                return Ok(table.set(key, fact));
            }
            Event::Delete(object) => return Ok(table.set(key(&object), None)),
        }
        Ok(false)
    }

    /// The object's fact; the last known one when it cannot be read now.
    fn read<K, F>(&self, kind: &Kind<K, F>, object: DeserializeGuard<K>, table: &Table<F>) -> Option<F>
    where
        K: Resource,
        F: Clone + PartialEq,
    {
        let key = key(&object);
        match object.0 {
            Ok(object) => (kind.read)(&object),
            Err(invalid) => {
                self.metrics.malformed_objects.inc();
                tracing::warn!(
                    kind = kind.name,
                    object = key,
                    error = invalid.error,
                    "malformed object; its last readable form is kept"
                );
                table.known(&key)
            }
        }
    }
}

fn key(object: &impl ResourceExt) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let metrics = Metrics::register(&mut stowage_telemetry::metrics::registry());
        Shared { observed: Mutex::default(), changed: Notify::new(), metrics }
    }

    fn quota(namespaces: &str) -> DeserializeGuard<TenantQuota> {
        let yaml = format!("{{metadata: {{name: a}}, spec: {{namespaces: {namespaces}}}}}");
        serde_yaml::from_str(&yaml).unwrap()
    }

    const QUOTAS: Kind<TenantQuota, crate::world::facts::QuotaFact> =
        Kind { name: "TenantQuota", table: |o| &mut o.quotas, read: observe::quota };

    fn take(shared: &Shared, event: Event<DeserializeGuard<TenantQuota>>) -> bool {
        shared.take(&QUOTAS, event, Instant::now()).unwrap()
    }

    fn namespaces(shared: &Shared) -> Vec<String> {
        shared.lock().quotas.known("a").map(|quota| quota.namespaces).unwrap_or_default()
    }

    #[test]
    fn a_malformed_object_keeps_its_last_readable_form() {
        let shared = shared();
        assert!(take(&shared, Event::Apply(quota("[one]"))));
        assert!(!take(&shared, Event::Apply(quota("7"))));
        assert_eq!(namespaces(&shared), ["one"]);
        // In a new list too, and one that was never readable is left out.
        assert!(!take(&shared, Event::Init));
        assert!(!take(&shared, Event::InitApply(quota("{}"))));
        take(&shared, Event::InitDone);
        assert_eq!(namespaces(&shared), ["one"]);
        assert!(take(&shared, Event::Delete(quota("7"))));
        assert_eq!(namespaces(&shared), [""; 0]);
        assert_eq!(shared.metrics.malformed_objects.get(), 2);
    }

    #[test]
    fn same_object_again_changes_nothing() {
        let shared = shared();
        assert!(take(&shared, Event::Apply(quota("[one]"))));
        assert!(!take(&shared, Event::Apply(quota("[one]"))));
        assert!(take(&shared, Event::Apply(quota("[two]"))));
    }
}

//! Changes of what may have made the API server refuse an object of ours: quotas, limits, service
//! accounts, priority classes, a namespace's labels. Only *that* something changed is kept, and where.
//!
//! A watch that fails here only costs time: a refused creation is tried again at the latest when its
//! pause is over. So these watches neither pause planning nor have to be permitted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The namespace of a change; `None`: anywhere.
type Place = Option<String>;

/// Where something changed since the last look.
#[derive(Debug, Default)]
pub struct Causes {
    changed: Mutex<BTreeSet<Place>>,
    /// Whether anything is refused at present, so that a change is worth a plan.
    listening: AtomicBool,
}

impl Causes {
    /// Adds the watches to the set, which they end with.
    pub fn start(self: &Arc<Self>, client: &Client, changed: &Arc<Notify>, watches: &mut JoinSet<()>) {
        watches.spawn(follow::<ResourceQuota>(client.clone(), self.clone(), changed.clone()));
        watches.spawn(follow::<LimitRange>(client.clone(), self.clone(), changed.clone()));
        watches.spawn(follow::<ServiceAccount>(client.clone(), self.clone(), changed.clone()));
        watches.spawn(follow::<PriorityClass>(client.clone(), self.clone(), changed.clone()));
        watches.spawn(follow::<Namespace>(client.clone(), self.clone(), changed.clone()));
    }

    /// Where something changed since the last call.
    pub fn take(&self) -> BTreeSet<Place> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// While nothing is refused, changes are dropped.
    pub fn listen(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    fn note(&self, place: Place, changed: &Notify) {
        if self.listening.load(Ordering::Relaxed) {
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(place);
            changed.notify_one();
        }
    }
}

/// Follows one kind, its metadata alone, for ever.
async fn follow<K>(client: Client, causes: Arc<Causes>, changed: Arc<Notify>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut stream = watcher(Api::<PartialObjectMeta<K>>::all(client), Config::default()).default_backoff().boxed();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                // A Namespace is the place itself; of other kinds without a namespace all places are meant.
                let own = (K::kind(&()) == "Namespace").then(|| object.name_any());
                causes.note(object.namespace().or(own), &changed);
            }
            // Whatever changed while nobody watched is in the new list.
            Ok(Event::InitDone) => causes.note(None, &changed),
            Ok(Event::Init | Event::InitApply(_)) => {}
            Err(err) => tracing::debug!(kind = %K::kind(&()), %err, "a watch of possible causes failed"),
        }
    }
}

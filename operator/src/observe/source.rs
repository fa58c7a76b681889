//! One watched kind: its objects in memory, and whether they may be used.
//!
//! Not kube's reflector store, because three things are needed that it does not provide: whether the
//! watch is failing (then planning pauses), how old the last message is (a metric), and a
//! sorted order (the same objects give the same snapshot). A relist is swapped in whole, so there is
//! no moment with half a list; before the first list is complete, nothing is known and nothing is
//! decided. Deletions arrive as events: a new list that is empty where there were objects is not accepted at once.
//! What changes nothing for a decision (a heartbeat, another version of the same) is kept and makes no plan: of thousands of
//! nodes some heartbeat comes at any moment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stowage_contracts::lists::{EmptyLists, LIST_AGAIN_AFTER, Untrusted};
use stowage_planner::snapshot::Shared;
use tokio::sync::Notify;

/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

/// Retry of a failing watch: at once twice as long, up to this.
const MAX_RETRY: Duration = Duration::from_secs(5);
const MIN_RETRY: Duration = Duration::from_millis(250);
/// A silently dropped connection is noticed after this (plus five seconds).
const WATCH_SECONDS: u32 = 55;

/// The objects of one kind, as last seen.
#[derive(Debug)]
pub struct Source<T> {
    /// Plural, for logs and the metric label.
    pub name: &'static str,
    state: RwLock<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    objects: Shared<BTreeMap<Key, Arc<T>>>,
    synced: bool,
    /// First error since the last success, and its message.
    failing: Option<(Instant, String)>,
    empty: EmptyLists,
    last_message: Option<Instant>,
    /// UIDs whose deletion was reported, the latest [`REMEMBER`] of them.
    ended: VecDeque<String>,
}

/// Enough for the deletions between a write of ours and the next plan.
const REMEMBER: usize = 2048;

/// Whether a source may be used for decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    Fresh,
    /// The first list is not complete.
    Unsynced,
    /// The watch has been failing for this long.
    Failing {
        since: Duration,
        error: String,
    },
}

impl<T> Source<T> {
    pub fn new(name: &'static str) -> Arc<Self> {
        let state = State {
            objects: Shared::default(),
            synced: false,
            failing: None,
            empty: EmptyLists::default(),
            last_message: None,
            ended: VecDeque::new(),
        };
        Arc::new(Self { name, state: RwLock::new(state) })
    }

    /// All objects, sorted by key.
    pub fn all(&self) -> Shared<BTreeMap<Key, Arc<T>>> {
        self.read().objects.clone()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.read().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Whether the watch has reported the deletion of this UID, lately.
    pub fn ended(&self, uid: &str) -> bool {
        self.read().ended.iter().rev().any(|ended| ended == uid)
    }

    pub fn trust(&self, now: Instant) -> Trust {
        let state = self.read();
        match (&state.failing, state.synced) {
            (Some((since, error)), true) => {
                Trust::Failing { since: now.saturating_duration_since(*since), error: error.clone() }
            }
            (_, false) => Trust::Unsynced,
            (None, true) => Trust::Fresh,
        }
    }

    /// Time since the API server last sent anything about this kind (bookmarks are not passed on to
    /// us, so a quiet kind ages; only errors make it untrusted).
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.read().last_message.map(|at| now.saturating_duration_since(at))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(state: &mut State<T>) {
        state.failing = None;
        state.last_message = Some(Instant::now());
    }

    fn failed(&self, error: String) {
        let mut state = self.write();
        let since = state.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.failing = Some((since, error));
    }
}

/// The object's version as a number: of two of one object the greater is the later.
pub fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

/// An object as it is kept.
pub trait Kept: Clone + PartialEq {
    /// Without what nothing is decided by.
    fn trimmed(self) -> Self;

    /// The same without what moves by itself: versions and signs of life.
    fn still(&self) -> Self;
}

/// Without versions.
pub fn unversioned(meta: &mut ObjectMeta) {
    (meta.resource_version, meta.managed_fields) = (None, None);
}

/// Keeps `source` equal to what the API server shows, until the task ends. `trim` keeps what is needed of an object.
///
/// Lists come as streams, object by object: a page of a hundred objects is in memory as it came, and each may be a megabyte
/// of an editor's. Where the API server does not stream lists (its feature gate `WatchList` is off), they come in pages.
pub async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    source: Arc<Source<T>>,
    trim: impl Fn(K) -> T,
    changed: Arc<Notify>,
) where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    T: Kept,
{
    let mut retry = MIN_RETRY;
    let paged = config.clone();
    let (mut config, mut streams) = (config.streaming_lists(), true);
    loop {
        match follow_once(api.clone(), config.clone(), &source, &trim, &changed, &mut retry).await {
            Ok(()) => return,
            Err(Anew::StreamsNoLists(err)) if streams => {
                tracing::info!(source = source.name, err, "the list does not come as a stream: listing in pages");
                (config, streams) = (paged.clone(), false);
            }
            Err(Anew::Untrusted) => {
                tracing::warn!(
                    source = source.name,
                    "the list is empty and was not before: not accepted yet, listing again"
                );
                tokio::time::sleep(LIST_AGAIN_AFTER).await;
            }
            // From a list on: a watch that starts again sends nothing while nothing changes, so that a quiet kind
            // would count as failing for ever.
            Err(Anew::Failed(err) | Anew::StreamsNoLists(err)) => {
                tracing::warn!(source = source.name, %err, "watch failed, trying again in {retry:?}");
                source.failed(err);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(MAX_RETRY);
            }
        }
    }
}

/// Why a kind is listed anew.
enum Anew {
    Untrusted,
    StreamsNoLists(String),
    Failed(String),
}

impl From<watcher::Error> for Anew {
    fn from(err: watcher::Error) -> Self {
        let invalid = matches!(&err, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 422);
        if invalid { Self::StreamsNoLists(err.to_string()) } else { Self::Failed(err.to_string()) }
    }
}

async fn follow_once<K, T>(
    api: Api<K>,
    config: watcher::Config,
    source: &Source<T>,
    trim: &impl Fn(K) -> T,
    changed: &Notify,
    retry: &mut Duration,
) -> Result<(), Anew>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    T: Kept,
{
    let stream = watcher::watcher(api, config.timeout(WATCH_SECONDS));
    pin_mut!(stream);
    let mut incoming: BTreeMap<Key, Arc<T>> = BTreeMap::new();
    let mut lists = false;
    while let Some(event) = stream.next().await {
        let event = event?;
        match event {
            // The stream of a list ends with the watch, however far it is.
            Event::Init if lists => return Err(Anew::StreamsNoLists(format!("no list in {WATCH_SECONDS} s"))),
            Event::Init => lists = true,
            Event::InitDone => lists = false,
            _ => {}
        }
        // The start of a list is no success yet.
        if !matches!(event, Event::Init) {
            *retry = MIN_RETRY;
        }
        let taken = take(source, &mut incoming, event, trim, Instant::now());
        if taken.map_err(|_: Untrusted| Anew::Untrusted)? {
            changed.notify_one();
        }
    }
    Ok(())
}

/// Whether another decision may follow from it.
fn take<K: Resource, T: Kept>(
    source: &Source<T>,
    incoming: &mut BTreeMap<Key, Arc<T>>,
    event: Event<K>,
    trim: &impl Fn(K) -> T,
    now: Instant,
) -> Result<bool, Untrusted> {
    match event {
        // The start of a list is no success yet.
        Event::Init => {
            incoming.clear();
            Ok(false)
        }
        Event::InitApply(object) => {
            incoming.insert(key(&object), Arc::new(trim(object)));
            Ok(false)
        }
        Event::InitDone => {
            let mut state = source.write();
            let known = !state.objects.is_empty();
            if let Err(untrusted) = state.empty.judge(known, incoming.is_empty(), now) {
                state.failing = Some((untrusted.since, "an empty list in place of what was there".to_owned()));
                return Err(untrusted);
            }
            state.objects = std::mem::take(incoming).into();
            state.synced = true;
            Source::alive(&mut state);
            Ok(true)
        }
        Event::Apply(object) => {
            let (key, object) = (key(&object), Arc::new(trim(object)));
            let mut state = source.write();
            let back = state.failing.is_some();
            let before = state.objects.insert(key, object.clone());
            Source::alive(&mut state);
            Ok(back || before.is_none_or(|before| before.still() != object.still()))
        }
        Event::Delete(object) => {
            let mut state = source.write();
            state.objects.remove(&key(&object));
            state.ended.extend(object.meta().uid.clone());
            let surplus = state.ended.len().saturating_sub(REMEMBER);
            state.ended.drain(..surplus);
            Source::alive(&mut state);
            Ok(true)
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    impl Kept for ConfigMap {
        fn trimmed(self) -> Self {
            self
        }

        fn still(&self) -> Self {
            let mut still = self.clone();
            unversioned(still.meta_mut());
            still
        }
    }

    #[test]
    fn another_version_of_the_same_makes_no_plan_and_is_kept() {
        let source = Source::<ConfigMap>::new("configmaps");
        let mut incoming = BTreeMap::new();
        let mut send = |event| take(&source, &mut incoming, event, &|map: ConfigMap| map, Instant::now()).unwrap();
        let version = |version: &str, data: &str| {
            let mut map = named("x");
            map.metadata.resource_version = Some(version.into());
            map.data = Some([("k".into(), data.into())].into());
            Event::Apply(map)
        };
        assert!(!send(Event::Init) && !send(Event::InitApply(named("y"))) && send(Event::InitDone));
        for (event, plans) in [
            (version("1", "a"), true),
            (version("2", "a"), false),
            (version("3", "b"), true),
            (Event::Delete(named("x")), true),
        ] {
            assert_eq!(send(event), plans);
        }
        send(version("4", "b"));
        send(version("5", "b"));
        assert_eq!(source.get("a", "x").unwrap().metadata.resource_version.as_deref(), Some("5"));
        source.failed("refused".into());
        assert!(send(version("6", "b")), "the watch works again");
    }

    fn named(name: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.namespace = Some("a".into());
        map
    }

    fn names_after(events: Vec<Event<ConfigMap>>) -> (Vec<String>, Trust) {
        let source = Source::<ConfigMap>::new("configmaps");
        let mut incoming = BTreeMap::new();
        for event in events {
            take(&source, &mut incoming, event, &|map| map, Instant::now()).unwrap();
        }
        (source.all().keys().map(|(_, name)| name.clone()).collect(), source.trust(Instant::now()))
    }

    #[test]
    fn half_a_list_is_not_shown_and_not_trusted() {
        let (names, trust) = names_after(vec![Event::Init, Event::InitApply(named("x"))]);
        assert_eq!((names.len(), trust), (0, Trust::Unsynced));
    }

    #[test]
    fn a_relist_replaces_everything_at_once() {
        let events = vec![
            Event::Init,
            Event::InitApply(named("old")),
            Event::InitDone,
            Event::Apply(named("late")),
            Event::Init,
            Event::InitApply(named("new")),
        ];
        assert_eq!(names_after(events.clone()).0, ["late", "old"], "the old list stands until the new one is complete");
        let done = [events, vec![Event::InitDone]].concat();
        assert_eq!(names_after(done), (vec!["new".to_owned()], Trust::Fresh));
    }

    #[test]
    fn failing_watch_keeps_its_objects_and_is_not_trusted_until_its_next_event() {
        let source = Source::<ConfigMap>::new("configmaps");
        let mut incoming = BTreeMap::new();
        let mut send = |event| {
            take(&source, &mut incoming, event, &|map: ConfigMap| map, Instant::now()).unwrap();
        };
        [Event::Init, Event::InitApply(named("x")), Event::InitDone].into_iter().for_each(&mut send);
        source.failed("refused".into());
        assert!(matches!(source.trust(Instant::now()), Trust::Failing { .. }));
        assert_eq!(source.all().len(), 1);
        send(Event::Delete(named("x")));
        assert_eq!(source.trust(Instant::now()), Trust::Fresh);
    }

    #[test]
    fn empty_list_in_place_of_objects_is_accepted_only_when_it_lasts() {
        let source = Source::<ConfigMap>::new("configmaps");
        let (start, mut incoming) = (Instant::now(), BTreeMap::new());
        let mut list = |objects: &[&str], after: Duration| {
            let middle = objects.iter().map(|name| Event::InitApply(named(name)));
            let events = std::iter::once(Event::Init).chain(middle).chain([Event::InitDone]);
            let taken = events.map(|event| take(&source, &mut incoming, event, &|map: ConfigMap| map, start + after));
            (taken.last().unwrap().is_ok(), source.all().len(), source.trust(start + after) == Trust::Fresh)
        };
        assert_eq!(list(&[], Duration::ZERO), (true, 0, true), "nothing was there");
        assert_eq!(list(&["x"], Duration::ZERO), (true, 1, true));
        assert_eq!(list(&[], Duration::from_secs(1)), (false, 1, false), "kept, and planning is paused");
        assert_eq!(list(&["x"], Duration::from_secs(20)), (true, 1, true), "accepted, and the suspicion ends");
        assert_eq!(list(&[], Duration::from_secs(40)), (false, 1, false), "and begins anew");
        assert_eq!(list(&[], Duration::from_secs(70)), (true, 0, true));
    }
}

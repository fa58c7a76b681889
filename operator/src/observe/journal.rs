//! What we did and do not see yet.
//!
//! A watch lags behind our own writes, and a plan made in between would give away what the last plan
//! took. So every object that a write of ours returned stands here until the watch has caught up with
//! it, and a creation stands here from the moment it is *decided* (as kube-scheduler assumes its
//! bindings), because the next plan may be made before the write is sent. The view that planning
//! uses is what the watches show with the journal laid over it.
//!
//! Kept in memory only: after a crash or a take-over a fresh list shows all that was written, and
//! what was only decided is decided again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Resource;

use crate::observe::parsed::{Parse, Parsed};
use crate::observe::source::{Key, version};
use crate::observe::view::Objects;

/// An object that we wrote and the watch does not show after this long is asked for by a GET.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// Our unobserved actions on one kind.
#[derive(Debug)]
pub struct Journal<K: Parse> {
    entries: BTreeMap<Key, Entry<K>>,
}

/// The journals of the two kinds whose absence from the watch would cost a GPU.
#[derive(Debug, Default)]
pub struct Journals {
    pods: Mutex<Journal<Pod>>,
    claims: Mutex<Journal<ResourceClaim>>,
}

impl Journals {
    pub fn pods(&self) -> MutexGuard<'_, Journal<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn claims(&self) -> MutexGuard<'_, Journal<ResourceClaim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clear(&self) {
        self.pods().clear();
        self.claims().clear();
    }
}

#[derive(Debug)]
enum Entry<K: Parse> {
    /// Decided; the write is on its way or has yet to be sent.
    Assumed(Arc<Parsed<K>>),
    /// Returned by a write.
    Written { object: Arc<Parsed<K>>, at: Instant },
    /// Deleted by us, and gone according to the answer.
    Gone { uid: String, at: Instant },
}

impl<K: Parse> Default for Journal<K> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<K: Parse> Journal<K> {
    /// A creation that was decided. It counts as existing until [`written`](Self::written) or [`forget`](Self::forget).
    pub fn assume(&mut self, object: K) {
        self.entries.insert(key(&object), Entry::Assumed(Arc::new(object.into())));
    }

    /// The object as the API server returned it.
    pub fn written(&mut self, object: impl Into<Parsed<K>>, now: Instant) {
        let object: Parsed<K> = object.into();
        self.entries.insert(key::<K>(&object), Entry::Written { object: Arc::new(object), at: now });
    }

    pub fn gone(&mut self, key: Key, uid: String, now: Instant) {
        self.entries.insert(key, Entry::Gone { uid, at: now });
    }

    /// The decided creation did not happen, or what was written is known not to exist any more.
    pub fn forget(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    /// Forgets only a creation that was never written.
    pub fn forget_assumed(&mut self, key: &Key) {
        if matches!(self.entries.get(key), Some(Entry::Assumed(_))) {
            self.entries.remove(key);
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Nothing is unobserved.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lays the journal over what the watch shows, and drops what the watch has caught up with.
    ///
    /// `ended` says whether the watch has reported the deletion of the object with this UID: a write
    /// whose result was deleted before it was ever seen is not waited for.
    pub fn overlay(&mut self, seen: &mut Objects<Parsed<K>>, ended: &dyn Fn(&str) -> bool) {
        self.entries.retain(|key, entry| {
            let watched = seen.get(key);
            match entry {
                Entry::Assumed(object) => {
                    // Something of that name exists: the write itself will find out whether it is ours.
                    if watched.is_none() {
                        seen.insert(key.clone(), object.clone());
                    }
                    true
                }
                Entry::Written { object, .. } => {
                    let caught_up = watched.is_some_and(|watched| !older::<K>(watched, object));
                    if caught_up || object.meta().uid.as_deref().is_some_and(ended) {
                        return false;
                    }
                    seen.insert(key.clone(), object.clone());
                    true
                }
                Entry::Gone { uid, .. } => {
                    if watched.is_none_or(|watched| watched.meta().uid.as_ref() != Some(uid)) {
                        return false;
                    }
                    seen.remove(key);
                    true
                }
            }
        });
    }

    /// What the watch should have shown by now: written or deleted, then silence. To be asked for.
    pub fn unconfirmed(&self, now: Instant) -> Vec<Key> {
        let late = |at: &Instant| now.saturating_duration_since(*at) > CONFIRM_AFTER;
        self.entries
            .iter()
            .filter(|(_, entry)| match entry {
                Entry::Assumed(_) => false,
                Entry::Written { at, .. } | Entry::Gone { at, .. } => late(at),
            })
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The answer to a GET for an unconfirmed entry.
    pub fn confirm(&mut self, key: &Key, found: Option<K>, now: Instant) {
        match found {
            Some(object) => self.written(object, now),
            None => self.forget(key),
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Whether the watched object is from before the written one. Resource versions of one kind are
/// comparable numbers; one that is no number is taken as newer, so that the watch has the last word.
fn older<K: Resource>(watched: &K, written: &K) -> bool {
    if watched.meta().uid != written.meta().uid {
        // Another life of the name. The written one is newer unless it was deleted since, which the
        // creation date shows.
        return watched.meta().creation_timestamp < written.meta().creation_timestamp;
    }
    matches!((version(watched.meta()), version(written.meta())), (Some(watched), Some(written)) if watched < written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, version: &str) -> Pod {
        let mut object = Pod::default();
        object.metadata.namespace = Some("a".into());
        object.metadata.name = Some("x".into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn name() -> Key {
        ("a".into(), "x".into())
    }

    /// What the view shows under the name: the resource version, or nothing.
    fn shown(journal: &mut Journal<Pod>, watched: Option<Pod>) -> Option<String> {
        let mut seen = Objects::default();
        seen.extend(watched.map(|object| (name(), Arc::new(object.into()))));
        journal.overlay(&mut seen, &|uid| uid == "ended");
        seen.get(&name()).map(|object| object.metadata.resource_version.clone().unwrap())
    }

    #[test]
    fn a_decided_creation_counts_as_existing_until_it_is_forgotten() {
        let mut journal = Journal::default();
        journal.assume(object("", ""));
        assert_eq!(shown(&mut journal, None), Some(String::new()));
        journal.forget_assumed(&name());
        assert_eq!(shown(&mut journal, None), None);
    }

    #[test]
    fn a_written_object_stands_until_the_watch_has_caught_up() {
        let mut journal = Journal::default();
        journal.written(object("u", "10"), Instant::now());
        assert_eq!(shown(&mut journal, None).as_deref(), Some("10"));
        assert_eq!(shown(&mut journal, Some(object("u", "9"))).as_deref(), Some("10"));
        assert_eq!(shown(&mut journal, Some(object("u", "10"))).as_deref(), Some("10"));
        assert!(journal.is_empty());
        assert_eq!(shown(&mut journal, None), None, "deleted by another client after it was seen");
    }

    #[test]
    fn what_was_deleted_before_the_watch_showed_it_is_not_waited_for() {
        let mut journal = Journal::default();
        journal.written(object("ended", "10"), Instant::now());
        assert_eq!(shown(&mut journal, None), None);
    }

    #[test]
    fn a_deleted_object_is_hidden_although_the_watch_still_shows_it_but_its_successor_is_not() {
        let mut journal = Journal::default();
        journal.gone(name(), "u".into(), Instant::now());
        assert_eq!(shown(&mut journal, Some(object("u", "9"))), None);
        assert_eq!(shown(&mut journal, Some(object("v", "12"))).as_deref(), Some("12"));
        assert!(journal.is_empty());
    }

    #[test]
    fn what_the_watch_never_shows_is_asked_for_and_dropped_when_it_is_gone() {
        let mut journal = Journal::default();
        let start = Instant::now();
        journal.written(object("u", "10"), start);
        assert!(journal.unconfirmed(start + CONFIRM_AFTER).is_empty());
        let late = start + CONFIRM_AFTER + Duration::from_secs(1);
        assert_eq!(journal.unconfirmed(late), [name()]);
        journal.confirm(&name(), None, late);
        assert_eq!(shown(&mut journal, None), None);
    }

    #[test]
    fn forgetting_an_assumption_keeps_what_was_written_meanwhile() {
        let mut journal = Journal::default();
        journal.assume(object("", ""));
        journal.written(object("u", "10"), Instant::now());
        journal.forget_assumed(&name());
        assert_eq!(shown(&mut journal, None).as_deref(), Some("10"));
    }
}

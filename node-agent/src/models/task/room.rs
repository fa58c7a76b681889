//! What is removed from the cache, and for what: claims come before what is fetched ahead of need, and nothing that is in
//! use leaves.

use std::collections::BTreeMap;

use stowage_contracts::model::ModelKey;
use stowage_fetch::FetchError;

use super::{MAX_CACHED, Task};
use crate::models::evict::{Cached, evict, make_free};
use crate::models::preloads::has_room;
use crate::models::wanted::{Wanted, is_ahead, is_claimed};

/// Unused models make room for at most so many bytes that are announced and not written yet; several gigabytes more than
/// come until the next look.
const STEP: u64 = 4 << 30;

impl Task {
    /// What room is to be made for: what is reserved now, unless a fetch ahead of need turns out to be larger than what is
    /// free for such, beside what was fetched of others in part. Then that ends, and room is made for the rest in the next step.
    pub(super) fn reserved(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<u64> {
        // Read first: a fetch shows its size before it reserves room.
        let reserved = self.fetcher.room.reserved();
        let Some(key) = self.active.keys().find(|key| is_ahead(wanted, key)).cloned() else { return Ok(reserved) };
        let complete: u64 = self.store.list()?.values().map(|model| model.bytes).sum();
        let partial = self.store.partial_bytes(|other| *other != key && !is_claimed(wanted, other))?;
        let held = complete.saturating_add(partial);
        let total = self.active.get(&key).map_or(0, |active| active.progress.borrow().total);
        if !has_room(held, total, self.limit) {
            self.active.remove(&key).into_iter().for_each(|active| active.task.abort());
            self.fail(&key, &FetchError::CacheFull { needed: total, free: self.limit.saturating_sub(held) });
            return Ok(0);
        }
        Ok(reserved)
    }

    /// Keeps the cache within its limit, with so many bytes more that fetches will write; what is left. Room is made as
    /// they write: a server may announce more than it ever sends.
    pub(super) fn make_room(
        &mut self,
        wanted: &BTreeMap<ModelKey, Wanted>,
        reserved: u64,
    ) -> std::io::Result<BTreeMap<ModelKey, Cached>> {
        let mut cached = self.store.list()?;
        for (key, model) in &mut cached {
            model.in_use |= is_claimed(wanted, key);
        }
        let models: Vec<Cached> = cached.values().cloned().collect();
        let claimed = self.store.partial_bytes(|key| is_claimed(wanted, key))?;
        let needed = claimed.saturating_add(reserved.min(STEP));
        for key in evict(&models, self.limit, needed) {
            match self.store.remove(&key) {
                Ok(()) => tracing::info!(model = %key, "removed an unused model, the cache is full"),
                Err(err) => tracing::error!(model = %key, %err, "cannot remove a model"),
            }
            if self.store.model(&key).is_none() {
                cached.remove(&key);
            }
        }
        let sum = |in_use: bool| cached.values().filter(|model| model.in_use || !in_use).map(|model| model.bytes).sum();
        let (in_use, all): (u64, u64) = (sum(true), sum(false));
        // What was fetched ahead of need in part makes way.
        self.fetcher.room.set_limit(self.limit.saturating_sub(in_use).saturating_sub(claimed));
        let for_claims = !self.active.is_empty() && !self.active.keys().any(|key| is_ahead(wanted, key));
        let ahead = self.store.partial_bytes(|key| !is_claimed(wanted, key))?;
        if for_claims && ahead > 0 && all.saturating_add(needed).saturating_add(ahead) > self.limit {
            self.forget_ahead();
        }
        Ok(cached)
    }

    /// Removes what was fetched in part of models that no claim waits for; how many bytes.
    pub(super) fn forget_ahead(&mut self) -> u64 {
        let wanted = self.wanted();
        self.store.forget_partials(|key| is_claimed(&wanted, key)).unwrap_or_else(|err| {
            tracing::error!(%err, "cannot remove what was fetched ahead of need in part");
            0
        })
    }

    /// Removes unused models for a file that does not fit on the disk; whether there was one.
    pub(super) fn free(&mut self, bytes: u64) -> bool {
        let wanted = self.wanted();
        let Ok(cached) = self.store.list() else { return false };
        let models: Vec<Cached> = cached
            .into_values()
            .map(|model| Cached { in_use: model.in_use || is_claimed(&wanted, &model.key), ..model })
            .collect();
        let removed = make_free(&models, bytes);
        for key in &removed {
            tracing::info!(model = %key, "removing an unused model, the disk is full");
            if let Err(err) = self.store.remove(key) {
                tracing::error!(model = %key, %err, "cannot remove a model");
            }
        }
        !removed.is_empty()
    }
}

/// What is reported of the cache: what is in use or was used last, as far as there is room for it.
pub(super) fn most_recent(cached: BTreeMap<ModelKey, Cached>) -> BTreeMap<ModelKey, u64> {
    let mut models: Vec<Cached> = cached.into_values().collect();
    models.sort_by_key(|model| std::cmp::Reverse((model.in_use, model.used_at, model.key.clone())));
    models.into_iter().take(MAX_CACHED).map(|model| (model.key, model.bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_in_use_and_the_last_used_are_reported() {
        let model = |n: usize| {
            let (key, used_at) = (ModelKey::read(&format!("m{n:04}")), n as u64);
            (key.clone(), Cached { key, bytes: 1, in_use: n == 0, used_at })
        };
        let shown = most_recent((0..2 * MAX_CACHED).map(model).collect());
        assert_eq!(shown.len(), MAX_CACHED);
        assert!(shown.contains_key(&ModelKey::read("m0000")) && shown.contains_key(&ModelKey::read("m0511")));
        assert!(!shown.contains_key(&ModelKey::read("m0001")));
    }
}

//! Models that the operator wants on this node ahead of need.
//!
//! They come after all that claims wait for, one at a time, and take only room that is free: nothing is removed for
//! them, they are removed like any unused model, and they fill the cache up to a share of it only.

use std::collections::BTreeMap;
use std::time::Duration;

use stowage_contracts::model::{ClaimModel, ModelKey};
use stowage_contracts::preload::{HOLDS, MAX_PRELOADS, MAX_PRELOADS_OF_TENANT, Preloads};
use tokio::time::Instant;

/// Share of the cache's limit that stays free of what is fetched ahead, in per cent.
const STAYS_FREE: u64 = 20;

/// What was fetched in part stays for so long without a list.
const KEPT: Duration = Duration::from_secs(600);

/// The last list, and until when it holds.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    models: Vec<(ModelKey, ClaimModel, String)>,
    until: Option<Instant>,
}

impl Asked {
    /// What of the list can be fetched; the first of a tenant that asks for too many.
    pub fn read(list: Preloads, now: Instant) -> Self {
        let mut of_tenant: BTreeMap<String, usize> = BTreeMap::new();
        let mut models = Vec::new();
        for preload in list.models.into_iter().take(MAX_PRELOADS) {
            let Some(key) = preload.key() else { continue };
            let count = of_tenant.entry(preload.tenant.clone()).or_default();
            *count += 1;
            if *count <= MAX_PRELOADS_OF_TENANT {
                models.push((key, preload.model, preload.tenant));
            }
        }
        Self { models, until: now.checked_add(HOLDS) }
    }

    /// Whether what was fetched of the model in part stays although it is not wanted now: after a start, and while the
    /// operator is silent, its list is not known.
    pub fn keeps(&self, key: &ModelKey, now: Instant, began: Instant) -> bool {
        match self.until {
            None => now < began + KEPT,
            Some(until) => now < until + KEPT && self.models.iter().any(|(listed, ..)| listed == key),
        }
    }

    /// What is wanted now: key, model, tenant.
    pub fn at(&self, now: Instant) -> &[(ModelKey, ClaimModel, String)] {
        if self.until.is_some_and(|until| now < until) { &self.models } else { &[] }
    }
}

/// Whether `bytes` more may be fetched ahead into a cache that holds `held` of at most `limit` bytes.
pub fn has_room(held: u64, bytes: u64, limit: u64) -> bool {
    held.saturating_add(bytes) <= limit / 100 * (100 - STAYS_FREE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_contracts::model::FileModel;
    use stowage_contracts::preload::Preload;

    fn file(n: usize, tenant: &str) -> Preload {
        let model = ClaimModel::File(FileModel::open(format!("https://h/{n}"), format!("{n:064x}")));
        Preload { model, tenant: tenant.to_owned() }
    }

    #[test]
    fn one_tenant_has_a_part_of_the_list_and_what_cannot_be_fetched_takes_no_place() {
        let now = Instant::now();
        let unsound = Preload { model: ClaimModel::File(FileModel::open("https://h", "x")), tenant: "a".to_owned() };
        let mut models: Vec<Preload> = (0..20).map(|n| file(n, "a")).collect();
        models.insert(0, unsound);
        models.push(file(99, "b"));
        let asked = Asked::read(Preloads { models }, now);
        let tenants: Vec<&str> = asked.at(now).iter().map(|(_, _, tenant)| tenant.as_str()).collect();
        assert_eq!(tenants, [vec!["a"; MAX_PRELOADS_OF_TENANT], vec!["b"]].concat());
    }

    #[test]
    fn list_is_forgotten_when_nobody_says_it_again() {
        let now = Instant::now();
        let asked = Asked::read(Preloads { models: vec![file(1, "a")] }, now);
        assert_eq!(asked.at(now + HOLDS - Duration::from_secs(1)).len(), 1);
        assert_eq!(asked.at(now + HOLDS).len(), 0);
        assert_eq!(Asked::default().at(now).len(), 0);
    }

    #[test]
    fn what_was_fetched_in_part_stays_while_the_list_is_not_known() {
        let began = Instant::now();
        let (listed, other) = (file(1, "a").key().unwrap(), file(2, "a").key().unwrap());
        let soon = began + KEPT - Duration::from_secs(1);
        assert!(Asked::default().keeps(&other, soon, began) && !Asked::default().keeps(&other, began + KEPT, began));
        let asked = Asked::read(Preloads { models: vec![file(1, "a")] }, began);
        assert!(asked.keeps(&listed, began + HOLDS + KEPT - Duration::from_secs(1), began));
        assert!(!asked.keeps(&listed, began + HOLDS + KEPT, began));
        assert!(!asked.keeps(&other, began, began), "it is on no list");
    }

    #[test]
    fn four_fifths_of_the_cache_are_the_most() {
        for (held, bytes, fits) in
            [(0, 80, true), (0, 81, false), (70, 10, true), (70, 11, false), (u64::MAX, 1, false)]
        {
            assert_eq!(has_room(held, bytes, 100), fits, "{held} + {bytes}");
        }
    }
}

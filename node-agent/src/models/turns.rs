//! Whose model is fetched next: places are few, sources can be slow, and tenants choose their names.
//!
//! The tenant with the fewest running fetches comes first; of several, the one that got a place the longest ago; of
//! its models, the one that waits the longest. So nothing that a tenant can choose (names, addresses, numbers of models) moves
//! it before another tenant. A model that several tenants wait for takes the place of any of them.

use std::collections::{BTreeMap, BTreeSet};

use stowage_contracts::model::ModelKey;

/// Models that are fetched at the same time; the others wait.
pub const AT_ONCE: usize = 8;
/// Of one tenant: a slow source keeps no other tenant waiting.
const AT_ONCE_OF_A_TENANT: usize = 2;

/// A model without a place, and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub key: ModelKey,
    pub tenants: BTreeSet<String>,
}

/// The order in which models came and tenants got places.
#[derive(Debug, Default)]
pub struct Turns {
    /// Counts both.
    now: u64,
    came: BTreeMap<ModelKey, u64>,
    /// One entry for each tenant that ever had a claim here.
    served: BTreeMap<String, u64>,
}

impl Turns {
    /// Notes who waits now. A model that waits no more, or that got a place, comes last when it waits again.
    pub fn waits(&mut self, waiting: &[Waiting]) {
        self.came.retain(|key, _| waiting.iter().any(|model| model.key == *key));
        for model in waiting {
            if !self.came.contains_key(&model.key) {
                self.now += 1;
                self.came.insert(model.key.clone(), self.now);
            }
        }
    }

    /// Which of the waiting models is next, and for whom; `None`: no place is free for any of them. `running`: fetches of each tenant.
    pub fn next(&self, waiting: &[Waiting], running: &BTreeMap<String, usize>) -> Option<(ModelKey, String)> {
        if running.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        let of = |tenant: &str| running.get(tenant).copied().unwrap_or(0);
        let served = |tenant: &str| self.served.get(tenant).copied().unwrap_or(0);
        let came = |key: &ModelKey| self.came.get(key).copied().unwrap_or(u64::MAX);
        let pairs = waiting.iter().flat_map(|model| model.tenants.iter().map(move |tenant| (&model.key, tenant)));
        pairs
            .filter(|(_, tenant)| of(tenant) < AT_ONCE_OF_A_TENANT)
            .min_by_key(|(key, tenant)| (of(tenant), served(tenant), came(key), *key, *tenant))
            .map(|(key, tenant)| (key.clone(), tenant.clone()))
    }

    /// The model got a place of this tenant.
    pub fn started(&mut self, key: &ModelKey, tenant: &str) {
        self.now += 1;
        self.came.remove(key);
        self.served.insert(tenant.to_owned(), self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name:tenant` or `name:tenant+tenant`.
    fn waiting(models: &[&str]) -> Vec<Waiting> {
        let one = |text: &&str| {
            let (key, tenants) = text.split_once(':').unwrap();
            Waiting { key: ModelKey::read(key), tenants: tenants.split('+').map(str::to_owned).collect() }
        };
        models.iter().map(one).collect()
    }

    /// Fills all free places; who got them, in order.
    fn fill(turns: &mut Turns, waiting: &mut Vec<Waiting>, running: &mut BTreeMap<String, usize>) -> String {
        turns.waits(waiting);
        let mut order = Vec::new();
        while let Some((key, tenant)) = turns.next(waiting, running) {
            turns.started(&key, &tenant);
            *running.entry(tenant.clone()).or_default() += 1;
            waiting.retain(|model| model.key != key);
            order.push(format!("{key}:{tenant}"));
        }
        order.join(" ")
    }

    #[test]
    fn models_of_a_tenant_start_in_the_order_in_which_they_came_whatever_their_names() {
        let (mut turns, mut running) = (Turns::default(), BTreeMap::new());
        let mut models = waiting(&["z:a"]);
        turns.waits(&models);
        models.extend(waiting(&["m:a"]));
        turns.waits(&models);
        models.extend(waiting(&["b:a", "c:a"]));
        assert_eq!(fill(&mut turns, &mut models, &mut running), "z:a m:a");
        *running.get_mut("a").unwrap() -= 1;
        // One that failed and waits again is behind those that never had a place.
        models.extend(waiting(&["z:a"]));
        assert_eq!(fill(&mut turns, &mut models, &mut running), "b:a");
    }

    #[test]
    fn tenants_take_turns_however_many_models_one_of_them_has() {
        let (mut turns, mut running) = (Turns::default(), BTreeMap::new());
        let many: Vec<String> =
            (0..50).flat_map(|n| ["a", "b", "c", "d"].map(|tenant| format!("{tenant}{n:02}:{tenant}"))).collect();
        let mut models = waiting(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(fill(&mut turns, &mut models, &mut running), "a00:a b00:b c00:c d00:d a01:a b01:b c01:c d01:d");
        // The next free place is for the tenant that has none, then for the one that waited the longest.
        models.extend(waiting(&["zz:e", "zz2:e", "zzz:f"]));
        assert_eq!(fill(&mut turns, &mut models, &mut running), "");
        for (ended, next) in [("a", "zz:e"), ("b", "zzz:f"), ("e", "zz2:e"), ("c", "a02:a")] {
            *running.get_mut(ended).unwrap() -= 1;
            assert_eq!(fill(&mut turns, &mut models, &mut running), next);
        }
    }

    #[test]
    fn model_of_several_tenants_takes_the_place_of_one_that_has_room() {
        let (mut turns, mut running) = (Turns::default(), BTreeMap::from([("a".to_owned(), 2)]));
        let mut models = waiting(&["x:a", "m:a+b"]);
        assert_eq!(fill(&mut turns, &mut models, &mut running), "m:b");
    }
}

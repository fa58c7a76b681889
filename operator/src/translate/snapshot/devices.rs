//! The GPUs that our driver publishes in ResourceSlices.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::observe::parsed::slice::{KnownSlice, Published};
use crate::observe::view::Objects;

/// All published GPUs.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// By pool, then by name.
    pools: HashMap<String, BTreeMap<String, Published>>,
    /// Pool and name by uuid; of two that have it, the first by pool and name.
    by_uuid: HashMap<String, (String, String)>,
    /// Uuids by node.
    nodes: HashMap<String, BTreeSet<String>>,
}

impl Devices {
    /// Of each pool only its newest generation counts: an older slice is about to be deleted.
    pub fn read(slices: &Objects<KnownSlice>) -> Self {
        let ours: Vec<_> = slices.values().filter_map(|slice| slice.ours()).collect();
        let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
        for offer in &ours {
            let generation = newest.entry(&offer.pool).or_insert(offer.generation);
            *generation = (*generation).max(offer.generation);
        }
        let mut devices = Self::default();
        for offer in ours.iter().filter(|offer| newest.get(offer.pool.as_str()) == Some(&offer.generation)) {
            for (name, published) in &offer.devices {
                if let Some(node) = &offer.node {
                    devices.nodes.entry(node.clone()).or_default().insert(published.uuid.clone());
                }
                let named = (offer.pool.clone(), name.clone());
                let first = devices.by_uuid.entry(published.uuid.clone()).or_insert_with(|| named.clone());
                *first = named.clone().min(first.clone());
                devices.pools.entry(named.0).or_default().insert(named.1, published.clone());
            }
        }
        devices
    }

    /// The device of this name in this pool.
    pub fn at(&self, pool: &str, device: &str) -> Option<&Published> {
        self.pools.get(pool)?.get(device)
    }

    pub fn with_uuid(&self, uuid: &str) -> Option<&Published> {
        let (pool, device) = self.by_uuid.get(uuid)?;
        self.at(pool, device)
    }

    /// Uuids that the node's slices show.
    pub fn of_node(&self, node: &str) -> Option<&BTreeSet<String>> {
        self.nodes.get(node)
    }
}

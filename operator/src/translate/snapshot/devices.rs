//! The GPUs that our driver publishes in ResourceSlices.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stowage_crds::names::{
    ATTRIBUTE_PRODUCT_NAME, ATTRIBUTE_UUID, CAPACITY_MEMORY, CAPACITY_SM, DRIVER, MEMORY_STEP_BYTES,
};
use stowage_crds::quantity::{parse_bytes, parse_milli};

use crate::observe::view::Objects;

/// One published GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub uuid: String,
    pub product: Option<String>,
    pub memory_bytes: u64,
    /// Requests are rounded up to it by the scheduler.
    pub step_bytes: u64,
    pub sm_percent: u32,
}

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
    pub fn read(slices: &Objects<ResourceSlice>) -> Self {
        let ours: Vec<_> = slices.values().map(|slice| &slice.spec).filter(|spec| spec.driver == DRIVER).collect();
        let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
        for spec in &ours {
            let generation = newest.entry(&spec.pool.name).or_insert(spec.pool.generation);
            *generation = (*generation).max(spec.pool.generation);
        }
        let mut devices = Self::default();
        for spec in ours.iter().filter(|spec| newest.get(spec.pool.name.as_str()) == Some(&spec.pool.generation)) {
            for device in spec.devices.iter().flatten() {
                let Some(published) = published(device) else { continue };
                if let Some(node) = &spec.node_name {
                    devices.nodes.entry(node.clone()).or_default().insert(published.uuid.clone());
                }
                let named = (spec.pool.name.clone(), device.name.clone());
                let first = devices.by_uuid.entry(published.uuid.clone()).or_insert_with(|| named.clone());
                *first = named.clone().min(first.clone());
                devices.pools.entry(named.0).or_default().insert(named.1, published);
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

/// `None`: a device without a uuid or a memory size is none that we can promise anything on.
fn published(device: &Device) -> Option<Published> {
    let text = |name: &str| {
        let all = device.attributes.as_ref()?;
        all.get(name).or_else(|| all.get(&format!("{DRIVER}/{name}")))?.string.clone()
    };
    let capacity = |name: &str| {
        let all = device.capacity.as_ref()?;
        all.get(name).or_else(|| all.get(&format!("{DRIVER}/{name}")))
    };
    let memory = capacity(CAPACITY_MEMORY)?;
    let step = memory.request_policy.as_ref().and_then(|policy| policy.valid_range.as_ref()?.step.as_ref());
    let bytes = |quantity: &Quantity| parse_bytes(quantity).ok();
    Some(Published {
        uuid: text(ATTRIBUTE_UUID)?,
        product: text(ATTRIBUTE_PRODUCT_NAME),
        memory_bytes: bytes(&memory.value)?,
        step_bytes: step.and_then(bytes).unwrap_or(MEMORY_STEP_BYTES),
        sm_percent: capacity(CAPACITY_SM)
            .and_then(|sm| parse_milli(&sm.value).ok())
            .map_or(100, |milli| u32::try_from(milli / 1000).unwrap_or(100)),
    })
}

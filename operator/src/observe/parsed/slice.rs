//! What a ResourceSlice of our driver offers. A whole one with eight GPUs is 30 KB in memory.

use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stowage_crds::names::{
    ATTRIBUTE_PRODUCT_NAME, ATTRIBUTE_UUID, CAPACITY_MEMORY, CAPACITY_SM, DRIVER, MEMORY_STEP_BYTES,
};
use stowage_crds::quantity::{parse_bytes, parse_milli};

use crate::observe::source::Kept;

/// A slice as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSlice(Option<Offer>);

/// What one slice of ours offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub node: Option<String>,
    pub pool: String,
    /// Of the pool: of several the newest counts.
    pub generation: i64,
    /// GPUs by their names in the pool.
    pub devices: Vec<(String, Published)>,
}

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

impl KnownSlice {
    /// What it offers, if it is our driver's.
    pub fn ours(&self) -> Option<&Offer> {
        self.0.as_ref()
    }
}

impl From<ResourceSlice> for KnownSlice {
    fn from(slice: ResourceSlice) -> Self {
        Self((slice.spec.driver == DRIVER).then(|| offer(slice.spec)))
    }
}

impl Kept for KnownSlice {
    fn trimmed(self) -> Self {
        self
    }

    fn still(&self) -> Self {
        self.clone()
    }
}

fn offer(spec: ResourceSliceSpec) -> Offer {
    let devices = spec.devices.into_iter().flatten();
    let devices = devices.filter_map(|device| Some((device.name.clone(), published(&device)?))).collect();
    Offer { node: spec.node_name, pool: spec.pool.name, generation: spec.pool.generation, devices }
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

//! What a claim was given of our GPUs.

use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use stowage_crds::names::{CAPACITY_MEMORY, CAPACITY_SM, DRIVER};
use stowage_crds::quantity::{parse_bytes, parse_milli};

/// What the allocator gave of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocated {
    pub pool: String,
    pub device: String,
    /// `None`: all of it.
    pub memory_bytes: Option<u64>,
    /// `None`: all of it.
    pub sm_percent: Option<u32>,
}

/// What the allocator really gave; `None`: it has given nothing yet.
pub fn allocated(claim: &ResourceClaim) -> Option<Vec<Allocated>> {
    let results = claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?.results.as_ref()?;
    Some(results.iter().filter(|result| result.driver == DRIVER).map(one).collect())
}

fn one(result: &DeviceRequestAllocationResult) -> Allocated {
    let consumed = |name: &str| {
        let all = result.consumed_capacity.as_ref()?;
        // Keys are spelled as published; an unprefixed one belongs to the driver's domain.
        all.get(name).or_else(|| all.get(&format!("{DRIVER}/{name}")))
    };
    let percent = |milli: u64| u32::try_from(milli / 1000).unwrap_or(100);
    Allocated {
        pool: result.pool.clone(),
        device: result.device.clone(),
        memory_bytes: consumed(CAPACITY_MEMORY).and_then(|size| parse_bytes(size).ok()),
        sm_percent: consumed(CAPACITY_SM).and_then(|share| parse_milli(share).ok()).map(percent),
    }
}

//! What is promised on each GPU: claims that are allocated, claims of ours that are not yet, and the
//! journal's. A claim counts until it is gone, whatever became of its pod.

use std::collections::HashMap;

use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use stowage_crds::names::{CAPACITY_MEMORY, CAPACITY_SM, DRIVER};
use stowage_crds::quantity::{parse_bytes, parse_milli};
use stowage_planner::snapshot::{DeploymentId, GpuShare, Isolation, Promise, Slice, SliceOwner, TenantId};

use super::devices::Devices;
use super::nodes::Alive;
use crate::observe::view::{KnownClaim, Objects};
use crate::translate::validate::tenants::Tenants;

/// Slices by GPU uuid.
pub fn by_gpu(
    claims: &Objects<KnownClaim>,
    devices: &Devices,
    tenants: &Tenants,
    isolation: &dyn Fn(&DeploymentId) -> Isolation,
    alive: &Alive<'_>,
) -> HashMap<String, Vec<Slice>> {
    let mut slices: HashMap<String, Vec<Slice>> = HashMap::new();
    for ((namespace, name), claim) in claims {
        let identity = claim.identity();
        let planned = || claim.placement().into_iter().flat_map(|placement| placement.gpus.clone());
        let shares = allocated(claim, devices).unwrap_or_else(|| planned().collect());
        let (owner, isolation) = match identity {
            Some(id) => (SliceOwner::Replica(id.replica.clone()), isolation(&id.replica.deployment)),
            None => (SliceOwner::Foreign { claim: format!("{namespace}/{name}") }, Isolation::Shared),
        };
        // What stood on a lost node serves nobody, so it is charged to nobody: its successor needs the budget.
        let gone = claim.placement().is_some_and(|placement| alive.lost(&placement.node));
        let payer = tenants.of(namespace).filter(|_| !gone).map(|name| TenantId(name.to_owned()));
        for share in shares {
            slices.entry(share.uuid).or_default().push(Slice {
                owner: owner.clone(),
                tenant: payer.clone(),
                promise: share.promise,
                isolation,
            });
        }
    }
    slices
}

/// What the allocator really gave; `None`: not allocated, or on devices that no slice shows at present.
fn allocated(claim: &ResourceClaim, devices: &Devices) -> Option<Vec<GpuShare>> {
    let results = claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?.results.as_ref()?;
    let ours = results.iter().filter(|result| result.driver == DRIVER);
    ours.map(|result| share(result, devices)).collect()
}

fn share(result: &DeviceRequestAllocationResult, devices: &Devices) -> Option<GpuShare> {
    let device = devices.at(&result.pool, &result.device)?;
    let consumed = |name: &str| {
        let all = result.consumed_capacity.as_ref()?;
        // Keys are spelled as published; an unprefixed one belongs to the driver's domain.
        all.get(name).or_else(|| all.get(&format!("{DRIVER}/{name}")))
    };
    let memory = consumed(CAPACITY_MEMORY).and_then(|size| parse_bytes(size).ok()).unwrap_or(device.memory_bytes);
    let sm = consumed(CAPACITY_SM)
        .and_then(|share| parse_milli(share).ok())
        .map_or(device.sm_percent, |milli| u32::try_from(milli / 1000).unwrap_or(100));
    Some(GpuShare { uuid: device.uuid.clone(), promise: Promise::slice(memory, sm) })
}

//! What is promised on each GPU: claims that are allocated, claims of ours that are not yet, and the
//! journal's. A claim counts until it is gone, whatever became of its pod.

use std::collections::HashMap;
use std::sync::Arc;

use stowage_planner::snapshot::{DeploymentId, Isolation, Promise, Slice, SliceOwner, TenantId};

use super::devices::Devices;
use super::nodes::Alive;
use crate::observe::parsed::gpus::Allocated;
use crate::observe::source::Key;
use crate::observe::view::{KnownClaim, Objects};
use crate::translate::validate::tenants::Tenants;

/// What one claim takes of a GPU.
#[derive(Debug, Clone)]
pub struct Promised<'a> {
    key: &'a Key,
    claim: &'a KnownClaim,
    /// Name of the tenant that it is charged to.
    payer: Option<&'a str>,
    promise: Promise,
    isolation: Isolation,
}

/// Promises by GPU uuid, each list in the order of the claims' names.
pub fn by_gpu<'a>(
    claims: &'a Objects<KnownClaim>,
    devices: &'a Devices,
    tenants: &'a Tenants,
    isolation: &dyn Fn(&DeploymentId) -> Isolation,
    alive: &Alive<'_>,
) -> HashMap<&'a str, Vec<Promised<'a>>> {
    let mut promises: HashMap<&str, Vec<Promised<'_>>> = HashMap::new();
    let claims: Vec<(&Key, &Arc<KnownClaim>)> = claims.iter().collect();
    // Those of one deployment mostly follow one another by name.
    let same = |(a_key, a): &(&Key, &Arc<KnownClaim>), (b_key, b): &(&Key, &Arc<KnownClaim>)| {
        a_key.0 == b_key.0 && deployment(a) == deployment(b)
    };
    for run in claims.chunk_by(same) {
        let Some((first_key, first)) = run.first() else { continue };
        let isolation = deployment(first).map_or(Isolation::Shared, isolation);
        let tenant = tenants.of(&first_key.0);
        for (key, claim) in run {
            // What stood on a lost node serves nobody, so it is charged to nobody: its successor needs the budget.
            let gone = claim.placement().is_some_and(|placement| alive.lost(&placement.node));
            let payer = tenant.filter(|_| !gone);
            for (gpu, promise) in shares(claim, devices) {
                promises.entry(gpu).or_default().push(Promised { key, claim, payer, promise, isolation });
            }
        }
    }
    promises
}

/// The deployment whose replica the claim is of.
fn deployment(claim: &KnownClaim) -> Option<&DeploymentId> {
    claim.identity().map(|id| &id.replica.deployment)
}

/// What it was given; until then, or while no slice shows a device that it was given, what it is to get.
fn shares<'a>(claim: &'a KnownClaim, devices: &'a Devices) -> Vec<(&'a str, Promise)> {
    let given = claim.facts().as_ref().and_then(|all| all.iter().map(|one| share(one, devices)).collect());
    let planned = || claim.placement().into_iter().flat_map(|placement| &placement.gpus);
    given.unwrap_or_else(|| planned().map(|share| (share.uuid.as_str(), share.promise.clone())).collect())
}

/// `None`: no slice shows the device at present.
fn share<'a>(given: &Allocated, devices: &'a Devices) -> Option<(&'a str, Promise)> {
    let device = devices.at(&given.pool, &given.device)?;
    let memory = given.memory_bytes.unwrap_or(device.memory_bytes);
    Some((&device.uuid, Promise::slice(memory, given.sm_percent.unwrap_or(device.sm_percent))))
}

impl Promised<'_> {
    /// As the planner wants it.
    pub fn slice(&self) -> Slice {
        let owner = match self.claim.identity() {
            Some(id) => SliceOwner::Replica(id.replica.clone()),
            None => SliceOwner::Foreign { claim: self.name() },
        };
        let tenant = self.payer.map(|name| TenantId(name.to_owned()));
        Slice { owner, tenant, promise: self.promise.clone(), isolation: self.isolation }
    }

    /// Whether the slice is what [`Self::slice`] would make.
    pub fn is(&self, slice: &Slice) -> bool {
        let owner = match (&slice.owner, self.claim.identity()) {
            (SliceOwner::Replica(replica), Some(id)) => *replica == id.replica,
            (SliceOwner::Foreign { claim }, None) => *claim == self.name(),
            _ => false,
        };
        let payer = slice.tenant.as_ref().map(|tenant| tenant.0.as_str());
        owner && payer == self.payer && slice.promise == self.promise && slice.isolation == self.isolation
    }

    fn name(&self) -> String {
        let (namespace, name) = self.key;
        format!("{namespace}/{name}")
    }
}

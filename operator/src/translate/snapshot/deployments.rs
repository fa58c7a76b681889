//! Deployments as the planner wants them: accepted ones with what they ask for, and refused ones
//! only while they are being deleted, because a drain needs no spec.

use std::collections::BTreeMap;
use std::sync::Arc;

use stowage_planner::snapshot::{Deployment, DeploymentId, Needs, Slot, TenantId};

use super::owned::Owned;
use super::replicas::{self, millis};
use crate::observe::identity::identity;
use crate::observe::view::{StoredDeployment, View};
use crate::translate::memory::{Memory, empty};
use crate::translate::validate::Judged;
use crate::translate::validate::tenants::Tenants;

pub fn build(
    view: &View,
    owned: &Owned,
    judged: &BTreeMap<DeploymentId, Arc<Judged>>,
    tenants: &Tenants,
    memory: &Memory,
) -> Vec<Deployment> {
    let translate = |stored: &StoredDeployment| {
        let id = DeploymentId::new(stored.namespace(), stored.name());
        let judged = judged.get(&id)?;
        let outlived = memory.orphaning().contains(stored.uid());
        if outlived || judged.wanted().is_none() && !stored.deleting() {
            return None;
        }
        Some(one(view, owned, stored, id, judged, tenants, memory))
    };
    view.deployments.values().filter_map(|stored| translate(stored)).collect()
}

fn one(
    view: &View,
    owned: &Owned,
    stored: &StoredDeployment,
    id: DeploymentId,
    judged: &Judged,
    tenants: &Tenants,
    memory: &Memory,
) -> Deployment {
    let was_ready = |uid: &str| memory.was_ready(uid);
    let wanted = judged.wanted();
    Deployment {
        uid: stored.uid().to_owned(),
        generation: u64::try_from(stored.generation()).unwrap_or(0),
        tenant: tenants.of(stored.namespace()).map(|name| TenantId(name.to_owned())),
        priority: 0,
        created_ms: stored.meta.creation_timestamp.as_ref().map_or(0, |time| millis(time.0)),
        wanted: wanted.map_or(0, |wanted| wanted.deployment.replicas),
        // Only scaling.mode Manual is accepted.
        scaling: Default::default(),
        signals: Default::default(),
        memory: Default::default(),
        variants: wanted.map(|wanted| wanted.variants.clone()).unwrap_or_default(),
        needs: wanted.map_or_else(Needs::default, |wanted| wanted.needs.clone()),
        node_selector: wanted.map(|wanted| wanted.deployment.pod.node_selector.clone()).unwrap_or_default(),
        tolerations: wanted.map(|wanted| wanted.tolerations.clone()).unwrap_or_default(),
        objective: Default::default(),
        isolation: judged.standing.isolation,
        model_key: wanted.map(|wanted| wanted.deployment.image.reference.clone()).unwrap_or_default(),
        spec_hash: wanted.map(|wanted| wanted.spec_hash.clone()).unwrap_or_default(),
        replicas: replicas::of(view, owned.pods(stored.uid()), wanted, &was_ready),
        slots: slots(owned, stored, memory),
        held: memory.held(&id).cloned(),
        deleting: stored.deleting(),
        force_delete: stored.forced(),
        drain_timeout_ms: u64::try_from(judged.standing.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        id,
    }
}

/// What is remembered of the slots, with the highest incarnation among pods and claims that exist.
fn slots(owned: &Owned, stored: &StoredDeployment, memory: &Memory) -> Vec<Slot> {
    let mut slots = memory.slots(stored.uid());
    let pods = owned.pods(stored.uid()).iter().map(|pod| &pod.metadata);
    let claims = owned.claims(stored.uid()).iter().map(|claim| &claim.metadata);
    for id in pods.chain(claims).filter_map(identity) {
        let slot = slots.entry(id.replica.index).or_insert_with(|| empty(id.replica.index));
        slot.incarnation = slot.incarnation.max(id.replica.incarnation);
    }
    slots.into_values().collect()
}

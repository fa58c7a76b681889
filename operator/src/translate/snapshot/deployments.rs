//! Deployments as the planner wants them: accepted ones with what they ask for, and refused ones
//! only while they are being deleted, because a drain needs no spec.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stowage_contracts::names::DEFAULT_HOLD_MS;
use stowage_crds::inference_deployment::{ScalingMode, ScalingObjective};
use stowage_crds::validate::{AcceptedDeployment, AcceptedScaling};
use stowage_planner::snapshot::{
    Deployment, DeploymentId, Needs, Objective, Objectives, Room, Scaling, ScalingMode as Mode, Slot, TenantId,
};

use super::owned::Owned;
use super::replicas::{self, millis};
use super::signals;
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
    let load = view.gateways.deployments.get(&id).filter(|load| load.uid == stored.uid());
    Deployment {
        uid: stored.uid().to_owned(),
        generation: u64::try_from(stored.generation()).unwrap_or(0),
        tenant: tenants.of(stored.namespace()).map(|name| TenantId(name.to_owned())),
        priority: 0,
        created_ms: stored.meta.creation_timestamp.as_ref().map_or(0, |time| millis(time.0)),
        wanted: wanted.map_or(0, |wanted| asked(stored, &wanted.deployment)),
        scaling: wanted.map(|wanted| scaling(&wanted.deployment.scaling)).unwrap_or_default(),
        signals: signals::of(load, owned.pods(stored.uid()), memory.learned(stored.uid())),
        memory: memory.rule(stored.uid()),
        variants: wanted.map(|wanted| wanted.variants.clone()).unwrap_or_default(),
        needs: wanted.map_or_else(Needs::default, |wanted| wanted.needs.clone()),
        node_selector: wanted.map(|wanted| wanted.deployment.pod.node_selector.clone()).unwrap_or_default(),
        tolerations: wanted.map(|wanted| wanted.tolerations.clone()).unwrap_or_default(),
        objective: wanted.map(|wanted| objective(&wanted.deployment.scaling)).unwrap_or_default(),
        isolation: judged.standing.isolation,
        model_key: wanted.map(|wanted| wanted.deployment.source.key()).unwrap_or_default(),
        spec_hash: wanted.map(|wanted| wanted.spec_hash.clone()).unwrap_or_default(),
        replicas: replicas::of(view, owned.pods(stored.uid()), wanted, load, &was_ready),
        slots: slots(owned, stored, memory),
        held: memory.held(&id).cloned(),
        deleting: stored.deleting(),
        force_delete: stored.forced(),
        drain_timeout_ms: u64::try_from(judged.standing.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        id,
    }
}

/// In mode Manual the spec's number; otherwise what the last plan of any operator settled on, as the status shows it.
fn asked(stored: &StoredDeployment, accepted: &AcceptedDeployment) -> u32 {
    match accepted.scaling.mode {
        ScalingMode::Manual => accepted.replicas,
        ScalingMode::Active | ScalingMode::Advisory => {
            stored.status.as_ref().map_or(0, |status| status.desired_replicas)
        }
    }
}

fn scaling(accepted: &AcceptedScaling) -> Scaling {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Scaling {
        mode: match accepted.mode {
            ScalingMode::Manual => Mode::Manual,
            ScalingMode::Advisory => Mode::Advisory,
            ScalingMode::Active => Mode::Active,
        },
        min_replicas: accepted.min_replicas,
        max_replicas: accepted.max_replicas,
        objectives: Some(Objectives {
            ttft_ms: accepted.ttft.as_secs_f64() * 1000.0,
            itl_ms: accepted.itl.as_secs_f64() * 1000.0,
        }),
        room: Room::Standard,
        idle_after_ms: accepted.idle_after.map(millis),
        cold_start_hold_ms: Some(accepted.hold.map_or(DEFAULT_HOLD_MS, millis)),
    }
}

fn objective(accepted: &AcceptedScaling) -> Objective {
    match accepted.objective {
        None => Objective::Packing,
        Some(ScalingObjective::Cost) => Objective::Cost,
        Some(ScalingObjective::Latency) => Objective::Latency,
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

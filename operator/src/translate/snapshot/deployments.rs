//! Deployments as the planner wants them: accepted ones with what they ask for. Of a refused one what runs goes on and
//! nothing is made, and so it is with orphans that no accepted deployment takes over: they hold GPUs, so they give them
//! back to whom they belong, and end for cause, like all others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stowage_crds::inference_deployment::ScalingMode;
use stowage_crds::pod_template::TopologySpread;
use stowage_crds::validate::{AcceptedDeployment, AcceptedPod};
use stowage_planner::snapshot::{
    ColdStart, Deployment, DeploymentId, Hold, Needs, Objective, Phase, Replica, Scaling, Slot, Spread, TenantId,
    TimeMs,
};
use stowage_translate::{objective, scaling};

use super::nodes::Alive;
use super::owned::Owned;
use super::replicas::{self, Trouble, millis};
use super::signals;
use crate::observe::view::{KnownPod, StoredDeployment, View};
use crate::translate::known::Ascending;
use crate::translate::memory::{Memory, empty};
use crate::translate::validate::tenants::Tenants;
use crate::translate::validate::{Judged, Standing, Verdict, Wanted};

/// What deployments are made of besides their own objects.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    pub view: &'a View,
    pub owned: &'a Owned,
    pub tenants: &'a Tenants,
    pub alive: &'a Alive<'a>,
    pub trouble: &'a Trouble<'a>,
    pub memory: &'a Memory,
}

pub fn build(judged: &BTreeMap<DeploymentId, Arc<Judged>>, parts: Parts<'_>) -> Vec<Deployment> {
    let Parts { view, owned, memory, .. } = parts;
    let mut all_judged = Ascending::new(judged.iter());
    let translate = |stored: &Arc<StoredDeployment>| {
        let id = DeploymentId::new(stored.namespace(), stored.name());
        let (_, judged) = all_judged.find(|(at, _)| (*at).cmp(&id))?;
        let outlived = memory.orphaning().contains(stored.uid());
        let runs = !owned.pods(stored.uid()).is_empty() || !owned.orphans(&id).pods.is_empty();
        if outlived || judged.wanted().is_none() && !stored.deleting() && !runs {
            return None;
        }
        let built = one(stored, id, judged, parts);
        Some(match &judged.verdict {
            Verdict::Refused { message, .. } if !stored.deleting() => {
                let orphans = owned.orphans(&built.id).pods;
                standing(built, replicas::of(&orphans, None, None, parts), message)
            }
            _ => built,
        })
    };
    let mut all: Vec<Deployment> = view.deployments.values().filter_map(translate).collect();
    let planned: BTreeSet<DeploymentId> = all.iter().map(|d| d.id.clone()).collect();
    let left = owned.orphaned().filter(|(id, _)| !planned.contains(id));
    all.extend(left.map(|(id, pods)| left_behind(id, pods, parts)));
    all
}

/// Its replicas and these go on, and nothing is made.
fn standing(mut d: Deployment, orphans: Vec<Replica>, why: &str) -> Deployment {
    d.replicas.extend(orphans);
    // There is no specification that one of them could be outdated for.
    d.replicas.iter_mut().for_each(|replica| replica.spec_hash.clear());
    d.spec_hash.clear();
    let runs = |r: &&Replica| {
        !r.node_lost && !matches!(r.phase, Phase::Draining { .. } | Phase::Failed { .. } | Phase::Terminating { .. })
    };
    let slots: BTreeSet<u32> = d.replicas.iter().filter(runs).map(|replica| replica.index).collect();
    d.wanted = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    d.held = Some(Hold { until_ms: TimeMs::MAX, message: format!("the spec is refused: {why}") });
    d
}

/// Pods without an owner, whose deployment is gone.
fn left_behind(id: &DeploymentId, pods: &[Arc<KnownPod>], parts: Parts<'_>) -> Deployment {
    let tenants = parts.tenants;
    let created = pods.iter().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|time| millis(time.0));
    let standing_as = Standing::default();
    let d = Deployment {
        id: id.clone(),
        uid: String::new(),
        generation: 0,
        tenant: tenants.of(&id.namespace).map(|name| TenantId(name.to_owned())),
        priority: 0,
        created_ms: created.min().unwrap_or(0),
        wanted: 0,
        scaling: Scaling::default(),
        signals: signals::of(None, &[], None, ColdStart::default(), None),
        memory: Default::default(),
        variants: Vec::new(),
        needs: Needs::default(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        spread: Vec::new(),
        objective: Objective::default(),
        isolation: standing_as.isolation,
        model_key: Default::default(),
        spec_hash: String::new(),
        replicas: Vec::new(),
        slots: Vec::new(),
        held: None,
        deleting: false,
        force_delete: false,
        drain_timeout_ms: u64::try_from(standing_as.drain_timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let replicas = replicas::of(pods, None, None, parts);
    standing(d, replicas, "there is none, its deployment was deleted")
}

fn one(stored: &StoredDeployment, id: DeploymentId, judged: &Judged, parts: Parts<'_>) -> Deployment {
    let Parts { view, owned, tenants, memory, .. } = parts;
    let wanted = judged.wanted();
    let known = view.gateways.load(&id, stored.uid());
    // Gateways name every deployment that has a replica.
    let serves = owned.pods(stored.uid()).iter().any(|pod| replicas::serves(pod));
    let quiet = view.gateways.quiet(&id, stored.uid()).filter(|_| !serves);
    let load = known.or(quiet.as_ref());
    let cold_start = wanted.map(|wanted| memory.cold_start(stored.namespace(), stored.uid(), wanted));
    let start = cold_start.and_then(|known| known.measured_ms()).map(Duration::from_millis);
    let most = wanted.map_or(u32::MAX, |wanted| most(wanted, owned.pods(stored.uid()).len()));
    Deployment {
        uid: stored.uid().to_owned(),
        generation: u64::try_from(stored.generation()).unwrap_or(0),
        tenant: tenants.of(stored.namespace()).map(|name| TenantId(name.to_owned())),
        priority: 0,
        created_ms: stored.meta.creation_timestamp.as_ref().map_or(0, |time| millis(time.0)),
        wanted: wanted.map_or(0, |wanted| asked(stored, &wanted.deployment).min(most)),
        scaling: wanted.map(|wanted| scaling(&wanted.deployment.scaling, most, start)).unwrap_or_default(),
        signals: signals::of(
            load,
            owned.pods(stored.uid()),
            memory.learned(stored.uid()),
            cold_start.unwrap_or_default(),
            view.earlier.get(&id),
        ),
        memory: memory.rule(stored.uid()),
        variants: wanted.map(|wanted| wanted.variants.clone()).unwrap_or_default(),
        needs: wanted.map_or_else(Needs::default, |wanted| wanted.needs.clone()),
        node_selector: wanted.map(|wanted| wanted.deployment.pod.node_selector.clone()).unwrap_or_default(),
        tolerations: wanted.map(|wanted| wanted.tolerations.clone()).unwrap_or_default(),
        spread: wanted.map(|wanted| spread(&wanted.deployment.pod)).unwrap_or_default(),
        objective: wanted.map(|wanted| objective(&wanted.deployment.scaling)).unwrap_or_default(),
        isolation: judged.standing.isolation,
        model_key: wanted.map(|wanted| wanted.model_key()).unwrap_or_default(),
        spec_hash: wanted.map(|wanted| wanted.spec_hash.clone()).unwrap_or_default(),
        replicas: replicas::of(owned.pods(stored.uid()), wanted, load, parts),
        slots: slots(owned, stored, memory),
        held: memory.held(&id).cloned(),
        deleting: stored.deleting(),
        force_delete: stored.forced(),
        drain_timeout_ms: u64::try_from(judged.standing.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        id,
    }
}

fn spread(pod: &AcceptedPod) -> Vec<Spread> {
    let one = |of: &TopologySpread| Spread { topology_key: of.topology_key.clone(), max_skew: of.max_skew };
    pod.topology_spread_constraints.iter().map(one).collect()
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

/// Most replicas. While no commit is known for the revision, one replica's node resolves it and the others wait: each for itself
/// could find another commit.
fn most(wanted: &Wanted, pods: usize) -> u32 {
    match wanted.unresolved() {
        Some(_) => u32::try_from(pods).unwrap_or(u32::MAX).max(1),
        None => u32::MAX,
    }
}

/// What is remembered of the slots, with the highest incarnation among pods and claims that exist.
fn slots(owned: &Owned, stored: &StoredDeployment, memory: &Memory) -> Vec<Slot> {
    let mut slots = memory.slots(stored.uid());
    let pods = owned.pods(stored.uid()).iter().filter_map(|pod| pod.identity());
    let claims = owned.claims(stored.uid()).iter().filter_map(|claim| claim.identity());
    for id in pods.chain(claims) {
        let slot = slots.entry(id.replica.index).or_insert_with(|| empty(id.replica.index));
        slot.incarnation = slot.incarnation.max(id.replica.incarnation);
    }
    slots.into_values().collect()
}

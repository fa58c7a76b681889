//! From a decision to the objects that carry it out. No client: the same input builds the same bytes.
//!
//! [`prepare`] turns one deployment's slice of the plan, and what of it exists already, into the
//! writes that are missing. What is there and right is not written again.

pub mod claim;
pub mod engine;
pub mod network;
pub mod pod;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Serialize;
use serde_json::Value;
use stowage_crds::names::{
    ANNOTATION_DRAINING, ANNOTATION_WOKEN, API_VERSION, CLAIM_PREFIX, LABEL_DEPLOYMENT, LABEL_MANAGED_BY, LABEL_TENANT,
    MANAGED_BY,
};
use stowage_planner::plan::{Action, EndReason};
use stowage_planner::snapshot::{Placement, ReplicaId};

use super::case::Case;
use crate::observe::identity::{ReplicaNames, annotations, identity, names};
use crate::translate::snapshot::replicas::condition;
use crate::translate::validate::Wanted;

/// Writes that one deployment still needs, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Prepared {
    pub finalizer: Finalizer,
    pub policy: Option<NetworkPolicy>,
    pub service: Option<Service>,
    /// Pods to take out of routing.
    pub drain: Vec<Target>,
    /// Pods at which the kubelet must look again.
    pub wake: Vec<Target>,
    /// Pods to delete, and how long each may take.
    pub remove: Vec<(Target, Option<u32>)>,
    pub create: Vec<PreparedReplica>,
    /// Claims whose pod is gone, and with it the kubelet's preparation.
    pub release: Vec<Target>,
}

/// What happens to the drain finalizer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Finalizer {
    #[default]
    Keep,
    /// Before anything else is made.
    Add,
    /// After everything else is gone.
    Remove,
}

/// An object that exists: this one and no later one of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub uid: String,
}

/// A replica that is to be made: the claim first, then the pod.
#[derive(Debug, Clone)]
pub struct PreparedReplica {
    pub claim: Option<ResourceClaim>,
    pub pod: Pod,
}

/// The InferenceDeployment as the owner of what is made for it.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub tenant: Option<&'a str>,
}

/// What the objects of one replica are built from.
#[derive(Debug, Clone)]
pub struct Replica<'a> {
    pub owner: Owner<'a>,
    pub id: &'a ReplicaId,
    pub names: ReplicaNames,
    pub placement: &'a Placement,
    pub spec_hash: &'a str,
    /// How the agent keeps slices of one GPU apart.
    pub sharing: &'a str,
}

impl Prepared {
    pub fn is_empty(&self) -> bool {
        let Self { finalizer, policy, service, drain, wake, remove, create, release } = self;
        *finalizer == Finalizer::Keep
            && policy.is_none()
            && service.is_none()
            && drain.is_empty()
            && wake.is_empty()
            && remove.is_empty()
            && create.is_empty()
            && release.is_empty()
    }
}

/// The writes that the case still needs. `wanted`: what the spec asks for; `None` when it was refused
/// (then nothing new is made, and what runs goes on).
pub fn prepare(case: &Case, wanted: Option<&Wanted>, now: Timestamp) -> Prepared {
    let owner = case.owner();
    let mut prepared = Prepared::default();
    if let Some(wanted) = wanted.filter(|_| !case.stored.deleting()) {
        prepared.create = creations(case, wanted);
        // Nothing is made for a deployment that waits: two hundred of them would be six hundred writes.
        if !prepared.create.is_empty() || case.anything_exists() {
            prepared.finalizer = if guarded(case) { Finalizer::Keep } else { Finalizer::Add };
            prepared.policy = missing(network::policy(&owner, wanted.runtime.port), case.policy.as_deref());
            prepared.service = missing(network::service(&owner), case.service.as_deref());
        }
    }
    if case.stored.deleting() && guarded(case) && !case.anything_exists() {
        prepared.finalizer = Finalizer::Remove;
    }
    for action in &case.actions {
        match action {
            Action::Create { .. } => {}
            Action::Drain { pod, .. } => prepared.drain.extend(case.target(pod).filter(|_| !draining(case, pod))),
            Action::Remove { pod, reason, .. } => {
                let left = if case.forced() { Some(1) } else { case.drain_left(pod, now) };
                let grace = grace(*reason, left);
                prepared.remove.extend(case.target(pod).map(|target| (target, grace)));
            }
        }
    }
    prepared.remove.extend(unreadable(case).map(|target| (target, None)));
    prepared.wake =
        case.pods.iter().filter(|pod| overdue(pod, now)).filter_map(|pod| Target::of(&pod.metadata)).collect();
    prepared.release = orphaned_claims(case);
    prepared
}

/// Whether the drain finalizer is there. A refused object that never had anything made for it needs
/// none; the API server might not even take a write to one that is malformed.
fn guarded(case: &Case) -> bool {
    case.stored.meta.finalizers.iter().flatten().any(|name| name == stowage_crds::names::DRAIN_FINALIZER)
}

fn creations(case: &Case, wanted: &Wanted) -> Vec<PreparedReplica> {
    let creations = case.actions.iter().filter_map(|action| match action {
        Action::Create { replica, placement, spec_hash, generation, .. } if *generation == case.generation() => {
            Some((replica, placement, spec_hash))
        }
        _ => None,
    });
    creations
        .map(|(id, placement, spec_hash)| {
            let names = names(case.stored.uid(), id);
            let replica = Replica { owner: case.owner(), id, names, placement, spec_hash, sharing: wanted.sharing() };
            PreparedReplica { claim: claim::claim(&replica), pod: pod::pod(&replica, wanted) }
        })
        .collect()
}

/// How long a pod may take to end. `None`: as long as its spec says, which is the drain timeout.
fn grace(reason: EndReason, drain_left_seconds: Option<u32>) -> Option<u32> {
    match reason {
        // Out of routing since a while: the engine finishes what it runs, then exits by itself.
        EndReason::Drained => drain_left_seconds.map(|seconds| seconds.max(1)),
        EndReason::DrainTimeout | EndReason::Overshoot => Some(1),
        // It never served, or serves nobody any more.
        EndReason::UnhealthyGpu
        | EndReason::Duplicate
        | EndReason::Unschedulable
        | EndReason::Unprepared
        | EndReason::Failed => Some(5),
        // With the force annotation; otherwise it was drained.
        EndReason::Deleted => drain_left_seconds.map_or(Some(1), |seconds| Some(seconds.max(1))),
        EndReason::ScaleIn | EndReason::Rollout => drain_left_seconds.map_or(Some(5), |seconds| Some(seconds.max(1))),
        EndReason::NodeLost => None,
    }
}

fn draining(case: &Case, pod: &str) -> bool {
    case.pods.iter().any(|found| {
        found.metadata.name.as_deref() == Some(pod)
            && found.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ANNOTATION_DRAINING))
    })
}

/// Pods of the deployment whose annotations somebody took away: nobody can say which replica they
/// are, so they are replaced.
fn unreadable<'a>(case: &'a Case) -> impl Iterator<Item = Target> + 'a {
    case.pods
        .iter()
        .filter(|pod| identity(&pod.metadata).is_none() && pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| Target::of(&pod.metadata))
}

/// A bound pod without a sandbox. When a claim could not be prepared (its node's agent was just being restarted,
/// say), the kubelet, as of 1.36, looks at the pod again only after 60 to 90 s; any change of the pod wakes it at
/// once. First after ten seconds, then after a third of the pod's age, a minute at most.
fn overdue(pod: &Pod, now: Timestamp) -> bool {
    let said = |kind| condition(pod, kind).filter(|said| said.status == "True");
    let pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    let Some(bound) = said("PodScheduled").and_then(|said| said.last_transition_time.as_ref()) else { return false };
    if !pending || pod.metadata.deletion_timestamp.is_some() || said("PodReadyToStartContainers").is_some() {
        return false;
    }
    let woken = pod.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_WOKEN)?.parse::<Timestamp>().ok());
    let since = |at: Timestamp| now.as_second() - at.as_second();
    since(woken.unwrap_or(bound.0)) >= (since(bound.0) / 3).clamp(10, 60)
}

/// Claims without a pod. A pod that is decided but not yet made stands in the journal and counts.
fn orphaned_claims(case: &Case) -> Vec<Target> {
    let pods: Vec<_> = case.pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    let orphaned = |claim: &&std::sync::Arc<ResourceClaim>| {
        let pod = claim.metadata.name.as_deref().and_then(|name| name.strip_prefix(CLAIM_PREFIX));
        claim.metadata.deletion_timestamp.is_none() && pod.is_none_or(|pod| !pods.contains(&pod))
    };
    case.claims.iter().filter(orphaned).filter_map(|claim| Target::of(&claim.metadata)).collect()
}

/// The object, unless the stored one already says all of it.
fn missing<K: Serialize>(wanted: K, stored: Option<&K>) -> Option<K> {
    let covered = stored.is_some_and(|stored| covers(&json(stored), &json(&wanted)));
    if covered { None } else { Some(wanted) }
}

fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Whether all that `part` says stands in `whole`, which may say more (defaults, other people's labels).
pub fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| covers(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| covers(whole, part))
        }
        _ => whole == part,
    }
}

// === impl Owner, Replica, Target ===

impl Owner<'_> {
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: API_VERSION.into(),
            kind: "InferenceDeployment".into(),
            name: self.name.into(),
            uid: self.uid.into(),
            controller: Some(true),
            // Our finalizer, not the garbage collector, keeps the owner until its pods have drained.
            block_owner_deletion: None,
        }
    }

    /// What finds the pods of this deployment.
    pub fn selector(&self) -> BTreeMap<String, String> {
        [(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_DEPLOYMENT, self.name)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.extend(self.tenant.map(|tenant| (LABEL_TENANT.to_owned(), tenant.to_owned())));
        labels
    }
}

impl Replica<'_> {
    pub fn meta(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.owner.namespace.to_owned()),
            labels: Some(self.owner.labels()),
            annotations: Some(annotations(self.id, self.spec_hash, self.placement)),
            owner_references: Some(vec![self.owner.reference()]),
            ..ObjectMeta::default()
        }
    }
}

impl Target {
    /// `None` for an object that is only assumed: it has no UID yet.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        Some(Self { name: meta.name.clone()?, uid: meta.uid.clone().filter(|uid| !uid.is_empty())? })
    }
}

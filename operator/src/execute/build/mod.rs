//! From a decision to the objects that carry it out. No client: the same input builds the same bytes.
//!
//! [`prepare`] turns one deployment's part of the plan, and what of it exists already, into the
//! writes that are missing. What is there and right is not written again.

pub mod capacity;
pub mod claim;
pub mod engine;
pub mod pod;
pub mod shared;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde::Serialize;
use serde_json::Value;
use stowage_crds::names::{
    ANNOTATION_DISRUPTION_BUDGET, ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING, ANNOTATION_TAKES_OVER, ANNOTATION_WOKEN,
    API_VERSION, CLAIM_PREFIX, DRAIN_FINALIZER, LABEL_DEPLOYMENT, LABEL_MANAGED_BY, LABEL_TENANT, MANAGED_BY,
    shared_name,
};
use stowage_planner::plan::{Action, CreateReason, EndReason};
use stowage_planner::snapshot::{Placement, ReplicaId, TimeMs};

use super::backoff::Part;
use super::case::Case;
use crate::observe::identity::{ReplicaNames, annotations, controller, names};
use crate::observe::view::{KnownClaim, KnownPod};
use crate::translate::snapshot::replicas::{condition, millis};
use crate::translate::validate::Wanted;

/// Writes that one deployment still needs, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Prepared {
    pub end: End,
    pub make: Make,
}

/// Changes to what exists.
#[derive(Debug, Default)]
pub struct End {
    /// Draining pods that are to be routed to again.
    pub resume: Vec<Target>,
    /// Pods to take out of routing, when their drain must be over, and why.
    pub drain: Vec<(Target, TimeMs, EndReason)>,
    /// Draining pods whose drain must be over sooner, and when.
    pub hasten: Vec<(Target, TimeMs)>,
    /// Pods at which the kubelet must look again.
    pub wake: Vec<Target>,
    /// Pods to delete, and how long each may take.
    pub remove: Vec<(Target, Option<u32>)>,
    /// Orphans to delete: the deployment asks for something else.
    pub displace: Vec<Target>,
    /// Claims whose pod is gone, and with it the kubelet's preparation.
    pub release: Vec<Target>,
    /// The disruption budget, where the user wants none.
    pub retire: Option<Target>,
    /// Remove the drain finalizer, after everything else is gone.
    pub unguard: bool,
}

/// What is missing.
#[derive(Debug, Default)]
pub struct Make {
    /// Add the drain finalizer, before anything else is made.
    pub guard: bool,
    /// Orphans that the deployment takes over.
    pub adopt_pods: Vec<Target>,
    pub adopt_claims: Vec<Target>,
    /// The deployment becomes the owner of something that has none.
    pub takes_over: bool,
    pub policy: Option<Shared<NetworkPolicy>>,
    pub service: Option<Shared<Service>>,
    pub budget: Option<Shared<PodDisruptionBudget>>,
    pub create: Vec<PreparedReplica>,
}

/// An object that all replicas share, as it should be.
#[derive(Debug, Clone)]
pub struct Shared<K> {
    pub object: K,
    /// The one of ours that is to be brought up to date; `None`: there is none.
    pub stored: Option<Target>,
    /// Nobody owns it.
    pub orphan: bool,
}

/// An object that exists: this one and no later one of its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub name: String,
    pub uid: String,
}

/// A replica that is to be made: the claim first, then the pod.
#[derive(Debug, Clone)]
pub struct PreparedReplica {
    pub id: ReplicaId,
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
    /// The Ready pod of its slot ends once this one is Ready.
    pub takes_over: bool,
    /// How the agent keeps slices of one GPU apart.
    pub sharing: &'a str,
}

impl Prepared {
    pub fn is_empty(&self) -> bool {
        self.end.is_empty() && self.make.is_empty()
    }

    /// Whether anything of this part is to be written.
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::End => !self.end.is_empty(),
            Part::Make => !self.make.is_empty(),
        }
    }
}

impl End {
    pub fn is_empty(&self) -> bool {
        let Self { resume, drain, hasten, wake, remove, displace, release, retire, unguard } = self;
        resume.is_empty()
            && drain.is_empty()
            && hasten.is_empty()
            && wake.is_empty()
            && remove.is_empty()
            && displace.is_empty()
            && release.is_empty()
            && retire.is_none()
            && !unguard
    }
}

impl Make {
    fn is_empty(&self) -> bool {
        let Self { guard, adopt_pods, adopt_claims, takes_over: _, policy, service, budget, create } = self;
        !guard
            && adopt_pods.is_empty()
            && adopt_claims.is_empty()
            && policy.is_none()
            && service.is_none()
            && budget.is_none()
            && create.is_empty()
    }
}

/// The writes that the case still needs. While the spec is refused nothing new is made, and what runs goes on.
pub fn prepare(case: &Case, now: Timestamp) -> Prepared {
    Prepared { end: ending(case, now), make: making(case) }
}

/// The part of [`prepare`] that makes what is missing.
pub fn making(case: &Case) -> Make {
    let wanted = case.wanted().filter(|_| !case.orphaning && !case.stored.deleting());
    wanted.map(|wanted| missing(case, wanted)).unwrap_or_default()
}

/// The part of [`prepare`] that changes what exists: drains, ends and gives back.
pub fn ending(case: &Case, now: Timestamp) -> End {
    if case.orphaning {
        // The garbage collector takes the deployment off its pods and claims; they go on without it.
        let unguard = guarded(case) && !case.anything_exists() && !case.stored.orphaning();
        return End { unguard, ..End::default() };
    }
    let mut end = End::default();
    for action in &case.actions {
        match action {
            Action::Create { .. } => {}
            Action::Resume { pod, .. } => {
                let drains = matches!(going(case, pod), Going::Drains { .. });
                end.resume.extend(case.target(pod).filter(|_| drains));
            }
            Action::Drain { pod, deadline_ms, reason, .. } => {
                let Some(target) = case.target(pod) else { continue };
                match going(case, pod) {
                    Going::Not => end.drain.push((target, *deadline_ms, *reason)),
                    // Only a reclaim ends sooner what is on its way out.
                    _ if *reason != EndReason::Reclaimed => {}
                    Going::Deleted => end.remove.push((target, Some(seconds_until(*deadline_ms, now)))),
                    Going::Drains { until_ms } if until_ms.is_none_or(|until| *deadline_ms < until) => {
                        end.hasten.push((target, *deadline_ms));
                    }
                    Going::Drains { .. } => {}
                }
            }
            Action::Remove { pod, reason, .. } => {
                let left = if case.stored.forced() { Some(1) } else { case.drain_left(pod, now) };
                let grace = grace(*reason, left);
                end.remove.extend(case.target(pod).map(|target| (target, grace)));
            }
        }
    }
    end.remove.extend(unreadable(case).map(|target| (target, None)));
    end.displace = unwanted_orphans(case);
    end.wake = case.pods.iter().filter(|pod| overdue(pod, now)).filter_map(|pod| Target::of(&pod.metadata)).collect();
    end.release = orphaned_claims(case);
    let budget = case.budget.as_ref().filter(|_| !budgeted(case)).map(|budget| &budget.metadata);
    end.retire = budget.filter(|meta| meta.deletion_timestamp.is_none()).and_then(Target::of);
    end.unguard = case.stored.deleting() && guarded(case) && !case.anything_exists();
    end
}

fn missing(case: &Case, wanted: &Wanted) -> Make {
    let (adopt_pods, adopt_claims) = adoptions(case, wanted);
    // What is adopted fills slots: whether more is needed shows in the next plan.
    let create = if adopt_pods.is_empty() && adopt_claims.is_empty() { creations(case, wanted) } else { Vec::new() };
    // Nothing is made for a deployment that waits: two hundred of them would be six hundred writes.
    if create.is_empty() && adopt_pods.is_empty() && !case.anything_exists() {
        return Make { takes_over: !adopt_claims.is_empty(), adopt_claims, ..Make::default() };
    }
    let owner = case.owner();
    let policy = outdated(shared::policy(&owner, wanted.runtime.port, &case.scrapers), case.policy.as_deref());
    let service = outdated(shared::service(&owner), case.service.as_deref());
    let budget = Some(shared::budget(&owner, case.replicas)).filter(|_| budgeted(case));
    let budget = budget.and_then(|budget| outdated(budget, case.budget.as_deref()));
    let takes_over = !adopt_pods.is_empty()
        || !adopt_claims.is_empty()
        || policy.as_ref().is_some_and(|policy| policy.orphan)
        || service.as_ref().is_some_and(|service| service.orphan)
        || budget.as_ref().is_some_and(|budget| budget.orphan);
    Make { guard: !guarded(case), adopt_pods, adopt_claims, takes_over, policy, service, budget, create }
}

/// Whether voluntary disruptions are to wait for replacements.
fn budgeted(case: &Case) -> bool {
    case.stored.annotation(ANNOTATION_DISRUPTION_BUDGET) != Some("none")
}

/// Whether the drain finalizer is there. A refused object that never had anything made for it needs
/// none; the API server might not even take a write to one that is malformed.
fn guarded(case: &Case) -> bool {
    case.stored.meta.finalizers.iter().flatten().any(|name| name == DRAIN_FINALIZER)
}

fn creations(case: &Case, wanted: &Wanted) -> Vec<PreparedReplica> {
    let creations = case.actions.iter().filter_map(|action| match action {
        Action::Create { replica, placement, spec_hash, generation, reason } if *generation == case.generation() => {
            Some((replica, placement, spec_hash, *reason == CreateReason::Move))
        }
        _ => None,
    });
    creations
        .map(|(id, placement, spec_hash, takes_over)| {
            let names = names(case.stored.uid(), id);
            let (owner, sharing) = (case.owner(), wanted.sharing());
            let replica = Replica { owner, id, names, placement, spec_hash, takes_over, sharing };
            PreparedReplica {
                id: id.clone(),
                claim: claim::claim(&replica, wanted.fetched.as_ref()),
                pod: pod::pod(&replica, wanted),
            }
        })
        .collect()
}

/// How long an engine without requests may take to exit.
const DRAINED_SECONDS: u32 = 30;

/// How long a pod may take to end. `None`: as long as its spec says, which is the drain timeout.
fn grace(reason: EndReason, drain_left_seconds: Option<u32>) -> Option<u32> {
    match reason {
        // Nothing runs there: the engine exits by itself, and code that does not is not waited for.
        EndReason::Drained => Some(drain_left_seconds.map_or(DRAINED_SECONDS, |left| left.clamp(1, DRAINED_SECONDS))),
        EndReason::DrainTimeout | EndReason::Overshoot => Some(1),
        // It never served, or serves no longer.
        EndReason::UnhealthyGpu
        | EndReason::Duplicate
        | EndReason::Unschedulable
        | EndReason::Unprepared
        | EndReason::MoveTimeout
        | EndReason::Failed => Some(5),
        // With the force annotation; otherwise it was drained.
        EndReason::Deleted => drain_left_seconds.map_or(Some(1), |seconds| Some(seconds.max(1))),
        EndReason::ScaleIn | EndReason::Rollout | EndReason::NodeCordoned | EndReason::Reclaimed | EndReason::Moved => {
            drain_left_seconds.map_or(Some(5), |seconds| Some(seconds.max(1)))
        }
        EndReason::NodeLost => None,
    }
}

/// How far a pod is on its way out.
enum Going {
    Not,
    Drains {
        /// As its annotation says, before a clock that was set.
        until_ms: Option<TimeMs>,
    },
    /// Its deletion is under way.
    Deleted,
}

fn going(case: &Case, pod: &str) -> Going {
    let found = case.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod));
    let Some(meta) = found.map(|found| &found.metadata) else { return Going::Not };
    let annotation = |name| meta.annotations.as_ref()?.get(name);
    if meta.deletion_timestamp.is_some() {
        return Going::Deleted;
    }
    let until = annotation(ANNOTATION_DRAIN_UNTIL).and_then(|text| text.parse::<Timestamp>().ok());
    match annotation(ANNOTATION_DRAINING) {
        Some(_) => Going::Drains { until_ms: until.map(millis) },
        None => Going::Not,
    }
}

/// At least one: zero would delete the pod without waiting for its node.
fn seconds_until(deadline_ms: TimeMs, now: Timestamp) -> u32 {
    u32::try_from(deadline_ms.saturating_sub(millis(now)) / 1000).unwrap_or(u32::MAX).max(1)
}

/// Pods of the deployment whose annotations were removed: which replica they are is unknown,
/// so they are replaced.
fn unreadable<'a>(case: &'a Case) -> impl Iterator<Item = Target> + 'a {
    case.pods
        .iter()
        .filter(|pod| pod.identity().is_none() && pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| Target::of(&pod.metadata))
}

/// A bound pod without a sandbox. When a claim could not be prepared (its node's agent was just being restarted,
/// say), the kubelet, as of 1.36, looks at the pod again only after 60 to 90 s; any change of the pod wakes it at
/// once. First after ten seconds, then after a third of the pod's age, a minute at most.
fn overdue(pod: &Pod, now: Timestamp) -> bool {
    let holds = |kind| condition(pod, kind).filter(|found| found.status == "True");
    let pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    let Some(bound) = holds("PodScheduled").and_then(|found| found.last_transition_time.as_ref()) else { return false };
    if !pending || pod.metadata.deletion_timestamp.is_some() || holds("PodReadyToStartContainers").is_some() {
        return false;
    }
    let woken = pod.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_WOKEN)?.parse::<Timestamp>().ok());
    let since = |at: Timestamp| now.as_second() - at.as_second();
    since(woken.unwrap_or(bound.0)) >= (since(bound.0) / 3).clamp(10, 60)
}

/// Orphans of the same specification, which go on as the deployment's own: pods, and claims with their pods.
fn adoptions(case: &Case, wanted: &Wanted) -> (Vec<Target>, Vec<Target>) {
    let fits = |pod: &KnownPod| pod.identity().is_some_and(|id| id.spec_hash == wanted.spec_hash);
    let pods = case.orphans.pods.iter().map(AsRef::as_ref);
    let pods: Vec<&KnownPod> = pods.filter(|pod| goes_on(pod) && fits(pod)).collect();
    let used = |claim: &ObjectMeta| {
        let pod = claim.name.as_deref().and_then(|name| name.strip_prefix(CLAIM_PREFIX));
        pods.iter().any(|found| found.metadata.name.as_deref() == pod)
    };
    let claims = case.orphans.claims.iter().filter(|claim| used(&claim.metadata));
    let claims = claims.filter_map(|claim| Target::of(&claim.metadata)).collect();
    (pods.iter().filter_map(|pod| Target::of(&pod.metadata)).collect(), claims)
}

/// Orphans that no deployment will go on with: the present one asks for something else.
fn unwanted_orphans(case: &Case) -> Vec<Target> {
    let wanted = case.wanted().filter(|_| !case.stored.deleting()).map(|wanted| wanted.spec_hash.as_str());
    let unwanted = |pod: &&std::sync::Arc<KnownPod>| {
        let other = pod.identity().is_none_or(|id| Some(id.spec_hash.as_str()) != wanted);
        wanted.is_some() && pod.metadata.deletion_timestamp.is_none() && (other || !goes_on(pod))
    };
    case.orphans.pods.iter().filter(unwanted).filter_map(|pod| Target::of(&pod.metadata)).collect()
}

/// Neither ended nor on its way out.
fn goes_on(pod: &Pod) -> bool {
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let draining = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ANNOTATION_DRAINING));
    pod.metadata.deletion_timestamp.is_none() && !draining && !matches!(ended, Some("Failed" | "Succeeded"))
}

/// Claims without a pod. A pod that is decided but not yet made stands in the journal and counts.
fn orphaned_claims(case: &Case) -> Vec<Target> {
    let pods = case.pods.iter().chain(&case.orphans.pods);
    let pods: Vec<_> = pods.filter_map(|pod| pod.metadata.name.as_deref()).collect();
    let orphaned = |claim: &&std::sync::Arc<KnownClaim>| {
        let pod = claim.metadata.name.as_deref().and_then(|name| name.strip_prefix(CLAIM_PREFIX));
        claim.metadata.deletion_timestamp.is_none() && pod.is_none_or(|pod| !pods.contains(&pod))
    };
    let claims = case.claims.iter().chain(&case.orphans.claims);
    claims.filter(orphaned).filter_map(|claim| Target::of(&claim.metadata)).collect()
}

/// The object, unless the stored one already contains all of it.
fn outdated<K: Resource + Serialize>(object: K, stored: Option<&K>) -> Option<Shared<K>> {
    let covered = stored.is_some_and(|stored| covers(&json(stored), &json(&object)));
    let orphan = stored.is_some_and(|stored| controller(stored.meta()).is_none());
    (!covered).then(|| Shared { object, stored: stored.and_then(|stored| Target::of(stored.meta())), orphan })
}

fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Whether all of `part` is contained in `whole`, which may contain more (defaults, other people's labels).
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

    /// Of the objects that all replicas share. The name begins with a prefix of ours, because the
    /// deployment's own name may well be that of the user's Service in front of it.
    pub fn meta(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(shared_name(self.name)),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(self.labels()),
            owner_references: Some(vec![self.reference()]),
            ..ObjectMeta::default()
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
        let mut annotations = annotations(self.id, self.spec_hash, self.placement);
        annotations.extend(self.takes_over.then(|| (ANNOTATION_TAKES_OVER.to_owned(), "true".to_owned())));
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.owner.namespace.to_owned()),
            labels: Some(self.owner.labels()),
            annotations: Some(annotations),
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

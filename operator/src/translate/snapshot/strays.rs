//! What `kubectl delete --cascade=orphan` left and nobody took over: pods and claims of ours without
//! an owner, whose deployment does not exist or is refused. They hold GPUs and are charged, so they are ended, but
//! only after a while: the user may be about to create the deployment again. Meanwhile the plan may end one for cause.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_crds::names::CLAIM_PREFIX;
use stowage_planner::plan::{Action, Plan};
use stowage_planner::snapshot::{DeploymentId, TimeMs};

use crate::observe::identity::{controller, labelled};
use crate::observe::view::View;

/// How long an orphan waits for a deployment of its name.
pub const PATIENCE_MS: TimeMs = 600_000;

/// An orphan that nobody took over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    pub kind: StrayKind,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its deletion is under way.
    pub ending: bool,
}

/// In the order in which they are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayKind {
    Pod,
    /// Only when its pod is gone.
    Claim,
    Service,
    Budget,
    /// Only when no pod is left that it protects.
    Policy,
}

/// All objects of ours without an owner that no accepted deployment of their name takes over. One whose spec is refused
/// takes over nothing, so it keeps nothing either.
pub fn unclaimed(view: &View, accepts: &dyn Fn(&DeploymentId) -> bool) -> Vec<Stray> {
    let mut all = Vec::new();
    let mut look = |kind, id: Option<&DeploymentId>, meta: &ObjectMeta| all.extend(stray(accepts, kind, id, meta));
    view.pods.values().for_each(|pod| look(StrayKind::Pod, pod.deployment(), &pod.metadata));
    view.claims.values().for_each(|claim| look(StrayKind::Claim, claim.deployment(), &claim.metadata));
    let mut shared = |kind, meta: &ObjectMeta| {
        if controller(meta).is_none() {
            look(kind, labelled(meta).as_ref(), meta);
        }
    };
    view.services.values().for_each(|service| shared(StrayKind::Service, &service.metadata));
    view.budgets.values().for_each(|budget| shared(StrayKind::Budget, &budget.metadata));
    view.policies.values().for_each(|policy| shared(StrayKind::Policy, &policy.metadata));
    all
}

fn stray(
    accepts: &dyn Fn(&DeploymentId) -> bool,
    kind: StrayKind,
    id: Option<&DeploymentId>,
    meta: &ObjectMeta,
) -> Option<Stray> {
    let id = id?;
    let claimed = controller(meta).is_some() || accepts(id);
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty() && !claimed)?;
    let ending = meta.deletion_timestamp.is_some();
    Some(Stray { kind, namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid, ending })
}

/// Those of the unclaimed that have waited long enough and whose turn it is.
/// `since`: since when an object is unclaimed, by its UID.
pub fn due(view: &View, unclaimed: &[Stray], since: &dyn Fn(&str) -> Option<TimeMs>, now: TimeMs) -> Vec<Stray> {
    let pods = unclaimed.iter().filter(|stray| stray.kind == StrayKind::Pod);
    let with_pods: BTreeSet<&str> = pods.map(|stray| stray.namespace.as_str()).collect();
    let waited = |stray: &Stray| since(&stray.uid).is_some_and(|since| now.saturating_sub(since) >= PATIENCE_MS);
    let is_due = |stray: &&Stray| match stray.kind {
        StrayKind::Pod | StrayKind::Service | StrayKind::Budget => waited(stray),
        StrayKind::Policy => waited(stray) && !with_pods.contains(stray.namespace.as_str()),
        // It holds a GPU and nobody can take it over without its pod.
        StrayKind::Claim => !view.pods.contains_key(&(stray.namespace.clone(), pod_of(&stray.name).to_owned())),
    };
    unclaimed.iter().filter(|stray| !stray.ending).filter(is_due).cloned().collect()
}

/// Pods that nobody owns and of which the plan ends one: no deployment carries that out.
pub fn ended_by(plan: &Plan, unclaimed: &[Stray]) -> Vec<Stray> {
    let ends = plan.actions.iter().filter_map(|action| match action {
        Action::Drain { replica, pod, .. } | Action::Remove { replica, pod, .. } => {
            Some((replica.deployment.namespace.as_str(), pod.as_str()))
        }
        Action::Create { .. } | Action::Resume { .. } => None,
    });
    let ends: BTreeSet<(&str, &str)> = ends.collect();
    let ended = |stray: &&Stray| {
        stray.kind == StrayKind::Pod && !stray.ending && ends.contains(&(stray.namespace.as_str(), stray.name.as_str()))
    };
    unclaimed.iter().filter(ended).cloned().collect()
}

/// The pod that a claim of ours was made for.
fn pod_of(claim: &str) -> &str {
    claim.strip_prefix(CLAIM_PREFIX).unwrap_or(claim)
}

//! What `kubectl delete --cascade=orphan` left and nobody took over: pods and claims of ours without
//! an owner, whose deployment does not exist. They hold GPUs and are charged, so they are ended, but
//! only after a while: the user may be about to create the deployment again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_planner::snapshot::TimeMs;

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

/// UIDs of all objects of ours that neither an owner nor a deployment of their name claims.
pub fn unclaimed(view: &View) -> Vec<Stray> {
    let mut all = Vec::new();
    let mut look = |kind, meta: &ObjectMeta| all.extend(stray(view, kind, meta));
    view.pods.values().for_each(|pod| look(StrayKind::Pod, &pod.metadata));
    view.claims.values().for_each(|claim| look(StrayKind::Claim, &claim.metadata));
    view.services.values().for_each(|service| look(StrayKind::Service, &service.metadata));
    view.budgets.values().for_each(|budget| look(StrayKind::Budget, &budget.metadata));
    view.policies.values().for_each(|policy| look(StrayKind::Policy, &policy.metadata));
    all
}

fn stray(view: &View, kind: StrayKind, meta: &ObjectMeta) -> Option<Stray> {
    let id = labelled(meta)?;
    let claimed = controller(meta).is_some() || view.deployments.contains_key(&(id.namespace, id.name));
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty() && !claimed)?;
    Some(Stray { kind, namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid })
}

/// Those that have waited long enough and whose turn it is.
/// `since`: since when an object is unclaimed, by its UID.
pub fn due(view: &View, since: &dyn Fn(&str) -> Option<TimeMs>, now: TimeMs) -> Vec<Stray> {
    let unclaimed = unclaimed(view);
    let pod_left =
        |namespace: &str| unclaimed.iter().any(|stray| stray.kind == StrayKind::Pod && stray.namespace == namespace);
    let turn = |stray: &&Stray| match stray.kind {
        StrayKind::Claim | StrayKind::Policy => !pod_left(&stray.namespace),
        StrayKind::Pod | StrayKind::Service | StrayKind::Budget => true,
    };
    let waited = |stray: &&Stray| since(&stray.uid).is_some_and(|since| now.saturating_sub(since) >= PATIENCE_MS);
    unclaimed.iter().filter(turn).filter(waited).cloned().collect()
}

//! What is to be done: an immutable, ordered list that leaves the executor no choice.
//!
//! Executors refuse a plan whose [`BasedOn`] they are past. The reasons are not here; the
//! [`DecisionReport`](crate::DecisionReport) made together with the plan does.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Deployment, DeploymentId, Memory, Placement, ReplicaId, Shared, TimeMs};

/// Actions in the order in which they are carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Plan {
    pub based_on: BasedOn,
    pub actions: Vec<Action>,
    /// What the next snapshot is to hold in [`Deployment::memory`](crate::snapshot::Deployment::memory),
    /// whether or not the actions are carried out: the signals behind it are counted. Sorted by
    /// deployment; those in mode `Manual` have none.
    #[serde(default)]
    pub memory: Vec<(DeploymentId, Memory)>,
}

/// The state that a plan was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct BasedOn {
    pub snapshot: u64,
    /// Sorted by deployment. Shared by the plan, its report, and later plans of the same generations.
    pub generations: Shared<Vec<(DeploymentId, u64)>>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Action {
    /// Create the claim (if the placement has GPUs) and then the pod.
    Create {
        replica: ReplicaId,
        placement: Placement,
        spec_hash: String,
        /// Generation of the deployment that `spec_hash` belongs to.
        generation: u64,
        reason: CreateReason,
    },
    /// Route to the draining replica again: its drain is cancelled.
    Resume { replica: ReplicaId, pod: String },
    /// Take the replica out of routing and let it finish until the deadline. Where it already drains or is being
    /// deleted: it may finish until this earlier deadline only.
    Drain { replica: ReplicaId, pod: String, deadline_ms: TimeMs, reason: EndReason },
    /// Delete the pod, then, when it is gone and unprepared, the claim.
    Remove {
        replica: ReplicaId,
        pod: String,
        reason: EndReason,
        /// Keep the slot off this node for a while: the scheduler (or kubelet) refused it there.
        exclude: Option<Exclude>,
    },
}

/// The executor keeps (replica slot, node) for the next snapshots, until `until_ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Exclude {
    pub node: String,
    pub until_ms: TimeMs,
    pub reason: String,
}

/// Why a pod is created; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CreateReason {
    /// More replicas are wanted.
    ScaleOut,
    /// In place of one that ended, failed or must go.
    Replace,
    /// The pod's specification changed.
    Rollout,
    /// Another replica needs the room of the slot's Ready pod, which ends once this one is Ready.
    Move,
}

/// Why a drain is cancelled; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResumeReason {
    /// More replicas are wanted again, or nobody claims its quota any more.
    WantedAgain,
}

/// Why a pod ends; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum EndReason {
    /// Fewer replicas are wanted.
    ScaleIn,
    /// The deployment is being deleted.
    Deleted,
    /// The pod's specification changed.
    Rollout,
    /// The pod ended by itself or cannot start.
    Failed,
    /// A GPU of it is unhealthy.
    UnhealthyGpu,
    /// Its node is cordoned, and its replacement elsewhere is Ready.
    NodeCordoned,
    NodeLost,
    /// A process of it uses more than was promised.
    Overshoot,
    /// The scheduler did not bind it.
    Unschedulable,
    /// Its node could not hand out its slice.
    Unprepared,
    /// Two live pods in one slot: the older incarnation goes.
    Duplicate,
    /// It borrows quota that its owner needs.
    Reclaimed,
    /// Another replica needs its room, and its replacement elsewhere is Ready.
    Moved,
    /// It was to take over from a pod that was to move, and was not Ready in time. That one goes on.
    MoveTimeout,
    /// A drain reached zero requests in flight.
    Drained,
    /// A drain reached its deadline.
    DrainTimeout,
}

// === impl BasedOn, EndReason, Action ===

impl BasedOn {
    /// The state of a snapshot with these deployments, which are sorted; `before`: of an earlier one.
    pub(crate) fn of<'a>(
        sequence: u64,
        deployments: impl ExactSizeIterator<Item = &'a Deployment> + Clone,
        before: &BasedOn,
    ) -> Self {
        let known = &before.generations;
        let is = |(known, d): (&(DeploymentId, u64), &Deployment)| known.1 == d.generation && known.0 == d.id;
        if known.len() == deployments.len() && known.iter().zip(deployments.clone()).all(is) {
            return BasedOn { snapshot: sequence, generations: known.clone() };
        }
        let mut generations: Vec<_> = deployments.map(|d| (d.id.clone(), d.generation)).collect();
        // There may be two with one name.
        generations.sort();
        BasedOn { snapshot: sequence, generations: Shared::new(generations) }
    }
}

impl EndReason {
    /// As in JSON and in metric labels.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

impl Action {
    /// The replica that the action is about.
    pub fn replica(&self) -> &ReplicaId {
        match self {
            Action::Create { replica, .. }
            | Action::Resume { replica, .. }
            | Action::Drain { replica, .. }
            | Action::Remove { replica, .. } => replica,
        }
    }
}

//! Judges moves: what moves serves all the time, and a moving replica with its two pods is one.

use std::collections::BTreeSet;

use super::{Checker, Created, PodKey, Violation, ends};
use crate::plan::{Action, CreateReason, EndReason, Plan};
use crate::snapshot::{Deployment, Phase, Replica, ReplicaId};

impl<'a> Checker<'a> {
    /// A move costs no deployment a replica that serves: what is to move serves, one of a deployment at a time, and
    /// ends only after another has taken over.
    pub(super) fn moves(&mut self, plan: &'a Plan) {
        let mut moving = BTreeSet::new();
        for c in self.creates(plan).iter().filter(|c| c.reason == CreateReason::Move) {
            let mut of_slot = c.deployment.replicas.iter().filter(|r| r.index == c.replica.index);
            let serves = |r: &Replica| r.phase == Phase::Ready && r.spec_hash == c.deployment.spec_hash;
            let alone = of_slot.next().is_some_and(serves) && of_slot.next().is_none();
            let ends = plan.actions.iter().any(|a| ends(a) && a.replica().deployment == c.deployment.id);
            if !alone || ends || c.deployment.deleting || !moving.insert(&c.deployment.id) {
                self.found.push(Violation::WrongMove { replica: c.replica.clone() });
            }
        }
        for action in &plan.actions {
            let (Action::Drain { replica, reason, .. } | Action::Remove { replica, reason, .. }) = action else {
                continue;
            };
            let takes_over = |r: &Replica| {
                let later = r.index == replica.index && r.incarnation > replica.incarnation;
                later && r.takes_over && r.phase == Phase::Ready
            };
            let served = |r: &Replica| {
                let older = r.index == replica.index && r.incarnation < replica.incarnation;
                older && matches!(r.phase, Phase::Ready | Phase::Unready)
            };
            let any =
                |is: &dyn Fn(&Replica) -> bool| self.deployment(replica).is_some_and(|d| d.replicas.iter().any(is));
            let right = match reason {
                EndReason::Moved => any(&takes_over),
                EndReason::MoveTimeout => any(&served),
                _ => true,
            };
            if !right {
                self.found.push(Violation::WrongMove { replica: replica.clone() });
            }
        }
        self.halves(plan);
    }

    /// A replica that moves is one: while its replacement is not Ready, neither pod ends for a reason that is not its
    /// own, unless both do.
    fn halves(&mut self, plan: &'a Plan) {
        let creates = self.creates(plan);
        let ends: Vec<_> = self.ends.iter().filter(|(_, reason)| !is_own_trouble(**reason)).collect();
        let mut halves = Vec::new();
        for ((deployment, index, incarnation), reason) in ends {
            let Some(d) = self.deployments.get(deployment) else { continue };
            let Some(r) = d.replicas.iter().find(|r| (r.index, r.incarnation) == (*index, *incarnation)) else {
                continue;
            };
            let stays = |other: &&Replica| !self.ends.contains_key(&key(d, other));
            let mut others = d.replicas.iter().filter(stays);
            let of_slot = |c: &&Created<'_>| c.deployment.id == d.id && c.replica.index == r.index;
            let begins = |c: &Created<'_>| c.reason == CreateReason::Move || self.is_cordoned(r);
            // The other pod of the slot may be the one that moves on.
            let serves_still =
                |o: &Replica| o.index == r.index && o.spec_hash == d.spec_hash && o.phase == Phase::Ready;
            let half = match serves(d, r) {
                true => {
                    others.clone().any(|new| new.phase != Phase::Ready && self.follows(d, r, new))
                        || creates.iter().filter(of_slot).any(begins) && !others.any(serves_still)
                }
                false => *reason == EndReason::Reclaimed && others.any(|old| serves(d, old) && self.follows(d, old, r)),
            };
            halves.extend(half.then(|| id(d, r)));
        }
        self.found.extend(halves.into_iter().map(|replica| Violation::WrongMove { replica }));
    }

    /// Whether a pod was made because the earlier one of its slot has to leave its place.
    fn follows(&self, d: &Deployment, old: &Replica, new: &Replica) -> bool {
        let later = new.index == old.index && new.incarnation > old.incarnation;
        let same = old.spec_hash == d.spec_hash && new.spec_hash == d.spec_hash;
        later && same && !is_leaving(new) && (new.takes_over || self.is_cordoned(old))
    }

    fn is_cordoned(&self, r: &Replica) -> bool {
        r.placement.as_ref().and_then(|p| self.nodes.get(p.node.as_str())).is_some_and(|node| node.cordoned)
    }

    /// The pods for which their tenants are not charged: of a replica that moves, all but the newest that stays, or but
    /// the oldest where none does. What a reclaim or a rollout ends counts as staying, as it did when that was decided.
    pub(super) fn uncharged(&self) -> BTreeSet<ReplicaId> {
        let mut found = BTreeSet::new();
        for d in &self.snapshot.deployments {
            let goes = |r: &Replica| {
                let stays = |reason: &EndReason| matches!(reason, EndReason::Reclaimed | EndReason::Rollout);
                is_leaving(r) || self.ends.get(&key(d, r)).is_some_and(|reason| !stays(reason))
            };
            let moves =
                |old: &Replica, new: &Replica| new.takes_over || self.is_cordoned(old) || goes(new) && !goes(old);
            let mut pods: Vec<&Replica> = d.replicas.iter().collect();
            pods.sort_by_key(|r| (r.index, &r.spec_hash, r.incarnation));
            for pods in pods.chunk_by(|a, b| (a.index, &a.spec_hash) == (b.index, &b.spec_hash)) {
                if pods.windows(2).any(|two| moves(two[0], two[1])) {
                    let stays = pods.iter().rposition(|r| !goes(r)).unwrap_or(0);
                    found.extend(pods.iter().enumerate().filter(|(at, _)| *at != stays).map(|(_, r)| id(d, r)));
                }
            }
        }
        found
    }
}

fn id(d: &Deployment, r: &Replica) -> ReplicaId {
    ReplicaId { deployment: d.id.clone(), index: r.index, incarnation: r.incarnation }
}

fn key<'a>(d: &'a Deployment, r: &Replica) -> PodKey<'a> {
    (&d.id, r.index, r.incarnation)
}

/// It is of the present specification, and serves or cannot for a moment.
fn serves(d: &Deployment, r: &Replica) -> bool {
    r.spec_hash == d.spec_hash && matches!(r.phase, Phase::Ready | Phase::Unready)
}

/// On its way out already.
fn is_leaving(r: &Replica) -> bool {
    matches!(r.phase, Phase::Draining { .. } | Phase::Terminating { .. } | Phase::Failed { .. })
}

/// Whether the pod itself, its GPU or its node is the reason, or the whole deployment goes.
fn is_own_trouble(reason: EndReason) -> bool {
    match reason {
        EndReason::Deleted
        | EndReason::Failed
        | EndReason::UnhealthyGpu
        | EndReason::NodeLost
        | EndReason::Overshoot
        | EndReason::Unschedulable
        | EndReason::Unprepared
        | EndReason::Drained
        | EndReason::DrainTimeout => true,
        EndReason::ScaleIn
        | EndReason::Rollout
        | EndReason::NodeCordoned
        | EndReason::Duplicate
        | EndReason::Reclaimed
        | EndReason::Moved
        | EndReason::MoveTimeout => false,
    }
}

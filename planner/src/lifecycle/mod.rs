//! What becomes of the replicas that exist: which go, which slots are open, which await renewal.
//!
//! A *slot* is a replica index. At most one pod of it counts, its *primary*; an older incarnation
//! stays beside it only until the primary is Ready. Endings are decided here because none of them
//! needs quota or room; filling slots needs both and is left to `decide`.
//!
//! `pods` judges each pod by itself, `slots` what follows for the slots, `pairs` replicas that move. Stale data end
//! nothing. What the user asks for (fewer replicas, another model, deletion) is never stale.

mod pairs;
mod pods;
mod slots;
mod verdict;

use std::collections::BTreeMap;

pub(crate) use pairs::uncharged;
pub use verdict::{Trouble, TroubleKind, Wait};

use crate::plan::{Action, CreateReason, EndReason, Exclude};
use crate::snapshot::index::Index;
use crate::snapshot::{Deployment, Phase, Policy, Replica, ReplicaId, TenantId, TimeMs};

/// Everything that one look at a deployment's pods decides.
#[derive(Default)]
pub(crate) struct Assessment {
    pub ends: Vec<End>,
    pub open: Vec<Open>,
    /// Pods whose drain can be cancelled, at most one for each slot.
    pub resumable: Vec<Resume>,
    /// Ready pods of an older specification or on a cordoned node, in the order in which they are renewed.
    pub renew: Vec<Renew>,
    /// Pods that end once the pod that takes over from them is Ready, and whose room others count on.
    pub moving: Vec<Moving>,
    /// Replicas with two pods: those of `moving`, and those that leave a cordoned node.
    pub pairs: Vec<Pair>,
    pub waits: Vec<Wait>,
    pub troubles: Vec<Trouble>,
    /// Times at which the answer changes by itself.
    pub wakes: Vec<TimeMs>,
    /// Slots with a pod that counts, after `ends`.
    pub current: u32,
    /// Slots with a Ready pod, after `ends`.
    pub ready: u32,
    pub updated_ready: u32,
}

impl Assessment {
    /// Neither now nor later, while the deployment and its nodes stay as they are.
    pub fn has_nothing_to_do(&self) -> bool {
        let Assessment { ends, open, resumable, renew, moving, pairs, waits, troubles, wakes, .. } = self;
        ends.is_empty()
            && open.is_empty()
            && resumable.is_empty()
            && renew.is_empty()
            && moving.is_empty()
            && pairs.is_empty()
            && waits.is_empty()
            && troubles.is_empty()
            && wakes.is_empty()
    }
}

pub(crate) struct End {
    pub replica: ReplicaId,
    pub pod: String,
    /// `None`: remove at once.
    pub drain_until: Option<TimeMs>,
    pub reason: EndReason,
    pub exclude: Option<Exclude>,
    /// Whose replica gets the room, where it is reclaimed. Never a deployment's name: it may be another tenant's.
    pub claimant: Option<TenantId>,
}

impl End {
    pub fn action(&self) -> Action {
        let (replica, pod, reason) = (self.replica.clone(), self.pod.clone(), self.reason);
        match self.drain_until {
            Some(deadline_ms) => Action::Drain { replica, pod, deadline_ms, reason },
            None => Action::Remove { replica, pod, reason, exclude: self.exclude.clone() },
        }
    }
}

/// A pod that drains and could go on.
#[derive(Clone)]
pub(crate) struct Resume {
    pub replica: ReplicaId,
    pub pod: String,
}

/// A slot that wants a pod. Where one of it drains and could go on, that one comes first.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub index: u32,
    pub incarnation: u32,
    pub reason: CreateReason,
}

/// A slot whose Ready pod is to be replaced while it serves.
pub(crate) struct Renew {
    pub open: Open,
    pub old: ReplicaId,
    pub old_pod: String,
    pub why: Renewal,
}

/// A pod with another one that takes over from it and is not Ready yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moving {
    pub index: u32,
    pub incarnation: u32,
}

/// A replica that moves: the incarnations of the pod that serves and of the one that is not Ready yet.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub index: u32,
    pub old: u32,
    pub new: u32,
}

/// Why a Ready pod is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It is of an older specification. Where both do not fit, the old pod goes first.
    Outdated,
    /// It is on this cordoned node. It goes on until its replacement is Ready, or the node is uncordoned.
    Cordoned { node: String },
}

/// `end` names variants whose replicas go before others, first to last.
pub(crate) fn assess(
    d: &Deployment,
    wanted: u32,
    end: &[String],
    index: &Index,
    policy: &Policy,
    now: TimeMs,
) -> Assessment {
    let mut view = View { d, end, index, policy, now, out: Assessment::default() };
    let mut live = view.sort_out();
    view.settle_slots(&mut live);
    view.scale_in(&mut live, wanted);
    view.count(&live);
    view.renewals(&live, wanted);
    view.open_slots(&live, wanted);
    view.out
}

/// The slots that scale-in ends, first to last, each with the index and incarnation of its pods.
pub(crate) fn scale_in_order(d: &Deployment, index: &Index, policy: &Policy, now: TimeMs) -> Vec<Vec<(u32, u32)>> {
    let mut view = View { d, end: &[], index, policy, now, out: Assessment::default() };
    let mut live = view.sort_out();
    view.settle_slots(&mut live);
    let order = view.scale_in_slots(&live);
    let pods = |slot| live.remove(&slot).into_iter().flatten().map(|r| (r.index, r.incarnation)).collect();
    order.into_iter().map(pods).collect()
}

struct View<'a> {
    d: &'a Deployment,
    end: &'a [String],
    index: &'a Index,
    policy: &'a Policy,
    now: TimeMs,
    out: Assessment,
}

/// Pods that may count, by slot.
type Live<'a> = BTreeMap<u32, Vec<&'a Replica>>;

impl View<'_> {
    /// On a node that takes nothing new and is perhaps about to be drained.
    fn cordoned(&self, r: &Replica) -> bool {
        pairs::cordoned(self.index, r)
    }

    fn matches(&self, r: &Replica) -> bool {
        r.spec_hash == self.d.spec_hash
    }

    fn id(&self, r: &Replica) -> ReplicaId {
        replica_id(self.d, r)
    }

    fn trouble(&mut self, r: &Replica, what: TroubleKind) {
        let replica = self.id(r);
        self.out.troubles.push(Trouble { replica, pod: r.name.clone(), what });
    }

    /// Drain what may have work, remove the rest. Always false: the pod no longer counts.
    fn end(&mut self, r: &Replica, reason: EndReason) -> bool {
        if matches!(r.phase, Phase::Ready | Phase::Unready) {
            return self.drain(r, reason, self.d.drain_timeout_ms);
        }
        self.remove(r, reason)
    }

    fn drain(&mut self, r: &Replica, reason: EndReason, limit_ms: u64) -> bool {
        let drain_until = Some(self.now.saturating_add(limit_ms));
        self.push_end(r, reason, drain_until)
    }

    fn remove(&mut self, r: &Replica, reason: EndReason) -> bool {
        self.push_end(r, reason, None)
    }

    fn push_end(&mut self, r: &Replica, reason: EndReason, drain_until: Option<TimeMs>) -> bool {
        let (replica, pod) = (self.id(r), r.name.clone());
        self.out.ends.push(End { replica, pod, drain_until, reason, exclude: None, claimant: None });
        false
    }
}

pub(crate) fn replica_id(d: &Deployment, r: &Replica) -> ReplicaId {
    ReplicaId { deployment: d.id.clone(), index: r.index, incarnation: r.incarnation }
}

/// Of the next pod of a slot.
pub(crate) fn next_incarnation(d: &Deployment, index: u32) -> u32 {
    let of_pods = d.replicas.iter().filter(|r| r.index == index).map(|r| r.incarnation);
    let of_slots = d.slots.iter().filter(|s| s.index == index).map(|s| s.incarnation);
    of_pods.chain(of_slots).max().map_or(0, |i| i.saturating_add(1))
}

/// Doubles with each failure in a row, up to the longest.
pub(crate) fn back_off_ms(policy: &Policy, doublings: u32) -> u64 {
    let factor = 1u64 << doublings.min(32);
    policy.backoff_base_ms.saturating_mul(factor).min(policy.backoff_max_ms)
}

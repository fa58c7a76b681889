//! The three stages in their order, over one snapshot.
//!
//! Endings first, since they need neither quota nor room. Then open slots, one replica at a time:
//! below nominal quota first, then priority, then age, then name. Last the renewal of outdated
//! replicas, with what is left. Every grant is charged and taken from the working copy before the
//! next is considered, so the order above is all that fairness rests on.
//!
//! Not here: prose, records and counterfactuals, which look at a finished [`Draft`].

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::demand::ScaleVerdict;
use crate::demand::how_many;
use crate::lifecycle::Wait;
use crate::lifecycle::{Assessment, End, Open, Renew, assess};
use crate::place::choose::place;
use crate::place::expected::{Expected, class_charge};
use crate::place::filter::{Seeker, ask};
use crate::place::{Ask, PlacementVerdict, Refusal};
use crate::plan::{Action, CreateReason, EndReason};
use crate::quota::Ledger;
use crate::quota::QuotaLimit;
use crate::snapshot::world::{World, charge};
use crate::snapshot::{Accelerator, Deployment, Phase, Policy, Replica, ReplicaId, SliceOwner, Snapshot, TimeMs};

/// A decided snapshot, before it is put into words.
pub(crate) struct Draft<'a> {
    /// As it will be once the plan is carried out and before anything has ended.
    pub world: World,
    pub ledger: Ledger,
    pub expected: Expected,
    /// Sorted by deployment.
    pub cases: Vec<Case<'a>>,
}

/// One deployment on its way through the stages.
pub(crate) struct Case<'a> {
    pub d: &'a Deployment,
    pub scale: ScaleVerdict,
    pub wanted: u32,
    pub life: Assessment,
    pub creates: Vec<Create>,
    /// Open slots that were not filled.
    pub unfilled: u32,
    /// Of those, how many quota would allow.
    pub allowed: u32,
    pub limit: Option<QuotaLimit>,
    /// What was looked at in vain, once per distinct ask.
    pub failed: Vec<PlacementVerdict>,
    /// What one replica asks and is charged, by variant.
    pub asks: Vec<(Ask, u64)>,
    next: usize,
    blocked: bool,
}

pub(crate) struct Create {
    pub replica: ReplicaId,
    pub reason: CreateReason,
    pub verdict: PlacementVerdict,
}

enum Attempt {
    Placed(Box<PlacementVerdict>),
    Refused { limit: Option<QuotaLimit>, verdicts: Vec<PlacementVerdict> },
}

pub(crate) fn decide<'a>(snapshot: &'a Snapshot, policy: &Policy, now: TimeMs) -> Draft<'a> {
    let world = World::new(snapshot);
    let mut deployments: Vec<&Deployment> = snapshot.deployments.iter().collect();
    deployments.sort_by(|a, b| (&a.id, &a.uid).cmp(&(&b.id, &b.uid)));
    let expected = Expected::new(&world, &deployments);
    let ledger = Ledger::new(&snapshot.tenants, &world);
    let cases = deployments.into_iter().map(|d| Case::new(d, &world, policy, now)).collect();
    let mut draft = Draft { world, ledger, expected, cases };
    draft.exclude_refused_nodes();
    draft.fill(policy, now);
    draft.renew(policy, now);
    draft.settle_quota();
    draft
}

impl<'a> Case<'a> {
    fn new(d: &'a Deployment, world: &World, policy: &Policy, now: TimeMs) -> Self {
        let (scale, wanted) = how_many(d);
        Case {
            d,
            scale,
            wanted,
            life: assess(d, wanted, world, policy, now),
            creates: Vec::new(),
            unfilled: 0,
            allowed: 0,
            limit: None,
            failed: Vec::new(),
            asks: d
                .variants
                .iter()
                .map(|v| ask(d, v))
                .map(|ask| {
                    let charge = replica_charge(world, &ask);
                    (ask, charge)
                })
                .collect(),
            next: 0,
            blocked: false,
        }
    }

    /// Whether a slot is open that was not tried yet and may be.
    fn waits(&self) -> bool {
        self.next < self.life.open.len() && !self.blocked
    }

    /// Pods that count once the plan is carried out.
    pub fn desired(&self) -> u32 {
        self.life.current + self.opened()
    }

    /// Creates that fill open slots; renewals stand beside a pod that already counts.
    fn opened(&self) -> u32 {
        self.creates.iter().filter(|c| !self.renews(&c.replica)).count() as u32
    }

    /// Open slots that no node would take, now that all were tried. While a pod of this deployment is on its
    /// way out, of whichever slot, one of them is not homeless: a place comes free. (On a lost node none does.)
    fn homeless(&self) -> u32 {
        let filled = |index: u32| self.creates.iter().any(|c| c.replica.index == index);
        let unfilled = self.life.open.iter().filter(|open| !filled(open.index)).count();
        let leaving = |r: &&Replica| {
            let told = matches!(r.phase, Phase::Draining { .. } | Phase::Terminating);
            let ends = |e: &End| (e.replica.index, e.replica.incarnation) == (r.index, r.incarnation);
            !r.node_lost && (told || self.life.ends.iter().any(ends))
        };
        unfilled.saturating_sub(self.d.replicas.iter().filter(leaving).count()) as u32
    }

    fn renews(&self, replica: &ReplicaId) -> bool {
        self.life.renew.iter().any(|r| r.open.index == replica.index)
    }

    pub fn needs_gpu(&self) -> bool {
        self.d.variants.iter().any(|v| matches!(v.accelerator, Accelerator::Gpu { .. }))
    }
}

/// Cases with open slots in the order in which they are served: those within their tenant's nominal
/// quota first, then by priority and age. Charges only grow while slots are filled, so a case leaves
/// the first group at most once.
struct Line {
    guaranteed: BTreeSet<Turn>,
    others: BTreeSet<Turn>,
}

/// Priority, creation, position.
type Turn = (Reverse<i32>, TimeMs, usize);

impl Line {
    fn of(cases: &[Case<'_>]) -> Self {
        let turn = |(at, case): (usize, &Case<'_>)| (Reverse(case.d.priority), case.d.created_ms, at);
        let waiting = cases.iter().enumerate().filter(|(_, case)| case.waits());
        Self { guaranteed: waiting.map(turn).collect(), others: BTreeSet::new() }
    }

    /// The first case, which stays the first until it leaves or its tenant's quota is used up.
    fn next(&mut self, within_nominal: impl Fn(usize) -> bool) -> Option<usize> {
        while let Some(first) = self.guaranteed.first().copied() {
            if within_nominal(first.2) {
                return Some(first.2);
            }
            self.guaranteed.remove(&first);
            self.others.insert(first);
        }
        self.others.first().map(|first| first.2)
    }

    /// The case at this position, which was the first, waits for nothing more.
    fn leave(&mut self, at: usize) {
        let line = if self.guaranteed.is_empty() { &mut self.others } else { &mut self.guaranteed };
        if line.first().is_some_and(|first| first.2 == at) {
            line.pop_first();
        }
    }
}

impl Draft<'_> {
    /// A node that the scheduler refused in this very snapshot must not win again.
    fn exclude_refused_nodes(&mut self) {
        for case in &self.cases {
            for end in &case.life.ends {
                if let Some(exclude) = &end.exclude {
                    self.world.exclusions.push(crate::snapshot::Exclusion {
                        deployment: case.d.id.clone(),
                        index: end.replica.index,
                        node: exclude.node.clone(),
                        until_ms: exclude.until_ms,
                        reason: exclude.reason.clone(),
                    });
                }
            }
        }
    }

    fn fill(&mut self, policy: &Policy, now: TimeMs) {
        let mut line = Line::of(&self.cases);
        while let Some(at) = line.next(|at| self.within_nominal(&self.cases[at])) {
            let case = &self.cases[at];
            let open = &case.life.open[case.next];
            let attempt = self.attempt(case, open.index, policy, now);
            let replica = id_of(case.d, open);
            let reason = open.reason;
            self.cases[at].next += 1;
            match attempt {
                Attempt::Placed(verdict) => self.take(at, replica, reason, *verdict),
                Attempt::Refused { limit, verdicts } => self.cases[at].refuse(limit, verdicts),
            }
            if !self.cases[at].waits() {
                line.leave(at);
            }
        }
    }

    fn within_nominal(&self, case: &Case<'_>) -> bool {
        match (&case.d.tenant, case.asks.first()) {
            (Some(tenant), Some((Ask { class: Some(class), .. }, x))) => self.ledger.within_nominal(tenant, class, *x),
            (Some(_), Some(_)) => true,
            _ => false,
        }
    }

    /// The first variant that quota allows and a node fits.
    fn attempt(&self, case: &Case<'_>, index: u32, policy: &Policy, now: TimeMs) -> Attempt {
        let d = case.d;
        let mut first_limit = None;
        let mut verdicts = Vec::new();
        let Some(tenant) = &d.tenant else {
            return Attempt::Refused { limit: None, verdicts };
        };
        for (ask, x) in &case.asks {
            if let Some(class) = &ask.class
                && let Err(limit) = self.ledger.allow(tenant, class, *x)
            {
                first_limit.get_or_insert(limit);
                continue;
            }
            let seeker = Seeker { deployment: d, index, ask, now };
            let verdict = place(&seeker, &self.world, &self.expected, policy);
            if verdict.winner.is_some() {
                return Attempt::Placed(Box::new(verdict));
            }
            verdicts.push(verdict);
        }
        Attempt::Refused { limit: first_limit, verdicts }
    }

    fn take(&mut self, at: usize, replica: ReplicaId, reason: CreateReason, verdict: PlacementVerdict) {
        let d = self.cases[at].d;
        if let Some(winner) = &verdict.winner {
            let (ask, placement) = (&verdict.ask, &winner.placement);
            if let (Some(tenant), Some(class)) = (&d.tenant, &ask.class) {
                let gpus = self.world.node(&placement.node).map(|n| n.gpus.as_slice()).unwrap_or_default();
                let of = |uuid: &str| gpus.iter().find(|g| g.uuid == uuid);
                let x = placement
                    .gpus
                    .iter()
                    .filter_map(|s| Some(charge(of(&s.uuid)?, s.memory_bytes, s.sm_percent)))
                    .sum();
                self.ledger.charge(tenant, class, x);
            }
            self.world.take(d, &replica, placement, ask.cpu_milli, ask.node_memory_bytes);
        }
        self.cases[at].creates.push(Create { replica, reason, verdict });
    }

    /// New beside old where both fit; otherwise old first, if the new one will fit then and enough
    /// others are Ready.
    fn renew(&mut self, policy: &Policy, now: TimeMs) {
        let mut order: Vec<usize> = (0..self.cases.len()).collect();
        order.sort_by_key(|at| {
            let d = self.cases[*at].d;
            (Reverse(d.priority), d.created_ms, *at)
        });
        for at in order {
            for i in 0..self.cases[at].life.renew.len() {
                self.renew_one(at, i, policy, now);
            }
        }
    }

    fn renew_one(&mut self, at: usize, i: usize, policy: &Policy, now: TimeMs) {
        let case = &self.cases[at];
        let (d, renew) = (case.d, &case.life.renew[i]);
        let index = renew.open.index;
        match self.attempt(case, index, policy, now) {
            Attempt::Placed(verdict) => {
                let (replica, reason) = (id_of(d, &renew.open), renew.open.reason);
                self.take(at, replica, reason, *verdict);
            }
            Attempt::Refused { limit, verdicts } => {
                let target = case.wanted.saturating_sub(case.homeless());
                if !self.fits_without(case, renew, policy, now) {
                    self.cases[at].refuse(limit, verdicts);
                } else if case.life.ready >= target {
                    let drain = End {
                        replica: renew.old.clone(),
                        pod: renew.old_pod.clone(),
                        drain_until: Some(now.saturating_add(d.drain_timeout_ms)),
                        reason: EndReason::Rollout,
                        exclude: None,
                    };
                    let life = &mut self.cases[at].life;
                    life.ready -= 1;
                    life.current -= 1;
                    life.ends.push(drain);
                } else {
                    let pod = renew.old_pod.clone();
                    self.cases[at].life.waits.push(Wait::Availability { index, pod });
                }
            }
        }
    }

    /// Whether the slot could be filled if its present pod were gone.
    fn fits_without(&self, case: &Case<'_>, renew: &Renew, policy: &Policy, now: TimeMs) -> bool {
        let d = case.d;
        let Some(tenant) = &d.tenant else { return false };
        let mut world = self.world.clone();
        let mut freed = Vec::new();
        for node in &mut world.nodes {
            let mut here = false;
            for gpu in &mut node.gpus {
                let (class, whole) = (gpu.class.clone(), gpu.clone());
                gpu.slices.retain(|s| {
                    let its = s.owner == SliceOwner::Replica(renew.old.clone());
                    if its && let Some(class) = &class {
                        freed.push((class.clone(), charge(&whole, s.memory_bytes, s.sm_percent)));
                    }
                    here |= its;
                    !its
                });
            }
            if here {
                release(node, d);
            }
        }
        case.asks.iter().any(|(ask, x)| {
            if let Some(class) = &ask.class {
                let back: u64 = freed.iter().filter(|(c, _)| c == class).map(|(_, x)| x).sum();
                if *x > back && self.ledger.allow(tenant, class, x - back).is_err() {
                    return false;
                }
            }
            let seeker = Seeker { deployment: d, index: renew.open.index, ask, now };
            place(&seeker, &world, &self.expected, policy).winner.is_some()
        })
    }

    /// How much of what was not filled quota would still allow, and what is pending of it.
    fn settle_quota(&mut self) {
        for case in &mut self.cases {
            case.unfilled = case.life.open.len() as u32 - case.opened();
            let (Some(tenant), Some((ask, x))) = (&case.d.tenant, case.asks.first()) else { continue };
            let Some(class) = &ask.class else {
                case.allowed = case.unfilled;
                continue;
            };
            let fits = |n: &u32| self.ledger.allow(tenant, class, x.saturating_mul((*n).into())).is_ok();
            case.allowed = (1..=case.unfilled).take_while(fits).count() as u32;
        }
        for case in &self.cases {
            if let (Some(tenant), Some((Ask { class: Some(class), .. }, x))) = (&case.d.tenant, case.asks.first()) {
                self.ledger.note_pending(tenant, class, x.saturating_mul(case.unfilled.into()));
            }
        }
    }
}

impl Case<'_> {
    fn refuse(&mut self, limit: Option<QuotaLimit>, verdicts: Vec<PlacementVerdict>) {
        // Exclusions belong to one slot: another slot of the same deployment may still fit.
        let excluded = |v: &PlacementVerdict| v.refusals.iter().any(|r| matches!(r.reason, Refusal::Excluded { .. }));
        self.blocked = !verdicts.iter().any(excluded);
        if self.limit.is_none() {
            self.limit = limit;
        }
        if self.failed.is_empty() || self.blocked {
            self.failed = verdicts;
        }
    }

    /// Actions that end, then actions that create.
    pub fn actions(&self) -> (Vec<Action>, Vec<Action>) {
        let ends = self.life.ends.iter().map(End::action).collect();
        let creates = self.creates.iter().filter_map(|c| {
            Some(Action::Create {
                replica: c.replica.clone(),
                placement: c.verdict.winner.as_ref()?.placement.clone(),
                spec_hash: self.d.spec_hash.clone(),
                generation: self.d.generation,
                reason: c.reason,
            })
        });
        (ends, creates.collect())
    }
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

/// Quota charge of one replica before it is known which GPUs it gets: on the dearest of the class.
pub(crate) fn replica_charge(world: &World, ask: &Ask) -> u64 {
    let Some(class) = &ask.class else { return 0 };
    let each = class_charge(world, class, ask.memory_bytes, ask.sm_percent);
    each.saturating_mul(ask.gpus.into())
}

/// Takes one pod's requests of a deployment off a node.
pub(crate) fn release(node: &mut crate::snapshot::Node, d: &Deployment) {
    let used = &mut node.used;
    used.cpu_milli = used.cpu_milli.saturating_sub(d.needs.cpu_milli);
    used.memory_bytes = used.memory_bytes.saturating_sub(d.needs.memory_bytes);
    used.pods = used.pods.saturating_sub(1);
    node.host_ports.retain(|p| !d.needs.host_ports.contains(p));
}

fn id_of(d: &Deployment, open: &Open) -> ReplicaId {
    ReplicaId { deployment: d.id.clone(), index: open.index, incarnation: open.incarnation }
}

//! What would change the answer.
//!
//! From the reasons of a refusal follow changes that might help. Each is made on the draft as it will
//! be once its plan is carried out and every pod on its way out has ended; what still waits is then
//! tried again in the order of the plan, and everything is undone. Only a change that places more
//! replicas is reported, and of its size the least that does. Single changes only; where two are
//! needed, the reason why none is named is reported instead.

mod suggest;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decide::Draft;
use crate::decide::ahead::Filled;
use crate::decide::case::Case;
use crate::explain::report::{Change, Counterfactual, NoCounterfactual};
use crate::explain::whatif::suggest::{can_lose, suggestions, why_none};
use crate::lifecycle::scale_in_order;
use crate::place::filter::Need;
use crate::place::placer::Alternative;
use crate::snapshot::{Freshness, Health, Partition, Placement, Policy, ScalingMode, TenantId, Toleration};

/// Changes named per deployment.
const KEEP: usize = 3;
/// Changes tried per deployment.
const TRIES: usize = 24;
/// Slots that are tried again per plan, all changes together: a plan must stay fast when thousands wait.
const SLOTS_PER_PLAN: usize = 100_000;
/// Steps of one change that grows until it helps: nodes added, replicas scaled in, quota raised.
const STEPS: u32 = 64;

/// What was found out about one deployment that waits.
#[derive(Default)]
pub(crate) struct Findings {
    pub counterfactuals: Vec<Counterfactual>,
    pub none: Option<NoCounterfactual>,
}

/// For each case of the draft, in its order. The draft must be in its state ahead, and is left so.
pub(crate) fn counterfactuals(draft: &mut Draft<'_>, policy: &Policy) -> Vec<Findings> {
    let waiting = draft.cases.iter().map(|c| c.waiting_slots().len()).sum::<usize>().max(1);
    let mut trials = Trials { policy, known: BTreeMap::new(), left: Budget(SLOTS_PER_PLAN / waiting) };
    (0..draft.cases.len())
        .map(|at| if draft.cases[at].is_refused() { trials.about(draft, at) } else { Findings::default() })
        .collect()
}

/// Changes that were acted out. Where hundreds wait for the same thing the same change is suggested
/// for each, and tried once.
struct Trials<'p> {
    policy: &'p Policy,
    /// What each change of the cluster gives to every case: how often it was repeated, and the gain.
    known: BTreeMap<Step, Gains>,
    left: Budget,
}

/// How often what waits may be tried again.
struct Budget(usize);

impl Budget {
    /// False: it is spent.
    fn spend(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        left
    }
}

/// By case: the size of the change that helps it first, and the replicas gained.
type Gains = BTreeMap<usize, (u64, u32, Placement)>;

/// A change, or one that can be repeated until it helps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Once(Change),
    /// To the spec of the case itself.
    Own(usize, Change),
    /// The case asks for less of one thing per GPU.
    Lower {
        case: usize,
        what: Part,
        free: u64,
    },
    AddNodes {
        like: String,
    },
    ScaleIn {
        case: usize,
    },
    Raise {
        tenant: TenantId,
        class: String,
        limit: Limit,
    },
}

/// What a slice has of its GPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Memory,
    Compute,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Borrowing,
    Nominal,
}

impl Trials<'_> {
    fn about(&mut self, draft: &mut Draft<'_>, at: usize) -> Findings {
        let mut found = Findings::default();
        let steps = suggestions(draft, at);
        let mut tried = 0;
        for step in steps.into_iter().take(TRIES) {
            if found.counterfactuals.len() == KEEP {
                break;
            }
            if !self.known.contains_key(&step) {
                if !self.left.spend() {
                    break;
                }
                let gains = self.act_out(draft, &step);
                self.known.insert(step.clone(), gains);
            }
            tried += 1;
            let Some((size, gains, placement)) = self.known[&step].get(&at).cloned() else { continue };
            let change = named(draft, at, &step, size);
            found.counterfactuals.push(Counterfactual { change, gains, placement });
        }
        if found.counterfactuals.is_empty() {
            found.none = Some(why_none(draft, at, tried, self.left.0 == 0));
        }
        found
    }

    /// What the change gives to each case, and at which repetition for the first time.
    fn act_out(&mut self, draft: &mut Draft<'_>, step: &Step) -> Gains {
        let trial = draft.begin();
        let mut gains: Gains = BTreeMap::new();
        match step {
            Step::Once(change) => {
                let restore = self.once(draft, change);
                note(&mut gains, draft.refill(None), 1);
                restore_all(draft, restore);
            }
            Step::Own(case, change) => {
                let restore = own(draft, *case, change);
                let mut filled = draft.refill(None);
                filled.retain(|at, _| at == case);
                note(&mut gains, filled, 1);
                restore_all(draft, restore);
            }
            Step::Lower { case, what, free } => gains = lower(draft, *case, *what, *free, &mut self.left),
            Step::AddNodes { like } => {
                let like = draft.placer.index.at(like);
                for n in 1..=u64::from(STEPS) {
                    let Some(like) = like else { break };
                    draft.placer.index.add_like(like);
                    let before = gains.len();
                    let each = draft.begin();
                    note(&mut gains, draft.refill(None), n);
                    draft.rollback(each);
                    if gains.len() == before || !self.left.spend() {
                        break;
                    }
                }
            }
            Step::ScaleIn { case } => {
                let mut waiting = draft.cases.iter().enumerate().filter(|(at, c)| at != case && c.is_refused()).count();
                let victims = scale_in_order(draft.cases[*case].d, &draft.placer.index, self.policy, draft.now);
                let d = draft.cases[*case].d;
                let spare = can_lose(&draft.cases[*case]).min(STEPS) as usize;
                for (n, pods) in victims.into_iter().take(spare).enumerate() {
                    let gone = d.replicas.iter().filter(|r| pods.contains(&(r.index, r.incarnation)));
                    gone.for_each(|replica| draft.end_replica(*case, replica));
                    let each = draft.begin();
                    let before = gains.len();
                    note(&mut gains, draft.refill(Some(*case)), n as u64 + 1);
                    draft.rollback(each);
                    waiting -= gains.len() - before;
                    if waiting == 0 || !self.left.spend() {
                        break;
                    }
                }
            }
            Step::Raise { tenant, class, limit } => {
                gains = raise(draft, &Quota { tenant, class, limit: *limit }, &mut self.left);
            }
        }
        draft.rollback(trial);
        gains
    }

    /// Applies a change of the cluster; what it returns must be restored.
    fn once(&self, draft: &mut Draft<'_>, change: &Change) -> Restore {
        let index = &mut draft.placer.index;
        let mut amend = |node: &String, by: &dyn Fn(&mut crate::snapshot::Node)| {
            if let Some(at) = index.at(node) {
                index.amend(at, by);
            }
        };
        match change {
            Change::NodeFresh { node } => amend(node, &|n| n.freshness = Freshness::Fresh { age_ms: 0 }),
            Change::NodeReady { node } => amend(node, &|n| n.ready = true),
            Change::Uncordon { node } => amend(node, &|n| n.cordoned = false),
            Change::GpuHealthy { node, gpu } => amend(node, &|n| {
                n.gpus.iter_mut().filter(|g| &g.uuid == gpu).for_each(|g| g.health = Health::Healthy);
            }),
            Change::RemoveClaim { claim } => index.remove_claim(claim),
            Change::AllowSoftSharing { class } => {
                let class = index.class(class);
                let of_class = |at: &usize| draft.cases[*at].alternatives.iter().any(|a| a.class == class);
                let cases: Vec<usize> = (0..draft.cases.len()).filter(of_class).collect();
                return change_needs(draft, cases, |need| need.assume_soft |= need.class == class);
            }
            Change::AddTenantQuota { namespace, class, nominal_milli } => {
                let tenant = TenantId(namespace.clone());
                draft.ledger.set_nominal(&tenant, class, *nominal_milli);
                let number = draft.placer.index.tenant(&tenant);
                let without = |at: &usize| {
                    let case = &draft.cases[*at];
                    case.tenant.is_none() && &case.d.id.namespace == namespace
                };
                let cases: Vec<usize> = (0..draft.cases.len()).filter(without).collect();
                for at in &cases {
                    draft.cases[*at].tenant = Some(Cow::Owned(tenant.clone()));
                }
                return change_needs(draft, cases, |need| need.tenant = Some(number));
            }
            Change::RaiseSpendLimit { tenant, to_micros } => draft.ledger.set_spend_limit(tenant, *to_micros),
            Change::WaitUntil { at } => {
                let now = std::mem::replace(&mut draft.now, *at);
                return Restore { now: Some(now), cases: Vec::new() };
            }
            _ => {}
        }
        Restore::default()
    }
}

/// What a trial changed besides index and ledger.
#[derive(Default)]
struct Restore {
    now: Option<u64>,
    cases: Vec<(usize, Arc<[Alternative]>)>,
}

fn restore_all(draft: &mut Draft<'_>, restore: Restore) {
    if let Some(now) = restore.now {
        draft.now = now;
    }
    for (at, alternatives) in restore.cases {
        let case = &mut draft.cases[at];
        case.tenant = case.d.tenant.as_ref().map(Cow::Borrowed);
        case.alternatives = alternatives;
    }
}

fn change_needs(draft: &mut Draft<'_>, cases: Vec<usize>, change: impl Fn(&mut Need)) -> Restore {
    let mut restore = Restore::default();
    for at in cases {
        let old = draft.cases[at].alternatives.clone();
        draft.cases[at].alternatives = old.iter().map(|a| draft.placer.changed(a, &change)).collect();
        restore.cases.push((at, old));
    }
    restore
}

/// Applies a change to the spec of one case.
fn own(draft: &mut Draft<'_>, at: usize, change: &Change) -> Restore {
    change_needs(draft, vec![at], |need| match change {
        Change::Tolerate { key, .. } => {
            need.tolerations.push(Toleration { key: Some(key.clone()), value: None, effect: None });
        }
        Change::SmallerProfile { profile } => need.partition = Partition::Mig { profile: profile.clone() },
        _ => {
            if let (Partition::Slice { memory_bytes, sm_percent }, true) = (&mut need.partition, need.class.is_some()) {
                match change {
                    Change::LowerMemory { to_bytes } => *memory_bytes = Some(*to_bytes),
                    Change::LowerCompute { to_percent } => *sm_percent = Some(*to_percent),
                    _ => {}
                }
            }
        }
    })
}

/// The step in the terms of the case's report, of this size.
fn named(draft: &Draft<'_>, asks: usize, step: &Step, size: u64) -> Change {
    let repeated = size.min(u32::MAX.into()) as u32;
    match step {
        Step::Once(change) | Step::Own(_, change) => change.clone(),
        Step::Lower { what: Part::Memory, .. } => Change::LowerMemory { to_bytes: size },
        Step::Lower { what: Part::Compute, .. } => Change::LowerCompute { to_percent: repeated },
        Step::AddNodes { like } => Change::AddNode { like: like.clone(), count: repeated },
        Step::ScaleIn { case } => {
            let case = &draft.cases[*case];
            let to = case.life.current.saturating_sub(repeated);
            let deployment = case.d.id.clone();
            let owner = case.d.tenant.clone().filter(|tenant| draft.cases[asks].d.tenant.as_ref() != Some(tenant));
            match case.d.scaling.mode {
                ScalingMode::Manual => Change::ScaleIn { deployment, owner, by: repeated, to },
                ScalingMode::Active | ScalingMode::Advisory => {
                    Change::LowerMaxReplicas { deployment, owner, by: repeated, to }
                }
            }
        }
        Step::Raise { tenant, class, limit } => {
            let (tenant, class, to_milli) = (tenant.clone(), class.clone(), size);
            match limit {
                Limit::Nominal => Change::RaiseNominal { tenant, class, to_milli },
                Limit::Borrowing => Change::RaiseBorrowingLimit { tenant, class, to_milli },
            }
        }
    }
}

/// The largest ask below the present one that helps: what some GPU has free, or more where a lower
/// charge lets the case in earlier.
fn lower(draft: &mut Draft<'_>, case: usize, what: Part, free: u64, left: &mut Budget) -> Gains {
    let asks = draft.cases[case].alternatives.iter().map(|a| match what {
        Part::Memory => a.ask.partition.memory_bytes().unwrap_or(0),
        Part::Compute => a.ask.partition.sm_percent().unwrap_or(0).into(),
    });
    let asked = asks.max().unwrap_or(0);
    let steps = draft.placer.index.classes().iter().flat_map(|c| c.sizes.keys()).map(|s| s.step_bytes.max(1));
    let unit = if what == Part::Memory { steps.max().unwrap_or(1) } else { 1 };
    let mut gains = Gains::new();
    let mut try_size = |size: u64| {
        let trial = draft.begin();
        let change = match what {
            Part::Memory => Change::LowerMemory { to_bytes: size },
            Part::Compute => Change::LowerCompute { to_percent: size.min(100) as u32 },
        };
        let restore = own(draft, case, &change);
        let filled = draft.refill(None).remove(&case);
        restore_all(draft, restore);
        draft.rollback(trial);
        filled.map(|(slots, placement)| (size, slots.len() as u32, placement))
    };
    let Some(gain) = try_size(free) else { return gains };
    gains.insert(case, gain);
    // In units: `low` helps, `high` does not.
    let (mut low, mut high) = (free / unit, asked.div_ceil(unit));
    while low + 1 < high && left.spend() {
        let middle = low + (high - low) / 2;
        match try_size(middle.saturating_mul(unit)) {
            Some(gain) => {
                low = middle;
                gains.insert(case, gain);
            }
            None => high = middle,
        }
    }
    gains
}

/// One limit of one tenant's quota.
struct Quota<'a> {
    tenant: &'a TenantId,
    class: &'a str,
    limit: Limit,
}

/// Waiting cases up to which the least limit of each is searched exactly.
const EXACT: usize = 8;

/// Raises a limit in steps that each let one more replica in.
fn raise(draft: &mut Draft<'_>, quota: &Quota<'_>, left: &mut Budget) -> Gains {
    let mut gains = Gains::new();
    let mut to = next_raise(draft, quota, &Filled::new(), None);
    for _ in 0..STEPS {
        let Some(size) = to.filter(|_| left.spend()) else { break };
        let filled = refill_at(draft, quota, size, |draft, filled| {
            to = next_raise(draft, quota, filled, Some(size));
        });
        note(&mut gains, filled, size);
    }
    // Others that are served earlier may take what a raise gives, so that a smaller one can help too.
    if gains.len() <= EXACT {
        for (at, gain) in &mut gains {
            let (mut low, mut high) = (0, gain.0);
            while low < high && left.spend() {
                let middle = low + (high - low) / 2;
                match refill_at(draft, quota, middle, |_, _| ()).remove(at) {
                    Some((slots, placement)) => {
                        high = middle;
                        *gain = (middle, slots.len() as u32, placement);
                    }
                    None => low = middle + 1,
                }
            }
        }
    }
    gains
}

/// What is filled with the limit at this size; `look` sees the state then.
fn refill_at(draft: &mut Draft<'_>, quota: &Quota<'_>, size: u64, mut look: impl FnMut(&Draft<'_>, &Filled)) -> Filled {
    let trial = draft.begin();
    match quota.limit {
        Limit::Nominal => draft.ledger.set_nominal(quota.tenant, quota.class, size),
        Limit::Borrowing => draft.ledger.set_borrowing_limit(quota.tenant, quota.class, size),
    }
    let filled = draft.refill(None);
    look(draft, &filled);
    draft.rollback(trial);
    filled
}

/// The least limit above `above` that lets one more of the tenant's replicas in, after what was filled.
fn next_raise(draft: &Draft<'_>, quota: &Quota<'_>, filled: &Filled, above: Option<u64>) -> Option<u64> {
    let of_tenant = |(_, c): &(usize, &Case<'_>)| c.tenant.as_deref() == Some(quota.tenant) && c.is_refused();
    let cases = draft.cases.iter().enumerate().filter(of_tenant);
    let raises = cases.filter_map(|(at, case)| {
        let x = case.alternatives.iter().find(|a| a.ask.class.as_deref() == Some(quota.class))?.charge;
        let done = |slot: u32| filled.get(&at).is_some_and(|(slots, _)| slots.contains(&slot));
        let waiting = case.waiting_slots().into_iter().find(|w| !done(w.open.index))?;
        // In place of the old pod only what it does not hold already is new.
        let mut ledger = draft.ledger.clone();
        if let Some(old) = waiting.old {
            ledger.refund(quota.tenant, quota.class, draft.held_by(case.number, old, quota.class));
        }
        let (least, guaranteed) = match quota.limit {
            Limit::Nominal => {
                let guaranteed = ledger.held(quota.tenant, quota.class).saturating_add(x);
                (ledger.least_nominal(quota.tenant, quota.class, x), Some(guaranteed))
            }
            Limit::Borrowing => (ledger.least_borrowing_limit(quota.tenant, quota.class, x), None),
        };
        [Some(least), guaranteed].into_iter().flatten().filter(|to| above.is_none_or(|above| *to > above)).min()
    });
    raises.min()
}

fn note(gains: &mut Gains, filled: Filled, size: u64) {
    for (case, (slots, placement)) in filled {
        gains.entry(case).or_insert((size, slots.len() as u32, placement));
    }
}

//! Moving replicas that serve, so that one fits that no node takes.
//!
//! Replicas that come and go leave rooms that are free and too small. Where one replica that serves, or two on one
//! node, have room elsewhere right now, and one that waits fits where they are, they move: their replacements are
//! created first, they end once those are Ready (`lifecycle`), and a later plan places the one that waits. Nobody
//! serves with fewer replicas meanwhile, but a move is not free: it holds its GPUs twice for a cold start and a
//! drain, and the replacement begins with empty caches.
//!
//! So a move must pay. How long a replica would wait otherwise is not known; one that has waited for some time is
//! expected to wait for as long again. That costs at most twice what the best choice would with the future known (ski
//! rental). See [`Proposal::due_ms`].
//!
//! A tenant has others move only for what is its own quota, few within an hour, and none of a higher priority: a
//! replica that waits costs its tenant nothing.
//!
//! Only replicas of deployments at rest move, that have run for their tenant's minimum runtime, and whose
//! slot has not moved within the last hour, whether or not that succeeded. One of a deployment at a time, and few in the whole cluster.
//! It is acted out before it is decided: nothing that is placed, or will be placed once pods on their way out have
//! ended, may lose its place by it.
//!
//! Not here: who reclaims (`reclaim`), which comes first, and what fits by itself once pods have ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decide::Draft;
use crate::decide::ahead::Filled;
use crate::decide::case::Case;
use crate::demand::{ASSUMED_COLD_START_MS, ScaleVerdict};
use crate::lifecycle::{Moving, Open, next_incarnation};
use crate::place::placer::{Alternative, Chosen, Held};
use crate::plan::CreateReason;
use crate::snapshot::index::NodeAt;
use crate::snapshot::{Policy, RecentMove, Replica, TenantId, TimeMs, Waiting};

/// Replicas that move for one that waits; all on one node.
const MAX_TOGETHER: usize = 2;

/// Of one node, those that are tried.
const MAX_OF_NODE: usize = 8;

/// Sets of replicas whose room is tried in one plan.
const MAX_TRIED: usize = 4_000;

/// Of the sets that make room, those that are acted out in one plan.
const MAX_ACTED_OUT: usize = 8;

/// By which the free thousandths of a GPU may be rounded.
const ROUNDED_MILLI: u64 = 4;

/// Replicas that wait and are looked at in one plan, of all tenants and of one.
const MAX_CLAIMANTS: usize = 16;
const MAX_OF_TENANT: usize = 4;

/// Whether running replicas move elsewhere, so that one that waits for room fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MoveVerdict {
    /// These pods do, by this plan.
    Moves {
        /// Names.
        pods: Vec<String>,
        /// How long the replica has waited.
        waited_ms: u64,
        /// What the moves hold twice, and what the replica would not have otherwise: GPUs in thousandths × seconds.
        cost_milli_gpu_s: u64,
        /// As above.
        gain_milli_gpu_s: u64,
    },
    /// It has waited for less than [`Policy::move_after_ms`].
    JustArrived {
        /// When it will have waited for that long.
        at_ms: TimeMs,
    },
    /// These pods could, and moving them costs more than waiting.
    NotYet {
        /// Names.
        pods: Vec<String>,
        /// When it pays.
        at_ms: TimeMs,
    },
    /// It would borrow: others move only for what is its tenant's own quota.
    WouldBorrow,
    /// As many have moved for its tenant of late as may.
    BudgetSpent {
        /// When the next one may.
        at_ms: TimeMs,
    },
    /// As many replicas move already as may at a time.
    TooManyMove {
        /// How many.
        moving: u32,
    },
    /// Of the replicas that may move, no one (and no two of one node) would make room for it and has room elsewhere.
    NoMoveHelps {
        /// Sets of replicas that were tried.
        tried: u32,
    },
}

/// The slot that waits.
struct Claimant {
    case: usize,
    tenant: TenantId,
    open: Open,
    since_ms: TimeMs,
}

/// A replica that may move.
#[derive(Clone, Copy)]
struct Mover<'a> {
    case: usize,
    replica: &'a Replica,
    /// Thousandths of a GPU that it holds, at most.
    milli: u64,
    cold_start_ms: u64,
    drain_ms: u64,
}

/// By node; first those that cost least.
type Movers<'a> = BTreeMap<NodeAt, Vec<Mover<'a>>>;

/// Replicas whose room would do.
struct Proposal<'a> {
    movers: Vec<Mover<'a>>,
    /// Thousandths of a GPU that the replica that waits would have.
    claims: u64,
}

/// A proposal that was acted out.
struct Acted {
    places: Vec<Chosen>,
    /// What is filled ahead after it.
    filled: Filled,
}

/// What is found in the state ahead for one that waits.
struct Found<'a> {
    proposals: Vec<Proposal<'a>>,
    tried: u32,
}

impl<'a> Draft<'a> {
    /// Takes in since when deployments have waited.
    pub(super) fn note_waits(&mut self, waiting: &'a [Waiting]) {
        for waits in waiting {
            if let Ok(at) = self.cases.binary_search_by(|case| case.d.id.cmp(&waits.deployment)) {
                self.cases[at].waited = Some(waits);
            }
        }
    }

    /// Decides which replicas move, and for whom.
    pub(super) fn defragment(&mut self, policy: &Policy) {
        if policy.max_moves == 0 || policy.moves_per_claimant == 0 {
            return;
        }
        let mut claimants = self.claimants(policy);
        if claimants.is_empty() {
            return;
        }
        let trial = self.begin();
        let mut filled = self.fill_ahead();
        claimants.retain(|claimant| !fills(&filled, claimant));
        let found = self.search(&claimants);
        self.rollback(trial);
        let mut left = MAX_ACTED_OUT;
        for (claimant, found) in claimants.iter().zip(found) {
            if fills(&filled, claimant) {
                continue;
            }
            let moving = self.cases.iter().map(|case| case.life.moving.len() as u32).sum();
            let verdict = match (self.budget(&claimant.tenant, policy), policy.max_moves.saturating_sub(moving)) {
                (Err(at_ms), _) => MoveVerdict::BudgetSpent { at_ms },
                (_, 0) => MoveVerdict::TooManyMove { moving },
                (Ok(budget), most) => self.move_for(claimant, found, most.min(budget) as usize, &mut filled, &mut left),
            };
            self.note(claimant.case, verdict);
        }
        self.recent_moves.sort();
    }

    /// The slots for which others may move, in turn; of the rest it is noted why not.
    fn claimants(&mut self, policy: &Policy) -> Vec<Claimant> {
        let mut found: Vec<Claimant> = Vec::new();
        if self.cases.iter().all(|case| case.waited.is_none()) {
            return found;
        }
        for case in self.in_turn() {
            let of = &self.cases[case];
            let (Some((open, since_ms)), Some(tenant)) = (of.long_waiting(), &of.d.tenant) else { continue };
            let claimant = Claimant { case, tenant: tenant.clone(), open, since_ms };
            if let Some(verdict) = self.not_for(&claimant, policy) {
                self.note(case, verdict);
            } else if found.len() < MAX_CLAIMANTS
                && found.iter().filter(|other| other.tenant == claimant.tenant).count() < MAX_OF_TENANT
            {
                found.push(claimant);
            }
        }
        found
    }

    /// Why nothing moves for it, whatever is in the way. That is looked at as things are: what its tenant's pods that
    /// end hold still is not its own yet.
    fn not_for(&self, claimant: &Claimant, policy: &Policy) -> Option<MoveVerdict> {
        let at_ms = claimant.since_ms.saturating_add(policy.move_after_ms);
        if at_ms > self.now {
            return Some(MoveVerdict::JustArrived { at_ms });
        }
        if self.own(claimant).is_empty() {
            let allowed = self.cases[claimant.case].alternatives.iter().any(|a| self.allows(claimant, a));
            return Some(if allowed { MoveVerdict::WouldBorrow } else { MoveVerdict::NoMoveHelps { tried: 0 } });
        }
        self.budget(&claimant.tenant, policy).err().map(|at_ms| MoveVerdict::BudgetSpent { at_ms })
    }

    fn note(&mut self, case: usize, verdict: MoveVerdict) {
        let case = &mut self.cases[case];
        if let MoveVerdict::JustArrived { at_ms }
        | MoveVerdict::NotYet { at_ms, .. }
        | MoveVerdict::BudgetSpent { at_ms } = &verdict
        {
            case.life.wakes.push(*at_ms);
        }
        case.moves = Some(verdict);
    }

    /// Of each that waits: sets of replicas in whose room it fits, in the state ahead.
    fn search(&self, claimants: &[Claimant]) -> Vec<Found<'a>> {
        let movers = if claimants.is_empty() { Movers::new() } else { self.movers() };
        let mut left = MAX_TRIED;
        let each = claimants.iter().map(|claimant| {
            let before = left;
            let own = self.own(claimant);
            let proposals = self.proposals(claimant, &own, &movers, &mut left);
            Found { proposals, tried: (before - left) as u32 }
        });
        each.collect()
    }

    fn movers(&self) -> Movers<'a> {
        let mut by_node = Movers::new();
        for (at, case) in self.cases.iter().enumerate().filter(|(_, case)| is_at_rest(case)) {
            let Some(tenant) = &case.d.tenant else { continue };
            let young_ms = self.now.saturating_sub(self.ledger.min_runtime_ms(tenant));
            let cold_start_ms = case.cold_start_ms().unwrap_or(ASSUMED_COLD_START_MS);
            for replica in &case.d.replicas {
                let moved = self.has_moved(case, replica.index);
                let failed = case.d.slots.iter().any(|slot| slot.index == replica.index && slot.failures > 0);
                let Some(placement) = replica.placement.as_ref().filter(|p| !p.gpus.is_empty()) else { continue };
                let asked = case.alternatives.iter().find(|a| a.ask.variant == placement.variant);
                if let (true, false, Some(asked), Some(node)) =
                    (replica.created_ms <= young_ms, failed || moved, asked, self.placer.index.at(&placement.node))
                {
                    let (milli, drain_ms) = (asked.charge, case.d.drain_timeout_ms);
                    let mover = Mover { case: at, replica, milli, cold_start_ms, drain_ms };
                    by_node.entry(node).or_default().push(mover);
                }
            }
        }
        for of in by_node.values_mut() {
            let load = |m: &Mover<'_>| m.replica.in_flight.unwrap_or(u32::MAX);
            of.sort_by_key(|m| (m.cost(), load(m), m.case, m.replica.index));
            of.truncate(MAX_OF_NODE);
        }
        by_node
    }

    /// Sets of replicas in whose room the slot fits as things are; two only where no one does.
    fn proposals(
        &self,
        claimant: &Claimant,
        asks: &[Alternative],
        movers: &Movers<'a>,
        left: &mut usize,
    ) -> Vec<Proposal<'a>> {
        let seeker = self.seeker(claimant.case, claimant.open.index);
        let mut found = Vec::new();
        for size in 1..=MAX_TOGETHER {
            for (node, of) in movers.iter().filter(|(node, _)| !self.placer.is_excluded(&seeker, **node)) {
                let of = self.may_move_for(claimant, of);
                for ask in asks.iter().filter(|ask| self.placer.could_fit_on(ask, *node)) {
                    let lacks = self.lacks(ask, *node);
                    let enough = |set: &Vec<Mover<'a>>| set.iter().map(|m| m.milli).sum::<u64>() >= lacks;
                    for movers in sets(&of, size).into_iter().filter(enough) {
                        if *left == 0 {
                            return found;
                        }
                        *left -= 1;
                        let row = self.without(*node, movers.iter().map(|m| (m.case, m.replica)));
                        if self.placer.fits_in(ask, &row) {
                            found.push(Proposal { movers, claims: ask.charge.max(1) });
                        }
                    }
                }
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }

    /// Thousandths of GPUs that at least must come free on the node. Shares are rounded, so a few are not counted.
    fn lacks(&self, ask: &Alternative, node: NodeAt) -> u64 {
        let gpus = &self.placer.index.rows()[node].taken.gpus;
        let free = gpus.iter().map(|gpu| gpu.free_milli.max(0).unsigned_abs() + ROUNDED_MILLI).sum();
        self.placer.least_milli(ask).saturating_sub(free)
    }

    fn move_for(
        &mut self,
        claimant: &Claimant,
        found: Found<'a>,
        most: usize,
        filled: &mut Filled,
        left: &mut usize,
    ) -> MoveVerdict {
        let Found { mut proposals, tried } = found;
        // What moves by this plan moves for one only.
        let rests = |p: &Proposal<'a>| p.movers.iter().all(|m| self.cases[m.case].life.moving.is_empty());
        proposals.retain(|p| p.movers.len() <= most && rests(p));
        // Stable: first by node, then by cost.
        proposals.sort_by_key(Proposal::due_ms);
        for proposal in proposals {
            if *left == 0 {
                break;
            }
            *left -= 1;
            let Some(acted) = self.act_out(claimant, &proposal, filled) else { continue };
            let pods = proposal.movers.iter().map(|m| m.replica.name.clone()).collect();
            let at_ms = claimant.since_ms.saturating_add(proposal.due_ms());
            if at_ms > self.now {
                return MoveVerdict::NotYet { pods, at_ms };
            }
            let waited_ms = self.now - claimant.since_ms;
            let cost_milli_gpu_s = proposal.cost() / 1000;
            let gain_milli_gpu_s = proposal.claims.saturating_mul(waited_ms) / 1000;
            *filled = acted.filled;
            self.carry_out(claimant, &proposal, acted.places);
            return MoveVerdict::Moves { pods, waited_ms, cost_milli_gpu_s, gain_milli_gpu_s };
        }
        MoveVerdict::NoMoveHelps { tried }
    }

    /// The variants of the slot that need GPUs, that quota allows and that are its tenant's own.
    fn own(&self, claimant: &Claimant) -> Vec<Alternative> {
        let own = |class: &String, x| self.ledger.within_nominal(&claimant.tenant, class, x);
        let all = self.cases[claimant.case].alternatives.iter();
        let own = all.filter(|a| self.allows(claimant, a) && a.ask.class.as_ref().is_some_and(|c| own(c, a.charge)));
        own.cloned().collect()
    }

    fn allows(&self, claimant: &Claimant, a: &Alternative) -> bool {
        a.ask.class.as_ref().is_some_and(|class| self.ledger.allow(&claimant.tenant, class, a.charge).is_ok())
    }

    /// Those of the movers whose priority is not higher than that of the one that waits.
    fn may_move_for(&self, claimant: &Claimant, movers: &[Mover<'a>]) -> Vec<Mover<'a>> {
        let priority = self.cases[claimant.case].d.priority;
        movers.iter().filter(|m| self.cases[m.case].d.priority <= priority).copied().collect()
    }

    /// Places for all of them right now, after which the slot is filled ahead, and all that is filled without it.
    /// The best places may be on the very node that is to have room: then others are looked for.
    fn act_out(&mut self, claimant: &Claimant, proposal: &Proposal<'a>, before: &Filled) -> Option<Acted> {
        [false, true].into_iter().find_map(|elsewhere| {
            let trial = self.begin();
            let places = self.place_movers(&proposal.movers, elsewhere);
            let acted = places.map(|places| Acted { places, filled: self.filled_after(&proposal.movers) });
            self.rollback(trial);
            acted.filter(|acted| fills(&acted.filled, claimant) && keeps(before, &acted.filled))
        })
    }

    /// As for replicas that leave a cordoned node, their tenants' quotas need not cover them twice.
    fn place_movers(&mut self, movers: &[Mover<'a>], elsewhere: bool) -> Option<Vec<Chosen>> {
        let held = movers.iter().flat_map(|m| self.charges_of(self.cases[m.case].number, m.replica));
        let held: Vec<_> = held.collect();
        held.iter().for_each(|(tenant, class, x)| self.ledger.refund(tenant, class, *x));
        let places = movers.iter().map(|mover| self.place_mover(mover, elsewhere)).collect();
        held.iter().for_each(|(tenant, class, x)| self.ledger.charge(tenant, class, *x));
        places
    }

    /// The place of a replica that moves: as it is now, of the same variant, no worse for it.
    fn place_mover(&mut self, mover: &Mover<'a>, elsewhere: bool) -> Option<Chosen> {
        let case = &self.cases[mover.case];
        let placement = mover.replica.placement.as_ref()?;
        let own = case.alternatives.iter().find(|a| a.ask.variant == placement.variant)?.clone();
        let (tenant, class) = (case.d.tenant.clone()?, own.ask.class.clone()?);
        self.ledger.allow(&tenant, &class, own.charge).ok()?;
        let slot = mover.replica.index;
        let mut seeker = self.seeker(mover.case, slot);
        if elsewhere && let Some(node) = self.placer.index.at(&placement.node) {
            seeker.held.push(Held { ranking: own.ranking(), node, claimant: tenant });
        }
        let chosen = self.placer.choose(&seeker, &[&own])?;
        let score = &chosen.verdict.candidates.first()?.score;
        if score.degraded || score.crowding > 0 {
            return None;
        }
        self.take(mover.case, slot, next_incarnation(self.cases[mover.case].d, slot), &chosen);
        Some(chosen)
    }

    /// What is filled once pods on their way out and these have ended.
    fn filled_after(&mut self, moved: &[Mover<'a>]) -> Filled {
        let trial = self.begin();
        moved.iter().for_each(|m| self.end_replica(m.case, m.replica));
        let filled = self.fill_ahead();
        self.rollback(trial);
        filled
    }

    fn carry_out(&mut self, claimant: &Claimant, proposal: &Proposal<'a>, places: Vec<Chosen>) {
        for (mover, chosen) in proposal.movers.iter().zip(places) {
            let Replica { index, incarnation, .. } = *mover.replica;
            let next = next_incarnation(self.cases[mover.case].d, index);
            self.create(mover.case, index, next, CreateReason::Move, chosen);
            let case = &mut self.cases[mover.case];
            case.creates.last_mut().into_iter().for_each(|create| create.moved_for = Some(claimant.tenant.clone()));
            case.life.moving.push(Moving { index, incarnation });
            let deployment = case.d.id.clone();
            let (at_ms, claimant) = (self.now, claimant.tenant.clone());
            self.recent_moves.push(RecentMove { at_ms, claimant, deployment, index });
            self.charge_once(mover.case, mover.replica);
        }
    }

    // === moves in progress ===

    /// Ends the pods from which others are about to take over.
    pub(super) fn end_moving(&mut self) {
        for (at, replica) in self.moving() {
            self.end_replica(at, replica);
        }
    }

    /// Pods that are about to leave this node because others need it.
    pub fn moving_from(&self, node: &str) -> Vec<String> {
        let stands = |r: &Replica| r.placement.as_ref().is_some_and(|p| p.node == node);
        self.moving().into_iter().filter(|(_, r)| stands(r)).map(|(_, r)| r.name.clone()).collect()
    }

    fn moving(&self) -> Vec<(usize, &'a Replica)> {
        let of = |(at, case): (usize, &Case<'a>)| case.moving().map(|r| (at, r)).collect::<Vec<_>>();
        self.cases.iter().enumerate().flat_map(of).collect()
    }
}

/// It has all the replicas that it wants, they serve, and nothing is to be done about it.
fn is_at_rest(case: &Case<'_>) -> bool {
    let (d, wanted) = (case.d, case.wanted);
    let alone = case.life.updated_ready == wanted && d.replicas.len() as u64 == u64::from(wanted);
    let frozen = matches!(case.scale, ScaleVerdict::Frozen { .. });
    alone && case.life.has_nothing_to_do() && !frozen && d.held.is_none()
}

impl Mover<'_> {
    /// What its move holds twice: thousandths of a GPU × milliseconds.
    fn cost(&self) -> u64 {
        self.milli.saturating_mul(self.cold_start_ms.saturating_add(self.drain_ms))
    }
}

impl Proposal<'_> {
    /// After how long a wait the moves are made, beyond the shortest: as long as it takes until the replica that waits
    /// would have had by its GPUs what the moves cost, and until their replacements would be Ready.
    fn due_ms(&self) -> u64 {
        let starts = self.movers.iter().map(|m| m.cold_start_ms).max().unwrap_or(0);
        starts.max(self.cost().div_ceil(self.claims))
    }

    fn cost(&self) -> u64 {
        self.movers.iter().map(Mover::cost).fold(0, u64::saturating_add)
    }
}

/// One by one, or two by two of different deployments.
fn sets<'a>(movers: &[Mover<'a>], size: usize) -> Vec<Vec<Mover<'a>>> {
    if size == 1 {
        return movers.iter().map(|m| vec![*m]).collect();
    }
    let pairs = movers.iter().enumerate().flat_map(|(n, a)| movers[n + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| a.case != b.case).map(|(a, b)| vec![*a, *b]).collect()
}

fn fills(filled: &Filled, claimant: &Claimant) -> bool {
    filled.get(&claimant.case).is_some_and(|(slots, _)| slots.contains(&claimant.open.index))
}

/// Whether all that was filled still is.
fn keeps(before: &Filled, after: &Filled) -> bool {
    before
        .iter()
        .all(|(at, (slots, _))| after.get(at).is_some_and(|(now, _)| slots.iter().all(|slot| now.contains(slot))))
}

//! The choice for one replica, among all its variants and all nodes together.
//!
//! A CPU variant is taken only where no GPU variant fits. Then: no degraded GPU, what the deployment's
//! objective prefers, the least crowded domain where replicas are to be spread, the packing score, the node's name,
//! the variant's position. Not here: whether quota allows a variant.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use crate::place::expected::{Contribution, Expected, is_flexible};
use crate::place::filter::{Need, could_fit, fit, is_admitted};
use crate::place::frag::Weights;
use crate::place::ranking::{Ranked, Rankings, Wish};
use crate::place::refuse::refusals;
use crate::place::spread::{Crowd, Crowds, Slot};
use crate::place::verdict::{Ask, Because, Candidate, MAX_CANDIDATES, PlacementVerdict, RefusalGroup, Winner};
use crate::snapshot::index::{ClassAt, Index, NodeAt, Owner, Row, Take, charge};
use crate::snapshot::{
    Deployment, Exclusion, Freshness, Objective, Placement, Policy, Shared, Snapshot, TenantId, TimeMs,
};

/// Everything that placements on one index share.
pub(crate) struct Placer {
    pub index: Index,
    pub expected: Expected,
    rankings: Rankings,
    weights: Weights,
    /// By need: the reasons of all nodes, and the index for which they hold.
    refusals: RefCell<HashMap<usize, (IndexVersion, Vec<RefusalGroup>)>>,
}

/// Epoch of the states and length of the log of changes.
type IndexVersion = (u64, usize);

/// One variant of one deployment, prepared for placement.
#[derive(Clone)]
pub(crate) struct Alternative {
    pub ask: Ask,
    pub class: Option<ClassAt>,
    /// Quota charge of one replica before it is known which GPUs it gets: on the dearest of the class.
    pub charge: u64,
    /// Per hour of one replica; `None`: not priced.
    pub price_micros: Option<u64>,
    pub itl_us: Option<u64>,
    ranking: usize,
}

impl Alternative {
    /// Equal for equal needs.
    pub fn ranking(&self) -> usize {
        self.ranking
    }
}

/// The slot that is to be filled.
pub(crate) struct Seeker<'a> {
    pub deployment: &'a Deployment,
    /// Of the deployment, in the index.
    pub number: usize,
    pub tenant: Option<usize>,
    pub slot: u32,
    pub now: TimeMs,
    /// Nodes kept from some of its alternatives.
    pub held: Vec<Held>,
}

/// This node is kept from this alternative: the replica there is to come first.
#[derive(Clone)]
pub(crate) struct Held {
    pub ranking: usize,
    pub node: NodeAt,
    pub claimant: TenantId,
}

/// A place that was chosen.
pub(crate) struct Chosen {
    pub verdict: PlacementVerdict,
    pub node: NodeAt,
    /// Of the GPUs that were chosen, in thousandths.
    pub charge: u64,
    /// Positions of the GPUs in their node.
    gpus: Vec<usize>,
}

impl Placer {
    /// Before any demand was observed.
    pub fn new(snapshot: &Snapshot, policy: &Policy) -> Self {
        let weights = Weights {
            bucket_milli: f64::from(policy.frag_bucket_milli.max(1)),
            reserve_milli: f64::from(policy.frag_reserve_milli),
            ..Weights::DESIGN
        };
        let (index, expected) = (Index::new(snapshot), Expected::default());
        Placer { index, expected, rankings: Rankings::default(), weights, refusals: RefCell::default() }
    }

    /// Whether the deployment's weights lie on a node that serves.
    pub fn has_weights(&self, d: &Deployment) -> bool {
        let serves = |at: &NodeAt| {
            let node = &self.index.rows()[*at].node;
            node.ready && !node.cordoned && matches!(node.freshness, Freshness::Fresh { .. })
        };
        !d.model_key.is_unknown() && self.index.holders(&d.model_key).iter().any(serves)
    }

    /// Makes the index that of another snapshot; false: it must be built anew.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        // Reasons name ages and messages, which no state holds.
        self.refusals.get_mut().clear();
        self.index.follow(snapshot)
    }

    /// Needs met so far, those of trials included.
    pub fn needs(&self) -> usize {
        self.rankings.len()
    }

    /// The variants of a deployment in its order, and what it adds to the expected demand.
    pub fn alternatives(&mut self, d: &Deployment) -> (Arc<[Alternative]>, Contribution) {
        let flexible = is_flexible(&self.index, d);
        let contribution = Contribution::new(&self.index, d, flexible);
        let alternatives = d.variants.iter().map(|v| {
            let need = Need::new(&mut self.index, d, v, flexible);
            let class = need.class;
            let ask = ask(&need, &v.name, v.accelerator.class());
            let each = self.index.class_charge(class, &need.partition);
            let charge = if need.gpus == 0 { 0 } else { each.saturating_mul(need.gpus.into()) };
            let price = class.and_then(|c| self.index.classes()[c].price_micros);
            let price_micros = price.map(|p| (u128::from(p) * u128::from(charge) / 1000).min(u64::MAX.into()) as u64);
            let ranking = self.rankings.number(need);
            Alternative { ask, class, charge, price_micros, itl_us: v.itl_us, ranking }
        });
        (alternatives.collect(), contribution)
    }

    /// The same alternative with its need changed: for trials.
    pub fn changed(&mut self, alternative: &Alternative, change: impl FnOnce(&mut Need)) -> Alternative {
        let mut need = self.rankings.need(alternative.ranking).clone();
        change(&mut need);
        let each = self.index.class_charge(need.class, &need.partition);
        let charge = if need.gpus == 0 { 0 } else { each.saturating_mul(need.gpus.into()) };
        Alternative { charge, ranking: self.rankings.number(need), ..alternative.clone() }
    }

    pub fn need(&self, alternative: &Alternative) -> &Need {
        self.rankings.need(alternative.ranking)
    }

    /// The best place among these alternatives; `None`: nothing fits.
    pub fn choose(&mut self, seeker: &Seeker<'_>, alternatives: &[&Alternative]) -> Option<Chosen> {
        let refused: Vec<NodeAt> = self.excluded(seeker).filter_map(|e| self.index.at(&e.node)).collect();
        let excluded = |alternative: &Alternative| {
            let held = seeker.held.iter().filter(|h| h.ranking == alternative.ranking).map(|h| h.node);
            let mut all: Vec<NodeAt> = refused.iter().copied().chain(held).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let model_key = &seeker.deployment.model_key;
        let mut found: Vec<(usize, Ranked)> = Vec::new();
        for (at, alternative) in alternatives.iter().enumerate() {
            self.rankings.refresh(alternative.ranking, &self.index, &mut self.expected, &self.weights);
            let excluded = excluded(alternative);
            let wish = Wish { excluded: &excluded, model_key, count: MAX_CANDIDATES };
            found.extend(self.rankings.best(alternative.ranking, &self.index, &wish).into_iter().map(|r| (at, r)));
        }
        // Most attempts end here, and counting replicas looks at every node.
        if found.is_empty() {
            return None;
        }
        let crowds = self.crowds(seeker, alternatives);
        for (at, alternative) in alternatives.iter().enumerate() {
            let excluded = excluded(alternative);
            // The best by score may all be crowded.
            for crowded in crowds.levels() {
                let wish = Wish { excluded: &union(&excluded, crowded), model_key, count: MAX_CANDIDATES };
                let list = self.rankings.best(alternative.ranking, &self.index, &wish);
                let healthy = list.iter().any(|ranked| !ranked.pick.degraded);
                found.extend(list.into_iter().map(|r| (at, r)));
                if healthy {
                    break;
                }
            }
        }
        let objective = seeker.deployment.objective;
        let crowd = |ranked: &Ranked| crowds.of(ranked.node);
        found.sort_by_cached_key(|(at, ranked)| order(objective, alternatives[*at], *at, ranked, crowd(ranked)));
        found.dedup_by_key(|(at, ranked)| (*at, ranked.node));
        found.truncate(MAX_CANDIDATES);
        let (at, best) = found.first()?.clone();
        let alternative = alternatives[at];
        let candidates: Vec<Candidate> =
            found.iter().map(|(at, ranked)| self.candidate(alternatives[*at], ranked, crowd(ranked))).collect();
        let because = match found.get(1).map(|(_, second)| crowd(second)) {
            Some(next) if spreads(objective, &found, alternatives, crowd(&best), next) => {
                let topology_key = seeker.deployment.spread[next.constraint].topology_key.clone();
                Because::Spreads { topology_key, next_node: candidates[1].node.clone(), next_replicas: next.replicas }
            }
            _ => because(objective, &found, alternatives, &candidates),
        };
        let placement = Placement {
            node: candidates[0].node.clone(),
            variant: alternative.ask.variant.clone(),
            gpus: candidates[0].gpus.clone(),
        };
        let row = &self.index.rows()[best.node];
        let of = |(at, share): (&usize, &crate::snapshot::GpuShare)| charge(&row.node.gpus[*at], &share.promise);
        Some(Chosen {
            charge: best.pick.gpus.iter().zip(&placement.gpus).map(of).fold(0, u64::saturating_add),
            node: best.node,
            gpus: best.pick.gpus.clone(),
            verdict: PlacementVerdict {
                index: seeker.slot,
                ask: alternative.ask.clone(),
                winner: Some(Winner { placement, because }),
                candidates: candidates.into(),
                fitting: self.rankings.fitting(alternative.ranking, &excluded(alternative)),
                nodes: self.index.rows().len() as u32,
                refusals: Vec::new(),
            },
        })
    }

    fn crowds(&self, seeker: &Seeker<'_>, alternatives: &[&Alternative]) -> Crowds {
        let classes = alternatives.iter().filter_map(|alternative| alternative.class).collect();
        let slot = Slot { deployment: seeker.number, index: seeker.slot };
        let needs: Vec<&Need> = alternatives.iter().map(|alternative| self.need(alternative)).collect();
        let admits = |row: &Row| needs.iter().any(|need| is_admitted(need, row));
        Crowds::new(&self.index, &seeker.deployment.spread, slot, &classes, &admits)
    }

    /// Why no node takes this alternative.
    pub fn refused(&self, seeker: &Seeker<'_>, alternative: &Alternative) -> PlacementVerdict {
        PlacementVerdict {
            index: seeker.slot,
            ask: alternative.ask.clone(),
            winner: None,
            candidates: Shared::default(),
            fitting: 0,
            nodes: self.index.rows().len() as u32,
            refusals: self.refusals(seeker, alternative),
        }
    }

    /// Where hundreds of slots ask the same in vain, the reasons are worked out once.
    fn refusals(&self, seeker: &Seeker<'_>, alternative: &Alternative) -> Vec<RefusalGroup> {
        let held = || seeker.held.iter().filter(|h| h.ranking == alternative.ranking);
        let find = || refusals(self.need(alternative), &self.index, self.excluded(seeker), held());
        if self.excluded(seeker).next().is_some() || held().next().is_some() {
            return find();
        }
        let version = (self.index.epoch(), self.index.changes().len());
        let mut known = self.refusals.borrow_mut();
        match known.get(&alternative.ranking) {
            Some((of, groups)) if *of == version => groups.clone(),
            _ => {
                let groups = find();
                known.insert(alternative.ranking, (version, groups.clone()));
                groups
            }
        }
    }

    /// Takes what was chosen.
    pub fn take(&mut self, seeker: &Seeker<'_>, chosen: &Chosen, incarnation: u32) {
        let d = seeker.deployment;
        let Some(winner) = &chosen.verdict.winner else { return };
        let ask = &chosen.verdict.ask;
        let take = Take {
            owner: Owner { deployment: seeker.number, index: seeker.slot, incarnation },
            tenant: seeker.tenant,
            isolation: d.isolation,
            cpu_milli: ask.cpu_milli,
            memory_bytes: ask.node_memory_bytes,
            ports: d.needs.host_ports.clone(),
            gpus: chosen.gpus.iter().copied().zip(winner.placement.gpus.iter().cloned()).collect(),
        };
        self.index.take(chosen.node, &take);
    }

    /// Whether the slot must not be placed on this node now.
    pub fn is_excluded(&self, seeker: &Seeker<'_>, node: NodeAt) -> bool {
        self.excluded(seeker).any(|e| self.index.at(&e.node) == Some(node))
    }

    /// Whether this node takes one replica as it is.
    pub fn fits_on(&self, alternative: &Alternative, node: NodeAt) -> bool {
        self.fits_in(alternative, &self.index.rows()[node])
    }

    /// Whether a node would take one replica if it were so.
    pub fn fits_in(&self, alternative: &Alternative, row: &Row) -> bool {
        fit(self.need(alternative), row, &self.index).is_ok()
    }

    /// Thousandths of GPUs that at least must be free on a node for one replica; 0: not known.
    pub fn least_milli(&self, alternative: &Alternative) -> u64 {
        let sizes = alternative.class.map_or(0, |class| self.index.classes()[class].sizes.len());
        if sizes == 1 { alternative.charge } else { 0 }
    }

    /// Whether this node could take one replica if nothing else stood on it.
    pub fn could_fit_on(&self, alternative: &Alternative, node: NodeAt) -> bool {
        could_fit(self.need(alternative), &self.index.rows()[node])
    }

    fn excluded<'a>(&'a self, seeker: &Seeker<'_>) -> impl Iterator<Item = &'a Exclusion> + use<'a> {
        self.index.exclusions(seeker.number, seeker.slot, seeker.now)
    }

    fn candidate(&self, alternative: &Alternative, ranked: &Ranked, crowd: Crowd) -> Candidate {
        let row = &self.index.rows()[ranked.node];
        Candidate {
            node: row.node.name.clone(),
            variant: alternative.ask.variant.clone(),
            gpus: ranked.pick.shares(self.need(alternative), row),
            score: ranked.pick.score(ranked.cached, crowd.excess),
        }
    }
}

/// GPU before CPU, health, objective.
type First = (bool, bool, u64);
/// That, crowding, bucket, weights on the node, tightness, node, variant.
type Order = (First, u32, Reverse<i64>, bool, i64, NodeAt, usize);

fn order(objective: Objective, alternative: &Alternative, at: usize, ranked: &Ranked, crowd: Crowd) -> Order {
    let (_, bucket, tightness) = ranked.pick.rank();
    let first = first(objective, alternative, ranked);
    (first, crowd.excess, bucket, !ranked.cached, tightness, ranked.node, at)
}

fn first(objective: Objective, alternative: &Alternative, ranked: &Ranked) -> First {
    let preferred = preference(objective, alternative).unwrap_or(u64::MAX);
    (alternative.class.is_none(), ranked.pick.degraded, preferred)
}

/// Whether the two best are equal but for their domains.
fn spreads(
    objective: Objective,
    found: &[(usize, Ranked)],
    alternatives: &[&Alternative],
    best: Crowd,
    next: Crowd,
) -> bool {
    let first = |(at, ranked): &(usize, Ranked)| first(objective, alternatives[*at], ranked);
    best.excess < next.excess && first(&found[0]) == first(&found[1])
}

/// Sorted.
fn union(a: &[NodeAt], mut b: Vec<NodeAt>) -> Vec<NodeAt> {
    b.extend_from_slice(a);
    b.sort_unstable();
    b
}

/// What the objective compares: less is better. `None`: unknown.
fn preference(objective: Objective, alternative: &Alternative) -> Option<u64> {
    match objective {
        Objective::Packing => Some(0),
        Objective::Cost => alternative.price_micros,
        Objective::Latency => alternative.itl_us,
    }
}

/// What set the best apart from the second.
fn because(
    objective: Objective,
    found: &[(usize, Ranked)],
    alternatives: &[&Alternative],
    candidates: &[Candidate],
) -> Because {
    let (Some((next, _)), Some(second)) = (found.get(1), candidates.get(1)) else { return Because::OnlyFit };
    let (alternative, next) = (alternatives[found[0].0], alternatives[*next]);
    let (a, b) = (&candidates[0].score, &second.score);
    let next_variant = second.variant.clone();
    if alternative.class.is_some() && next.class.is_none() {
        return Because::HasGpu { next_variant };
    }
    if a.degraded != b.degraded {
        return Because::Healthier;
    }
    let (own, other) = (preference(objective, alternative), preference(objective, next));
    match (objective, own) {
        (Objective::Cost, Some(winner_micros)) if own != other => {
            return Because::Cheapest { winner_micros, next_variant, next_micros: other };
        }
        (Objective::Latency, Some(winner_us)) if own != other => {
            return Because::Fastest { winner_us, next_variant, next_us: other };
        }
        _ => {}
    }
    if a.bucket != b.bucket {
        Because::FragmentsLeast {
            winner_milli: a.frag_after_milli - a.frag_before_milli,
            next_node: second.node.clone(),
            next_milli: b.frag_after_milli - b.frag_before_milli,
        }
    } else if a.model_cached != b.model_cached {
        Because::ModelCached
    } else if a.tightness != b.tightness {
        Because::TightFit { next_node: second.node.clone() }
    } else {
        Because::StableOrder
    }
}

fn ask(need: &Need, variant: &str, class: Option<&String>) -> Ask {
    Ask {
        variant: variant.to_owned(),
        class: class.cloned(),
        gpus: need.gpus,
        partition: need.partition.clone(),
        cpu_milli: need.cpu_milli,
        node_memory_bytes: need.node_memory_bytes,
    }
}

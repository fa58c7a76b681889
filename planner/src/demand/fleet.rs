//! Replicas of several variants as one capacity.
//!
//! The rule counts in replicas of one variant, the *reference*: the one that most replicas run on. A
//! replica of another variant counts for what it carries of a mean request beside it. More capacity comes
//! from the variants that carry most for their price, where the deployment prefers [`Objective::Cost`];
//! less capacity goes from those that carry least for it. With one variant all of this changes nothing.

use stowage_contracts::load::Coefficients;

use crate::demand::cost::{Cost, of_variant};
use crate::demand::inputs::lives;
use crate::demand::mix::{Kind, by_value, cheapest};
use crate::snapshot::{Deployment, Memory, Objective, Objectives};

/// A request of mean length, in tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeanRequest {
    pub input: f64,
    pub output: f64,
}

/// The variants of a deployment, in its order.
#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    kinds: Vec<Variants>,
    prefers_cost: bool,
}

#[derive(Clone, Debug)]
struct Variants {
    name: String,
    /// In reference replicas; 1 where the cost is not known.
    carries: f64,
    /// Replicas that serve or start.
    live: u32,
    /// Capacity 0 where the cost is not known: none is added.
    kind: Kind,
}

/// What a number of reference replicas means for a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Replicas to have.
    pub replicas: u32,
    /// Variants of the replicas to add, first to last; beyond them any variant will do.
    pub add: Vec<String>,
    /// Variants in the order in which their replicas go; empty: it does not matter.
    pub end: Vec<String>,
}

const TOLERANCE: f64 = 1e-9;

impl Fleet {
    /// `prices` are per hour of one replica, by variant in the deployment's order.
    pub fn new(
        d: &Deployment,
        memory: &Memory,
        prices: &[Option<u64>],
        objectives: Objectives,
        reference: &Cost,
        mean: MeanRequest,
    ) -> Self {
        let whole = carries(&reference.coefficients, objectives, mean);
        let variant = |(place, v): (usize, &crate::snapshot::Variant)| {
            let cost = of_variant(d, memory, &v.name);
            let part = cost.map_or(0.0, |cost| carries(&cost.coefficients, objectives, mean) / whole);
            let known = part.is_finite() && part > 0.0;
            let on = |r: &&crate::snapshot::Replica| r.placement.as_ref().is_some_and(|p| p.variant == v.name);
            Variants {
                name: v.name.clone(),
                carries: if known { part } else { 1.0 },
                live: d.replicas.iter().filter(|r| lives(r)).filter(on).count() as u32,
                kind: Kind {
                    capacity: if known { part } else { 0.0 },
                    price_micros: prices.get(place).copied().flatten(),
                    most: u32::MAX,
                },
            }
        };
        let kinds = d.variants.iter().enumerate().map(variant).collect();
        Fleet { kinds, prefers_cost: d.objective == Objective::Cost }
    }

    /// There is more than one variant.
    pub fn is_mixed(&self) -> bool {
        self.kinds.len() > 1
    }

    /// What there is after a change, in reference replicas. What ends is not subtracted by variant.
    pub fn carried_after(&self, count: u32, change: &Change) -> f64 {
        if change.replicas < count {
            return self.carried(count) * f64::from(change.replicas) / f64::from(count);
        }
        let named = change.add.iter().filter_map(|name| self.kinds.iter().find(|v| v.name == *name));
        let added: f64 = named.map(|v| v.carries).sum();
        self.carried(count) + added + f64::from(change.replicas - count) - change.add.len() as f64
    }

    /// What `count` replicas carry, in reference replicas: those that live as they are, others as one each.
    pub fn carried(&self, count: u32) -> f64 {
        let live: u32 = self.kinds.iter().map(|v| v.live).sum();
        let carried: f64 = self.kinds.iter().map(|v| f64::from(v.live) * v.carries).sum();
        carried + f64::from(count.saturating_sub(live))
    }

    /// The change from `count` replicas to as many as carry what `wanted` reference replicas do.
    pub fn change(&self, count: u32, wanted: u32) -> Change {
        if !self.is_mixed() {
            return Change { replicas: wanted, ..Change::default() };
        }
        let kinds: Vec<Kind> = self.kinds.iter().map(|v| v.kind).collect();
        let order = by_value(&kinds);
        let missing = f64::from(wanted) - self.carried(count);
        if missing > TOLERANCE {
            return self.more(count, missing, &kinds, &order);
        }
        self.less(count, -missing, &order)
    }

    fn more(&self, count: u32, missing: f64, kinds: &[Kind], order: &[usize]) -> Change {
        if !self.prefers_cost || order.is_empty() {
            let replicas = count.saturating_add(missing.ceil() as u32);
            return Change { replicas, ..Change::default() };
        }
        let counts = cheapest(missing, kinds);
        let names = order.iter().flat_map(|i| vec![self.kinds[*i].name.clone(); counts[*i] as usize]);
        let add: Vec<String> = names.collect();
        Change { replicas: count.saturating_add(add.len() as u32), add, end: Vec::new() }
    }

    /// Ends what carries least for its price, as long as enough is left.
    fn less(&self, count: u32, mut spare: f64, order: &[usize]) -> Change {
        let unknown = (0..self.kinds.len()).filter(|i| !order.contains(i));
        let ends: Vec<usize> = unknown.chain(order.iter().rev().copied()).collect();
        let mut ended = 0;
        for i in &ends {
            let Variants { carries, live, .. } = self.kinds[*i];
            let n = f64::from(live).min((spare / carries + TOLERANCE).floor()).max(0.0);
            ended += n as u32;
            spare -= n * carries;
        }
        let end = ends.iter().map(|i| self.kinds[*i].name.clone()).collect();
        Change { replicas: count.saturating_sub(ended), add: Vec::new(), end }
    }
}

/// Requests a second that one replica of this cost carries within the ITL objective.
fn carries(cost: &Coefficients, objectives: Objectives, mean: MeanRequest) -> f64 {
    let Coefficients { a, d, k, p } = *cost;
    let MeanRequest { input, output } = mean;
    let work = (input * p + output * (1000.0 * d + k * (input + output / 2.0))) / 1e6;
    (1.0 - a / objectives.itl_ms).max(0.0) / work
}

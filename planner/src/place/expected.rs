//! What is to be expected: the demand that fragmentation is measured against.
//!
//! Shapes and scarcity come from the deployments of the snapshot, weighted by the replicas they want.
//! Because a young cluster has seen little, a few replicas that each want a whole GPU, spread over the
//! classes by their capacity, are added to what is observed: that keeps whole GPUs whole.

use std::collections::BTreeMap;

use crate::place::frag::{Demand, FreeGpu, Shape, fragmentation, typical};
use crate::snapshot::index::{ClassAt, Index, NodeAt, Row};
use crate::snapshot::{Accelerator, Deployment, Variant};

/// Whole-GPU replicas that are added to what is observed.
const PRIOR_REPLICAS: f64 = 4.0;
/// Share of replicas that the typical shapes cover.
const COVERED: f64 = 0.95;

/// The expected demand, in terms of one index.
pub(crate) struct Expected {
    pub demand: Demand,
    /// Fragmentation of each node state; NaN where it was not asked for yet.
    by_state: Vec<f64>,
}

impl Expected {
    pub fn new(index: &Index, deployments: &[&Deployment]) -> Self {
        let demand = Demand { shapes: shapes(index, deployments), scarcity: scarcity(index, deployments) };
        Expected { demand, by_state: Vec::new() }
    }

    /// GPU demand that names the class ÷ its capacity.
    pub fn scarcity_of(&self, class: ClassAt) -> f64 {
        self.demand.scarcity.get(class).copied().unwrap_or(0.0)
    }

    /// The node's GPUs as the score sees them, in the order of the node.
    pub fn free_gpus(&self, row: &Row) -> Vec<FreeGpu> {
        row.taken.gpus.iter().map(|g| FreeGpu { milli: g.free_milli, kind: g.class.map_or(0, kind) }).collect()
    }

    /// Expected free milli-GPU of the node, as it is, that a replica drawn from the demand cannot use.
    pub fn fragmentation(&mut self, index: &Index, at: NodeAt) -> f64 {
        let state = index.state(at);
        if self.by_state.len() <= state {
            self.by_state.resize(index.states(), f64::NAN);
        }
        if self.by_state[state].is_nan() {
            let row = &index.rows()[at];
            let cpu = row.cpu_free().min(1 << 50) as i64;
            self.by_state[state] = fragmentation(cpu, &self.free_gpus(row), &self.demand.shapes);
        }
        self.by_state[state]
    }
}

/// Classes beyond the 63rd share a bit: their score is coarser, never wrong about what fits.
fn kind(class: ClassAt) -> u8 {
    class.min(63) as u8
}

/// Whether the deployment could run on every class that the cluster has, so that the scarce ones are
/// kept for those that must have them.
pub(crate) fn is_flexible(index: &Index, d: &Deployment) -> bool {
    let named = |at: ClassAt| d.variants.iter().any(|v| v.accelerator.class().and_then(|c| index.class(c)) == Some(at));
    let present = index.classes().iter().enumerate().filter(|(_, c)| c.gpus > 0);
    present.clone().count() > 1 && present.clone().all(|(at, _)| named(at))
}

fn shapes(index: &Index, deployments: &[&Deployment]) -> Vec<Shape> {
    let mut counted: BTreeMap<(i64, i64, i64, u64), f64> = BTreeMap::new();
    for d in deployments {
        // Variants are alternatives: those that ask the same of different classes are one shape, and
        // each shape counts for its part of the replicas.
        let each = f64::from(d.wanted) / d.variants.len().max(1) as f64;
        let mut of: BTreeMap<(i64, i64, i64), (u64, f64)> = BTreeMap::new();
        for v in &d.variants {
            let (cpu, milli, gpus, types) = shape(index, d, v);
            let entry = of.entry((cpu, milli, gpus)).or_default();
            entry.0 |= types;
            entry.1 += each;
        }
        for ((cpu, milli, gpus), (types, weight)) in of {
            *counted.entry((cpu, milli, gpus, types)).or_default() += weight;
        }
    }
    let observed: f64 = counted.values().sum();
    let capacity: u64 = index.classes().iter().map(|c| c.gpus).sum();
    let mut shapes = typical(counted, COVERED);
    let prior = PRIOR_REPLICAS / (PRIOR_REPLICAS + observed);
    for s in &mut shapes {
        s.probability *= 1.0 - prior;
    }
    let present = index.classes().iter().enumerate().filter(|(_, c)| c.gpus > 0);
    shapes.extend(present.map(|(at, class)| Shape {
        cpu_milli: 0,
        gpu_milli: 1000,
        gpus: 1,
        types: 1 << kind(at),
        probability: prior * class.gpus as f64 / capacity as f64,
    }));
    shapes
}

fn shape(index: &Index, d: &Deployment, v: &Variant) -> (i64, i64, i64, u64) {
    match &v.accelerator {
        Accelerator::Gpu { class, count, memory_bytes, sm_percent } => {
            let class = index.class(class);
            let milli = class_charge(index, class, *memory_bytes, *sm_percent);
            let types = class.map_or(0, |c| 1 << kind(c));
            (signed(d.needs.cpu_milli), signed(milli), i64::from(*count), types)
        }
        Accelerator::Cpu { cpu_milli, .. } => (signed(d.needs.cpu_milli.saturating_add(*cpu_milli)), 0, 0, 0),
    }
}

fn scarcity(index: &Index, deployments: &[&Deployment]) -> Vec<f64> {
    let mut demand = vec![0.0; index.classes().len()];
    for d in deployments.iter().filter(|d| !is_flexible(index, d)) {
        let named = |v: &Variant| {
            let (_, milli, gpus, _) = shape(index, d, v);
            let class = v.accelerator.class().and_then(|c| index.class(c))?;
            Some((class, milli as f64 / 1000.0 * gpus as f64, index.classes()[class].gpus as f64))
        };
        let named: Vec<_> = d.variants.iter().filter_map(named).collect();
        let capacity: f64 = named.iter().map(|(.., capacity)| capacity).sum();
        for (class, gpus, of) in named {
            demand[class] += f64::from(d.wanted) * gpus * of / capacity.max(1.0);
        }
    }
    let capacity = index.classes().iter().map(|c| (c.gpus as f64).max(1.0));
    demand.iter().zip(capacity).map(|(demand, capacity)| demand / capacity).collect()
}

/// Charge of one slice on the most expensive GPU of a class, in milli-GPU; a whole one where the
/// class has no GPU yet.
pub(crate) fn class_charge(
    index: &Index,
    class: Option<ClassAt>,
    memory_bytes: Option<u64>,
    sm_percent: Option<u32>,
) -> u64 {
    let Some(class) = class else { return 1000 };
    let sizes = index.classes()[class].sizes.iter();
    let charges = sizes.map(|size| {
        let (memory, sm) = size.promise(memory_bytes, sm_percent);
        size.charge(memory, sm)
    });
    charges.max().unwrap_or(1000)
}

fn signed(x: u64) -> i64 {
    x.min(1 << 50) as i64
}

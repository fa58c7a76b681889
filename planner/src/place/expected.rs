//! What is to be expected: the demand that fragmentation is measured against.
//!
//! Shapes and scarcity come from the deployments of the snapshot, weighted by the replicas they want.
//! Because a young cluster has seen little, a few replicas that each want a whole GPU, spread over the
//! classes by their capacity, are added to what is observed: that keeps whole GPUs whole.

use std::collections::BTreeMap;

use crate::place::frag::{Demand, FreeGpu, Shape, ShapeKey, Tally, typical};
use crate::snapshot::index::{ClassAt, GpuRow, Index, NodeAt, Row};
use crate::snapshot::{Accelerator, Deployment, Partition, Variant};

/// Whole-GPU replicas that are added to what is observed.
const PRIOR_REPLICAS: f64 = 4.0;
/// Share of replicas that the typical shapes cover.
const COVERED: f64 = 0.95;
/// Weight of a replica that needs no GPU, and power of its GPUs by which another counts.
const WITHOUT_GPU: f64 = 0.65;
const SIZE_EXPONENT: f64 = -0.2;

/// The expected demand, in terms of one index.
#[derive(Default)]
pub(crate) struct Expected {
    pub demand: Demand,
    /// Grows whenever the demand is another, so that scores kept are not valid any more.
    version: u64,
    /// Of each node state: its loss, and its fragmentation.
    loss: ByState,
    fragmentation: ByState,
}

/// NaN where it was not asked for yet.
#[derive(Default)]
struct ByState {
    values: Vec<f64>,
    epoch: u64,
}

impl ByState {
    /// The value of a node's state, which is kept until states are numbered anew.
    fn of(&mut self, index: &Index, at: NodeAt, find: impl FnOnce(&Row) -> f64) -> f64 {
        let state = index.state(at);
        if self.epoch != index.epoch() {
            self.epoch = index.epoch();
            self.values.clear();
        }
        if self.values.len() <= state {
            self.values.resize(index.states(), f64::NAN);
        }
        if self.values[state].is_nan() {
            self.values[state] = find(&index.rows()[at]);
        }
        self.values[state]
    }
}

/// Replicas without GPU matter less for what becomes of GPUs, and so do those that are few because each is large.
fn attention(milli: i64, gpus: i64) -> f64 {
    match milli.saturating_mul(gpus) {
        0 => WITHOUT_GPU,
        asked => (asked as f64 / 1000.0).powf(SIZE_EXPONENT),
    }
}

/// What one deployment adds to the demand, per replica wanted.
#[derive(Clone, Debug)]
pub(crate) struct Contribution {
    /// Shapes with the number of variants that have them.
    shapes: Vec<(ShapeKey, u32)>,
    variants: u32,
    /// Classes named, with the GPUs that a replica takes there; none where it could run on all.
    named: Vec<(ClassAt, f64)>,
}

impl Contribution {
    pub fn new(index: &Index, d: &Deployment, flexible: bool) -> Self {
        // Variants are alternatives: those that ask the same of different classes are one shape, and
        // each shape counts for its part of the replicas.
        let mut of: BTreeMap<ShapeKey, (u64, u32)> = BTreeMap::new();
        let mut named = Vec::new();
        for v in &d.variants {
            let (cpu, milli, gpus, types, mig) = shape(index, d, v);
            let entry = of.entry((cpu, milli, gpus, 0, mig)).or_default();
            entry.0 |= types;
            entry.1 += 1;
            if let Some(class) = v.accelerator.class().and_then(|c| index.class(c)).filter(|_| !flexible) {
                named.push((class, milli as f64 / 1000.0 * gpus as f64));
            }
        }
        let shapes = of
            .into_iter()
            .map(|((cpu, milli, gpus, _, mig), (types, n))| ((cpu, milli, gpus, types, mig), n))
            .collect();
        Contribution { shapes, variants: d.variants.len().max(1) as u32, named }
    }
}

impl Expected {
    /// The demand is that of these deployments: what each adds, and the replicas it wants.
    pub fn observe<'a>(&mut self, index: &Index, of: impl Iterator<Item = (&'a Contribution, u32)> + Clone) {
        let demand = Demand { shapes: shapes(index, of.clone()), scarcity: scarcity(index, of), fill: Vec::new() };
        if (&demand.shapes, &demand.scarcity) != (&self.demand.shapes, &self.demand.scarcity) {
            self.demand = demand;
            self.demand.expect_fill(index.classes().len().min(64) as u8);
            self.version += 1;
            self.loss.values.clear();
            self.fragmentation.values.clear();
        }
    }

    /// Scores are valid while this is equal.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// GPU demand that names the class ÷ its capacity.
    pub fn scarcity_of(&self, class: ClassAt) -> f64 {
        self.demand.scarcity.get(class).copied().unwrap_or(0.0)
    }

    /// The node's GPUs as the score sees them, in the order of the node.
    pub fn free_gpus(&self, row: &Row) -> Vec<FreeGpu> {
        free_gpus(row)
    }

    /// Expected free milli-GPU of the node, as it is, that a replica drawn from the demand cannot use.
    pub fn fragmentation(&mut self, index: &Index, at: NodeAt) -> f64 {
        let Expected { demand, fragmentation, .. } = self;
        fragmentation.of(index, at, |row| Tally::new(&free_gpus(row), demand).fragmentation(cpu_free(row)))
    }

    /// What is lost of the node's free GPUs as it is.
    pub fn loss(&mut self, index: &Index, at: NodeAt) -> f64 {
        let Expected { demand, loss, .. } = self;
        loss.of(index, at, |row| Tally::new(&free_gpus(row), demand).loss(cpu_free(row), &[]))
    }
}

fn free_gpus(row: &Row) -> Vec<FreeGpu> {
    let free = |g: &GpuRow| FreeGpu {
        milli: g.free_milli,
        kind: g.class.map_or(0, kind),
        mig: g.mig.as_ref().map(|m| m.layout.fits(m.taken)),
    };
    row.taken.gpus.iter().map(free).collect()
}

fn cpu_free(row: &Row) -> i64 {
    signed(row.cpu_free())
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

fn shapes<'a>(index: &Index, of: impl Iterator<Item = (&'a Contribution, u32)>) -> Vec<Shape> {
    let mut counted: BTreeMap<ShapeKey, f64> = BTreeMap::new();
    for (contribution, wanted) in of {
        let each = f64::from(wanted) / f64::from(contribution.variants);
        for (key, variants) in &contribution.shapes {
            *counted.entry(*key).or_default() += each * f64::from(*variants);
        }
    }
    let observed: f64 = counted.values().sum();
    let capacity: u64 = index.classes().iter().map(|c| c.gpus).sum();
    let mut shapes = typical(counted, COVERED);
    let prior = PRIOR_REPLICAS / (PRIOR_REPLICAS + observed);
    shapes.iter_mut().for_each(|s| s.probability *= attention(s.gpu_milli, s.gpus));
    let sum: f64 = shapes.iter().map(|s| s.probability).sum();
    shapes.iter_mut().for_each(|s| s.probability *= (1.0 - prior) / sum);
    let present = index.classes().iter().enumerate().filter(|(_, c)| c.gpus > 0);
    shapes.extend(present.map(|(at, class)| Shape {
        cpu_milli: 0,
        gpu_milli: 1000,
        gpus: 1,
        types: 1 << kind(at),
        mig: None,
        probability: prior * class.gpus as f64 / capacity as f64,
    }));
    shapes
}

fn shape(index: &Index, d: &Deployment, v: &Variant) -> ShapeKey {
    match &v.accelerator {
        Accelerator::Gpu { class, count, partition } => {
            let class = index.class(class);
            let milli = index.class_charge(class, partition);
            let types = class.map_or(0, |c| 1 << kind(c));
            let mig = match partition {
                // Beyond the last bit: no GPU has it.
                Partition::Mig { profile } => Some(index.profile(profile).unwrap_or(u32::MAX)),
                Partition::Slice { .. } => None,
            };
            (signed(d.needs.cpu_milli), signed(milli), i64::from(*count), types, mig)
        }
        Accelerator::Cpu { cpu_milli, .. } => (signed(d.needs.cpu_milli.saturating_add(*cpu_milli)), 0, 0, 0, None),
    }
}

fn scarcity<'a>(index: &Index, of: impl Iterator<Item = (&'a Contribution, u32)>) -> Vec<f64> {
    let mut demand = vec![0.0; index.classes().len()];
    let gpus_of = |class: ClassAt| index.classes()[class].gpus as f64;
    for (contribution, wanted) in of {
        let capacity: f64 = contribution.named.iter().map(|(class, _)| gpus_of(*class)).sum();
        for (class, gpus) in &contribution.named {
            demand[*class] += f64::from(wanted) * gpus * gpus_of(*class) / capacity.max(1.0);
        }
    }
    let capacity = index.classes().iter().map(|c| (c.gpus as f64).max(1.0));
    demand.iter().zip(capacity).map(|(demand, capacity)| demand / capacity).collect()
}

fn signed(x: u64) -> i64 {
    x.min(1 << 50) as i64
}

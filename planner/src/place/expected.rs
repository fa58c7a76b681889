//! What is to be expected: the demand that fragmentation is measured against.
//!
//! Shapes and scarcity come from the deployments of the snapshot, weighted by the replicas they want;
//! a decayed window of observed demand takes their place once somebody records one. Because a young
//! cluster has seen little, a tenth of the expectation is "somebody wants a whole GPU", spread over
//! the classes by their capacity: that keeps whole GPUs whole.

use std::collections::BTreeMap;

use crate::place::frag::{Demand, FreeGpu, typical};
use crate::snapshot::world::{World, free_milli};
use crate::snapshot::{Accelerator, Deployment, Node, Variant};

/// Weight of the whole-GPU expectation against all observed replicas.
const WHOLE_GPU_PRIOR: f64 = 0.1;
/// Share of replicas that the typical shapes cover.
const COVERED: f64 = 0.95;

/// GPU classes as bit numbers, and the demand in their terms.
pub(crate) struct Expected {
    kinds: BTreeMap<String, u8>,
    pub demand: Demand,
}

impl Expected {
    pub fn new(world: &World, deployments: &[&Deployment]) -> Self {
        let mut capacity: BTreeMap<String, f64> = BTreeMap::new();
        for gpu in world.nodes.iter().flat_map(|n| &n.gpus) {
            if let Some(class) = &gpu.class {
                *capacity.entry(class.clone()).or_default() += 1.0;
            }
        }
        // Classes beyond the 63rd share a bit: their score is coarser, never wrong about what fits.
        let kinds: BTreeMap<_, _> = capacity.keys().enumerate().map(|(i, c)| (c.clone(), i.min(63) as u8)).collect();
        let mut expected = Expected { kinds, demand: Demand::default() };
        expected.demand.shapes = expected.shapes(world, deployments, &capacity);
        expected.demand.scarcity = expected.scarcity(deployments, &capacity);
        expected
    }

    pub fn kind(&self, class: &str) -> u8 {
        self.kinds.get(class).copied().unwrap_or(0)
    }

    pub fn scarcity_of(&self, class: &str) -> f64 {
        self.demand.scarcity.get(usize::from(self.kind(class))).copied().unwrap_or(0.0)
    }

    /// The node's GPUs as the score sees them, in the order of the node.
    pub fn free_gpus(&self, node: &Node) -> Vec<FreeGpu> {
        node.gpus
            .iter()
            .map(|g| FreeGpu { milli: free_milli(g), kind: self.kind(g.class.as_deref().unwrap_or_default()) })
            .collect()
    }

    fn shapes(
        &self,
        world: &World,
        deployments: &[&Deployment],
        capacity: &BTreeMap<String, f64>,
    ) -> Vec<crate::place::frag::Shape> {
        let mut counted: BTreeMap<(i64, i64, i64, u64), f64> = BTreeMap::new();
        for d in deployments {
            // Variants are alternatives: each counts for its part of the replicas.
            let weight = f64::from(d.wanted) / d.variants.len().max(1) as f64;
            for v in &d.variants {
                *counted.entry(self.shape(world, d, v)).or_default() += weight;
            }
        }
        let observed: f64 = counted.values().sum();
        let gpus: f64 = capacity.values().sum();
        let mut shapes = typical(counted, COVERED);
        let prior = if observed > 0.0 { WHOLE_GPU_PRIOR } else { 1.0 };
        for s in &mut shapes {
            s.probability *= 1.0 - prior;
        }
        shapes.extend(capacity.iter().map(|(class, n)| crate::place::frag::Shape {
            cpu_milli: 0,
            gpu_milli: 1000,
            gpus: 1,
            types: 1 << self.kind(class),
            probability: prior * n / gpus,
        }));
        shapes
    }

    fn shape(&self, world: &World, d: &Deployment, v: &Variant) -> (i64, i64, i64, u64) {
        match &v.accelerator {
            Accelerator::Gpu { class, count, memory_bytes, sm_percent } => {
                let milli = class_charge(world, class, *memory_bytes, *sm_percent);
                let types = 1 << self.kind(class);
                (signed(d.needs.cpu_milli), signed(milli), i64::from(*count), types)
            }
            Accelerator::Cpu { cpu_milli, .. } => (signed(d.needs.cpu_milli.saturating_add(*cpu_milli)), 0, 0, 0),
        }
    }

    fn scarcity(&self, deployments: &[&Deployment], capacity: &BTreeMap<String, f64>) -> Vec<f64> {
        let mut scarcity = vec![0.0; 64];
        for d in deployments {
            let weight = f64::from(d.wanted) / d.variants.len().max(1) as f64;
            for v in &d.variants {
                if let Accelerator::Gpu { class, count, .. } = &v.accelerator
                    && let Some(total) = capacity.get(class)
                {
                    scarcity[usize::from(self.kind(class))] += weight * f64::from(*count) / total;
                }
            }
        }
        scarcity
    }
}

/// Charge of one slice on the most expensive GPU of a class, in milli-GPU; a whole one where the
/// class has no GPU yet.
pub(crate) fn class_charge(world: &World, class: &str, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> u64 {
    let charge = |size: &crate::snapshot::world::Size| {
        let (memory, sm) = size.promise(memory_bytes, sm_percent);
        size.charge(memory, sm)
    };
    world.sizes.get(class).into_iter().flatten().map(charge).max().unwrap_or(1000)
}

fn signed(x: u64) -> i64 {
    x.min(1 << 50) as i64
}

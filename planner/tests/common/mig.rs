//! GPUs in MIG mode, and random snapshots that have some.

use proptest::prelude::*;
use stowage_planner::snapshot::*;

use super::h100::h100;
use super::random::{GPU, STEP, random_snapshot};

/// The same cuts of a GPU of the random clusters.
fn small() -> Vec<MigProfile> {
    let sizes = [1, 2, 2, 4, 4, 8].map(|n| n * STEP.min(GPU / 8));
    h100().into_iter().zip(sizes).map(|(p, memory_bytes)| MigProfile { memory_bytes, ..p }).collect()
}

/// Some GPUs of each node are in MIG mode, and some deployments ask for a device.
pub fn snapshot() -> impl Strategy<Value = Snapshot> {
    let modes = prop::collection::vec(prop::bool::weighted(0.6), 12);
    let asks = prop::collection::vec(prop::option::weighted(0.7, 0..8usize), 4);
    (random_snapshot(), modes, asks).prop_map(|(mut s, modes, asks)| {
        for (gpu, mig) in s.nodes.iter_mut().flat_map(|n| n.gpus.iter_mut()).zip(modes) {
            gpu.mig = mig.then(small);
            // What held a slice of the GPU before holds a device of it.
            if let Some(profiles) = gpu.mig.clone() {
                for slice in &mut gpu.slices {
                    let p = &profiles[slice.promise.sm_percent as usize % profiles.len()];
                    slice.promise =
                        Promise::device(p, p.starts[slice.promise.sm_percent as usize / 8 % p.starts.len()]);
                }
            }
        }
        for (d, ask) in s.deployments.iter_mut().zip(asks) {
            let Some(ask) = ask else { continue };
            // The last two are profiles that no GPU has, and more devices than one.
            let profiles = small();
            let name = profiles.get(ask).map_or("5g.50gb", |p| &p.name);
            if let Accelerator::Gpu { count, partition, .. } = &mut d.variants[0].accelerator {
                *partition = Partition::Mig { profile: if ask == 7 { "1g.10gb".into() } else { name.into() } };
                *count = if ask == 7 { 2 } else { 1 };
            }
            d.wanted += d.wanted;
        }
        s
    })
}

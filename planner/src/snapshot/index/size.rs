//! What a GPU can promise, and what a part of it costs.

use stowage_contracts::charge::gpu_milli;

use crate::snapshot::index::mig::profile;
use crate::snapshot::index::{ClassAt, Index};
use crate::snapshot::{Gpu, GpuShare, Partition, Promise};

/// What a GPU can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Size {
    pub memory_bytes: u64,
    pub step_bytes: u64,
    pub sm_percent: u32,
    /// Number of its MIG layout; `None`: not in MIG mode.
    pub mig: Option<usize>,
}

impl Size {
    /// Of a GPU, and the number of its layout.
    pub fn new(gpu: &Gpu, mig: Option<usize>) -> Self {
        Size { memory_bytes: gpu.memory_bytes, step_bytes: gpu.memory_step_bytes, sm_percent: gpu.sm_percent, mig }
    }

    /// What is promised for a slice: omitted is whole, memory is rounded up to the step.
    pub fn promise(&self, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> (u64, u32) {
        let step = self.step_bytes.max(1);
        let rounded = |m: u64| m.div_ceil(step).saturating_mul(step).max(step);
        let memory = memory_bytes.map_or(self.memory_bytes, rounded);
        (memory, sm_percent.map_or(self.sm_percent, |s| s.max(1)))
    }

    /// What so much of it costs, in milli-GPU.
    pub fn charge(&self, memory_bytes: u64, sm_percent: u32) -> u64 {
        gpu_milli(memory_bytes, self.memory_bytes, sm_percent, self.sm_percent)
    }
}

/// [`Size::charge`] of a promise on its GPU.
pub(crate) fn charge(gpu: &Gpu, promise: &Promise) -> u64 {
    Size::new(gpu, None).charge(promise.memory_bytes, promise.sm_percent)
}

/// What is promised on this GPU; a MIG device begins at `start`. `None`: the GPU has no such device.
pub(crate) fn promise_on(gpu: &Gpu, partition: &Partition, start: u32) -> Option<Promise> {
    match partition {
        Partition::Slice { memory_bytes, sm_percent } => {
            let (memory, sm) = Size::new(gpu, None).promise(*memory_bytes, *sm_percent);
            Some(Promise::slice(memory, sm))
        }
        Partition::Mig { profile: name } => Some(Promise::device(profile(gpu, name)?, start)),
    }
}

/// [`promise_on`] with the GPU's name.
pub(crate) fn share_on(gpu: &Gpu, partition: &Partition, start: u32) -> Option<GpuShare> {
    Some(GpuShare { uuid: gpu.uuid.clone(), promise: promise_on(gpu, partition, start)? })
}

impl Index {
    /// What one part of a GPU of the class costs, on the GPU where it costs most, in milli-GPU; a whole one where
    /// the class has no such GPU yet.
    pub fn class_charge(&self, class: Option<ClassAt>, partition: &Partition) -> u64 {
        let Some(class) = class else { return 1000 };
        let sizes = self.classes[class].sizes.keys();
        let costs = sizes.filter_map(|size| match partition {
            Partition::Slice { memory_bytes, sm_percent } if size.mig.is_none() => {
                let (memory, sm) = size.promise(*memory_bytes, *sm_percent);
                Some(size.charge(memory, sm))
            }
            Partition::Slice { .. } => None,
            Partition::Mig { profile } => {
                let (profiles, _) = self.layouts.iter().find(|(_, (number, _))| Some(*number) == size.mig)?;
                let p = profiles.iter().find(|p| &p.name == profile)?;
                Some(size.charge(p.memory_bytes, p.sm_percent))
            }
        });
        costs.max().unwrap_or(1000)
    }
}

//! What a GPU can promise, and what a slice of it costs.

use stowage_contracts::charge::gpu_milli;

use crate::snapshot::{Gpu, GpuShare};

/// What a GPU can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Size {
    pub memory_bytes: u64,
    pub step_bytes: u64,
    pub sm_percent: u32,
}

pub(crate) fn size(gpu: &Gpu) -> Size {
    Size { memory_bytes: gpu.memory_bytes, step_bytes: gpu.memory_step_bytes, sm_percent: gpu.sm_percent }
}

impl Size {
    /// What is promised for an ask: omitted is whole, memory is rounded up to the step.
    pub fn promise(&self, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> (u64, u32) {
        let step = self.step_bytes.max(1);
        let rounded = |m: u64| m.div_ceil(step).saturating_mul(step).max(step);
        let memory = memory_bytes.map_or(self.memory_bytes, rounded);
        (memory, sm_percent.map_or(self.sm_percent, |s| s.max(1)))
    }

    /// What a slice costs, in milli-GPU.
    pub fn charge(&self, memory_bytes: u64, sm_percent: u32) -> u64 {
        gpu_milli(memory_bytes, self.memory_bytes, sm_percent, self.sm_percent)
    }
}

/// [`Size::charge`] on one GPU.
pub(crate) fn charge(gpu: &Gpu, memory_bytes: u64, sm_percent: u32) -> u64 {
    size(gpu).charge(memory_bytes, sm_percent)
}

/// [`Size::promise`] on one GPU.
pub(crate) fn share_on(gpu: &Gpu, memory_bytes: Option<u64>, sm_percent: Option<u32>) -> GpuShare {
    let (memory_bytes, sm_percent) = size(gpu).promise(memory_bytes, sm_percent);
    GpuShare { uuid: gpu.uuid.clone(), memory_bytes, sm_percent }
}

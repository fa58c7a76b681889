//! Parts of one GPU: what a variant asks for, what is promised, and what a GPU in MIG mode can be cut into.

use serde::{Deserialize, Serialize};

/// The part that a variant asks for of each of its GPUs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Partition {
    /// A MIG device: of one GPU in MIG mode.
    Mig {
        /// As NVML names it, `1g.10gb`.
        #[serde(rename = "migProfile")]
        profile: String,
    },
    /// Memory and SMs of a GPU that is not in MIG mode. What is omitted is all that the GPU has, so
    /// that [`Partition::WHOLE`] is a whole one.
    Slice {
        /// Rounded up to the GPU's step.
        #[serde(default)]
        memory_bytes: Option<u64>,
        /// Of all SMs.
        #[serde(default)]
        sm_percent: Option<u32>,
    },
}

/// A promise on one GPU, after rounding.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Promise {
    pub memory_bytes: u64,
    pub sm_percent: u32,
    /// The MIG device that these are of; `None`: a slice beside others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigDevice>,
}

/// Where on its GPU a MIG device is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct MigDevice {
    pub profile: String,
    /// Its first memory slice.
    pub start: u32,
}

/// A kind of MIG device that a GPU can be cut into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct MigProfile {
    pub name: String,
    pub memory_bytes: u64,
    /// Of the GPU's SMs.
    pub sm_percent: u32,
    /// Memory slices that a device takes, side by side. No two devices have one in common.
    pub slices: u32,
    /// First memory slices that it may have, as NVML's possible placements.
    pub starts: Vec<u32>,
}

// === impl Partition ===

impl Partition {
    /// All of a GPU that is not in MIG mode.
    pub const WHOLE: Partition = Partition::Slice { memory_bytes: None, sm_percent: None };

    /// Memory and SMs; `None`: all.
    pub fn slice(memory_bytes: impl Into<Option<u64>>, sm_percent: impl Into<Option<u32>>) -> Self {
        Partition::Slice { memory_bytes: memory_bytes.into(), sm_percent: sm_percent.into() }
    }

    /// Memory that is named; `None`: all of a GPU's, or what a MIG profile has.
    pub fn memory_bytes(&self) -> Option<u64> {
        match self {
            Partition::Slice { memory_bytes, .. } => *memory_bytes,
            Partition::Mig { .. } => None,
        }
    }

    /// SMs that are named; `None`: all of a GPU's, or what a MIG profile has.
    pub fn sm_percent(&self) -> Option<u32> {
        match self {
            Partition::Slice { sm_percent, .. } => *sm_percent,
            Partition::Mig { .. } => None,
        }
    }
}

// === impl Promise ===

impl Promise {
    /// Memory and SMs beside other slices.
    pub fn slice(memory_bytes: u64, sm_percent: u32) -> Self {
        Promise { memory_bytes, sm_percent, mig: None }
    }

    /// A device of this profile that begins at this memory slice.
    pub fn device(profile: &MigProfile, start: u32) -> Self {
        let mig = Some(MigDevice { profile: profile.name.clone(), start });
        Promise { memory_bytes: profile.memory_bytes, sm_percent: profile.sm_percent, mig }
    }
}

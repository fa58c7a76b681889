//! The plain data that the agent's decisions work on: what a GPU is, and one reading of it.
//!
//! Nothing here touches a device.

/// What a GPU is. Changes with the hardware only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// NVML's index, from 0.
    pub index: u32,
    pub uuid: String,
    pub product: String,
    /// All of it, bytes.
    pub memory_bytes: u64,
    /// What the driver keeps of it, bytes.
    pub reserved_bytes: u64,
    /// 0: unknown.
    pub sm_count: u32,
    pub architecture: Option<String>,
    pub numa_node: Option<u32>,
    /// PCI bus ids, its own and those at the other end of its NVLinks; upper case.
    pub pci_bus_id: Option<String>,
    pub nvlink_bus_ids: Vec<String>,
    /// Number of `/dev/nvidia<n>`.
    pub minor: Option<u32>,
    /// `None`: the product has no MIG.
    pub mig_enabled: Option<bool>,
    pub mig_profiles: Vec<String>,
}

/// Whether NVML could be asked about a GPU at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Ok,
    /// The driver has lost it.
    Lost(String),
    /// This reading failed, for another reason.
    Failed(String),
}

/// What the driver wants done with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    None,
    /// Reset, drain and reset, or reboot: the GPU does no work until then.
    Needed,
    /// Peer-to-peer traffic has to end; the GPU itself works.
    DrainPeers,
}

/// One process on a GPU. The pid is one of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUse {
    pub pid: u32,
    pub bytes: u64,
    /// Of the whole GPU.
    pub sm_percent: u32,
}

/// One reading of one GPU. `None`: the call is not supported or failed this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuReading {
    pub uuid: String,
    pub reach: Reach,
    pub used_bytes: Option<u64>,
    pub sm_percent: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub power_milliwatts: Option<u32>,
    /// Heat or the power supply holds the clocks down (a power cap in software is normal operation).
    pub slowed_down: bool,
    /// Since the last reset.
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub recovery: Option<Recovery>,
    /// `None`: the list could not be read, which is not the same as no process.
    pub processes: Option<Vec<ProcessUse>>,
}

impl GpuReading {
    /// A reading that found nothing but this.
    pub fn unreachable(uuid: &str, reach: Reach) -> Self {
        Self {
            uuid: uuid.to_owned(),
            reach,
            used_bytes: None,
            sm_percent: None,
            temperature_celsius: None,
            power_milliwatts: None,
            slowed_down: false,
            ecc_corrected: None,
            ecc_uncorrected: None,
            recovery: None,
            processes: None,
        }
    }
}

/// An event that NVML reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    Xid { uuid: String, xid: u64 },
    EccDoubleBit { uuid: String },
}

/// Whether work may run on a GPU, with the reason (a constant of `stowage_crds::conditions`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    /// Empty when healthy.
    pub reason: &'static str,
    pub message: String,
    pub since: jiff::Timestamp,
}

pub use stowage_crds::gpu_node::Health;

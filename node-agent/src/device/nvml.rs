//! The only file that calls NVML. Turns its answers into [`crate::device::model`]; decides nothing.
//!
//! On a simulated node another library is loaded and nothing else differs. Calls block, so this
//! runs on threads of its own. A call that a GPU does not support leaves its field empty; only
//! "cannot be reached" has a value of its own, because it is a verdict on the GPU and not on the call.

use std::path::Path;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, EventSet, Nvml};

use crate::device::model::{DeviceEvent, GpuFacts, GpuReading, ProcessUse, Reach, Recovery};

/// NVML has at most this many links per GPU (`NVML_NVLINK_MAX_LINKS`).
const MAX_LINKS: u32 = 18;
/// MIG profile indices that name whole slices (1, 2, 3, 4, 7, 8, 6, and the 1-slice variants).
const MIG_PROFILES: u32 = 10;

/// NVML cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot load or initialise NVML ({library}); is the driver installed, or --simulated-profile meant?")]
    Init { library: String, source: NvmlError },
    #[error("cannot list the GPUs")]
    List(#[source] NvmlError),
}

/// An initialised NVML.
pub struct Reader {
    nvml: Nvml,
}

impl Reader {
    /// `library`: the file to load; `None` is the driver's `libnvidia-ml.so`.
    pub fn open(library: Option<&Path>) -> Result<Self, OpenError> {
        let mut builder = Nvml::builder();
        if let Some(path) = library {
            builder.lib_path(path.as_os_str());
        }
        let name = library.map_or_else(|| "libnvidia-ml.so".to_owned(), |path| path.display().to_string());
        let nvml = builder.init().map_err(|source| OpenError::Init { library: name, source })?;
        Ok(Self { nvml })
    }

    pub fn driver_version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// What the GPUs are. A GPU that cannot be reached is left out: the caller remembers it.
    pub fn facts(&self) -> Result<Vec<GpuFacts>, OpenError> {
        let count = self.nvml.device_count().map_err(OpenError::List)?;
        Ok((0..count)
            .filter_map(|index| self.nvml.device_by_index(index).ok().and_then(|d| facts(index, &d)))
            .collect())
    }

    /// One reading of each of these GPUs.
    pub fn read(&self, uuids: &[String]) -> Vec<GpuReading> {
        uuids
            .iter()
            .map(|uuid| match self.nvml.device_by_uuid(uuid.as_str()) {
                Ok(device) => reading(uuid, &device),
                Err(err) => GpuReading::unreachable(uuid, unreachable(&err)),
            })
            .collect()
    }

    /// A set of Xid and ECC events of the GPUs that can be registered, and how many could not.
    pub fn events(&self, uuids: &[String]) -> Result<(Events<'_>, usize), NvmlError> {
        let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
        let mut set = self.nvml.create_event_set()?;
        let mut good: Vec<Device<'_>> = Vec::new();
        let mut missed = 0;
        for uuid in uuids {
            let Ok(device) = self.nvml.device_by_uuid(uuid.as_str()) else {
                missed += 1;
                continue;
            };
            match device.register_events(wanted, set) {
                Ok(kept) => {
                    set = kept;
                    good.push(device);
                }
                // A refused registration costs the set: start again with those that worked.
                Err(_) => {
                    missed += 1;
                    set = self.nvml.create_event_set()?;
                    for device in &good {
                        set = device.register_events(wanted, set).map_err(|err| err.error)?;
                    }
                }
            }
        }
        Ok((Events { set }, missed))
    }
}

/// A registered event set.
pub struct Events<'nvml> {
    set: EventSet<'nvml>,
}

impl Events<'_> {
    /// Blocks up to `timeout_ms`; `Ok(None)` when nothing came.
    pub fn wait(&self, timeout_ms: u32) -> Result<Option<DeviceEvent>, NvmlError> {
        let event = match self.set.wait(timeout_ms) {
            Ok(event) => event,
            Err(NvmlError::Timeout) => return Ok(None),
            Err(err) => return Err(err),
        };
        let uuid = event.device.uuid()?;
        if event.event_type.contains(EventTypes::CRITICAL_XID_ERROR) {
            // 999 is NVML's number for "unknown", and ours.
            let xid = match event.event_data {
                Some(XidError::Value(xid)) => xid,
                Some(XidError::Unknown) | None => 999,
            };
            return Ok(Some(DeviceEvent::Xid { uuid, xid }));
        }
        let ecc = event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR);
        Ok(ecc.then_some(DeviceEvent::EccDoubleBit { uuid }))
    }
}

fn unreachable(err: &NvmlError) -> Reach {
    match err {
        NvmlError::GpuLost | NvmlError::NotFound => Reach::Lost(err.to_string()),
        _ => Reach::Failed(err.to_string()),
    }
}

fn facts(index: u32, device: &Device<'_>) -> Option<GpuFacts> {
    let memory = device.memory_info().ok()?;
    let links = (0..MAX_LINKS).filter_map(|link| {
        let link = device.link_wrapper_for(link);
        if !link.is_active().ok()? {
            return None;
        }
        Some(bus_id(&link.remote_pci_info().ok()?.bus_id))
    });
    let mut nvlink_bus_ids: Vec<String> = links.collect();
    nvlink_bus_ids.sort();
    nvlink_bus_ids.dedup();
    let mig_enabled = device.mig_mode().ok().map(|mode| mode.current == 1);
    Some(GpuFacts {
        index,
        uuid: device.uuid().ok()?,
        product: device.name().ok()?,
        memory_bytes: memory.total,
        reserved_bytes: memory.reserved,
        sm_count: sm_count(device),
        architecture: device.architecture().ok().map(|a| format!("{a:?}")),
        numa_node: device.numa_node_id().ok(),
        pci_bus_id: device.pci_info().ok().map(|pci| bus_id(&pci.bus_id)),
        nvlink_bus_ids,
        minor: device.minor_number().ok(),
        mig_enabled,
        mig_profiles: if mig_enabled.is_some() { mig_profiles(device) } else { Vec::new() },
    })
}

/// The domain is printed with 4 or with 8 digits, in either case.
fn bus_id(text: &str) -> String {
    let text = text.to_ascii_uppercase();
    text.split_once(':').map_or(text.clone(), |(domain, rest)| format!("{:0>8}:{rest}", domain))
}

/// NVML counts CUDA cores of a whole GPU, not its multiprocessors: divide by the cores of one.
fn sm_count(device: &Device<'_>) -> u32 {
    let (Ok(cores), Ok(capability)) = (device.num_cores(), device.cuda_compute_capability()) else { return 0 };
    let cores_per_sm = match (capability.major, capability.minor) {
        (7, _) | (8, 0) | (6, 0) => 64,
        (6 | 8..=12, _) => 128,
        _ => return 0,
    };
    cores / cores_per_sm
}

/// Named as the driver's tools name them: `1g.10gb`.
fn mig_profiles(device: &Device<'_>) -> Vec<String> {
    let mut names: Vec<String> = (0..MIG_PROFILES)
        .filter_map(|index| device.profile_info(index).ok())
        .map(|profile| format!("{}g.{}gb", profile.slice_count, profile.memory_size_mb.div_ceil(1024)))
        .collect();
    names.dedup();
    names
}

fn reading(uuid: &str, device: &Device<'_>) -> GpuReading {
    let memory = match device.memory_info() {
        Ok(memory) => memory,
        Err(err) => return GpuReading::unreachable(uuid, unreachable(&err)),
    };
    let slow = ThrottleReasons::HW_SLOWDOWN
        | ThrottleReasons::SW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    GpuReading {
        uuid: uuid.to_owned(),
        reach: Reach::Ok,
        used_bytes: Some(memory.used),
        sm_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_milliwatts: device.power_usage().ok(),
        slowed_down: device.current_throttle_reasons().is_ok_and(|reasons| reasons.intersects(slow)),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        recovery: recovery(device),
        processes: processes(device),
    }
}

fn recovery(device: &Device<'_>) -> Option<Recovery> {
    let values = device.field_values_for(&[FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)]).ok()?;
    let value = values.into_iter().next()?.ok()?.value.ok()?;
    let number = match value {
        SampleValue::U32(number) => u64::from(number),
        SampleValue::U64(number) => number,
        SampleValue::I64(number) => u64::try_from(number).ok()?,
        SampleValue::F64(_) => return None,
    };
    Some(match number {
        0 => Recovery::None,
        3 => Recovery::DrainPeers,
        _ => Recovery::Needed,
    })
}

/// Processes with their memory and their share of the SMs, MPS clients included.
fn processes(device: &Device<'_>) -> Option<Vec<ProcessUse>> {
    let mut found = device.running_compute_processes().ok()?;
    found.extend(device.mps_running_compute_processes().unwrap_or_default());
    let samples = device.process_utilization_stats(None).unwrap_or_default();
    let newest =
        |pid: u32| samples.iter().filter(|s| s.pid == pid).max_by_key(|s| s.timestamp).map_or(0, |s| s.sm_util);
    let used = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        ProcessUse { pid: process.pid, bytes, sm_percent: newest(process.pid).min(100) }
    };
    Some(found.into_iter().map(used).collect())
}

//! The C symbols. Each one checks its pointers, looks the device up in the scenario in force, and
//! fills in the answer; all decisions are in the other modules.
//!
//! A device handle is a number that stands for a uuid, given once and valid for ever, so a handle
//! kept over a change of the scenario means the same device or, when that is gone, `GPU_IS_LOST`.
//!
//! Unsafe is confined to writing through the caller's pointers: every such write is to a pointer
//! that NVML's interface requires to be valid for it, after a check for null.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlEventSet_t, nvmlReturn_t};

use crate::events::EventSet;
use crate::reports::{self, Running};
use crate::scenario::{Architecture, CallError, Device, Measured, ProcessMemory, RecoveryAction, Scenario, Throttle};
use crate::store::Store;

const SUCCESS: nvmlReturn_t = sys::nvmlReturn_enum_NVML_SUCCESS;
const INVALID: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const NOT_SUPPORTED: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const TOO_SMALL: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const LOST: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;

/// How long a look at the processes stays good: one sample of a node asks several times per GPU.
const PROCESSES_FOR: Duration = Duration::from_millis(100);
/// How often a waiting observer looks at the scenario.
const POLL: Duration = Duration::from_millis(50);

struct State {
    store: Store,
    reports: Option<PathBuf>,
    /// How many `nvmlInit` are not yet shut down.
    users: u32,
    processes: Option<(Instant, Arc<Vec<Running>>)>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
/// Handle n (from 1) stands for the uuid at n - 1.
static HANDLES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The scenario in force and what runs on it; what every call starts from.
struct Snapshot {
    scenario: Arc<Scenario>,
    processes: Arc<Vec<Running>>,
}

fn snapshot() -> Result<Snapshot, nvmlReturn_t> {
    let mut state = lock(&STATE);
    let state = state.as_mut().ok_or(sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)?;
    let scenario = state.store.current().ok_or(sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED)?;
    let fresh = state.processes.as_ref().filter(|(at, _)| at.elapsed() < PROCESSES_FOR);
    let processes = match fresh {
        Some((_, processes)) => Arc::clone(processes),
        None => {
            let found = state.reports.as_deref().map(|dir| reports::running(dir, &scenario.reports));
            let found = Arc::new(found.unwrap_or_default());
            state.processes = Some((Instant::now(), Arc::clone(&found)));
            found
        }
    };
    Ok(Snapshot { scenario, processes })
}

fn handle_of(uuid: &str) -> nvmlDevice_t {
    let mut handles = lock(&HANDLES);
    let index = handles.iter().position(|known| known == uuid).unwrap_or_else(|| {
        handles.push(uuid.to_owned());
        handles.len() - 1
    });
    (index + 1) as nvmlDevice_t
}

fn uuid_of(handle: nvmlDevice_t) -> Result<String, nvmlReturn_t> {
    let index = (handle as usize).checked_sub(1).ok_or(INVALID)?;
    lock(&HANDLES).get(index).cloned().ok_or(INVALID)
}

/// Runs a call on one device, after the scenario's errors for it.
fn on_device(
    symbol: &str,
    handle: nvmlDevice_t,
    call: impl FnOnce(&Device, &Snapshot) -> Result<(), nvmlReturn_t>,
) -> nvmlReturn_t {
    let run = || {
        let snapshot = snapshot()?;
        let uuid = uuid_of(handle)?;
        let device = snapshot.scenario.devices.iter().find(|device| device.uuid == uuid).ok_or(LOST)?;
        usable(symbol, device)?;
        call(device, &snapshot)
    };
    code(run())
}

fn usable(symbol: &str, device: &Device) -> Result<(), nvmlReturn_t> {
    if device.lost {
        return Err(LOST);
    }
    match device.errors.get(symbol) {
        None => Ok(()),
        Some(CallError::NotSupported) => Err(NOT_SUPPORTED),
        Some(CallError::NoPermission) => Err(sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION),
        Some(CallError::GpuIsLost) => Err(LOST),
        Some(CallError::ResetRequired) => Err(sys::nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED),
        Some(CallError::Timeout) => Err(sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT),
        Some(CallError::FunctionNotFound) => Err(sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND),
        Some(CallError::Unknown) => Err(sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN),
    }
}

fn code(result: Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    result.map_or_else(|err| err, |()| SUCCESS)
}

/// Writes one answer.
fn put<T>(to: *mut T, value: T) -> Result<(), nvmlReturn_t> {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and NVML's interface requires it to be valid for a write of `T`.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a list as NVML does: `count` holds the room there is, and becomes the number needed.
fn put_list<T>(to: *mut T, count: *mut c_uint, items: Vec<T>) -> Result<(), nvmlReturn_t> {
    if count.is_null() {
        return Err(INVALID);
    }
    let needed = items.len() as c_uint;
    // SAFETY: not null, and required to be valid for reads and writes.
    let room = unsafe { count.replace(needed) };
    if needed == 0 {
        return Ok(());
    }
    if room < needed || to.is_null() {
        return Err(TOO_SMALL);
    }
    for (index, item) in items.into_iter().enumerate() {
        // SAFETY: index < needed ≤ room, and `to` is required to have room for that many.
        unsafe { to.add(index).write(item) };
    }
    Ok(())
}

/// Writes a C string with its terminator.
fn put_text(to: *mut c_char, room: c_uint, text: &str) -> Result<(), nvmlReturn_t> {
    if to.is_null() {
        return Err(INVALID);
    }
    if text.len() >= room as usize {
        return Err(TOO_SMALL);
    }
    for (index, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: index ≤ text.len() < room.
        unsafe { to.add(index).write(byte as c_char) };
    }
    Ok(())
}

// === Library and system ===

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    let mut state = lock(&STATE);
    if let Some(state) = state.as_mut() {
        state.users += 1;
        return SUCCESS;
    }
    let Some(path) = std::env::var_os(crate::SCENARIO_ENV) else {
        return sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
    };
    let mut store = Store::new(path);
    if store.current().is_none() {
        return sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
    }
    let reports = std::env::var_os(crate::REPORTS_ENV).map(PathBuf::from);
    *state = Some(State { store, reports, users: 1, processes: None });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    let mut state = lock(&STATE);
    match state.as_mut() {
        None => return sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
        Some(inner) => inner.users -= 1,
    }
    if state.as_ref().is_some_and(|inner| inner.users == 0) {
        *state = None;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    code(snapshot().and_then(|s| put_text(version, length, &s.scenario.driver_version)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    code(snapshot().and_then(|s| put_text(version, length, &format!("13.{}", s.scenario.driver_version))))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // NVML writes 13.2 as 13020.
    let number = |text: &str| {
        let mut parts = text.splitn(2, '.').map(|part| part.parse::<c_int>().unwrap_or(0));
        parts.next().unwrap_or(0).saturating_mul(1000).saturating_add(parts.next().unwrap_or(0).saturating_mul(10))
    };
    code(snapshot().and_then(|s| put(version, number(&s.scenario.cuda_version))))
}

// === Finding devices ===

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    code(snapshot().and_then(|s| put(count, s.scenario.devices.len() as c_uint)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut nvmlDevice_t) -> nvmlReturn_t {
    let run = || {
        let snapshot = snapshot()?;
        let device = snapshot.scenario.devices.get(index as usize).ok_or(INVALID)?;
        usable("nvmlDeviceGetHandleByIndex_v2", device)?;
        put(handle, handle_of(&device.uuid))
    };
    code(run())
}

/// # Safety
/// `uuid` must be null or a C string, as NVML requires.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, handle: *mut nvmlDevice_t) -> nvmlReturn_t {
    if uuid.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and the caller passes a C string.
    let wanted = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let run = || {
        let snapshot = snapshot()?;
        let found = snapshot.scenario.devices.iter().find(|device| device.uuid == wanted);
        let device = found.ok_or(sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND)?;
        usable("nvmlDeviceGetHandleByUUID", device)?;
        put(handle, handle_of(&device.uuid))
    };
    code(run())
}

// === What a device is ===

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetUUID", device, |d, _| put_text(uuid, length, &d.uuid))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetName", device, |d, _| put_text(name, length, &d.product))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetIndex", device, |d, s| put(index, index_of(d, s)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMinorNumber", device, |d, s| put(minor, index_of(d, s)))
}

fn index_of(device: &Device, snapshot: &Snapshot) -> c_uint {
    snapshot.scenario.devices.iter().position(|other| other.uuid == device.uuid).unwrap_or(0) as c_uint
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPciInfo_v3", device, |d, s| put(pci, pci_info(index_of(d, s))))
}

/// One bus per device, from 0x10 on.
fn pci_info(index: c_uint) -> sys::nvmlPciInfo_t {
    let bus = 0x10 + index;
    // SAFETY: plain data, zeroes are valid.
    let mut info: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
    fill(&mut info.busIdLegacy, &format!("0000:{bus:02X}:00.0"));
    fill(&mut info.busId, &format!("00000000:{bus:02X}:00.0"));
    info.bus = bus;
    info.pciDeviceId = 0x2330_10de;
    info
}

fn fill(to: &mut [c_char], text: &str) {
    let room = to.len() - 1;
    for (cell, byte) in to.iter_mut().take(room).zip(text.bytes()) {
        *cell = byte as c_char;
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumaNodeId(device: nvmlDevice_t, node: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNumaNodeId", device, |d, _| put(node, d.numa.ok_or(NOT_SUPPORTED)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetArchitecture(device: nvmlDevice_t, architecture: *mut c_uint) -> nvmlReturn_t {
    let number = |a| match a {
        Architecture::Turing => sys::NVML_DEVICE_ARCH_TURING,
        Architecture::Ampere => sys::NVML_DEVICE_ARCH_AMPERE,
        Architecture::Ada => sys::NVML_DEVICE_ARCH_ADA,
        Architecture::Hopper => sys::NVML_DEVICE_ARCH_HOPPER,
        Architecture::Blackwell => sys::NVML_DEVICE_ARCH_BLACKWELL,
    };
    on_device("nvmlDeviceGetArchitecture", device, |d, _| put(architecture, number(d.architecture)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCudaComputeCapability", device, |d, _| {
        let (high, low, _) = capability(d.architecture);
        put(major, high)?;
        put(minor, low)
    })
}

/// Compute capability, and CUDA cores per SM.
fn capability(architecture: Architecture) -> (c_int, c_int, u32) {
    match architecture {
        Architecture::Turing => (7, 5, 64),
        Architecture::Ampere => (8, 0, 64),
        Architecture::Ada => (8, 9, 128),
        Architecture::Hopper => (9, 0, 128),
        Architecture::Blackwell => (10, 0, 128),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumGpuCores(device: nvmlDevice_t, cores: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNumGpuCores", device, |d, _| {
        put(cores, d.sm_count.saturating_mul(capability(d.architecture).2))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMigMode", device, |d, _| {
        let enabled = c_uint::from(d.mig.as_ref().ok_or(NOT_SUPPORTED)?.enabled);
        put(current, enabled)?;
        put(pending, enabled)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxMigDeviceCount", device, |d, _| put(count, if d.mig.is_some() { 7 } else { 0 }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut sys::nvmlGpuInstanceProfileInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceProfileInfo", device, |d, _| {
        let mig = d.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        let found = mig.profiles.iter().find(|p| p.index == profile).ok_or(NOT_SUPPORTED)?;
        // SAFETY: plain data, zeroes are valid.
        let mut answer: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        answer.id = found.id;
        answer.sliceCount = found.slices;
        answer.instanceCount = found.instances;
        answer.multiprocessorCount = found.sm_count;
        answer.memorySizeMB = found.memory_mib;
        put(info, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    level: *mut sys::nvmlGpuTopologyLevel_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTopologyCommonAncestor", one, |a, s| {
        let uuid = uuid_of(other)?;
        let b = s.scenario.devices.iter().find(|d| d.uuid == uuid).ok_or(LOST)?;
        let found = if a.uuid == b.uuid {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL
        } else if a.numa == b.numa {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE
        } else {
            sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM
        };
        put(level, found)
    })
}

/// The devices at the other end of a device's links: all others of its island, link n to the n-th.
fn link_peer(device: &Device, snapshot: &Snapshot, link: c_uint) -> Option<c_uint> {
    let island = device.nvlink_island?;
    let peers = snapshot.scenario.devices.iter().enumerate();
    let peers = peers.filter(|(_, d)| d.nvlink_island == Some(island) && d.uuid != device.uuid);
    peers.map(|(index, _)| index as c_uint).nth(link as usize)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: *mut sys::nvmlEnableState_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNvLinkState", device, |d, s| {
        if d.nvlink_island.is_none() {
            return Err(NOT_SUPPORTED);
        }
        put(active, sys::nvmlEnableState_t::from(link_peer(d, s, link).is_some()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    pci: *mut sys::nvmlPciInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, |d, s| {
        put(pci, pci_info(link_peer(d, s, link).ok_or(NOT_SUPPORTED)?))
    })
}

// === How a device fares ===

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, info: *mut sys::nvmlMemory_v2_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMemoryInfo_v2", device, |d, s| {
        let (used, free) = memory(d, s);
        let version = (size_of::<sys::nvmlMemory_v2_t>() | (2 << 24)) as c_uint;
        put(info, sys::nvmlMemory_v2_t { version, total: d.memory_bytes, reserved: d.reserved_bytes, free, used })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, info: *mut sys::nvmlMemory_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMemoryInfo", device, |d, s| {
        let (used, free) = memory(d, s);
        put(info, sys::nvmlMemory_t { total: d.memory_bytes, used, free })
    })
}

fn memory(device: &Device, snapshot: &Snapshot) -> (c_ulonglong, c_ulonglong) {
    let room = device.memory_bytes - device.reserved_bytes;
    let processes = processes_on(device, snapshot, None);
    let used = processes.iter().fold(0u64, |sum, p| sum.saturating_add(p.bytes)).min(room);
    (used, room - used)
}

/// What runs on the device; `mps` chooses the clients of the MPS server or the others.
fn processes_on(device: &Device, snapshot: &Snapshot, mps: Option<bool>) -> Vec<Running> {
    let reporting = snapshot.processes.iter().filter(|p| p.uuid == device.uuid && mps != Some(true)).cloned();
    let listed = snapshot.scenario.processes.iter().filter(|p| p.uuid == device.uuid);
    let listed = listed.filter(|p| mps.is_none_or(|mps| mps == p.mps)).filter_map(|p| {
        let bytes = match p.memory {
            ProcessMemory::Bytes(bytes) => bytes,
            ProcessMemory::Measured(Measured::Rss) => reports::resident(p.pid)?,
        };
        Some(Running { pid: p.pid, uuid: p.uuid.clone(), bytes, sm_percent: p.sm_percent.min(100) })
    });
    reporting.chain(listed).collect()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    rates: *mut sys::nvmlUtilization_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetUtilizationRates", device, |d, s| {
        let busy: u32 = processes_on(d, s, None).iter().map(|p| p.sm_percent).sum();
        put(rates, sys::nvmlUtilization_t { gpu: busy.min(100), memory: (busy / 2).min(100) })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTemperature(device: nvmlDevice_t, sensor: c_uint, celsius: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTemperature", device, |d, _| match sensor {
        0 => put(celsius, d.temperature_celsius),
        _ => Err(INVALID),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, milliwatts: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPowerUsage", device, |d, _| put(milliwatts, d.power_milliwatts))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    let bit = |throttle: &Throttle| match throttle {
        Throttle::SwPowerCap => sys::nvmlClocksThrottleReasonSwPowerCap,
        Throttle::HwSlowdown => sys::nvmlClocksThrottleReasonHwSlowdown,
        Throttle::SwThermalSlowdown => sys::nvmlClocksThrottleReasonSwThermalSlowdown,
        Throttle::HwThermalSlowdown => sys::nvmlClocksThrottleReasonHwThermalSlowdown,
        Throttle::HwPowerBrake => sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    };
    on_device("nvmlDeviceGetCurrentClocksThrottleReasons", device, |d, _| {
        put(reasons, d.throttle.iter().fold(0, |mask, t| mask | c_ulonglong::from(bit(t))))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetEccMode(
    device: nvmlDevice_t,
    current: *mut sys::nvmlEnableState_t,
    pending: *mut sys::nvmlEnableState_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetEccMode", device, |d, _| {
        put(current, u32::from(!d.ecc.disabled))?;
        put(pending, u32::from(!d.ecc.disabled))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: sys::nvmlMemoryErrorType_t,
    counter: sys::nvmlEccCounterType_t,
    errors: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTotalEccErrors", device, |d, _| {
        if d.ecc.disabled {
            return Err(NOT_SUPPORTED);
        }
        let uncorrected = sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED;
        let aggregate = sys::nvmlEccCounterType_enum_NVML_AGGREGATE_ECC;
        put(
            errors,
            match (kind == uncorrected, counter == aggregate) {
                (false, false) => d.ecc.volatile_corrected,
                (true, false) => d.ecc.volatile_uncorrected,
                (false, true) => d.ecc.aggregate_corrected,
                (true, true) => d.ecc.aggregate_uncorrected,
            },
        )
    })
}

/// Only the field that says whether the driver wants the GPU reset; others are not supported.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut sys::nvmlFieldValue_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetFieldValues", device, |d, _| {
        if count <= 0 || values.is_null() {
            return Err(INVALID);
        }
        let action = match d.recovery() {
            RecoveryAction::None => sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NONE,
            RecoveryAction::Reset => sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_GPU_RESET,
            RecoveryAction::Reboot => sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NODE_REBOOT,
            RecoveryAction::DrainP2p => sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_P2P,
            RecoveryAction::DrainAndReset => {
                sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET
            }
        };
        for index in 0..count as usize {
            // SAFETY: the caller passes `count` initialised values.
            let value = unsafe { &mut *values.add(index) };
            if value.fieldId == sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION {
                value.valueType = sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
                value.value.uiVal = action;
                value.nvmlReturn = SUCCESS;
            } else {
                value.nvmlReturn = NOT_SUPPORTED;
            }
        }
        Ok(())
    })
}

// === Processes ===

fn process_infos(device: &Device, snapshot: &Snapshot, mps: bool) -> Vec<sys::nvmlProcessInfo_t> {
    let none = c_uint::MAX;
    let info = |p: Running| sys::nvmlProcessInfo_t {
        pid: p.pid,
        usedGpuMemory: p.bytes,
        gpuInstanceId: none,
        computeInstanceId: none,
    };
    processes_on(device, snapshot, Some(mps)).into_iter().map(info).collect()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut sys::nvmlProcessInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetComputeRunningProcesses_v3", device, |d, s| {
        put_list(infos, count, process_infos(d, s, false))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut sys::nvmlProcessInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |d, s| {
        put_list(infos, count, process_infos(d, s, true))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    samples: *mut sys::nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    _since: c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetProcessUtilization", device, |d, s| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_micros() as u64);
        let sample = |p: Running| sys::nvmlProcessUtilizationSample_t {
            pid: p.pid,
            timeStamp: now,
            smUtil: p.sm_percent,
            memUtil: p.sm_percent / 2,
            encUtil: 0,
            decUtil: 0,
        };
        put_list(samples, count, processes_on(d, s, None).into_iter().map(sample).collect())
    })
}

// === Events ===

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let made = || {
        snapshot()?;
        if set.is_null() {
            return Err(INVALID);
        }
        put(set, Box::into_raw(Box::new(Mutex::new(EventSet::default()))).cast())
    };
    code(made())
}

/// The set behind a handle.
///
/// # Safety
/// `set` must be null or come from `nvmlEventSetCreate` and not be freed.
unsafe fn event_set<'a>(set: nvmlEventSet_t) -> Option<&'a Mutex<EventSet>> {
    // SAFETY: by the contract above it is null or points to a live `Mutex<EventSet>`.
    unsafe { set.cast::<Mutex<EventSet>>().as_ref() }
}

/// # Safety
/// `set` must be a live event set, as NVML requires.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    // SAFETY: passed on to the caller.
    let Some(set) = (unsafe { event_set(set) }) else {
        return INVALID;
    };
    on_device("nvmlDeviceRegisterEvents", device, |d, _| {
        lock(set).register(&d.uuid, types);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, types: *mut c_ulonglong) -> nvmlReturn_t {
    on_device("nvmlDeviceGetSupportedEventTypes", device, |_, _| put(types, crate::events::SUPPORTED))
}

/// # Safety
/// `set` must be a live event set, as NVML requires; it is not freed while this waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut sys::nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    // SAFETY: passed on to the caller.
    let Some(set) = (unsafe { event_set(set) }) else {
        return INVALID;
    };
    let deadline = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let scenario = match snapshot() {
            Ok(snapshot) => snapshot.scenario,
            Err(err) => return err,
        };
        if let Some(event) = lock(set).next(&scenario) {
            return code(put(
                data,
                sys::nvmlEventData_t {
                    device: handle_of(&event.uuid),
                    eventType: event.kind,
                    eventData: event.data,
                    gpuInstanceId: c_uint::MAX,
                    computeInstanceId: c_uint::MAX,
                },
            ));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// # Safety
/// `set` must be a live event set; it is dead afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    if set.is_null() {
        return INVALID;
    }
    // SAFETY: by the contract it came from `Box::into_raw` in `nvmlEventSetCreate`.
    drop(unsafe { Box::from_raw(set.cast::<Mutex<EventSet>>()) });
    SUCCESS
}

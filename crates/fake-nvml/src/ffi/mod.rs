//! The C symbols. Each one checks its pointers, looks the device up in the scenario in force, and
//! fills in the answer; all decisions are in the other modules.
//!
//! A device handle is a number that stands for a uuid, given once and valid for ever, so a handle
//! kept over a change of the scenario means the same device or, when that is gone, `GPU_IS_LOST`.
//!
//! Unsafe is confined to writing through the caller's pointers: every such write is to a pointer
//! that NVML's interface requires to be valid for it, after a check for null.

mod events;
mod facts;
mod readings;

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlEventSet_t, nvmlReturn_t};

use crate::events::EventSet;
use crate::reports::{self, Running};
use stowage_gpu_scenario::scenario::{
    Architecture, CallError, Device, Measured, ProcessMemory, RecoveryAction, Scenario, Throttle,
};
use stowage_gpu_scenario::{REPORTS_ENV, SCENARIO_ENV, Store};

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
    /// `/proc`, or what stands for it in tests.
    proc: PathBuf,
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

/// The scenario in force; what every call starts from.
struct Snapshot {
    scenario: Arc<Scenario>,
}

fn snapshot() -> Result<Snapshot, nvmlReturn_t> {
    let mut state = lock(&STATE);
    let state = state.as_mut().ok_or(sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)?;
    let scenario = state.store.current().ok_or(sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED)?;
    Ok(Snapshot { scenario })
}

/// What runs on the GPUs of claims. Looked up only by calls that need it: it reads all of `/proc`.
fn processes(scenario: &Scenario) -> Arc<Vec<Running>> {
    let mut state = lock(&STATE);
    let Some(state) = state.as_mut() else { return Arc::default() };
    if let Some((_, processes)) = state.processes.as_ref().filter(|(at, _)| at.elapsed() < PROCESSES_FOR) {
        return Arc::clone(processes);
    }
    let found = state.reports.as_deref().map(|dir| reports::running(dir, &state.proc, &scenario.reports));
    let found = Arc::new(found.unwrap_or_default());
    state.processes = Some((Instant::now(), Arc::clone(&found)));
    found
}

/// The resident set of a process.
fn resident(pid: u32) -> Option<u64> {
    let proc = lock(&STATE).as_ref()?.proc.clone();
    reports::resident(&proc, pid)
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
    let Some(path) = std::env::var_os(SCENARIO_ENV) else {
        return sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
    };
    let mut store = Store::new(path);
    if store.current().is_none() {
        return sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
    }
    let reports = std::env::var_os(REPORTS_ENV).map(PathBuf::from);
    let proc = std::env::var_os(crate::PROC_ENV).map_or_else(|| PathBuf::from("/proc"), PathBuf::from);
    *state = Some(State { store, reports, proc, users: 1, processes: None });
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

//! How a device fares and what runs on it.

use super::*;

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
    let reporting = processes(&snapshot.scenario);
    let reporting = reporting.iter().filter(|p| p.uuid == device.uuid && mps != Some(true)).cloned();
    let listed = snapshot.scenario.processes.iter().filter(|p| p.uuid == device.uuid);
    let listed = listed.filter(|p| mps.is_none_or(|mps| mps == p.mps)).filter_map(|p| {
        let bytes = match p.memory {
            ProcessMemory::Bytes(bytes) => bytes,
            ProcessMemory::Measured(Measured::Rss) => resident(p.pid)?,
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

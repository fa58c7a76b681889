//! Waiting for events.

use super::*;

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

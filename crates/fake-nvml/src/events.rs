//! Event sets: which faults of the scenario an observer has not received yet.
//!
//! Pure bookkeeping; the waiting is done by the caller. An Xid is reported once per set. A rise of the
//! volatile uncorrected ECC counter is reported as a double-bit error, a rise of the corrected one as a
//! single-bit error. Faults that are listed when a device is registered are reported as well: they say
//! what state the GPU is in.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper_sys::bindings as sys;

use stowage_gpu_scenario::scenario::Scenario;

/// All that is reported here, as NVML's mask of event types.
pub const SUPPORTED: u64 = (sys::nvmlEventTypeXidCriticalError
    | sys::nvmlEventTypeDoubleBitEccError
    | sys::nvmlEventTypeSingleBitEccError) as u64;

/// Something that happened to a device.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub uuid: String,
    /// One of NVML's event types.
    pub kind: u64,
    /// The Xid number; 0 for other kinds.
    pub data: u64,
}

/// What one observer registered for and has been reported.
#[derive(Debug, Default)]
pub struct EventSet {
    /// uuid → mask of event types.
    registered: BTreeMap<String, u64>,
    reported: BTreeSet<(String, u64)>,
    /// uuid → (corrected, uncorrected) volatile ECC errors as last reported.
    ecc: BTreeMap<String, (u64, u64)>,
}

impl EventSet {
    pub fn register(&mut self, uuid: &str, mask: u64) {
        *self.registered.entry(uuid.to_owned()).or_default() |= mask;
    }

    /// The next event that was not reported, if any; it counts as reported afterwards.
    pub fn next(&mut self, scenario: &Scenario) -> Option<Event> {
        self.forget_cleared(scenario);
        self.next_xid(scenario).or_else(|| self.next_ecc(scenario))
    }

    /// An event that was taken out of the scenario and put in again is a new one.
    fn forget_cleared(&mut self, scenario: &Scenario) {
        self.reported.retain(|(uuid, id)| {
            scenario.devices.iter().any(|d| d.uuid == *uuid && d.xid_events.iter().any(|event| event.id == *id))
        });
    }

    fn next_xid(&mut self, scenario: &Scenario) -> Option<Event> {
        let kind = u64::from(sys::nvmlEventTypeXidCriticalError);
        for device in &scenario.devices {
            if self.registered.get(&device.uuid).is_none_or(|mask| mask & kind == 0) {
                continue;
            }
            for event in &device.xid_events {
                if self.reported.insert((device.uuid.clone(), event.id)) {
                    return Some(Event { uuid: device.uuid.clone(), kind, data: event.xid });
                }
            }
        }
        None
    }

    fn next_ecc(&mut self, scenario: &Scenario) -> Option<Event> {
        for device in &scenario.devices {
            let Some(mask) = self.registered.get(&device.uuid).copied() else {
                continue;
            };
            let now = (device.ecc.volatile_corrected, device.ecc.volatile_uncorrected);
            let reported = self.ecc.entry(device.uuid.clone()).or_insert((0, 0));
            // Fewer than reported: the counters were reset.
            reported.0 = reported.0.min(now.0);
            reported.1 = reported.1.min(now.1);
            let event = |kind: u32| Some(Event { uuid: device.uuid.clone(), kind: u64::from(kind), data: 0 });
            if now.1 > reported.1 {
                reported.1 = now.1;
                if mask & u64::from(sys::nvmlEventTypeDoubleBitEccError) != 0 {
                    return event(sys::nvmlEventTypeDoubleBitEccError);
                }
            }
            if now.0 > reported.0 {
                reported.0 = now.0;
                if mask & u64::from(sys::nvmlEventTypeSingleBitEccError) != 0 {
                    return event(sys::nvmlEventTypeSingleBitEccError);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_gpu_scenario::Profile;
    use stowage_gpu_scenario::scenario::XidEvent;

    fn with_xid(ids: &[u64]) -> Scenario {
        let mut scenario = Profile::L4x1.scenario("n");
        scenario.devices[0].xid_events = ids.iter().map(|id| XidEvent { id: *id, xid: 79, at: None }).collect();
        scenario
    }

    fn registered() -> EventSet {
        let mut set = EventSet::default();
        set.register(&Profile::L4x1.scenario("n").devices[0].uuid, SUPPORTED);
        set
    }

    #[test]
    fn xid_is_reported_once_and_again_after_a_reset() {
        let mut set = registered();
        assert_eq!(set.next(&with_xid(&[1, 2])).unwrap().data, 79);
        assert!(set.next(&with_xid(&[1, 2])).is_some());
        assert_eq!(set.next(&with_xid(&[1, 2])), None);
        assert_eq!(set.next(&with_xid(&[])), None);
        assert!(set.next(&with_xid(&[1])).is_some());
    }

    #[test]
    fn unregistered_devices_are_silent() {
        assert_eq!(EventSet::default().next(&with_xid(&[1])), None);
    }

    #[test]
    fn rise_of_the_ecc_counter_is_reported_once() {
        let mut set = registered();
        let with = |uncorrected| {
            let mut scenario = Profile::L4x1.scenario("n");
            scenario.devices[0].ecc.volatile_uncorrected = uncorrected;
            scenario
        };
        assert_eq!(set.next(&with(0)), None);
        assert_eq!(set.next(&with(3)).unwrap().kind, u64::from(sys::nvmlEventTypeDoubleBitEccError));
        assert_eq!(set.next(&with(3)), None);
        assert_eq!(set.next(&with(0)), None);
        assert!(set.next(&with(1)).is_some());
    }
}

//! The state of the node, from readings, events and the checkpoint, once a second.
//!
//! [`NodeState`] keeps what has to be remembered between seconds (verdicts, rows of overshooting
//! samples); [`NodeView`] is one immutable state that metrics, summary and GpuNode are made from.
//! Which process belongs to which claim is an argument, so all of this is a function of its input.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use stowage_crds::conditions::reasons;

use crate::device::health::{HealthBook, XidClass, classify};
use crate::device::model::{DeviceEvent, GpuFacts, GpuReading, Health, Reach, Verdict};
use crate::dra::checkpoint::Checkpoint;
use crate::dra::prepare::{Refusals, Unprepared};
use crate::models::ModelsState;
use crate::usage::overshoot::{Detector, Overshoot, Use};

/// A fault of the agent itself, as its summary, metric and condition report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    NvmlUnavailable,
    ScenarioInvalid,
    CheckpointRebuilt,
    /// Another driver or plugin publishes this node's GPUs; this agent only watches.
    ManagedElsewhere,
    ApiServer,
}

impl Trouble {
    pub const ALL: [Self; 5] = [
        Self::NvmlUnavailable,
        Self::ScenarioInvalid,
        Self::CheckpointRebuilt,
        Self::ManagedElsewhere,
        Self::ApiServer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NvmlUnavailable => reasons::NVML_UNAVAILABLE,
            Self::ScenarioInvalid => reasons::SCENARIO_INVALID,
            Self::CheckpointRebuilt => reasons::CHECKPOINT_REBUILT,
            Self::ManagedElsewhere => reasons::MANAGED_ELSEWHERE,
            Self::ApiServer => reasons::API_SERVER,
        }
    }
}

/// While it wants a claim, the kubelet asks again within 90 s; after so long it does not want it any more.
const STILL_WANTED: SignedDuration = SignedDuration::from_secs(180);

/// Finds the claim uid of a pid.
pub trait Attribution {
    fn claim_of(&self, pid: u32, checkpoint: &Checkpoint) -> Option<String>;
}

/// What a claim uses of a GPU. `None`: the processes could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimUse {
    pub claim_uid: String,
    pub gpu: String,
    pub used: Option<Used>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub bytes: u64,
    pub sm_percent: u32,
}

/// The state of the node at one time.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub at: Timestamp,
    pub simulated: bool,
    pub driver_version: Option<String>,
    pub facts: Vec<GpuFacts>,
    pub verdicts: BTreeMap<String, Verdict>,
    /// By uuid, the last reading that reached the GPU and when.
    pub readings: BTreeMap<String, (Timestamp, GpuReading)>,
    pub checkpoint: std::sync::Arc<Checkpoint>,
    pub uses: Vec<ClaimUse>,
    pub overshoots: Vec<Overshoot>,
    /// Claims that the kubelet wants and does not get, by uid.
    pub refusals: BTreeMap<String, Unprepared>,
    pub troubles: BTreeMap<Trouble, (Timestamp, String)>,
    /// Xid errors, by (uuid, class).
    pub xids: BTreeMap<(String, &'static str), u64>,
    /// Memory of processes of no claim, bytes by uuid.
    pub unattributed: BTreeMap<String, u64>,
    pub models: ModelsState,
}

impl NodeView {
    pub fn empty(simulated: bool, at: Timestamp) -> Self {
        Self {
            at,
            simulated,
            driver_version: None,
            facts: Vec::new(),
            verdicts: BTreeMap::new(),
            readings: BTreeMap::new(),
            checkpoint: std::sync::Arc::default(),
            uses: Vec::new(),
            overshoots: Vec::new(),
            refusals: BTreeMap::new(),
            troubles: BTreeMap::new(),
            xids: BTreeMap::new(),
            unattributed: BTreeMap::new(),
            models: ModelsState::default(),
        }
    }
}

/// What is kept between readings.
pub struct NodeState {
    health: HealthBook,
    detector: Detector,
    pub view: NodeView,
}

impl NodeState {
    pub fn new(simulated: bool, now: Timestamp) -> Self {
        Self { health: HealthBook::default(), detector: Detector::default(), view: NodeView::empty(simulated, now) }
    }

    pub fn facts(&mut self, facts: Vec<GpuFacts>, driver_version: Option<String>) {
        self.view.facts = facts;
        self.view.driver_version = driver_version;
    }

    pub fn event(&mut self, event: &DeviceEvent, now: Timestamp) {
        match event {
            DeviceEvent::Xid { uuid, xid } => {
                *self.view.xids.entry((uuid.clone(), class_name(classify(*xid)))).or_default() += 1;
                self.health.xid(uuid, *xid, now);
            }
            // The next reading has the counter: how many, and 0 after a reset.
            DeviceEvent::EccDoubleBit { .. } => {}
        }
        self.judge();
    }

    pub fn trouble(&mut self, trouble: Trouble, message: Option<String>, now: Timestamp) {
        match message {
            None => drop(self.view.troubles.remove(&trouble)),
            Some(message) => {
                let entry = self.view.troubles.entry(trouble).or_insert((now, String::new()));
                entry.1 = message;
            }
        }
        self.judge();
    }

    pub fn refusals(&mut self, refusals: &Refusals, now: Timestamp) {
        let wanted = refusals.iter().filter(|(_, refused)| now.duration_since(refused.asked) < STILL_WANTED);
        self.view.refusals = wanted.map(|(uid, refused)| (uid.clone(), refused.clone())).collect();
    }

    /// One second's readings against what is promised.
    pub fn readings(
        &mut self,
        readings: Vec<GpuReading>,
        checkpoint: std::sync::Arc<Checkpoint>,
        attribution: &dyn Attribution,
        now: Timestamp,
    ) {
        self.view.at = now;
        self.view.checkpoint = checkpoint;
        for reading in &readings {
            self.health.reading(reading, now);
        }
        self.judge();
        self.uses(&readings, attribution);
        self.overshoots(now);
        for reading in readings.into_iter().filter(|reading| reading.reach == Reach::Ok) {
            self.view.readings.insert(reading.uuid.clone(), (now, reading));
        }
    }

    fn uses(&mut self, readings: &[GpuReading], attribution: &dyn Attribution) {
        let checkpoint = &self.view.checkpoint;
        self.view.unattributed.clear();
        let mut found: BTreeMap<(String, &str), Used> = BTreeMap::new();
        for reading in readings {
            for process in reading.processes.iter().flatten() {
                let Some(uid) = attribution.claim_of(process.pid, checkpoint) else {
                    let sum = self.view.unattributed.entry(reading.uuid.clone()).or_default();
                    *sum = sum.saturating_add(process.bytes);
                    continue;
                };
                let sum = found.entry((uid, &reading.uuid)).or_insert(Used { bytes: 0, sm_percent: 0 });
                sum.bytes = sum.bytes.saturating_add(process.bytes);
                sum.sm_percent = sum.sm_percent.saturating_add(process.sm_percent).min(100);
            }
        }
        let read = |gpu: &str| readings.iter().any(|r| r.uuid == gpu && r.processes.is_some());
        let nothing = Used { bytes: 0, sm_percent: 0 };
        let mut uses = Vec::new();
        for (uid, entry) in &checkpoint.claims {
            let mut gpus: Vec<&str> = entry.devices.iter().map(|device| device.uuid.as_str()).collect();
            gpus.sort_unstable();
            gpus.dedup();
            for gpu in gpus {
                let used = found.get(&(uid.clone(), gpu)).copied().unwrap_or(nothing);
                let used = read(gpu).then_some(used);
                uses.push(ClaimUse { claim_uid: uid.clone(), gpu: gpu.to_owned(), used });
            }
        }
        self.view.uses = uses;
    }

    fn overshoots(&mut self, now: Timestamp) {
        let promised = |uid: &str, gpu: &str| -> u64 {
            let devices =
                self.view.checkpoint.claims.get(uid).map(|entry| entry.devices.as_slice()).unwrap_or_default();
            devices.iter().filter(|device| device.uuid == gpu).map(|device| device.memory_bytes).sum()
        };
        let measured = self.view.uses.iter().filter_map(|held| {
            Some(Use {
                claim_uid: held.claim_uid.clone(),
                gpu: held.gpu.clone(),
                promised_bytes: promised(&held.claim_uid, &held.gpu),
                used_bytes: held.used?.bytes,
            })
        });
        let measured: Vec<Use> = measured.collect();
        self.view.overshoots = self.detector.observe(now, &measured);
    }

    /// While the scenario cannot be read, what is shown is old: such GPUs take no new work.
    fn judge(&mut self) {
        self.view.verdicts = self.health.verdicts();
        let Some((since, message)) = self.view.troubles.get(&Trouble::ScenarioInvalid) else { return };
        for verdict in self.view.verdicts.values_mut().filter(|verdict| verdict.health == Health::Healthy) {
            *verdict = Verdict {
                health: Health::Degraded,
                reason: reasons::TELEMETRY_FAILED,
                message: format!("simulated GPUs show what was last known: {message}"),
                since: *since,
            };
        }
    }
}

fn class_name(class: XidClass) -> &'static str {
    match class {
        XidClass::Application => "application",
        XidClass::Attention => "attention",
        XidClass::Ends => "ends",
    }
}

impl XidClass {
    /// All label values of the Xid counter.
    pub const NAMES: [&'static str; 3] = ["application", "attention", "ends"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::fixtures::{ByPid, promised};

    #[test]
    fn gpus_of_an_unreadable_scenario_take_no_new_work_until_it_can_be_read() {
        let mut state = NodeState::new(true, Timestamp::UNIX_EPOCH);
        let read = |state: &mut NodeState, at| {
            state.readings(vec![GpuReading::unreachable("g", Reach::Ok)], promised(&[]), &ByPid, at);
            state.view.verdicts["g"].health
        };
        assert_eq!(read(&mut state, Timestamp::UNIX_EPOCH), Health::Healthy);
        state.trouble(Trouble::ScenarioInvalid, Some("cannot parse".to_owned()), Timestamp::UNIX_EPOCH);
        assert_eq!(read(&mut state, Timestamp::UNIX_EPOCH), Health::Degraded);
        assert!(state.view.verdicts["g"].message.contains("cannot parse"));
        state.trouble(Trouble::ScenarioInvalid, None, Timestamp::UNIX_EPOCH);
        assert_eq!(read(&mut state, Timestamp::UNIX_EPOCH), Health::Healthy);
    }

    #[test]
    fn xid_changes_the_verdict_at_once_and_is_counted_by_class() {
        let mut state = NodeState::new(false, Timestamp::UNIX_EPOCH);
        for xid in [31, 31, 79] {
            state.event(&DeviceEvent::Xid { uuid: "g".to_owned(), xid }, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(state.view.verdicts["g"].health, Health::Unhealthy);
        let counts: Vec<_> = state.view.xids.iter().map(|((_, class), count)| (*class, *count)).collect();
        assert_eq!(counts, [("application", 2), ("ends", 1)]);
    }
}

//! The scenario file: what the simulated GPUs of one node are and what happens to them.
//!
//! JSON, because people and tests edit it while the agent runs; replace it by rename. A fault is a
//! state, not a script: while an Xid event is listed the GPU "needs a reset", taking the event out
//! is the reset. So a test writes the present state, and a restarted agent reads the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The only schema version so far.
pub const VERSION: u32 = 1;

/// More than any machine has; a file beyond it is a mistake.
const MAX_DEVICES: usize = 128;

/// One node's simulated GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    pub version: u32,
    /// The profile it was made from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default = "default_driver")]
    pub driver_version: String,
    /// `major.minor`.
    #[serde(default = "default_cuda")]
    pub cuda_version: String,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub reports: Reports,
    /// Processes beyond those that report themselves.
    #[serde(default)]
    pub processes: Vec<Process>,
}

/// One simulated GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub uuid: String,
    pub product: String,
    /// All of it; what the driver keeps is `reserved_bytes`, included.
    pub memory_bytes: u64,
    #[serde(default)]
    pub reserved_bytes: u64,
    pub sm_count: u32,
    pub architecture: Architecture,
    /// Devices of one island are connected to each other by NVLink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvlink_island: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    #[serde(default = "default_temperature")]
    pub temperature_celsius: u32,
    #[serde(default = "default_power")]
    pub power_milliwatts: u32,
    #[serde(default)]
    pub throttle: Vec<Throttle>,
    #[serde(default)]
    pub ecc: Ecc,
    /// Absent: the product cannot be partitioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Mig>,
    /// Xid errors since the last reset; remove them to reset the GPU.
    #[serde(default)]
    pub xid_events: Vec<XidEvent>,
    /// What the driver asks for; absent: a reset while a listed Xid is one that needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_action: Option<RecoveryAction>,
    /// Fallen off the bus: every call on it answers `GPU_IS_LOST`.
    #[serde(default)]
    pub lost: bool,
    /// Errors of single calls, by symbol: `{"nvmlDeviceGetTemperature": "NotSupported"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, CallError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Throttle {
    SwPowerCap,
    HwSlowdown,
    SwThermalSlowdown,
    HwThermalSlowdown,
    HwPowerBrake,
}

/// ECC counters: volatile ones go back to zero at a reset, aggregate ones stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ecc {
    pub disabled: bool,
    pub volatile_corrected: u64,
    pub volatile_uncorrected: u64,
    pub aggregate_corrected: u64,
    pub aggregate_uncorrected: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mig {
    #[serde(default)]
    pub enabled: bool,
    pub profiles: Vec<MigProfile>,
}

/// A MIG profile, by NVML's profile index (0 = 1 slice, 1 = 2 slices, 2 = 3, 3 = 4, 4 = 7 slices).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigProfile {
    pub index: u32,
    pub id: u32,
    pub slices: u32,
    pub instances: u32,
    pub sm_count: u32,
    pub memory_mib: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct XidEvent {
    /// Tells two events of one kind apart; each (device, id) is delivered once to each event set.
    pub id: u64,
    pub xid: u64,
    /// When it happened, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecoveryAction {
    None,
    Reset,
    Reboot,
    DrainP2p,
    DrainAndReset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallError {
    NotSupported,
    NoPermission,
    GpuIsLost,
    ResetRequired,
    Timeout,
    Unknown,
    /// As if the library lacked the symbol's function.
    FunctionNotFound,
}

/// How the size of self-reporting processes is found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Reports {
    pub memory: ReportedMemory,
    /// Exceptions; the first one that matches decides.
    pub by_claim: Vec<ByClaim>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReportedMemory {
    /// `bytes` of the process' `usage.json`.
    #[default]
    Reported,
    /// The resident set of the process, from `/proc`. Without a lock holder: of all processes in
    /// the claim's pod, so that one that reports nothing is seen too.
    Rss,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ByClaim {
    pub namespace: String,
    /// Empty: every claim of the namespace.
    #[serde(default)]
    pub name_prefix: String,
    pub memory: ReportedMemory,
}

impl Reports {
    pub fn memory_for(&self, namespace: &str, claim: &str) -> ReportedMemory {
        self.by_claim
            .iter()
            .find(|rule| rule.namespace == namespace && claim.starts_with(&rule.name_prefix))
            .map_or(self.memory, |rule| rule.memory)
    }
}

/// A process on a GPU, written into the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    pub uuid: String,
    pub memory: ProcessMemory,
    #[serde(default)]
    pub sm_percent: u32,
    /// A client of the MPS server: listed by the MPS call.
    #[serde(default)]
    pub mps: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProcessMemory {
    Bytes(u64),
    Measured(Measured),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// The resident set, from `/proc/<pid>/statm`; no entry when the process is gone.
    Rss,
}

fn default_driver() -> String {
    "580.65.06".to_owned()
}

fn default_cuda() -> String {
    "13.0".to_owned()
}

fn default_temperature() -> u32 {
    38
}

fn default_power() -> u32 {
    70_000
}

/// Why a scenario file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot parse the scenario (replace the file by rename, a writer in place shows half a file)")]
    Parse(#[from] serde_json::Error),
    #[error("scenario version {0}, this library reads version {VERSION}")]
    Version(u32),
    #[error("scenario has {0} devices, at most {MAX_DEVICES} are possible on one node")]
    TooMany(usize),
    #[error("device uuid {0:?} must be 1 to 79 printable ASCII characters, without repetition")]
    Uuid(String),
    #[error("device {uuid}: {what}")]
    Device { uuid: String, what: &'static str },
}

impl Scenario {
    /// Parses and checks; what passes can be served without further checks.
    pub fn parse(text: &[u8]) -> Result<Self, ScenarioError> {
        let scenario: Self = serde_json::from_slice(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        if self.version != VERSION {
            return Err(ScenarioError::Version(self.version));
        }
        if self.devices.len() > MAX_DEVICES {
            return Err(ScenarioError::TooMany(self.devices.len()));
        }
        let mut seen = BTreeSet::new();
        for device in &self.devices {
            let printable = device.uuid.bytes().all(|b| b.is_ascii_graphic());
            if device.uuid.is_empty() || device.uuid.len() > 79 || !printable || !seen.insert(&device.uuid) {
                return Err(ScenarioError::Uuid(device.uuid.clone()));
            }
            let wrong = |what| ScenarioError::Device { uuid: device.uuid.clone(), what };
            if device.reserved_bytes > device.memory_bytes {
                return Err(wrong("reservedBytes exceeds memoryBytes"));
            }
            if device.product.is_empty() || device.product.len() > 95 || device.product.contains('\0') {
                return Err(wrong("product must have 1 to 95 bytes"));
            }
        }
        Ok(())
    }

    pub fn to_json(&self) -> String {
        // Strings and numbers only: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Device {
    /// What the driver would ask for now.
    pub fn recovery(&self) -> RecoveryAction {
        self.recovery_action.unwrap_or_else(|| {
            if self.xid_events.iter().any(|event| needs_reset(event.xid)) {
                RecoveryAction::Reset
            } else {
                RecoveryAction::None
            }
        })
    }
}

/// Xid numbers after which the GPU is of no use until it is reset.
fn needs_reset(xid: u64) -> bool {
    matches!(xid, 46 | 48 | 61 | 62 | 64 | 79 | 95 | 110 | 119 | 120 | 140)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(json: &str, expect: &str) {
        let got = match Scenario::parse(json.as_bytes()) {
            Ok(scenario) => format!("{} devices", scenario.devices.len()),
            Err(err) => err.to_string(),
        };
        assert!(got.contains(expect), "{json}\n gave: {got}\n want: {expect}");
    }

    const DEVICE: &str = r#""product":"L4","memoryBytes":100,"smCount":58,"architecture":"Ada""#;

    #[test]
    fn broken_files_are_refused_with_the_reason() {
        check("", "cannot parse");
        check(r#"{"version":1,"devices":[]"#, "cannot parse");
        check(r#"{"version":2,"devices":[]}"#, "version 2");
        check(r#"{"version":1,"devices":[],"typo":1}"#, "cannot parse");
        check(&format!(r#"{{"version":1,"devices":[{{"uuid":"",{DEVICE}}}]}}"#), "uuid \"\"");
        check(&format!(r#"{{"version":1,"devices":[{{"uuid":"a",{DEVICE}}},{{"uuid":"a",{DEVICE}}}]}}"#), "uuid \"a\"");
        check(&format!(r#"{{"version":1,"devices":[{{"uuid":"a","reservedBytes":101,{DEVICE}}}]}}"#), "reservedBytes");
        check(&format!(r#"{{"version":1,"devices":[{{"uuid":"a",{DEVICE}}}]}}"#), "1 devices");
    }

    #[test]
    fn first_rule_for_a_claim_decides_how_its_memory_is_found() {
        let reports: Reports = serde_json::from_str(
            r#"{"memory":"reported","byClaim":[{"namespace":"a","namePrefix":"stowage-bad","memory":"rss"}]}"#,
        )
        .unwrap();
        assert_eq!(reports.memory_for("a", "stowage-bad-1"), ReportedMemory::Rss);
        assert_eq!(reports.memory_for("a", "stowage-good"), ReportedMemory::Reported);
        assert_eq!(reports.memory_for("b", "stowage-bad-1"), ReportedMemory::Reported);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Scenario::parse(&bytes);
        }

        #[test]
        fn truncated_scenario_never_parses(cut in 1usize..2000) {
            let text = crate::Profile::Mixed.scenario("node").to_json();
            let cut = cut.min(text.len() - 1);
            prop_assert!(Scenario::parse(&text.as_bytes()[..text.len() - cut]).is_err());
        }
    }
}

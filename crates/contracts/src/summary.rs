//! The node agent's summary: one JSON object about the node, `GET /stowage/v1/summary`, or a stream of
//! JSON lines with `?watch=1`. The agent writes it; the operator reads its evidence from it.
//!
//! Every reading carries its age. Fields that a reader of another version does not know are skipped,
//! and what a writer of another version leaves out has a default, except for what evidence needs.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::ModelKey;

/// What the agent knows of its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Name of the node.
    pub node: String,
    /// The GPUs are simulated.
    #[serde(default)]
    pub simulated: bool,
    /// As NVML reports it; absent: no NVML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// When the summary was made.
    pub at: Timestamp,
    /// One per GPU.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The claims that are prepared here, or about to be.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Claims that use more than was promised.
    #[serde(default)]
    pub overshoots: Vec<Overshooting>,
    /// Claims that cannot be prepared.
    #[serde(default)]
    pub refusals: Vec<Refused>,
    /// Models that claims wait for.
    #[serde(default)]
    pub fetches: Vec<ModelFetch>,
    /// Faults of the agent itself.
    #[serde(default)]
    pub troubles: Vec<Troubled>,
}

/// Whether work may run on a GPU. Also the verdict in a GpuNode's status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(
    inline,
    description = "Healthy takes work, Degraded keeps what it has, Unhealthy is drained and not routed to."
)]
pub enum Health {
    /// Takes work.
    #[default]
    Healthy,
    /// Keeps what it has.
    Degraded,
    /// Is drained and not routed to.
    Unhealthy,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// As NVML prints it.
    pub uuid: String,
    /// Name of the device in ResourceSlices.
    pub name: String,
    /// Product name, as NVML prints it.
    pub product: String,
    /// The verdict.
    pub health: Health,
    /// Reason of the verdict; empty: healthy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Bytes that can be promised.
    pub memory_bytes: u64,
    /// Bytes that are promised to claims.
    pub promised_bytes: u64,
    /// Per cent of the SMs that are promised to claims.
    pub promised_sm_percent: u32,
    /// Bytes in use; absent as long as they were never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Per cent of the SMs in use; absent as long as they were never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_sm_percent: Option<u32>,
    /// Bytes held by processes of no claim.
    #[serde(default)]
    pub unclaimed_bytes: u64,
    /// Absent: not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Absent: not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u32>,
    /// Heat or the power supply holds the clocks down.
    #[serde(default)]
    pub slowed_down: bool,
    /// Age of the reading; absent: there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
}

/// How far the preparation of a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Recorded before anything is made, so that a crash leaves nothing unknown.
    PrepareStarted,
    /// Everything is made; the kubelet has its answer.
    Completed,
}

/// One claim that is prepared here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Of the claim.
    pub uid: String,
    /// Of the claim.
    pub namespace: String,
    /// Of the claim.
    pub name: String,
    /// Name of the pod that reserved it.
    pub pod: String,
    /// How far it is prepared.
    pub stage: Stage,
    /// Its part of each GPU.
    pub devices: Vec<ClaimDevice>,
    /// The commit to which the agent resolved the revision of its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_commit: Option<String>,
}

/// A claim's part of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimDevice {
    /// UUID of the GPU.
    pub gpu: String,
    /// Bytes.
    pub promised_bytes: u64,
    /// Per cent.
    pub promised_sm_percent: u32,
    /// Bytes; absent: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Per cent; absent: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_sm_percent: Option<u32>,
}

/// A claim that uses more than was promised, with the evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overshooting {
    /// Of the claim and its pod.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// UID of the claim.
    pub claim_uid: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// UUID of the GPU.
    pub gpu: String,
    /// Bytes.
    pub promised_bytes: u64,
    /// Bytes beyond the promise that are tolerated.
    pub margin_bytes: u64,
    /// Bytes, as of the last sample.
    pub used_bytes: u64,
    /// Consecutive samples above promise and margin.
    pub samples: u32,
    /// `NVML` or `engine report`.
    pub source: String,
    /// Everything that is promised to others on the GPU would still fit.
    pub headroom: bool,
    /// Of the first of these samples.
    pub since: Timestamp,
    /// The last samples in order of time.
    #[serde(default)]
    pub evidence: Vec<Sample>,
}

/// One reading of a claim's use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// When it was read.
    pub at: Timestamp,
    /// Bytes.
    pub used_bytes: u64,
}

/// A claim that the kubelet wants prepared and this agent cannot prepare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// UID of the claim.
    pub claim_uid: String,
    /// Of the first refusal in a row.
    pub since: Timestamp,
    /// Why, of the last one.
    pub message: String,
}

/// A model that claims of this node wait for. Written anew when it has come some way, not with every byte.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelFetch {
    /// What identifies it.
    pub model: ModelKey,
    /// UIDs of the claims.
    pub claims: Vec<String>,
    /// How far it has come.
    pub phase: FetchPhase,
    /// Bytes on the node's disk.
    #[serde(default)]
    pub bytes: u64,
    /// Length of the file; 0: not known yet.
    #[serde(default)]
    pub total_bytes: u64,
    /// Since the fetch began; 0: not known yet.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a fetch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchPhase {
    /// Others are fetched first.
    Queued,
    /// Bytes are being received.
    Fetching,
    /// The digest is being computed.
    Verifying,
    /// It is tried again later.
    Failed,
}

/// A fault of the agent itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Troubled {
    /// The condition reason.
    pub kind: String,
    /// What is wrong and what to do.
    pub message: String,
    /// When it began.
    pub since: Timestamp,
}

impl Summary {
    /// Whether the two differ in ages, times and counts of samples only.
    pub fn same_content(&self, other: &Self) -> bool {
        self.timeless() == other.timeless()
    }

    fn timeless(&self) -> Self {
        let mut copy = self.clone();
        copy.at = Timestamp::UNIX_EPOCH;
        copy.devices.iter_mut().for_each(|device| device.age_seconds = None);
        for overshoot in &mut copy.overshoots {
            overshoot.evidence.clear();
            overshoot.samples = 0;
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Summary {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let device = Device {
            uuid: "GPU-a".into(),
            name: "gpu-a".into(),
            product: "NVIDIA H100".into(),
            health: Health::Unhealthy,
            reason: "Xid".into(),
            message: "Xid 79".into(),
            memory_bytes: 80,
            promised_bytes: 40,
            promised_sm_percent: 50,
            used_bytes: Some(30),
            used_sm_percent: None,
            unclaimed_bytes: 1,
            temperature_celsius: Some(40),
            power_milliwatts: None,
            slowed_down: false,
            age_seconds: Some(0.5),
        };
        let overshoot = Overshooting {
            namespace: "team-a".into(),
            claim: "stowage-chat-x1y2z3".into(),
            claim_uid: "c".into(),
            pod: "chat-x1y2z3".into(),
            pod_uid: "p".into(),
            gpu: "GPU-a".into(),
            promised_bytes: 40,
            margin_bytes: 1,
            used_bytes: 50,
            samples: 3,
            source: "NVML".into(),
            headroom: true,
            since: at,
            evidence: vec![Sample { at, used_bytes: 50 }],
        };
        let claim = Claim {
            uid: "c".into(),
            namespace: "team-a".into(),
            name: "stowage-chat-x1y2z3".into(),
            pod: "chat-x1y2z3".into(),
            stage: Stage::Completed,
            devices: vec![ClaimDevice {
                gpu: "GPU-a".into(),
                promised_bytes: 40,
                promised_sm_percent: 50,
                used_bytes: Some(50),
                used_sm_percent: None,
            }],
            model_commit: Some("a".repeat(40)),
        };
        let refused = Refused {
            namespace: "team-a".into(),
            claim: "stowage-b".into(),
            claim_uid: "d".into(),
            since: at,
            message: "the disk is full".into(),
        };
        let fetch = ModelFetch {
            model: ModelKey::read("http:a:b"),
            claims: vec!["c".into()],
            phase: FetchPhase::Fetching,
            bytes: 10,
            total_bytes: 100,
            bytes_per_second: 5,
            error: None,
        };
        Summary {
            node: "node1".into(),
            simulated: true,
            driver_version: Some("580".into()),
            at,
            devices: vec![device],
            claims: vec![claim],
            overshoots: vec![overshoot],
            refusals: vec![refused],
            fetches: vec![fetch],
            troubles: vec![Troubled { kind: "NvmlUnavailable".into(), message: "no NVML".into(), since: at }],
        }
    }

    #[test]
    fn summary_round_trips() {
        let text = serde_json::to_string(&full()).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), full());
    }

    #[test]
    fn unknown_fields_are_skipped_and_absent_lists_are_empty() {
        let text = r#"{"node":"node1","at":"2026-01-01T00:00:00Z","new":{"a":1}}"#;
        let summary: Summary = serde_json::from_str(text).unwrap();
        assert_eq!((summary.node.as_str(), summary.devices.len(), summary.overshoots.len()), ("node1", 0, 0));
    }

    #[test]
    fn overshoot_without_figures_is_refused() {
        let text = r#"{"node":"n","at":"2026-01-01T00:00:00Z","overshoots":[{"namespace":"a","pod":"p"}]}"#;
        assert!(serde_json::from_str::<Summary>(text).is_err());
    }

    #[test]
    fn later_summary_with_equal_facts_has_the_same_content() {
        let mut later = full();
        later.at = Timestamp::from_second(1_700_000_009).unwrap();
        later.devices[0].age_seconds = Some(9.0);
        later.overshoots[0].samples = 9;
        assert!(full().same_content(&later));
        later.overshoots[0].used_bytes = 60;
        assert!(!full().same_content(&later));
    }
}

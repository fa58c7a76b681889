//! The files in a claim's report directory (simulated GPUs, and engines that report their own use).
//!
//! The engine replaces [`USAGE_FILE`](crate::names::USAGE_FILE) by rename each second; it counts only
//! while its writer holds a POSIX write lock on [`USAGE_LOCK_FILE`](crate::names::USAGE_LOCK_FILE).

use serde::{Deserialize, Serialize};

/// What a process uses of its slice, written by the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageFile {
    /// Bytes of GPU memory.
    pub bytes: u64,
    /// Per cent of the SMs of the whole GPU.
    #[serde(default)]
    pub sm_percent: u32,
}

/// What a claim grants and to whom, written by the node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimFile {
    /// The granted GPUs.
    pub uuids: Vec<String>,
    /// Of the claim and its pod.
    pub namespace: String,
    /// Of the claim.
    pub name: String,
    /// Name of the pod that reserved it.
    pub pod: String,
    /// Empty in files of other writers: then only the lock's holder is found.
    #[serde(default)]
    pub pod_uid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip_and_keep_their_names() {
        let usage = UsageFile { bytes: 5, sm_percent: 7 };
        assert_eq!(serde_json::to_string(&usage).unwrap(), r#"{"bytes":5,"smPercent":7}"#);
        assert_eq!(serde_json::from_str::<UsageFile>(r#"{"bytes":5}"#).unwrap(), UsageFile { bytes: 5, sm_percent: 0 });
        let claim = ClaimFile {
            uuids: vec!["GPU-a".into()],
            namespace: "team-a".into(),
            name: "stowage-chat-x1y2z3".into(),
            pod: "chat-x1y2z3".into(),
            pod_uid: "u".into(),
        };
        let text = serde_json::to_string(&claim).unwrap();
        assert_eq!(
            text,
            r#"{"uuids":["GPU-a"],"namespace":"team-a","name":"stowage-chat-x1y2z3","pod":"chat-x1y2z3","podUid":"u"}"#
        );
        assert_eq!(serde_json::from_str::<ClaimFile>(&text).unwrap(), claim);
    }
}

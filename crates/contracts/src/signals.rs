//! What a gateway reports to the operator: `GET /stowage/v1/signals`, read every second.
//!
//! Counts grow from the start of the gateway's process; the reader takes differences, and only between two messages
//! of the same [`Signals::epoch`]. A deployment is named once it has a replica, a waiting request or a count; of one
//! that a gateway does not name it has let in no request.

use serde::{Deserialize, Serialize};

use crate::load::{Coefficients, MAX_TOKENS, plausible_blocks};

/// The form of the message. A reader takes no other.
pub const VERSION: u32 = 1;

/// One gateway's report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signals {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Names this start of the process. Another value: all counts began anew.
    pub epoch: String,
    /// Milliseconds since the start, on a clock that does not go back.
    pub uptime_ms: u64,
    /// Sorted by namespace and name.
    #[serde(default)]
    pub deployments: Vec<DeploymentSignals>,
    /// Sorted by tenant and model.
    #[serde(default)]
    pub tenants: Vec<TenantSignals>,
    /// Tenants whose API keys cannot all be used.
    #[serde(default)]
    pub keys: Vec<KeyFault>,
    /// Pods that drain or are being deleted, as this gateway sees them: it sends nothing new there. Sorted by UID.
    /// Absent: a gateway of a release that does not report them; which is not the same as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<Vec<DrainSignals>>,
    /// Whether this gateway has the key of the salts; absent: a gateway of a release that does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt_key: Option<bool>,
}

/// A pod that is out of routing, for good or until its drain is cancelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainSignals {
    /// UID of the pod.
    pub uid: String,
    /// Sequences that this gateway still has in flight there. Never more than in an earlier message of the same drain.
    pub in_flight: u32,
}

/// One InferenceDeployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentSignals {
    /// Of the object.
    pub namespace: String,
    /// Of the object.
    pub name: String,
    /// Of the object: counts of an earlier one of this name are not this one's.
    pub uid: String,
    /// As clients name it.
    pub model: String,
    /// Requests let in since the start.
    pub arrivals: u64,
    /// Sequences that they ask for: prompts times choices. Absent: a gateway of a release that does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<u64>,
    /// Requests that got a place on a replica since the start, each once: the others wait, or left without one (refused,
    /// timed out, given up). Absent: as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<u64>,
    /// Their prompt tokens, estimated at arrival from the body's size and from what engines counted in recent answers.
    pub input_tokens: u64,
    /// Part of [`Self::input_tokens`] that prefix caches hold, as in recent answers.
    pub cached_tokens: u64,
    /// Mean tokens of recent answers; 0: no answer has ended yet.
    pub mean_output_tokens: f64,
    /// Waiting now for room on a replica.
    pub queued: u64,
    /// Waiting now for a first replica.
    pub held: u64,
    /// Estimated prompt tokens of both.
    pub waiting_tokens: u64,
    /// Those that this gateway knows.
    pub replicas: Vec<ReplicaSignals>,
}

/// One replica, as this gateway sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSignals {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Sequences that this gateway has in flight there.
    pub in_flight: u32,
    /// Why nothing new is sent there; absent: it takes requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Un-prefilled tokens: reported by the engine, and sent since.
    pub backlog_tokens: u64,
    /// The engine's last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineReport>,
}

/// What an engine reported of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineReport {
    /// Since it came.
    pub age_ms: u64,
    /// Sequences that run or wait there, of whichever caller; absent: a gateway of a release that does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<u32>,
    /// Prompt tokens accepted and not computed.
    pub unprefilled_tokens: u64,
    /// Of the KV cache.
    pub kv_blocks_used: u64,
    /// Of the KV cache; 0: not reported.
    pub kv_blocks_total: u64,
    /// Learned from its own steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficients: Option<Coefficients>,
}

/// One tenant's use of one model, since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantSignals {
    /// Of the caller.
    pub tenant: String,
    /// As clients name it.
    pub model: String,
    /// Requests let in.
    pub arrivals: u64,
    /// Prompt tokens of those, as estimated at arrival.
    pub prompt_tokens: u64,
    /// Tokens that engines counted in answers.
    pub output_tokens: u64,
    /// Requests that ended well.
    pub succeeded: u64,
    /// Requests refused for the tenant's limits, over all its models.
    pub throttled: u64,
}

/// An API key Secret of a tenant that gives no client access, or one key in it. No value of a key is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyFault {
    /// Name of the TenantQuota.
    pub tenant: String,
    /// Name of the Secret.
    pub secret: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Why a key or all keys of a Secret cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fault {
    /// There is none of this name and of the type that key Secrets have.
    NotFound,
    /// It holds no key.
    Empty,
    /// The value under this data key is no SHA-256 in hex: the key itself in plain text, for example.
    NotAHash {
        /// The data key, not its value.
        key: String,
    },
    /// Another, older tenant has the same key.
    Taken {
        /// The data key, not its value.
        key: String,
    },
    /// A later version of the gateway reports what this one does not know.
    #[serde(other)]
    Unknown,
}

// === impl EngineReport, KeyFault ===

impl EngineReport {
    /// Whether an engine can have reported it: a gateway of another version may not have looked.
    pub fn plausible(&self) -> bool {
        plausible_blocks(self.kv_blocks_used, self.kv_blocks_total)
            && self.unprefilled_tokens <= MAX_TOKENS
            && self.coefficients.is_none_or(Coefficients::plausible)
    }
}

impl std::fmt::Display for KeyFault {
    /// One clause; the tenant is not in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = &self.secret;
        match &self.fault {
            Fault::NotFound => write!(
                f,
                "Secret {secret}: there is none of this name and of the type {} in {}",
                crate::names::API_KEYS_SECRET_TYPE,
                crate::names::SYSTEM_NAMESPACE
            ),
            Fault::Empty => write!(f, "Secret {secret}: it holds no key"),
            Fault::NotAHash { key } => {
                write!(f, "Secret {secret}: the value of {key} is no lower-case hexadecimal SHA-256")
            }
            Fault::Taken { key } => write!(f, "Secret {secret}: {key} is a key of another tenant already"),
            Fault::Unknown => write!(f, "Secret {secret}: it cannot be used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_keeps_its_names_and_absent_is_not_zero() {
        let signals = Signals {
            version: VERSION,
            epoch: "e1".into(),
            uptime_ms: 5,
            deployments: vec![DeploymentSignals {
                name: "chat".into(),
                sequences: Some(4),
                placed: Some(1),
                replicas: vec![ReplicaSignals {
                    engine: Some(EngineReport { age_ms: 3, ..EngineReport::default() }),
                    ..ReplicaSignals::default()
                }],
                ..DeploymentSignals::default()
            }],
            draining: Some(vec![DrainSignals { uid: "u".into(), in_flight: 2 }]),
            keys: vec![KeyFault {
                tenant: "a".into(),
                secret: "a-keys".into(),
                fault: Fault::NotAHash { key: "ci".into() },
            }],
            ..Signals::default()
        };
        let text = serde_json::to_string(&signals).unwrap();
        for part in [
            r#""uptimeMs":5"#,
            r#""meanOutputTokens":0.0"#,
            r#""engine":{"ageMs":3"#,
            r#""kind":"notAHash","key":"ci""#,
            r#""draining":[{"uid":"u","inFlight":2}]"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("coefficients") && !text.contains("refused"), "{text}");
        assert_eq!(serde_json::from_str::<Signals>(&text).unwrap(), signals);
        assert!(serde_json::from_str::<Signals>(r#"{"deployments":[]}"#).is_err(), "without version and epoch");
        let older: Signals = serde_json::from_str(r#"{"version":1,"epoch":"e","uptimeMs":5}"#).unwrap();
        assert_eq!(older.draining, None, "not reported is not none");
        let older = text.replace(r#""arrivals":0,"sequences":4,"placed":1,"#, r#""arrivals":0,"#);
        assert_ne!(older, text);
        let older: Signals = serde_json::from_str(&older).unwrap();
        assert_eq!((older.deployments[0].sequences, older.deployments[0].placed), (None, None));
    }

    #[test]
    fn fault_that_a_later_version_adds_is_read_as_unknown() {
        let fault: KeyFault =
            serde_json::from_str(r#"{"tenant":"a","secret":"s","fault":{"kind":"expired","since":"x"}}"#).unwrap();
        assert_eq!(
            (fault.fault.clone(), fault.to_string()),
            (Fault::Unknown, "Secret s: it cannot be used".to_owned())
        );
    }
}

//! The memory of a model before it is placed: what the operator asks a node agent, which reads the headers of its files.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::ClaimModel;

/// Sequences of the whole context whose KV cache an estimated slice holds.
pub const SEQUENCES: u32 = 4;

/// A model and how it is to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EstimateRequest {
    /// As a claim would have it, without a token.
    pub model: ClaimModel,
    /// Tokens of prompt and answer together; absent: the model's own context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// As the engine's `--kv-type`; absent: its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_type: Option<String>,
    /// Who asks: a tenant's questions wait for each other. No part of the key.
    #[serde(default)]
    pub tenant: String,
}

impl EstimateRequest {
    /// Differs where an answer may differ; 16 hexadecimal digits.
    pub fn key(&self) -> String {
        let Self { model, max_model_len, kv_cache_type, tenant: _ } = self;
        let text = format!("{}\n{max_model_len:?}\n{kv_cache_type:?}\n{SEQUENCES}", model.key());
        Sha256::digest(text).iter().take(8).fold(String::new(), |mut key, byte| {
            // Writing to a String cannot fail.
            let _ = write!(key, "{byte:02x}");
            key
        })
    }
}

/// What the bundled engine takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Packed weights.
    pub weights: u64,
    /// KV cache of [`SEQUENCES`] sequences of the whole context.
    pub kv_cache: u64,
    /// Activations of one step.
    pub scratch: u64,
    /// The context, in tokens.
    pub context_len: u32,
}

impl Estimate {
    /// All parts.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FileModel;

    #[test]
    fn key_differs_with_all_that_changes_the_answer() {
        let model = |sha: &str| ClaimModel::File(FileModel::open("https://h/m", sha.repeat(64)));
        let request =
            EstimateRequest { model: model("a"), max_model_len: None, kv_cache_type: None, tenant: "a".into() };
        let others = [
            EstimateRequest { model: model("b"), ..request.clone() },
            EstimateRequest { max_model_len: Some(1), ..request.clone() },
            EstimateRequest { kv_cache_type: Some("f16".into()), ..request.clone() },
        ];
        assert_eq!(request.key(), EstimateRequest { tenant: "b".into(), ..request.clone() }.key());
        assert!(others.iter().all(|other| other.key() != request.key()));
    }
}

//! Models: what identifies one, which of its files are data, and how a claim names the one that its engine reads.
//!
//! A fetched model reaches an engine through its claim: the operator writes a [`ClaimModel`] into the claim, the node agent
//! fetches it and mounts a directory of the claim at `MODEL_MOUNT`, and the engine's pod waits for [`COMPLETE`] in it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// In the directory of a claim's model: everything is there. Written last.
pub const COMPLETE: &str = ".complete";
/// Name of a fetched GGUF file in its directory.
pub const FETCHED_FILE: &str = "model.gguf";

/// What identifies a model's content and its source: equal keys are the same bytes, and who may read the one source may
/// read the other. Compared by the planner with what nodes hold. Empty: unknown, and equal to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelKey(String);

impl ModelKey {
    /// Weights in an image.
    pub fn image(reference: &str) -> Self {
        Self(reference.to_owned())
    }

    /// A file behind a URL. The URL itself is not shown: its query may be a secret. It is part of the key, so that knowing a
    /// digest alone gives nobody a file from a node's cache.
    pub fn http(url: &str, sha256: &str) -> Self {
        let url: String = Sha256::digest(url.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("http:{url}:{sha256}"))
    }

    /// A key as another program wrote it.
    pub fn read(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it identifies nothing.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of its directory in a node's cache; `None` where a node's agent does not keep such a model.
    pub fn directory(&self) -> Option<String> {
        let rest = self.0.strip_prefix("http:")?;
        let (url, sha256) = rest.split_once(':')?;
        let hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        (hex(url, 32) && hex(sha256, 64)).then(|| format!("http-{url}-{sha256}"))
    }

    /// The key of a directory of that name.
    pub fn of_directory(name: &str) -> Option<Self> {
        let key = Self(name.replacen('-', ":", 2));
        (key.directory().as_deref() == Some(name)).then_some(key)
    }
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The model that a claim's engine reads, in the claim's opaque configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimModel {
    /// Address of the file.
    pub url: String,
    /// Its digest, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl ClaimModel {
    /// What identifies it.
    pub fn key(&self) -> ModelKey {
        ModelKey::http(&self.url, &self.sha256)
    }

    /// The digest as bytes.
    pub fn digest(&self) -> Option<[u8; 32]> {
        let mut digest = [0; 32];
        let pairs = self.sha256.as_bytes().chunks_exact(2);
        if self.sha256.len() != 64 || !self.sha256.is_ascii() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(digest)
    }
}

/// Endings of weights, configuration, tokenizers and texts. Pickles and code are not among them: both can run.
const ENDINGS: [&str; 10] =
    ["gguf", "jinja", "json", "markdown", "md", "model", "safetensors", "tiktoken", "txt", "vocab"];
/// Beginnings of texts that have no ending.
const TEXTS: [&str; 3] = ["LICENSE", "LICENCE", "NOTICE"];

/// Whether a file of a model's directory is data that an engine or a person reads: a name without a path, with an ending
/// that is known to hold data. What is not is neither packed nor fetched.
pub fn is_model_file(name: &str) -> bool {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/\\".contains(&byte));
    let data = match name.rsplit_once('.') {
        Some((_, ending)) => ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)),
        None => TEXTS.iter().any(|known| name.starts_with(known)),
    };
    plain && data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_shows_no_url_and_differs_with_url_and_digest() {
        let digest = "a".repeat(64);
        let key = ModelKey::http("https://h/m?token=secret", &digest);
        assert!(!key.as_str().contains("secret"));
        assert_ne!(key, ModelKey::http("https://h/m?token=other", &digest));
        assert_ne!(key, ModelKey::http("https://h/m?token=secret", &"b".repeat(64)));
        let directory = key.directory().unwrap();
        assert_eq!(ModelKey::of_directory(&directory), Some(key));
    }

    #[test]
    fn directories_are_named_by_keys_of_fetched_models_alone() {
        let digest = "a".repeat(64);
        for key in ["", "models/m:1", "http:x:y", "http:../..:a", &format!("http:{}:{digest}/..", "a".repeat(32))] {
            assert_eq!(ModelKey::read(key).directory(), None, "{key}");
        }
        for name in ["", "..", ".new-x", "http-a-b", "partial"] {
            assert_eq!(ModelKey::of_directory(name), None, "{name}");
        }
    }

    #[test]
    fn digests_are_64_hexadecimal_digits() {
        let digest = |text: &str| ClaimModel { url: String::new(), sha256: text.into() }.digest();
        assert_eq!(digest(&"0f".repeat(32)), Some([15; 32]));
        for bad in ["", "0f", &"0g".repeat(32), &"é".repeat(32), &"+1".repeat(31)] {
            assert_eq!(digest(bad), None, "{bad}");
        }
    }

    #[test]
    fn data_is_taken_and_code_pickles_and_paths_are_not() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.GGUF",
            "config.json",
            "tokenizer.model",
            "chat_template.jinja",
            "merges.txt",
            "README.md",
            "LICENSE",
        ] {
            assert!(is_model_file(name), "{name}");
        }
        for name in [
            "",
            ".gitattributes",
            ".json",
            "pytorch_model.bin",
            "model.pt",
            "model.pkl",
            "modeling_custom.py",
            "../config.json",
            "a/config.json",
            "a\\config.json",
            "..",
            "a\nb.json",
            "Makefile",
        ] {
            assert!(!is_model_file(name), "{name:?}");
        }
    }
}

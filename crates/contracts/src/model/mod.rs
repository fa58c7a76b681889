//! Models: what identifies one, which of its files are data, and how a claim names the one that its engine reads.
//!
//! A fetched model reaches an engine through its claim: the operator writes a [`ClaimModel`] into the claim, the node agent
//! fetches it and mounts a directory of the claim at `MODEL_MOUNT`, and the engine's pod waits for [`COMPLETE`] in it.

pub mod estimate;
pub mod hub;
pub mod preload;
pub mod s3;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use hub::{HubModel, is_commit};
use s3::S3Login;

/// In the directory of a claim's model: everything is there. Written last.
pub const COMPLETE: &str = ".complete";
/// Name of a file from a URL in the directory of its model.
pub const FETCHED_FILE: &str = "model.gguf";
/// Name of the directory with the files from a repository or a directory, in the directory of its model.
pub const FETCHED_DIRECTORY: &str = "model";

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

    /// A file or directory behind a URL. The URL itself is not shown: its query may be a secret. It is part of the key, so that
    /// knowing a digest alone gives nobody a file from a node's cache.
    pub fn http(url: &str, sha256: &str) -> Self {
        Self(format!("http:{}:{sha256}", half_digest(url)))
    }

    /// The same behind a login. The Secret is part of the key: what was fetched with it is for those who name the same one.
    pub fn s3(url: &str, sha256: &str, login: &S3Login) -> Self {
        let S3Login { region, namespace, secret } = login;
        // None of the parts can hold a line end.
        Self(format!("s3:{}:{sha256}", half_digest(&format!("{url}\n{region}\n{namespace}/{secret}"))))
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
        let (kind, rest) = self.0.split_once(':')?;
        let (source, content) = rest.split_once(':')?;
        let hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let fetched = match kind {
            "http" | "s3" => hex(content, 64),
            "hub" => is_commit(content),
            _ => false,
        };
        (fetched && hex(source, 32)).then(|| format!("{kind}-{source}-{content}"))
    }

    /// The key of a directory of that name.
    pub fn of_directory(name: &str) -> Option<Self> {
        let key = Self(name.replacen('-', ":", 2));
        (key.directory().as_deref() == Some(name)).then_some(key)
    }
}

/// Half of a SHA-256, in hexadecimal digits.
fn half_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The model that a claim's engine reads, in the claim's opaque configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClaimModel {
    /// A file or directory behind a URL.
    File(FileModel),
    /// Files of a hub's repository.
    Hub(HubModel),
}

impl ClaimModel {
    /// What identifies it.
    pub fn key(&self) -> ModelKey {
        match self {
            Self::File(file) => file.key(),
            Self::Hub(hub) => hub.key(),
        }
    }

    /// Whether everybody may read its source.
    pub fn is_open(&self) -> bool {
        match self {
            Self::File(file) => file.s3.is_none(),
            Self::Hub(hub) => hub.token.is_none(),
        }
    }

    /// Whether a node's agent of this namespace's claims can fetch it, as far as the text says.
    pub fn is_sound(&self, namespace: &str) -> bool {
        match self {
            Self::File(file) => file.is_sound(namespace),
            Self::Hub(hub) => hub.is_sound() && hub.token.as_ref().is_none_or(|token| token.namespace == namespace),
        }
    }
}

/// A file behind a URL, or a directory of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileModel {
    /// Address of the file; of a directory, with `/` at its end.
    pub url: String,
    /// Digest of the file, or of the directory's list of digests: 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Who may read it in an object store; absent: everybody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Login>,
}

impl FileModel {
    /// One that everybody may read.
    pub fn open(url: impl Into<String>, sha256: impl Into<String>) -> Self {
        Self { url: url.into(), sha256: sha256.into(), s3: None }
    }

    /// What identifies it.
    pub fn key(&self) -> ModelKey {
        match &self.s3 {
            None => ModelKey::http(&self.url, &self.sha256),
            Some(login) => ModelKey::s3(&self.url, &self.sha256, login),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.url.ends_with('/') && !self.url.contains(['?', '#'])
    }

    /// The model below the directory where it is mounted; begins with `/`.
    pub fn path(&self) -> String {
        format!("/{}", if self.is_directory() { FETCHED_DIRECTORY } else { FETCHED_FILE })
    }

    fn is_sound(&self, namespace: &str) -> bool {
        let own = |login: &S3Login| login.namespace == namespace && s3::is_region(&login.region);
        self.digest().is_some() && self.key().directory().is_some() && self.s3.as_ref().is_none_or(own)
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

/// Longest name of a model's file, in bytes: a fetch adds endings to it, and file systems take 255.
const MAX_FILE_NAME: usize = 200;

/// Whether a file of a model's directory is data that an engine or a person reads: a name without a path, with an ending
/// that is known to hold data. What is not is neither packed nor fetched.
pub fn is_model_file(name: &str) -> bool {
    let plain = !name.is_empty()
        && name.len() <= MAX_FILE_NAME
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
    fn key_differs_with_the_secret_and_another_namespace_has_no_claim_on_it() {
        let login = |namespace: &str, secret: &str| S3Login {
            region: "us-east-1".into(),
            namespace: namespace.into(),
            secret: secret.into(),
        };
        let model = |s3| FileModel { s3, ..FileModel::open("https://h/b/m", "a".repeat(64)) };
        let models = [None, Some(login("a", "x")), Some(login("a", "y")), Some(login("b", "x"))].map(model);
        let keys: std::collections::BTreeSet<ModelKey> = models.iter().map(FileModel::key).collect();
        assert_eq!(keys.len(), models.len());
        for key in keys {
            assert_eq!(ModelKey::of_directory(&key.directory().unwrap()), Some(key));
        }
        let sound = |s3, namespace| ClaimModel::File(model(s3)).is_sound(namespace);
        assert!(sound(None, "a") && sound(Some(login("a", "x")), "a"));
        assert!(!sound(Some(login("b", "x")), "a"));
        assert!(!sound(Some(S3Login { region: "a/b".into(), ..login("a", "x") }), "a"));
    }

    #[test]
    fn address_with_a_slash_at_its_end_is_a_directory() {
        for (url, path) in [
            ("https://h/m.gguf", "/model.gguf"),
            ("https://h", "/model.gguf"),
            ("https://h/m?x=/", "/model.gguf"),
            ("https://h/m/", "/model"),
        ] {
            assert_eq!(FileModel::open(url, "").path(), path, "{url}");
        }
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
        let digest = |text: &str| FileModel::open("", text).digest();
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
        assert!(
            is_model_file(&format!("{}.json", "a".repeat(195))) && !is_model_file(&format!("{}.json", "a".repeat(196)))
        );
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

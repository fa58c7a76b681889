//! A repository of a hub as a model's source: how it is written, and what a claim says of it.

use serde::{Deserialize, Serialize};

use crate::model::{ModelKey, half_digest};

/// Where the hub is, unless another one is named.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The revision where a source names none.
pub const DEFAULT_REVISION: &str = "main";
/// The key in a Secret where a source names none.
pub const DEFAULT_TOKEN_KEY: &str = "token";
/// Where the container that waits for the model has the token of its source, below its root. The node's agent reads it there:
/// no account may read Secrets for it, and no other container has it.
pub const TOKEN_DIR: &str = "run/stowage/source";
/// The token's file in that directory.
pub const TOKEN_FILE: &str = "token";

/// Part of a repository, or one GGUF file of it, at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubModel {
    /// `owner/name`.
    pub repo: String,
    /// A commit, or a branch or tag whose commit is not known yet.
    pub revision: String,
    /// A GGUF file; absent: the model in safetensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whose token may read it; absent: everybody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenRef>,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRef {
    /// Of the Secret, and of the deployment.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Key in it.
    pub key: String,
}

impl HubModel {
    /// The commit; `None`: the revision must be resolved first.
    pub fn commit(&self) -> Option<&str> {
        Some(self.revision.as_str()).filter(|revision| is_commit(revision))
    }

    /// The same at this commit.
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: commit.to_owned(), ..self.clone() }
    }

    /// What identifies it. The Secret is part of it: what was fetched with a token is for those who name the same one.
    pub fn key(&self) -> ModelKey {
        let Self { repo, revision, path, token } = self;
        let path = path.as_deref().unwrap_or_default();
        let reader = token.as_ref().map_or_else(String::new, |t| format!("{}/{}/{}", t.namespace, t.secret, t.key));
        // None of the parts can hold a line end.
        let source = half_digest(&format!("{repo}\n{path}\n{reader}"));
        ModelKey::read(&format!("hub:{source}:{revision}"))
    }

    /// Whether all parts are written as they must be.
    pub fn is_sound(&self) -> bool {
        is_repo(&self.repo) && is_revision(&self.revision) && self.path.as_deref().is_none_or(is_gguf_path)
    }
}

/// 40 lower-case hexadecimal digits.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `owner/name`, or `name` of old repositories.
pub fn is_repo(text: &str) -> bool {
    text.len() <= 256 && text.split('/').count() <= 2 && are_parts(text)
}

/// A branch, tag or commit, `refs/pr/1` too.
pub fn is_revision(text: &str) -> bool {
    text.len() <= 128 && are_parts(text)
}

/// A GGUF file below the repository.
pub fn is_gguf_path(text: &str) -> bool {
    text.len() <= 256 && text.ends_with(".gguf") && are_parts(text)
}

/// Parts of letters, digits, `_`, `-` and `.`, with letters, digits or `_` at both ends, joined by `/`; no `..`.
fn are_parts(text: &str) -> bool {
    let end = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let part = |part: &str| {
        part.as_bytes().first().is_some_and(end)
            && part.as_bytes().last().is_some_and(end)
            && part.bytes().all(|byte| end(&byte) || byte == b'-' || byte == b'.')
    };
    !text.contains("..") && text.split('/').all(part)
}

/// A key of a Secret.
pub fn is_secret_key(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain) && text != "." && !text.starts_with("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> HubModel {
        HubModel { repo: "o/n".into(), revision: "main".into(), path: None, token: None }
    }

    #[test]
    fn key_differs_with_repository_path_reader_and_commit() {
        let (commit, other) = ("a".repeat(40), "b".repeat(40));
        let token = |secret: &str| TokenRef { namespace: "a".into(), secret: secret.into(), key: "token".into() };
        let models = [
            model().at(&commit),
            model().at(&other),
            HubModel { repo: "o/m".into(), ..model().at(&commit) },
            HubModel { path: Some("a.gguf".into()), ..model().at(&commit) },
            HubModel { token: Some(token("x")), ..model().at(&commit) },
            HubModel { token: Some(token("y")), ..model().at(&commit) },
            HubModel { token: Some(TokenRef { namespace: "b".into(), ..token("x") }), ..model().at(&commit) },
        ];
        let keys: std::collections::BTreeSet<ModelKey> = models.iter().map(HubModel::key).collect();
        assert_eq!(keys.len(), models.len());
        for key in keys {
            assert_eq!(ModelKey::of_directory(&key.directory().unwrap()), Some(key));
        }
        assert_eq!((model().commit(), model().key().directory()), (None, None));
        assert_eq!(model().at(&commit).commit(), Some(commit.as_str()));
    }

    #[test]
    fn parts_are_plain_names() {
        for repo in ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2", "a/b_c.d-e", "_/_"] {
            assert!(is_repo(repo), "{repo}");
        }
        for repo in
            ["", "/", "a/", "/a", "a/b/c", "a/..", "../a", "a b", "a/b?x", "a%2f", "é/a", "a/b\n", ".a/b", "a/b-"]
        {
            assert!(!is_repo(repo), "{repo:?}");
        }
        for (revision, fine) in [
            ("main", true),
            ("v1.0", true),
            ("refs/pr/1", true),
            ("..", false),
            ("a/../b", false),
            ("", false),
            ("-x", false),
        ] {
            assert_eq!(is_revision(revision), fine, "{revision:?}");
        }
        for (path, fine) in [
            ("a.gguf", true),
            ("q/a-Q4_K_M.gguf", true),
            ("a.bin", false),
            ("../a.gguf", false),
            ("/a.gguf", false),
            (".gguf", false),
        ] {
            assert_eq!(is_gguf_path(path), fine, "{path:?}");
        }
        for (key, fine) in
            [("token", true), ("HF_TOKEN", true), ("", false), ("..data", false), ("a/b", false), (".", false)]
        {
            assert_eq!(is_secret_key(key), fine, "{key:?}");
        }
    }
}

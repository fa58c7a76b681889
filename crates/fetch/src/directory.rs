//! A model's files in a directory behind a URL, listed with their digests in one file as `sha256sum` writes it.
//!
//! Who names the digest of that list names all files. Nothing in it is believed before it is checked: paths that
//! leave the directory, names twice and endless lists refuse it as a whole. Files that can hold code are never fetched.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use reqwest::Url;
use sha2::{Digest, Sha256};
use stowage_contracts::model::is_model_file;

use crate::backoff::Failures;
use crate::client::Client;
use crate::error::{FetchError, shown};
use crate::fetch::Fetcher;
use crate::hub::{MAX_FETCHED, MAX_LISTED, hex, is_inside, safetensors};
use crate::login::Login;
use crate::{FileDigest, RemoteFile};

/// The list's name in its directory.
pub const MANIFEST: &str = "SHA256SUMS";
/// Longest list that is read, in bytes.
const MANIFEST_BYTES: u64 = 4 << 20;

/// What a directory's list names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Digest of the list, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The files of the model.
    pub files: Vec<RemoteFile>,
}

impl Fetcher {
    /// The model in safetensors in the directory whose list has this digest; `None`: whatever the list is, to look at it.
    /// The URL ends in `/`.
    pub async fn directory(
        &self,
        url: &Url,
        digest: Option<[u8; 32]>,
        login: Option<&Login>,
    ) -> Result<Directory, FetchError> {
        // A list is short, and so are the questions about lengths.
        let within = self.limits.slowest.1;
        let listed = tokio::time::timeout(within, self.listed(url, digest, login)).await;
        listed.unwrap_or(Err(FetchError::TooSlow(within)))
    }

    async fn listed(
        &self,
        url: &Url,
        digest: Option<[u8; 32]>,
        login: Option<&Login>,
    ) -> Result<Directory, FetchError> {
        let client = self.client(login.cloned())?;
        let text = self.manifest(&client, &manifest_url(url)?).await.map_err(|e| e.of_file(MANIFEST))?;
        let found: [u8; 32] = Sha256::digest(&text).into();
        if let Some(wanted) = digest.filter(|wanted| *wanted != found) {
            let digest = FetchError::Digest { found: to_hex(&found), wanted: to_hex(&wanted) };
            return Err(digest.of_file(MANIFEST));
        }
        let files = chosen(&text).map_err(|why| FetchError::Directory { host: crate::client::host(url), why })?;
        let sized = files.into_iter().map(|(name, digest)| self.sized(&client, url, name, digest));
        let files = futures::stream::iter(sized).buffered(self.limits.parallel.max(1)).try_collect().await?;
        Ok(Directory { sha256: to_hex(&found), files })
    }

    async fn manifest(&self, client: &Client, url: &Url) -> Result<Vec<u8>, FetchError> {
        let mut failures = Failures::default();
        loop {
            match client.document(url, MANIFEST_BYTES).await {
                Ok(text) => return Ok(text),
                Err(e) => self.wait_after(e, &mut failures, 0).await?,
            }
        }
    }

    /// The file with its length, which the list does not have.
    async fn sized(
        &self,
        client: &Client,
        url: &Url,
        name: String,
        digest: [u8; 32],
    ) -> Result<RemoteFile, FetchError> {
        let (url, mut failures) = (below(url, &name)?, Failures::default());
        let empty: [u8; 32] = Sha256::digest(b"").into();
        let bytes = loop {
            if digest == empty {
                break 0;
            }
            match client.length(&url).await {
                Ok(bytes) => break bytes,
                Err(e) => self.wait_after(e, &mut failures, digest[0]).await.map_err(|e| e.of_file(&name))?,
            }
        };
        Ok(RemoteFile { url, name, bytes, digest: FileDigest::Sha256(digest) })
    }
}

/// Where a directory's list is.
pub fn manifest_url(url: &Url) -> Result<Url, FetchError> {
    below(url, MANIFEST)
}

/// The name is one segment, whatever characters it has.
fn below(url: &Url, name: &str) -> Result<Url, FetchError> {
    let mut url = url.clone();
    let no_base = |()| FetchError::Url { why: "it has no path".into() };
    url.path_segments_mut().map_err(no_base)?.pop_if_empty().push(name);
    Ok(url)
}

/// The files of a model in safetensors with their digests; or why there are none.
fn chosen(text: &[u8]) -> Result<Vec<(String, [u8; 32])>, String> {
    let files = parse(text)?;
    let top: Vec<&str> =
        files.iter().map(|(name, _)| name.as_str()).filter(|name| !name.contains('/') && is_model_file(name)).collect();
    let Some(names) = safetensors(&top) else {
        return Err("it lists no safetensors; a single GGUF file is named by its own address and digest".into());
    };
    if names.len() > MAX_FETCHED {
        return Err(format!("it lists {} files of data, {MAX_FETCHED} are allowed; use another one", names.len()));
    }
    Ok(files.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect())
}

/// All files of a list: a digest, two spaces or a space and `*`, and a path.
fn parse(text: &[u8]) -> Result<Vec<(String, [u8; 32])>, String> {
    let text = std::str::from_utf8(text).map_err(|_| format!("{MANIFEST} is not text; write it with sha256sum"))?;
    let (mut seen, mut files) = (BTreeSet::new(), Vec::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        let parts = line.split_once(' ').and_then(|(digest, path)| Some((hex::<32>(digest)?, path)));
        let path = parts.and_then(|(digest, path)| Some((digest, path.strip_prefix([' ', '*'])?)));
        let Some((digest, path)) = path else {
            return Err(format!("{MANIFEST} has the line {:?}; write it with sha256sum", shown(line)));
        };
        let path = path.strip_prefix("./").unwrap_or(path);
        if !is_inside(path) {
            return Err(format!("it lists the path {:?}, which leads out of it; use another one", shown(path)));
        }
        if !seen.insert(path) {
            return Err(format!("it lists {:?} twice; use another one", shown(path)));
        }
        if seen.len() > MAX_LISTED {
            return Err(format!("it lists more than {MAX_LISTED} files; use a directory of one model"));
        }
        files.push((path.to_owned(), digest));
    }
    Ok(files)
}

fn to_hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of these names, each with the same digest.
    fn list(names: &[&str]) -> String {
        names.iter().map(|name| format!("{}  {name}\n", "a".repeat(64))).collect()
    }

    #[track_caller]
    fn check(text: &str, expect: Result<&[&str], &str>) {
        match (chosen(text.as_bytes()), expect) {
            (Ok(files), Ok(names)) => {
                assert_eq!(files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names)
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, _) => panic!("{found:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn files_of_data_in_the_directory_itself_are_chosen() {
        let names = [
            "README.md",
            "./config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "modeling.py",
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "SHA256SUMS",
        ];
        let chosen = ["README.md", "config.json", names[2], names[3]];
        check(&list(&names), Ok(&chosen));
        check(&list(&names).replace("  ", " *"), Ok(&chosen));
        check(&list(&["consolidated.safetensors"]), Ok(&["consolidated.safetensors"]));
    }

    #[test]
    fn directory_without_safetensors_is_refused() {
        for names in [&["model.gguf"][..], &["pytorch_model.bin", "config.json"], &["a/model.safetensors"], &[]] {
            check(&list(names), Err("lists no safetensors"));
        }
    }

    #[test]
    fn paths_that_leave_the_directory_refuse_it() {
        for name in ["../a.json", "/etc/passwd", "a/../../b.json", "a//b", ".", "..", "././a.json", "a\\b", "a\u{7}b"] {
            check(&list(&["model.safetensors", name]), Err("leads out of it"));
        }
        check(&list(&["model.safetensors", "./model.safetensors"]), Err("twice"));
        let many: Vec<String> = (0..=MAX_LISTED).map(|n| format!("{n}.json")).collect();
        check(&list(&many.iter().map(String::as_str).collect::<Vec<_>>()), Err("more than 20000 files"));
        check(
            &list(&many.iter().take(1500).map(String::as_str).chain(["m.safetensors"]).collect::<Vec<_>>()),
            Err("1501 files of data, 1000"),
        );
    }

    #[test]
    fn lines_are_those_of_sha256sum() {
        let digest = "a".repeat(64);
        for line in [
            "<html>".to_owned(),
            format!("\\{digest}  a\\nb"),
            format!("{}  model.safetensors", "A".repeat(64)),
            format!("{digest} model.safetensors"),
            format!("{}  model.safetensors", "a".repeat(63)),
            digest.clone(),
        ] {
            check(&line, Err("write it with sha256sum"));
        }
        assert!(chosen(b"\xff").unwrap_err().contains("not text"));
    }

    #[test]
    fn names_are_one_part_of_the_address() {
        let url: Url = "https://h/b/model/".parse().unwrap();
        assert_eq!(manifest_url(&url).unwrap().as_str(), "https://h/b/model/SHA256SUMS");
        assert_eq!(below(&url, "a?b#c%2f.json").unwrap().as_str(), "https://h/b/model/a%3Fb%23c%252f.json");
    }
}

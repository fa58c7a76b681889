//! A hub of model repositories, as Hugging Face serves them: where things are, what a repository says it holds, and which
//! of its files are fetched.
//!
//! Nothing that a hub says is believed before it is checked: paths that leave the repository, files without a digest and
//! endless lists refuse the whole repository. Files that can hold code are never fetched.

mod files;

use std::collections::BTreeSet;

use reqwest::Url;
use serde::Deserialize;
use stowage_contracts::model::is_model_file;

use crate::FileDigest;
use crate::error::{FetchError, shown};

pub use files::{Files, RemoteFile};

/// Longest description of a repository that is read, in bytes.
pub const LISTING_BYTES: u64 = 16 << 20;
/// Files that a repository may list.
pub(crate) const MAX_LISTED: usize = 20_000;
/// Files that are fetched of one.
pub(crate) const MAX_FETCHED: usize = 1000;
/// Names that are shown of many.
const SHOWN: usize = 5;

/// A repository at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`.
    pub name: String,
    /// 40 lower-case hexadecimal digits.
    pub commit: String,
    files: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    path: String,
    bytes: u64,
    digest: FileDigest,
}

/// The answer of a hub.
#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

/// A file outside of git.
#[derive(Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

/// Where a hub describes a repository at a branch, tag or commit.
pub fn description_url(endpoint: &Url, name: &str, revision: &str) -> Result<Url, FetchError> {
    let mut url = below(endpoint, ["api", "models"].into_iter().chain(name.split('/')).chain(["revision", revision]))?;
    url.set_query(Some("blobs=true"));
    Ok(url)
}

fn file_url(endpoint: &Url, repository: &Repository, path: &str) -> Result<Url, FetchError> {
    let parts = repository.name.split('/').chain(["resolve", &repository.commit]).chain(path.split('/'));
    below(endpoint, parts)
}

/// Each part is one segment, whatever characters it has.
fn below<'a>(endpoint: &Url, parts: impl Iterator<Item = &'a str>) -> Result<Url, FetchError> {
    let mut url = endpoint.clone();
    let no_base = |()| FetchError::Url { why: "the hub's address has no path".into() };
    url.path_segments_mut().map_err(no_base)?.pop_if_empty().extend(parts);
    Ok(url)
}

/// Reads a hub's answer. `commit`: what it must be of, where that is known.
pub fn parse(name: &str, commit: Option<&str>, answer: &[u8]) -> Result<Repository, FetchError> {
    let refuse = |why: String| FetchError::Repository { name: name.to_owned(), why };
    let answer: Description = serde_json::from_slice(answer).map_err(|e| {
        refuse(format!("the hub's description cannot be read ({e}); check nodeAgent.models.hubEndpoint"))
    })?;
    if !is_hex(&answer.sha, 40) || commit.is_some_and(|wanted| wanted != answer.sha) {
        let wanted = commit.unwrap_or("a commit");
        return Err(refuse(format!(
            "the hub describes {:?} instead of {wanted}; check the revision",
            shown(&answer.sha)
        )));
    }
    if answer.siblings.len() > MAX_LISTED {
        let count = answer.siblings.len();
        return Err(refuse(format!("it lists {count} files, {MAX_LISTED} are allowed; use a repository of one model")));
    }
    let mut paths = BTreeSet::new();
    let mut files = Vec::new();
    for sibling in answer.siblings {
        let path = sibling.rfilename;
        if !is_inside(&path) {
            return Err(refuse(format!(
                "it lists the path {:?}, which leads out of it; use another repository",
                shown(&path)
            )));
        }
        if !paths.insert(path.clone()) {
            return Err(refuse(format!("it lists {:?} twice; use another repository", shown(&path))));
        }
        let digest = match &sibling.lfs {
            Some(large) => hex(&large.sha256).map(FileDigest::Sha256),
            None => sibling.blob_id.as_deref().and_then(hex).map(FileDigest::GitBlob),
        };
        // What is not fetched needs no digest.
        let bytes = sibling.lfs.as_ref().map(|large| large.size).or(sibling.size);
        if let (Some(bytes), Some(digest)) = (bytes, digest) {
            files.push(Listed { path, bytes, digest });
        } else if name_of(&path).is_some_and(is_model_file) {
            return Err(refuse(format!("the hub gives no size or digest of {:?}; use another hub", shown(&path))));
        }
    }
    Ok(Repository { name: name.to_owned(), commit: answer.sha, files })
}

impl Repository {
    /// What is fetched: the GGUF file at `path` with its other parts, or the files of a model in safetensors.
    pub fn chosen(&self, endpoint: &Url, path: Option<&str>) -> Result<Vec<RemoteFile>, FetchError> {
        let chosen = match path {
            Some(path) => self.gguf(path)?,
            None => self.safetensors()?,
        };
        if chosen.len() > MAX_FETCHED {
            let count = chosen.len();
            return Err(
                self.refuse(format!("it has {count} files of data, {MAX_FETCHED} are allowed; use another one"))
            );
        }
        let remote = |file: &&Listed| {
            let url = file_url(endpoint, self, &file.path)?;
            let name = name_of(&file.path).unwrap_or_default().to_owned();
            Ok(RemoteFile { url, name, bytes: file.bytes, digest: file.digest })
        };
        chosen.iter().map(remote).collect()
    }

    fn safetensors(&self) -> Result<Vec<&Listed>, FetchError> {
        let paths = self.files.iter().map(|file| file.path.as_str());
        let top: Vec<&str> = paths.clone().filter(|path| !path.contains('/') && is_model_file(path)).collect();
        if let Some(names) = safetensors(&top) {
            let names: BTreeSet<&str> = names.into_iter().collect();
            return Ok(self.files.iter().filter(|file| names.contains(file.path.as_str())).collect());
        }
        let ggufs: Vec<&str> = paths.filter(|path| ends(path, ".gguf")).collect();
        if ggufs.is_empty() {
            let why = "it has neither safetensors nor GGUF files (pickles are not loaded, they can run code); use another one";
            return Err(self.refuse(why.into()));
        }
        let names = listed(&ggufs);
        Err(self.refuse(format!("it has no safetensors, but GGUF files ({names}); write one as huggingFace.path")))
    }

    /// A split model's parts are named `…-00001-of-00003.gguf`.
    fn gguf(&self, path: &str) -> Result<Vec<&Listed>, FetchError> {
        let Some(file) = self.files.iter().find(|file| file.path == path) else {
            let ggufs: Vec<&str> =
                self.files.iter().filter(|f| f.path.ends_with(".gguf")).map(|f| f.path.as_str()).collect();
            return Err(self.refuse(format!("it has no file {path:?}; its GGUF files: {}", listed(&ggufs))));
        };
        let Some((stem, _, count)) = split(path) else { return Ok(vec![file]) };
        let parts: Vec<&Listed> = self
            .files
            .iter()
            .filter(|f| split(&f.path).is_some_and(|(other, _, of)| other == stem && of == count))
            .collect();
        if parts.len() as u64 == count {
            return Ok(parts);
        }
        Err(self.refuse(format!("it has {} of the {count} parts of {path:?}; use another one", parts.len())))
    }

    fn refuse(&self, why: String) -> FetchError {
        FetchError::Repository { name: self.name.clone(), why }
    }
}

/// Of the names in one folder, those of a model in safetensors with its configuration and texts; `None`: there is none.
pub(crate) fn safetensors<'a>(names: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut names: Vec<&str> = names.iter().copied().filter(|name| !ends(name, ".gguf")).collect();
    // The same weights once more, in another layout.
    let again = |name: &str| name.starts_with("consolidated") && ends(name, ".safetensors");
    if names.iter().any(|name| ends(name, ".safetensors") && !again(name)) {
        names.retain(|name| !again(name));
    }
    names.iter().any(|name| ends(name, ".safetensors")).then_some(names)
}

fn ends(path: &str, ending: &str) -> bool {
    path.to_ascii_lowercase().ends_with(ending)
}

/// What comes before the part's number, the number, and how many there are.
fn split(path: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| if text.len() == 5 { text.parse::<u64>().ok() } else { None };
    Some((stem, number(part)?, number(count)?))
}

/// A path of plain names below the repository or directory.
pub(crate) fn is_inside(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 1024 && path.split('/').all(plain) && !path.contains(|c: char| c.is_control() || c == '\\')
}

fn name_of(path: &str) -> Option<&str> {
    path.rsplit('/').next()
}

fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(SHOWN).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        text.push_str("none");
    }
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(crate) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if !is_hex(text, 2 * N) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn endpoint() -> Url {
        "https://hub.example/mirror/".parse().unwrap()
    }

    /// A listing of files with sizes and digests.
    fn listing(paths: &[&str]) -> serde_json::Value {
        let file = |path: &&str| serde_json::json!({"rfilename": path, "size": 3, "blobId": "a".repeat(40)});
        serde_json::json!({"sha": COMMIT, "siblings": paths.iter().map(file).collect::<Vec<_>>()})
    }

    fn read(listing: &serde_json::Value) -> Result<Repository, FetchError> {
        parse("o/n", None, listing.to_string().as_bytes())
    }

    #[track_caller]
    fn check(paths: &[&str], path: Option<&str>, expect: Result<&[&str], &str>) {
        let chosen = read(&listing(paths)).and_then(|repository| repository.chosen(&endpoint(), path));
        match (chosen, expect) {
            (Ok(files), Ok(names)) => assert_eq!(files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), names),
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{e}"),
            (found, _) => panic!("{found:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn model_in_safetensors_is_fetched_without_code_and_pickles() {
        check(
            &[
                ".gitattributes",
                "README.md",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "consolidated.safetensors",
                "model.safetensors.index.json",
                "modeling_custom.py",
                "pytorch_model.bin",
                "onnx/model.onnx",
                "onnx/config.json",
                "model-q4.gguf",
                "tokenizer.json",
            ],
            None,
            Ok(&[
                "README.md",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ]),
        );
        check(&["config.json", "pytorch_model.bin"], None, Err("pickles are not loaded"));
        check(
            &["a-q4.gguf", "b/a-q8.gguf"],
            None,
            Err("GGUF files (a-q4.gguf, b/a-q8.gguf); write one as huggingFace.path"),
        );
    }

    #[test]
    fn gguf_file_is_fetched_alone_or_with_its_parts() {
        let paths =
            ["config.json", "q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf", "b.gguf", "q/c-00001-of-00002.gguf"];
        check(&paths, Some("b.gguf"), Ok(&["b.gguf"]));
        check(&paths, Some("q/a-00001-of-00002.gguf"), Ok(&["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]));
        check(&paths, Some("q/c-00001-of-00002.gguf"), Err("1 of the 2 parts"));
        check(&paths, Some("d.gguf"), Err("its GGUF files: q/a-00001-of-00002.gguf"));
    }

    #[test]
    fn paths_that_leave_the_repository_refuse_it() {
        for path in
            ["../config.json", "/etc/passwd", "a/../../b.json", "a//b.json", "./a.json", "a\\b.json", "a\nb.json", ""]
        {
            check(&["model.safetensors", path], None, Err("leads out of it"));
        }
        check(&["model.safetensors", "model.safetensors"], None, Err("twice"));
    }

    #[test]
    fn repository_with_too_many_files_is_refused() {
        let many: Vec<String> = (0..100_000).map(|n| format!("{n}.json")).collect();
        let paths =
            |count: usize| many.iter().take(count).map(String::as_str).chain(["m.safetensors"]).collect::<Vec<_>>();
        check(&paths(100_000), None, Err("it lists 100001 files, 20000 are allowed"));
        check(&paths(1500), None, Err("it has 1501 files of data, 1000 are allowed"));
    }

    #[test]
    fn files_without_digest_and_other_commits_are_refused() {
        let mut without = listing(&["config.json", "model.safetensors"]);
        without["siblings"][1]["blobId"] = serde_json::Value::Null;
        assert!(read(&without).unwrap_err().to_string().contains("no size or digest"));
        without["siblings"][1]["lfs"] = serde_json::json!({"sha256": "b".repeat(64), "size": 9, "pointerSize": 1});
        let files = read(&without).unwrap().chosen(&endpoint(), None).unwrap();
        assert_eq!((files[1].bytes, files[1].digest), (9, FileDigest::Sha256([0xbb; 32])));
        assert_eq!(files[1].url.as_str(), format!("https://hub.example/mirror/o/n/resolve/{COMMIT}/model.safetensors"));
        let of = |commit: &str| parse("o/n", Some(commit), listing(&["config.json"]).to_string().as_bytes());
        assert!(of(COMMIT).is_ok() && of(&"f".repeat(40)).is_err());
        let mut named = listing(&[]);
        named["sha"] = "main".into();
        assert!(read(&named).is_err() && parse("o/n", None, b"<html>").is_err());
    }

    #[test]
    fn revision_is_one_part_of_the_address() {
        let url = description_url(&endpoint(), "o/n", "refs/pr/1").unwrap();
        assert_eq!(url.as_str(), "https://hub.example/mirror/api/models/o/n/revision/refs%2Fpr%2F1?blobs=true");
    }
}

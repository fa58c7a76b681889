//! Writes an OCI image layout as one tar, the form that `ctr images import`, kind, podman and skopeo
//! read. The same input gives the same bytes: no clock, no owner names, entries in the order given.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// One file, folder or link of a layer; paths have no leading slash.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A file with its permissions.
    File(String, u32, Vec<u8>),
    /// An empty folder with its permissions.
    Dir(String, u32),
    /// A symbolic link and its target.
    Link(String, String),
}

/// A finished layer: an uncompressed tar (nodes unpack it faster than they would inflate it).
pub struct Layer(Vec<u8>);

/// What a container of the image runs, and as whom.
pub struct Config {
    pub entrypoint: Vec<String>,
    /// `uid:gid`; empty means root.
    pub user: String,
    pub env: Vec<String>,
}

impl Layer {
    /// Parent folders are added where the entries lack them.
    pub fn new(entries: &[Entry]) -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for entry in entries {
            let path = match entry {
                Entry::File(path, ..) | Entry::Dir(path, _) | Entry::Link(path, _) => path,
            };
            for (at, _) in path.match_indices('/') {
                if made.insert(path[..at].to_string()) {
                    add(&mut tar, tar::EntryType::Directory, &path[..at], 0o755, &[], None)?;
                }
            }
            match entry {
                Entry::File(path, mode, data) => add(&mut tar, tar::EntryType::Regular, path, *mode, data, None)?,
                Entry::Link(path, target) => add(&mut tar, tar::EntryType::Symlink, path, 0o777, &[], Some(target))?,
                Entry::Dir(path, mode) => {
                    made.insert(path.clone());
                    add(&mut tar, tar::EntryType::Directory, path, *mode, &[], None)?;
                }
            }
        }
        Ok(Self(tar.into_inner()?))
    }
}

/// Writes the image `name` to `archive` and returns its manifest's digest.
pub fn write(archive: &Path, name: &str, layers: &[&Layer], config: &Config) -> Result<String> {
    let digests: Vec<String> = layers.iter().map(|l| digest(&l.0)).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": config.entrypoint, "User": config.user, "Env": config.env},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": digests.iter().map(|_| json!({"created_by": "cargo xtask image"})).collect::<Vec<_>>(),
    }))?;
    let described: Vec<Value> = layers.iter().map(|l| describe("layer.v1.tar", &l.0)).collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": media("manifest.v1+json"),
        "config": describe("config.v1+json", &config), "layers": described,
    }))?;
    let mut top = describe("manifest.v1+json", &manifest);
    top["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index =
        serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": media("index.v1+json"), "manifests": [top]}))?;

    std::fs::create_dir_all(archive.parent().unwrap_or(archive))?;
    let next = archive.with_extension("tar.next");
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&next)?));
    let mut file = |path: &str, data: &[u8]| add(&mut tar, tar::EntryType::Regular, path, 0o644, data, None);
    file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file("index.json", &index)?;
    let mut written = BTreeSet::new();
    for blob in layers.iter().map(|l| l.0.as_slice()).chain([config.as_slice(), manifest.as_slice()]) {
        let path = format!("blobs/sha256/{}", digest(blob).trim_start_matches("sha256:"));
        if written.insert(path.clone()) {
            file(&path, blob)?;
        }
    }
    tar.into_inner()?.flush()?;
    std::fs::rename(&next, archive).with_context(|| format!("writing {}", archive.display()))?;
    Ok(digest(&manifest))
}

/// The name and manifest digest of an archive.
pub fn read_name(archive: &Path) -> Result<(String, String)> {
    let what = || format!("{} is not an OCI archive", archive.display());
    let mut tar = tar::Archive::new(File::open(archive).with_context(|| format!("opening {}", archive.display()))?);
    for entry in tar.entries().with_context(what)? {
        let entry = entry.with_context(what)?;
        if entry.path()?.as_ref() != Path::new("index.json") {
            continue;
        }
        let index: Value = serde_json::from_reader(entry).with_context(what)?;
        let manifest = &index["manifests"][0];
        let name = manifest["annotations"]["io.containerd.image.name"].as_str();
        return Ok((name.with_context(what)?.into(), manifest["digest"].as_str().with_context(what)?.into()));
    }
    anyhow::bail!(what())
}

fn add(
    tar: &mut tar::Builder<impl Write>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    data: &[u8],
    target: Option<&String>,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let added = match target {
        Some(target) => tar.append_link(&mut header, path, target),
        None => tar.append_data(&mut header, path, data),
    };
    added.with_context(|| format!("adding {path}"))
}

fn describe(kind: &str, data: &[u8]) -> Value {
    json!({"mediaType": media(kind), "digest": digest(data), "size": data.len()})
}

fn media(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(file: &Path, content: &[u8]) -> String {
        let layer =
            Layer::new(&[Entry::File("usr/bin/x".into(), 0o755, content.to_vec()), Entry::Dir("tmp".into(), 0o1777)]);
        let config = Config { entrypoint: vec!["/usr/bin/x".into()], user: "65532:65532".into(), env: vec![] };
        write(file, "localhost/x:dev", &[&layer.unwrap()], &config).unwrap()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_a_change_another_digest() {
        let dir = std::env::temp_dir().join(format!("stowage-oci-{}", std::process::id()));
        let (a, b) = (dir.join("a.tar"), dir.join("b.tar"));
        let first = image(&a, b"one");
        assert_eq!(first, image(&b, b"one"));
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(read_name(&a).unwrap(), ("localhost/x:dev".to_string(), first.clone()));
        assert_ne!(first, image(&b, b"two"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn parents_come_before_their_children_and_only_once() {
        let file = |path: &str| Entry::File(path.into(), 0o644, vec![]);
        let layer = Layer::new(&[file("a/b/c"), file("a/b/d"), Entry::Link("a/e".into(), "b/d".into())]).unwrap();
        let mut tar = tar::Archive::new(layer.0.as_slice());
        let paths = tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        assert_eq!(paths.collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/b/d", "a/e"]);
    }
}

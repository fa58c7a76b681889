//! The archive: layers, the image's configuration, its manifest, and the index that names it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::OciError;
use crate::layer::{Layer, add, header, named};

/// What a container of the image runs, and as whom.
#[derive(Default)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `uid:gid`; empty means root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
}

/// Writes the image `name` to `archive` and returns its manifest's digest. The archive appears when it is complete.
pub fn write(archive: &Path, name: &str, layers: &[&Layer], config: &Config) -> Result<String, OciError> {
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": config.entrypoint, "User": config.user, "Env": config.env},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": digests.iter().map(|_| json!({"created_by": "stowage"})).collect::<Vec<_>>(),
    })
    .to_string();
    let described: Vec<Value> =
        layers.iter().map(|layer| describe("layer.v1.tar", &layer.digest, layer.size)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media("manifest.v1+json"),
        "config": describe("config.v1+json", &digest(&config), config.len() as u64), "layers": described,
    })
    .to_string();
    let mut top = describe("manifest.v1+json", &digest(&manifest), manifest.len() as u64);
    top["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "mediaType": media("index.v1+json"), "manifests": [top]}).to_string();

    let next = archive.with_extension("tar.next");
    let failed = |source| OciError::Write { path: archive.into(), source };
    if let Some(folder) = archive.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let written = (|| {
        let mut tar = tar::Builder::new(BufWriter::new(File::create(&next).map_err(failed)?));
        let file = |tar: &mut _, path: &str, text: &str| {
            add(tar, tar::EntryType::Regular, path, 0o644, text.as_bytes()).map_err(failed)
        };
        file(&mut tar, "oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file(&mut tar, "index.json", &index)?;
        let mut written = BTreeSet::new();
        for layer in layers.iter().filter(|layer| written.insert(&layer.digest)) {
            add_layer(&mut tar, layer).map_err(|e| match e {
                OciError::Write { path: _, source } => failed(source),
                other => other,
            })?;
        }
        for text in [&config, &manifest] {
            file(&mut tar, &blob(&digest(text)), text)?;
        }
        let mut out = tar.into_inner().map_err(failed)?;
        out.flush().map_err(failed)?;
        std::fs::rename(&next, archive).map_err(failed)
    })();
    if written.is_err() {
        // The error is reported; what it left is of no use.
        let _ = std::fs::remove_file(&next);
    }
    written.map(|()| digest(&manifest))
}

fn add_layer(tar: &mut tar::Builder<impl Write>, layer: &Layer) -> Result<(), OciError> {
    let failed = |source| OciError::Write { path: Default::default(), source };
    let mut header = header(tar::EntryType::Regular, 0o644, layer.size);
    header.set_path(blob(&layer.digest)).map_err(failed)?;
    header.set_cksum();
    let out = tar.get_mut();
    out.write_all(header.as_bytes()).map_err(failed)?;
    layer.write_to(&mut *out)?;
    // Entries of a tar begin at multiples of 512 bytes; a tar is one already.
    let rest = layer.size.next_multiple_of(512) - layer.size;
    out.write_all(&vec![0; rest as usize]).map_err(failed)
}

/// The name and manifest digest of an archive.
pub fn read_name(archive: &Path) -> Result<(String, String), OciError> {
    let not = |source| OciError::NotAnArchive { path: archive.into(), source };
    let file = File::open(archive).map_err(|source| OciError::Read { path: archive.into(), source })?;
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries().map_err(|e| not(Some(e)))? {
        let entry = entry.map_err(|e| not(Some(e)))?;
        if entry.path().map_err(|e| not(Some(e)))?.as_ref() != Path::new("index.json") {
            continue;
        }
        let index: Value = serde_json::from_reader(entry).map_err(|e| not(Some(io::Error::other(e))))?;
        let manifest = &index["manifests"][0];
        let name = manifest["annotations"]["io.containerd.image.name"].as_str();
        let (Some(name), Some(digest)) = (name, manifest["digest"].as_str()) else { return Err(not(None)) };
        return Ok((name.to_owned(), digest.to_owned()));
    }
    Err(not(None))
}

fn describe(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media(kind), "digest": digest, "size": size})
}

fn media(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

fn digest(text: &str) -> String {
    named(&Sha256::digest(text.as_bytes()))
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;

    fn image(file: &Path, content: &[u8]) -> String {
        let layer =
            Layer::new(&[Entry::File("usr/bin/x".into(), 0o755, content.to_vec()), Entry::Dir("tmp".into(), 0o1777)]);
        let config = Config { entrypoint: vec!["/usr/bin/x".into()], user: "65532:65532".into(), env: vec![] };
        write(file, "localhost/x:dev", &[&layer.unwrap()], &config).unwrap()
    }

    #[test]
    fn same_input_gives_the_same_bytes_and_a_change_another_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.tar"), dir.path().join("b.tar"));
        let first = image(&a, b"one");
        assert_eq!(first, image(&b, b"one"));
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(read_name(&a).unwrap(), ("localhost/x:dev".to_string(), first.clone()));
        assert_ne!(first, image(&b, b"two"));
    }

    #[test]
    fn every_blob_has_the_digest_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar");
        image(&archive, b"one");
        let mut tar = tar::Archive::new(File::open(&archive).unwrap());
        let mut blobs = 0;
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let Some(hex) = path.strip_prefix("blobs/sha256/") else { continue };
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            assert_eq!(named(&Sha256::digest(&bytes)), format!("sha256:{hex}"));
            blobs += 1;
        }
        assert_eq!(blobs, 3, "layer, configuration, manifest");
    }

    #[test]
    fn failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, archive) = (dir.path().join("model"), dir.path().join("a.tar"));
        std::fs::write(&file, b"weights").unwrap();
        let layer = Layer::new(&[Entry::From("model".into(), 0o644, file.clone())]).unwrap();
        std::fs::write(&file, b"others").unwrap();
        assert!(matches!(write(&archive, "x", &[&layer], &Config::default()), Err(OciError::Changed { .. })));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(write(&archive, "x", &[&layer], &Config::default()), Err(OciError::Read { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_files_are_not_archives() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        for bytes in [&b""[..], b"no tar", &[0; 2048]] {
            std::fs::write(&file, bytes).unwrap();
            assert!(matches!(read_name(&file), Err(OciError::NotAnArchive { .. })));
        }
    }
}

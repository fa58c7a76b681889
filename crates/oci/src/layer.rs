//! A layer: files, folders and links, as an uncompressed tar.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::OciError;

/// One file, folder or link of a layer; paths have no leading slash.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A file with its permissions.
    File(String, u32, Vec<u8>),
    /// A file with its permissions, and where its bytes are.
    From(String, u32, PathBuf),
    /// An empty folder with its permissions.
    Dir(String, u32),
    /// A symbolic link and its target.
    Link(String, String),
}

impl Entry {
    fn path(&self) -> &str {
        match self {
            Entry::File(path, ..) | Entry::From(path, ..) | Entry::Dir(path, _) | Entry::Link(path, _) => path,
        }
    }
}

/// A finished layer: an uncompressed tar (nodes unpack it faster than they would inflate it).
pub struct Layer {
    entries: Vec<Entry>,
    /// `sha256:…` of the tar.
    pub(crate) digest: String,
    /// Bytes of the tar.
    pub(crate) size: u64,
}

impl Layer {
    /// Parent folders are added where the entries lack them.
    pub fn new(entries: &[Entry]) -> Result<Self, OciError> {
        let mut counted = Counted::new(io::sink());
        write_tar(entries, &mut counted)?;
        let (digest, size) = counted.finish();
        Ok(Self { entries: entries.to_vec(), digest, size })
    }

    /// The tar once more.
    pub(crate) fn write_to(&self, out: impl Write) -> Result<(), OciError> {
        let mut counted = Counted::new(out);
        write_tar(&self.entries, &mut counted)?;
        match counted.finish() {
            (digest, _) if digest == self.digest => Ok(()),
            _ => Err(OciError::Changed { path: self.files().next().unwrap_or_default() }),
        }
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::From(_, _, path) => Some(path.clone()),
            _ => None,
        })
    }
}

fn write_tar(entries: &[Entry], out: &mut impl Write) -> Result<(), OciError> {
    let mut tar = tar::Builder::new(out);
    let mut made = BTreeSet::new();
    for entry in entries {
        let path = entry.path();
        let written = |source| OciError::Write { path: path.into(), source };
        for (at, _) in path.match_indices('/') {
            if made.insert(path[..at].to_string()) {
                add(&mut tar, tar::EntryType::Directory, &path[..at], 0o755, &[]).map_err(written)?;
            }
        }
        match entry {
            Entry::File(_, mode, data) => add(&mut tar, tar::EntryType::Regular, path, *mode, data).map_err(written)?,
            Entry::From(_, mode, file) => add_file(&mut tar, path, *mode, file)?,
            Entry::Link(_, target) => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target).map_err(written)?;
            }
            Entry::Dir(_, mode) => {
                made.insert(path.to_owned());
                add(&mut tar, tar::EntryType::Directory, path, *mode, &[]).map_err(written)?;
            }
        }
    }
    let finished = tar.finish();
    finished.map_err(|source| OciError::Write { path: PathBuf::new(), source })
}

fn add_file(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, file: &PathBuf) -> Result<(), OciError> {
    let read = |source| OciError::Read { path: file.clone(), source };
    let opened = File::open(file).map_err(read)?;
    let size = opened.metadata().map_err(read)?.len();
    // A file that grows is cut, one that shrinks is filled; both have another digest the second time.
    let bytes = opened.take(size).chain(io::repeat(0)).take(size);
    tar.append_data(&mut header(tar::EntryType::Regular, mode, size), path, bytes).map_err(read)
}

pub(crate) fn add(
    tar: &mut tar::Builder<impl Write>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    data: &[u8],
) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, data.len() as u64), path, data)
}

pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Passes bytes on and keeps their digest and number.
struct Counted<W> {
    out: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Counted<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), size: 0 }
    }

    fn finish(self) -> (String, u64) {
        (named(&self.hasher.finalize()), self.size)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// `sha256:` and the hexadecimal digits.
pub(crate) fn named(digest: &[u8]) -> String {
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_children_and_only_once() {
        let file = |path: &str| Entry::File(path.into(), 0o644, vec![]);
        let layer = Layer::new(&[file("a/b/c"), file("a/b/d"), Entry::Link("a/e".into(), "b/d".into())]).unwrap();
        let mut bytes = Vec::new();
        layer.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, layer.size);
        let mut tar = tar::Archive::new(bytes.as_slice());
        let paths = tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        assert_eq!(paths.collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/b/d", "a/e"]);
    }

    #[test]
    fn file_on_disk_gives_the_same_layer_as_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model");
        std::fs::write(&file, b"weights").unwrap();
        let from_disk = Layer::new(&[Entry::From("model".into(), 0o644, file)]).unwrap();
        let from_bytes = Layer::new(&[Entry::File("model".into(), 0o644, b"weights".to_vec())]).unwrap();
        assert_eq!((from_disk.digest, from_disk.size), (from_bytes.digest, from_bytes.size));
    }

    #[test]
    fn file_that_changes_between_the_two_readings_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model");
        for changed in [&b"weightz"[..], b"weigh", b"weights and more"] {
            std::fs::write(&file, b"weights").unwrap();
            let layer = Layer::new(&[Entry::From("model".into(), 0o644, file.clone())]).unwrap();
            std::fs::write(&file, changed).unwrap();
            assert!(matches!(layer.write_to(io::sink()), Err(OciError::Changed { path }) if path == file));
        }
    }
}

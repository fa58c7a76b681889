//! The directories that claims have mounted. Names are claim uids, which were checked when the claim was asked for.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stowage_contracts::hub::is_commit;
use stowage_contracts::model::{COMPLETE, FETCHED_DIRECTORY};

use crate::dra::files::write_atomically;

/// In the directory of a claim: the commit to which its model's revision was resolved.
const COMMIT: &str = ".commit";

/// The directory with a directory per claim.
#[derive(Debug, Clone)]
pub struct ClaimDirectories(PathBuf);

impl ClaimDirectories {
    /// `models`: the cache's directory.
    pub fn new(models: &Path) -> Self {
        Self(models.join("claims"))
    }

    /// The directory of a claim.
    pub fn of(&self, uid: &str) -> PathBuf {
        self.0.join(uid)
    }

    /// Makes the directory of a claim, empty or as it is. Engines run as ordinary users and read it.
    pub fn make(&self, uid: &str) -> io::Result<()> {
        let directory = self.of(uid);
        std::fs::create_dir_all(&directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
    }

    /// Removes the directory of a claim; the cached files stay.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.of(uid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Uids of the claims that have a directory.
    pub fn all(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Whether the claim's model is complete in its directory.
    pub fn is_complete(&self, uid: &str) -> bool {
        self.of(uid).join(COMPLETE).exists()
    }

    /// The commit that was resolved for the claim.
    pub fn commit(&self, uid: &str) -> Option<String> {
        std::fs::read_to_string(self.of(uid).join(COMMIT)).ok().filter(|text| is_commit(text))
    }

    /// Notes the commit that was resolved for the claim: it stays with it over restarts.
    pub fn set_commit(&self, uid: &str, commit: &str) -> io::Result<()> {
        self.make(uid)?;
        write_atomically(&self.of(uid).join(COMMIT), commit.as_bytes())
    }

    /// Puts the files of a cached model into the claim's directory. The engine starts when the mark is there.
    pub fn complete(&self, uid: &str, cached: &Path) -> io::Result<()> {
        let directory = self.of(uid);
        let files = files_of(cached)?;
        if files.iter().any(|(name, _)| name.starts_with(FETCHED_DIRECTORY)) {
            let below = directory.join(FETCHED_DIRECTORY);
            std::fs::create_dir_all(&below)?;
            std::fs::set_permissions(below, std::fs::Permissions::from_mode(0o755))?;
        }
        for (name, path) in files {
            match std::fs::hard_link(path, directory.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        std::fs::write(directory.join(COMPLETE), b"")
    }
}

/// The files of a model: names below its directory, and where they are.
pub fn files_of(directory: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    for below in [PathBuf::new(), PathBuf::from(FETCHED_DIRECTORY)] {
        let entries = match std::fs::read_dir(directory.join(&below)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() && !entry.file_name().to_string_lossy().starts_with('.') {
                files.push((below.join(entry.file_name()), entry.path()));
            }
        }
    }
    files.sort();
    Ok(files)
}

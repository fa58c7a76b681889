//! The directories that claims have mounted. Names are claim uids, which were checked when the claim was asked for.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stowage_contracts::model::{COMPLETE, FETCHED_FILE};

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

    /// Puts the cached file into the claim's directory. The engine starts when the mark is there.
    pub fn complete(&self, uid: &str, cached: &Path) -> io::Result<()> {
        let directory = self.of(uid);
        match std::fs::hard_link(cached, directory.join(FETCHED_FILE)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        std::fs::write(directory.join(COMPLETE), b"")
    }
}

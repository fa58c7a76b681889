//! The cache on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use stowage_contracts::model::{FETCHED_FILE, ModelKey};

use crate::models::evict::Cached;

/// Beginning of names that are not complete yet.
const NEW: &str = ".new-";

/// The directories `cached` and `partial`.
#[derive(Debug, Clone)]
pub struct Store {
    cached: PathBuf,
    partial: PathBuf,
}

impl Store {
    /// Makes the directories, and removes what a killed agent left half-made.
    pub fn open(models: &Path) -> io::Result<Self> {
        let store = Self { cached: models.join("cached"), partial: models.join("partial") };
        for directory in [&store.cached, &store.partial] {
            std::fs::create_dir_all(directory)?;
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        }
        for entry in std::fs::read_dir(&store.cached)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(NEW) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(store)
    }

    /// Where a model is put together.
    pub fn partial(&self, key: &ModelKey) -> Option<PathBuf> {
        Some(self.partial.join(format!("{}.partial", key.directory()?)))
    }

    /// The file of a complete model.
    pub fn file(&self, key: &ModelKey) -> Option<PathBuf> {
        let file = self.cached.join(key.directory()?).join(FETCHED_FILE);
        file.is_file().then_some(file)
    }

    /// Takes a verified file into the cache: it has its final name when it is complete on disk, or not at all.
    pub fn publish(&self, key: &ModelKey) -> io::Result<()> {
        let unknown = || io::Error::other("a model without a key that can be cached");
        let name = key.directory().ok_or_else(unknown)?;
        let partial = self.partial(key).ok_or_else(unknown)?;
        let new = self.cached.join(format!("{NEW}{name}"));
        std::fs::create_dir_all(&new)?;
        std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o444))?;
        std::fs::rename(&partial, new.join(FETCHED_FILE))?;
        File::open(&new)?.sync_all()?;
        std::fs::rename(&new, self.cached.join(name))?;
        File::open(&self.cached)?.sync_all()?;
        stowage_fetch::discard(&partial)
    }

    /// Notes that a claim got the model.
    pub fn touch(&self, key: &ModelKey) {
        let Some(directory) = key.directory().map(|name| self.cached.join(name)) else { return };
        // A time that is not noted makes the model leave earlier, no more.
        let _ = File::open(directory).and_then(|directory| directory.set_modified(std::time::SystemTime::now()));
    }

    /// Removes a complete model.
    pub fn remove(&self, key: &ModelKey) -> io::Result<()> {
        match key.directory() {
            Some(name) => std::fs::remove_dir_all(self.cached.join(name)),
            None => Ok(()),
        }
    }

    /// Complete models. A model counts as used while a claim's directory has a link to it.
    pub fn list(&self) -> io::Result<BTreeMap<ModelKey, Cached>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(&self.cached)?.flatten() {
            let Some(key) = entry.file_name().to_str().and_then(ModelKey::of_directory) else { continue };
            let (Ok(directory), Ok(file)) = (entry.metadata(), entry.path().join(FETCHED_FILE).metadata()) else {
                continue;
            };
            let used_at = u64::try_from(directory.mtime()).unwrap_or(0);
            found.insert(key.clone(), Cached { key, bytes: file.len(), in_use: file.nlink() > 1, used_at });
        }
        Ok(found)
    }

    /// Removes what was fetched of models that nobody waits for any more.
    pub fn forget_partials(&self, wanted: impl Fn(&ModelKey) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.partial)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.split('.').next().unwrap_or_default();
            if !ModelKey::of_directory(stem).is_some_and(|key| wanted(&key)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Four fifths of the disk that holds the cache.
    pub fn default_limit(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.cached)?;
        Ok(disk.f_blocks.saturating_mul(disk.f_frsize) / 5 * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dra::model_dirs::ClaimDirectories;

    fn key(letter: &str) -> ModelKey {
        ModelKey::http(&format!("https://h/{letter}"), &letter.repeat(64))
    }

    fn cached(store: &Store, key: &ModelKey) -> PathBuf {
        std::fs::write(store.partial(key).unwrap(), b"weights").unwrap();
        std::fs::write(store.partial(key).unwrap().with_extension("journal"), b"{}").unwrap();
        store.publish(key).unwrap();
        store.file(key).unwrap()
    }

    #[test]
    fn model_is_visible_when_it_is_complete_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.file(&key("a")), None);
        let file = cached(&store, &key("a"));
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o444);
        std::fs::create_dir(dir.path().join("cached/.new-http-x")).unwrap();
        std::fs::create_dir(dir.path().join("cached/other")).unwrap();
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.list().unwrap().keys().collect::<Vec<_>>(), [&key("a")]);
        assert!(!dir.path().join("cached/.new-http-x").exists());
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn model_is_in_use_while_a_claim_has_it_and_stays_readable_after_its_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (store, claims) = (Store::open(dir.path()).unwrap(), ClaimDirectories::new(dir.path()));
        let file = cached(&store, &key("a"));
        let in_use = || store.list().unwrap()[&key("a")].in_use;
        assert!(!in_use());
        claims.make("uid-1").unwrap();
        assert!(!claims.is_complete("uid-1"));
        claims.complete("uid-1", &file).unwrap();
        claims.complete("uid-1", &file).unwrap();
        assert!(in_use() && claims.is_complete("uid-1"));
        store.remove(&key("a")).unwrap();
        assert_eq!(std::fs::read(claims.of("uid-1").join(FETCHED_FILE)).unwrap(), b"weights");
        claims.remove("uid-1").unwrap();
        claims.remove("uid-1").unwrap();
        assert_eq!(claims.all().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn partial_files_that_nobody_waits_for_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for key in [key("a"), key("b")] {
            std::fs::write(store.partial(&key).unwrap(), b"half").unwrap();
            std::fs::write(store.partial(&key).unwrap().with_extension("journal"), b"{}").unwrap();
        }
        store.forget_partials(|wanted| *wanted == key("a")).unwrap();
        assert!(store.partial(&key("a")).unwrap().exists() && !store.partial(&key("b")).unwrap().exists());
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 2);
    }
}

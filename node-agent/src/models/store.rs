//! The cache on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use stowage_contracts::model::{FETCHED_DIRECTORY, FETCHED_FILE, ModelKey};

use crate::dra::model_dirs::files_of;
use crate::models::evict::Cached;

/// Beginning of names that are not complete yet.
const NEW: &str = ".new-";
/// Beside the files of a model that was fetched with a token: the token's digest.
const READER: &str = ".reader";
/// The digest of a token.
pub type Reader = [u8; 32];

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

    /// Where a file is put together.
    pub fn partial(&self, key: &ModelKey) -> Option<PathBuf> {
        Some(self.partial.join(format!("{}.partial", key.directory()?)))
    }

    /// Where the files of a repository are put together.
    pub fn folder(&self, key: &ModelKey) -> Option<PathBuf> {
        Some(self.partial.join(format!("{}.files", key.directory()?)))
    }

    /// The directory of a complete model.
    pub fn model(&self, key: &ModelKey) -> Option<PathBuf> {
        let directory = self.cached.join(key.directory()?);
        directory.is_dir().then_some(directory)
    }

    /// Takes what was fetched and verified into the cache: it has its final name when it is complete on disk, or not at all.
    pub fn publish(&self, key: &ModelKey, reader: Option<&Reader>) -> io::Result<()> {
        let unknown = || io::Error::other("a model without a key that can be cached");
        let name = key.directory().ok_or_else(unknown)?;
        let (file, folder) = (self.partial(key).ok_or_else(unknown)?, self.folder(key).ok_or_else(unknown)?);
        let new = self.cached.join(format!("{NEW}{name}"));
        std::fs::create_dir_all(&new)?;
        if folder.is_dir() {
            for (_, path) in files_of(&folder)? {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444))?;
            }
            std::fs::rename(&folder, new.join(FETCHED_DIRECTORY))?;
        } else {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444))?;
            std::fs::rename(&file, new.join(FETCHED_FILE))?;
        }
        if let Some(reader) = reader {
            std::fs::write(new.join(READER), reader)?;
        }
        File::open(&new)?.sync_all()?;
        std::fs::rename(&new, self.cached.join(name))?;
        File::open(&self.cached)?.sync_all()?;
        stowage_fetch::discard(&file)
    }

    /// The digest of the token with which it was fetched, or which was allowed to read it since.
    pub fn reader(&self, key: &ModelKey) -> Option<Reader> {
        std::fs::read(self.model(key)?.join(READER)).ok()?.try_into().ok()
    }

    /// Another token may read it.
    pub fn set_reader(&self, key: &ModelKey, reader: &Reader) -> io::Result<()> {
        match self.model(key) {
            Some(directory) => std::fs::write(directory.join(READER), reader),
            None => Ok(()),
        }
    }

    /// Notes that a claim got the model.
    pub fn touch(&self, key: &ModelKey) {
        let Some(directory) = key.directory().map(|name| self.cached.join(name)) else { return };
        // A time that is not noted makes the model leave earlier, no more.
        let _ = File::open(directory).and_then(|directory| directory.set_modified(std::time::SystemTime::now()));
    }

    /// Removes a complete model: its name at once, so that no part of it is ever taken for the whole.
    pub fn remove(&self, key: &ModelKey) -> io::Result<()> {
        let Some(name) = key.directory() else { return Ok(()) };
        let going = self.cached.join(format!("{NEW}gone-{name}"));
        if going.is_dir() {
            // An earlier removal did not come to its end.
            std::fs::remove_dir_all(&going)?;
        }
        std::fs::rename(self.cached.join(name), &going)?;
        File::open(&self.cached)?.sync_all()?;
        std::fs::remove_dir_all(going)
    }

    /// Complete models. A model counts as used while a claim's directory has a link to it.
    pub fn list(&self) -> io::Result<BTreeMap<ModelKey, Cached>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(&self.cached)?.flatten() {
            let Some(key) = entry.file_name().to_str().and_then(ModelKey::of_directory) else { continue };
            let (Ok(directory), Ok(files)) = (entry.metadata(), files_of(&entry.path())) else { continue };
            let used_at = u64::try_from(directory.mtime()).unwrap_or(0);
            let files: Vec<_> = files.iter().filter_map(|(_, path)| path.metadata().ok()).collect();
            let (bytes, in_use) =
                (files.iter().map(|file| file.len()).sum(), files.iter().any(|file| file.nlink() > 1));
            found.insert(key.clone(), Cached { key, bytes, in_use, used_at });
        }
        Ok(found)
    }

    /// Removes what was fetched of models that nobody waits for any more; how many bytes.
    pub fn forget_partials(&self, wanted: impl Fn(&ModelKey) -> bool) -> io::Result<u64> {
        let mut freed = 0;
        for entry in std::fs::read_dir(&self.partial)?.flatten() {
            if !partial_of(&entry).is_some_and(|key| wanted(&key)) {
                freed += bytes_of(&entry)?;
                match entry.file_type()?.is_dir() {
                    true => std::fs::remove_dir_all(entry.path())?,
                    false => std::fs::remove_file(entry.path())?,
                }
            }
        }
        Ok(freed)
    }

    /// Bytes on the disk of these models as far as they are not complete.
    pub fn partial_bytes(&self, of: impl Fn(&ModelKey) -> bool) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.partial)?.flatten() {
            if partial_of(&entry).is_some_and(|key| of(&key)) {
                bytes += bytes_of(&entry)?;
            }
        }
        Ok(bytes)
    }

    /// `percent` of the disk that holds the cache.
    pub fn share_of_disk(&self, percent: u8) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.cached)?;
        Ok(disk.f_blocks.saturating_mul(disk.f_frsize) / 100 * u64::from(percent))
    }

    /// Four fifths of the disk that holds the cache.
    pub fn default_limit(&self) -> io::Result<u64> {
        self.share_of_disk(80)
    }
}

/// What a file, or all files of a folder, take on the disk.
fn bytes_of(entry: &std::fs::DirEntry) -> io::Result<u64> {
    let files = match entry.file_type()?.is_dir() {
        true => std::fs::read_dir(entry.path())?.flatten().map(|file| file.path()).collect(),
        false => vec![entry.path()],
    };
    Ok(files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum())
}

/// Of which model this is a part.
fn partial_of(entry: &std::fs::DirEntry) -> Option<ModelKey> {
    let name = entry.file_name().to_string_lossy().into_owned();
    ModelKey::of_directory(name.split('.').next().unwrap_or_default())
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
        store.publish(key, None).unwrap();
        store.model(key).unwrap()
    }

    #[test]
    fn files_of_a_repository_become_visible_together_and_reach_the_claim() {
        let dir = tempfile::tempdir().unwrap();
        let (store, claims) = (Store::open(dir.path()).unwrap(), ClaimDirectories::new(dir.path()));
        let key = ModelKey::read(&format!("hub:{}:{}", "a".repeat(32), "b".repeat(40)));
        let folder = store.folder(&key).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), b"{}").unwrap();
        std::fs::write(folder.join("model.safetensors"), b"weights").unwrap();
        assert_eq!(store.model(&key), None);
        store.publish(&key, Some(&[7; 32])).unwrap();
        assert_eq!((store.reader(&key), folder.exists()), (Some([7; 32]), false));
        let model = store.model(&key).unwrap();
        claims.make("uid-1").unwrap();
        claims.complete("uid-1", &model).unwrap();
        claims.complete("uid-1", &model).unwrap();
        let of_claim = files_of(&claims.of("uid-1")).unwrap();
        let names: Vec<_> = of_claim.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["model/config.json", "model/model.safetensors"]);
        assert!(!claims.of("uid-1").join(READER).exists());
        let listed = &store.list().unwrap()[&key];
        assert_eq!((listed.bytes, listed.in_use), (9, true));
        store.set_reader(&key, &[8; 32]).unwrap();
        assert_eq!(store.reader(&key), Some([8; 32]));
        claims.remove("uid-1").unwrap();
        assert!(!store.list().unwrap()[&key].in_use);
    }

    #[test]
    fn model_is_visible_when_it_is_complete_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.model(&key("a")), None);
        let file = cached(&store, &key("a")).join(FETCHED_FILE);
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
        std::fs::create_dir(store.folder(&key("c")).unwrap()).unwrap();
        store.forget_partials(|wanted| *wanted == key("a")).unwrap();
        assert!(store.partial(&key("a")).unwrap().exists() && !store.partial(&key("b")).unwrap().exists());
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 2);
    }
}

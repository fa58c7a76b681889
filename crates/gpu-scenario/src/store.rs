//! Keeps the scenario in step with its file.
//!
//! Each read looks at the file's identity (inode, size, mtime) and parses it only when that has
//! changed. A file that is missing, truncated or wrong changes nothing but `last_error`: a GPU does
//! not disappear while the file is edited.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::scenario::Scenario;

/// (device, inode, size, mtime in ns): another tuple means another content.
type Stamp = (u64, u64, u64, i128);

/// The last good scenario of a file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    stamp: Option<Stamp>,
    good: Option<Arc<Scenario>>,
    error: Option<String>,
}

impl Store {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let mut store = Self { path: path.into(), stamp: None, good: None, error: None };
        store.refresh();
        store
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The scenario in force: the newest good one. `None` when there was never a good one.
    pub fn current(&mut self) -> Option<Arc<Scenario>> {
        self.refresh();
        self.good.clone()
    }

    /// Why the file as it is now is not in force; `None` when it is.
    pub fn last_error(&mut self) -> Option<&str> {
        self.refresh();
        self.error.as_deref()
    }

    fn refresh(&mut self) {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(meta) => {
                let mtime = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
                (meta.dev(), meta.ino(), meta.size(), mtime)
            }
            Err(err) => {
                self.stamp = None;
                self.error = Some(format!("cannot read {}: {err}", self.path.display()));
                return;
            }
        };
        if self.stamp == Some(stamp) {
            return;
        }
        self.stamp = Some(stamp);
        match self.load() {
            Ok(scenario) => {
                self.good = Some(Arc::new(scenario));
                self.error = None;
            }
            Err(why) => self.error = Some(format!("{}: {why}", self.path.display())),
        }
    }

    fn load(&self) -> Result<Scenario, String> {
        let text = std::fs::read(&self.path).map_err(|err| format!("cannot read: {err}"))?;
        Scenario::parse(&text).map_err(|err| match std::error::Error::source(&err) {
            Some(source) => one_line(&format!("{err}: {source}")),
            None => one_line(&err.to_string()),
        })
    }
}

/// Reasons quote the file, which may hold anything.
fn one_line(why: &str) -> String {
    why.chars().take(1000).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    #[test]
    fn truncated_file_keeps_the_last_good_scenario_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scenario.json");
        let text = Profile::L4x1.scenario("n").to_json();
        std::fs::write(&path, &text).unwrap();
        let mut store = Store::new(&path);
        assert_eq!(store.last_error(), None);

        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(store.current().unwrap().devices.len(), 1);
        assert!(store.last_error().unwrap().contains("cannot parse"));

        std::fs::remove_file(&path).unwrap();
        assert_eq!(store.current().unwrap().devices.len(), 1);
        assert!(store.last_error().unwrap().contains("No such file"));

        std::fs::write(&path, Profile::Mixed.scenario("n").to_json()).unwrap();
        assert_eq!(store.current().unwrap().devices.len(), 6);
        assert_eq!(store.last_error(), None);
    }
}

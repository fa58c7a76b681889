//! Room for what is fetched at the same time: each fetch reserves what it will write before it begins, so that two that would
//! fit alone do not fill the disk together.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::FetchError;

/// What all fetches of a fetcher may still write.
#[derive(Clone)]
pub struct Room(Arc<Mutex<Account>>);

struct Account {
    /// Bytes that all fetches together may put beside what is there.
    limit: u64,
    /// Bytes that running fetches have yet to write.
    reserved: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Account { limit: u64::MAX, reserved: 0 })))
    }
}

impl Room {
    /// Sets what all fetches together may still write.
    pub fn set_limit(&self, bytes: u64) {
        self.with(|account| account.limit = bytes);
    }

    /// What running fetches have yet to write.
    pub fn reserved(&self) -> u64 {
        self.with(|account| account.reserved)
    }

    /// Reserves room on the disk that holds the folder, all but `keep` bytes of which may be used.
    pub fn reserve(&self, folder: &Path, keep: u64, needed: u64) -> Result<Reserved, FetchError> {
        let disk = rustix::fs::statvfs(folder).map_err(std::io::Error::from)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(keep);
        self.with(|account| {
            let left = |of: u64| of.saturating_sub(account.reserved);
            if needed > left(account.limit) {
                return Err(FetchError::CacheFull { needed, free: left(account.limit) });
            }
            if needed > left(free) {
                return Err(FetchError::DiskFull { needed, free: left(free) });
            }
            account.reserved += needed;
            Ok(Reserved { room: self.clone(), left: AtomicU64::new(needed) })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Account) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one fetch has yet to write; given back when it is dropped.
pub struct Reserved {
    room: Room,
    left: AtomicU64,
}

impl Reserved {
    /// Bytes that are on the disk now.
    pub fn wrote(&self, bytes: u64) {
        let before =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        let gone = before.unwrap_or(0).min(bytes);
        self.room.with(|account| account.reserved = account.reserved.saturating_sub(gone));
    }

    /// Bytes that were on the disk, and are to be written again.
    pub fn lost(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
        self.room.with(|account| account.reserved = account.reserved.saturating_add(bytes));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.wrote(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_fetch_will_write_is_not_there_for_another() {
        let (room, here) = (Room::default(), std::env::temp_dir());
        room.set_limit(100);
        let first = room.reserve(&here, 0, 60).unwrap();
        assert!(matches!(room.reserve(&here, 0, 60), Err(FetchError::CacheFull { needed: 60, free: 40 })));
        first.wrote(50);
        assert_eq!(room.reserved(), 10);
        first.lost(50);
        assert_eq!(room.reserved(), 60);
        first.wrote(50);
        // What is written counts in the limit that the owner sets anew.
        room.set_limit(50);
        let second = room.reserve(&here, 0, 40).unwrap();
        drop(first);
        assert_eq!(room.reserved(), 40);
        drop(second);
        assert_eq!(room.reserved(), 0);
        assert!(matches!(room.reserve(&here, u64::MAX, 1), Err(FetchError::DiskFull { .. })));
    }
}

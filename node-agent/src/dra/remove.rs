//! Removes directories that a pod could write into, however deep or full they are: report directories
//! of earlier versions, which lay on the host's disk.
//!
//! A directory is first moved aside, which takes one system call whatever it holds, and then emptied
//! by one thread in the background. The thread neither recurses nor opens a descriptor per level: a
//! subdirectory that is not empty has its own subdirectories moved up beside it, so that two open
//! directories are enough for any depth.

use std::ffi::CStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Where directories wait for their removal, and the thread that removes them.
#[derive(Debug, Clone)]
pub struct Remover {
    aside: PathBuf,
    running: Arc<AtomicBool>,
}

impl Remover {
    /// `aside`: a directory on the same file system as what is removed.
    pub fn new(aside: PathBuf) -> Self {
        Self { aside, running: Arc::default() }
    }

    /// The directory is gone from its place when this returns; one that is not there is fine.
    pub fn remove(&self, dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir(dir) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
            Ok(()) => return Ok(()),
            Err(_) => {}
        }
        std::fs::create_dir_all(&self.aside)?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for attempt in 0..1000 {
            match std::fs::rename(dir, self.aside.join(format!("{name}.{attempt}"))) {
                // An earlier one of that name is not removed yet.
                Err(err) if err.kind() == ErrorKind::DirectoryNotEmpty => {}
                Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
                moved => {
                    moved?;
                    self.start();
                    return Ok(());
                }
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Empties what was moved aside, also by an agent that ended before it was done. At most one thread.
    pub fn start(&self) {
        if !self.aside.exists() || self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        let spawned = std::thread::Builder::new().name("remove".to_owned()).spawn(move || this.run());
        if let Err(err) = spawned {
            self.running.store(false, Ordering::Release);
            tracing::warn!(%err, "cannot start the thread that removes old report directories; the next removal tries again");
        }
    }

    fn run(&self) {
        loop {
            let removed = remove_all_in(&self.aside);
            self.running.store(false, Ordering::Release);
            if let Err(err) = removed {
                let dir = self.aside.display();
                tracing::warn!(%dir, %err, "cannot remove old report directories; the next removal tries again");
                return;
            }
            // Moved aside after the last look and before `running` was cleared: nobody else removes it.
            let left = std::fs::read_dir(&self.aside).is_ok_and(|mut left| left.next().is_some());
            if !left || self.running.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }

    /// Whether nothing is left to remove.
    pub fn idle(&self) -> bool {
        !self.running.load(Ordering::Acquire)
    }
}

/// Removes everything in the directory, and leaves the directory.
pub fn remove_all_in(dir: &Path) -> io::Result<()> {
    let top = open(rustix::fs::CWD, dir)?;
    let mut moved = 0;
    loop {
        let mut removed = 0_u64;
        let mut failed = None;
        for entry in entries(&top)? {
            match remove_one(&top, &entry?, &mut moved) {
                Ok(()) => removed += 1,
                Err(err) => failed = Some(err),
            }
        }
        match (removed, failed) {
            (0, None) => return Ok(()),
            (0, Some(err)) => return Err(err.into()),
            _ => {}
        }
    }
}

/// The entries of a directory, read piece by piece: a million names are never in memory at once.
fn entries(dir: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
    let wanted = |entry: &DirEntry| !matches!(entry.file_name().to_bytes(), b"." | b"..");
    let entries = Dir::read_from(dir)?.filter(move |entry| entry.as_ref().map_or(true, wanted));
    Ok(entries.map(|entry| Ok(entry?)))
}

/// Removes an entry. A directory that is not empty loses its files, and its own directories move up into `top`.
fn remove_one(top: &OwnedFd, entry: &DirEntry, moved: &mut u64) -> Result<(), Errno> {
    if unlinked(top, entry)? {
        return Ok(());
    }
    let child = open(top, entry.file_name())?;
    for inner in entries(&child).map_err(errno)? {
        let inner = inner.map_err(errno)?;
        if !unlinked(&child, &inner)? {
            move_up(&child, inner.file_name(), top, moved)?;
        }
    }
    unlinked(top, entry).map(drop)
}

/// `false`: it is a directory and not empty.
fn unlinked(dir: &OwnedFd, entry: &DirEntry) -> Result<bool, Errno> {
    let name = entry.file_name();
    if entry.file_type() != FileType::Directory {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            // A file system that does not report types.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(err) => return Err(err),
        }
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Under a name that is free: the pod has chosen the others.
fn move_up(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match rustix::fs::renameat(from, name, top, format!("moved-{moved}")) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            done => return done,
        }
    }
}

/// Never through a link: the pod may have put one there.
fn open(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn errno(err: io::Error) -> Errno {
    Errno::from_io_error(&err).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In memory where there is such a file system: thousands of directories on a disk take seconds.
    fn temporary() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    /// `levels` directories inside each other; made without long paths.
    fn deep(dir: &Path, levels: u32) {
        std::fs::create_dir(dir).unwrap();
        let mut at = open(rustix::fs::CWD, dir).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, "moved-1", Mode::RWXU).unwrap();
            at = open(&at, "moved-1").unwrap();
        }
    }

    fn is_empty(dir: &Path) -> bool {
        std::fs::read_dir(dir).unwrap().next().is_none()
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn tree_of_20000_levels_is_removed_without_a_descriptor_per_level() {
        let dir = temporary();
        deep(&dir.path().join("report"), 20_000);
        // Another test may open a few at the same time; one per level would be 20,000.
        let before = descriptors();
        let most = std::thread::scope(|scope| {
            let removal = scope.spawn(|| remove_all_in(dir.path()).unwrap());
            let mut most = 0;
            while !removal.is_finished() {
                most = most.max(descriptors());
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
            most
        });
        assert!(is_empty(dir.path()));
        assert!(most < before + 100, "{most} descriptors, {before} before");
    }

    #[test]
    fn wide_and_mixed_tree_is_removed_and_nothing_behind_a_link_is() {
        let dir = temporary();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        for branch in 0..20 {
            let branch = inside.join(format!("report/{branch}/a/b"));
            std::fs::create_dir_all(&branch).unwrap();
            for file in 0..50 {
                std::fs::write(branch.join(file.to_string()), "").unwrap();
            }
            std::os::unix::fs::symlink(&outside, branch.join("link")).unwrap();
        }
        std::fs::write(inside.join("report/moved-3"), "a file of the name that a directory gets").unwrap();
        remove_all_in(&inside).unwrap();
        assert!(is_empty(&inside) && outside.join("kept").exists());
    }

    #[test]
    fn directory_is_gone_from_its_place_at_once_and_from_the_disk_in_the_end() {
        let dir = temporary();
        let (report, aside) = (dir.path().join("report"), dir.path().join("removed"));
        let remover = Remover::new(aside.clone());
        remover.remove(&report).unwrap();
        assert!(!aside.exists(), "nothing to remove, nothing is made");
        for _ in 0..2 {
            deep(&report, 50);
            remover.remove(&report).unwrap();
            assert!(!report.exists());
        }
        while !remover.idle() {
            std::thread::yield_now();
        }
        remove_all_in(&aside).unwrap();
        assert!(is_empty(&aside));
    }

    #[test]
    fn link_in_the_place_of_the_directory_is_not_followed() {
        let dir = temporary();
        std::fs::create_dir(dir.path().join("kept")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("kept"), dir.path().join("link")).unwrap();
        assert!(remove_all_in(&dir.path().join("link")).is_err());
    }
}

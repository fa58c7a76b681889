//! The usage report: what this process uses of its GPU slice, for the node agent.
//!
//! The file of the contract, replaced by rename each second, valid while this process holds a POSIX lock
//! on the file beside it. POSIX and not open-file-description locks: the
//! agent asks who holds it, and only these return the process, in the pid namespace of the caller.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stowage_contracts::names::{USAGE_FILE, USAGE_LOCK_FILE};
use stowage_contracts::usage::UsageFile;

use crate::engine_thread::EngineHandle;

const INTERVAL: Duration = Duration::from_secs(1);

/// Writes the report until it is dropped. The lock is held as long as the process lives.
pub struct Reporter {
    dir: PathBuf,
    /// Closing *any* descriptor of this file drops the lock, so it is opened once and kept.
    _lock: File,
    /// The granted share of the device, in per cent.
    granted: u32,
}

impl Reporter {
    /// Takes the lock. Fails when another process holds it, or the directory cannot be written.
    pub fn open(dir: &Path, granted: u32) -> io::Result<Self> {
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).open(dir.join(USAGE_LOCK_FILE))?;
        lock_whole(&lock)?;
        let reporter = Self { dir: dir.to_owned(), _lock: lock, granted };
        reporter.write(&UsageFile { bytes: 0, sm_percent: 0 })?;
        Ok(reporter)
    }

    /// Reports each second, without end. An unwritable report is logged once, not each second.
    pub async fn run(self, engine: EngineHandle) {
        let mut ticks = tokio::time::interval(INTERVAL);
        let (mut before, mut logged) = (Duration::ZERO, false);
        loop {
            ticks.tick().await;
            let (bytes, busy) = engine.usage();
            let sm_percent = share(busy.saturating_sub(before), self.granted);
            before = busy;
            match self.write(&UsageFile { bytes, sm_percent }) {
                Ok(()) => logged = false,
                Err(err) if !logged => {
                    tracing::warn!(%err, dir = %self.dir.display(), "cannot write the usage report");
                    logged = true;
                }
                Err(_) => {}
            }
        }
    }

    fn write(&self, usage: &UsageFile) -> io::Result<()> {
        let new = self.dir.join(".usage.json.new");
        std::fs::write(&new, serde_json::to_vec(usage)?)?;
        std::fs::rename(new, self.dir.join(USAGE_FILE))
    }
}

/// The part of the granted share that was used during one interval.
fn share(busy: Duration, granted: u32) -> u32 {
    let fraction = (busy.as_secs_f64() / INTERVAL.as_secs_f64()).min(1.0);
    (fraction * f64::from(granted)).round() as u32
}

fn lock_whole(file: &File) -> io::Result<()> {
    // SAFETY: an all-zero flock is a valid value; length 0 means the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open for as long as `file` lives, and `lock` outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_is_written_at_once_with_zero_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let _reporter = Reporter::open(dir.path(), 50).unwrap();
        let text = std::fs::read_to_string(dir.path().join("usage.json")).unwrap();
        assert_eq!(text, r#"{"bytes":0,"smPercent":0}"#);
    }

    #[test]
    fn the_share_is_of_what_was_granted() {
        assert_eq!(share(Duration::from_millis(500), 50), 25);
        assert_eq!(share(Duration::from_secs(3), 50), 50);
        assert_eq!(share(Duration::ZERO, 100), 0);
    }

    #[test]
    fn another_process_sees_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let _reporter = Reporter::open(dir.path(), 50).unwrap();
        // Asked from a child, since a process never conflicts with itself.
        let script = r#"import fcntl,sys,struct,os
f=open(sys.argv[1],'r+')
q=struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0)
print(struct.unpack('hhqqi4x',fcntl.fcntl(f,fcntl.F_GETLK,q))[4])"#;
        let lock = dir.path().join("lock");
        let Ok(output) = std::process::Command::new("python3").arg("-c").arg(script).arg(lock).output() else {
            eprintln!("skipped: no python3 to ask from another process");
            return;
        };
        let holder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(holder, std::process::id().to_string(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

//! Processes that run on simulated GPUs and say so.
//!
//! Each claim has a directory `<claim uid>/` with `claim.json` (the agent's: which GPUs, whose) and,
//! while an engine runs, `usage.json` and a `lock` on which the engine holds a POSIX write lock.
//! The kernel tells the holder's pid in *our* pid namespace, and drops the lock with the process,
//! so an entry can be neither forged for another pid nor left behind. (OFD locks report -1.)

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::scenario::{ReportedMemory, Reports};

/// `claim.json`: written by the node agent when it prepares the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimFile {
    pub uuids: Vec<String>,
    pub namespace: String,
    pub name: String,
    pub pod: String,
    /// Empty in files of other writers: then only the lock's holder is found.
    #[serde(default)]
    pub pod_uid: String,
}

/// `usage.json`: written by the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageFile {
    pub bytes: u64,
    #[serde(default)]
    pub sm_percent: u32,
}

/// One process on one simulated GPU, as NVML would list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    pub uuid: String,
    pub bytes: u64,
    pub sm_percent: u32,
}

/// Everything that runs on the GPUs of the claims under `dir`. What cannot be read is left out: a
/// broken report must not hide its neighbours.
pub fn running(dir: &Path, rules: &Reports) -> Vec<Running> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    dirs.sort();
    dirs.iter().flat_map(|dir| of_claim(dir, rules).unwrap_or_default()).collect()
}

fn of_claim(dir: &Path, rules: &Reports) -> Option<Vec<Running>> {
    let claim: ClaimFile = read_json(&dir.join("claim.json"))?;
    let usage: UsageFile = read_json(&dir.join("usage.json")).unwrap_or_default();
    let holder = lock_holder(&dir.join("lock"));
    let processes: Vec<(u32, u64)> = match (rules.memory_for(&claim.namespace, &claim.name), holder) {
        (ReportedMemory::Reported, Some(pid)) => vec![(pid, usage.bytes)],
        (ReportedMemory::Reported, None) => Vec::new(),
        (ReportedMemory::Rss, Some(pid)) => vec![(pid, resident(pid)?)],
        (ReportedMemory::Rss, None) => {
            pids_of_pod(&claim.pod_uid).into_iter().filter_map(|pid| Some((pid, resident(pid)?))).collect()
        }
    };
    let share = claim.uuids.len().max(1) as u64;
    let on_each = |(pid, bytes): (u32, u64)| {
        claim.uuids.iter().map(move |uuid| Running {
            pid,
            uuid: uuid.clone(),
            // A process on several GPUs is assumed to be spread evenly.
            bytes: bytes / share,
            sm_percent: usage.sm_percent.min(100),
        })
    };
    Some(processes.into_iter().flat_map(on_each).collect())
}

/// Small files only: a report of gigabytes is not read into memory.
const MAX_FILE: u64 = 64 * 1024;

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    use std::io::Read;
    let mut text = Vec::new();
    open(path)?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The directory belongs to the pod: a link must not lead us elsewhere, nor a pipe block us.
fn open(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// The process that holds a write lock on the file, as a pid of this pid namespace.
pub fn lock_holder(path: &Path) -> Option<u32> {
    let file = open(path)?;
    // SAFETY: `flock` is plain data for which zeroes are valid, and lives over the call; the
    // descriptor is open.
    let lock = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        // Asking "could I take a read lock" finds every writer; our descriptor is read-only.
        lock.l_type = libc::F_RDLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        if libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) != 0 {
            return None;
        }
        lock
    };
    let held = lock.l_type != libc::F_UNLCK as libc::c_short;
    (held && lock.l_pid > 0).then_some(lock.l_pid as u32)
}

/// The resident set of a process in bytes; `None` when it is gone.
pub fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: no arguments beyond a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// The processes whose control group names the pod. The kubelet writes the uid with `-`, the
/// systemd cgroup driver with `_`.
fn pids_of_pod(pod_uid: &str) -> Vec<u32> {
    if pod_uid.is_empty() {
        return Vec::new();
    }
    let (dashes, underscores) = (format!("pod{pod_uid}"), format!("pod{}", pod_uid.replace('-', "_")));
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|groups| groups.contains(&dashes) || groups.contains(&underscores))
    };
    pids.filter(ours).collect()
}

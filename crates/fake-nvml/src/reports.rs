//! Processes that run on simulated GPUs and report what they use.
//!
//! Each claim has a directory `<claim uid>/` with `claim.json` (the agent's: which GPUs, whose pod). The
//! pod has a report directory of its own in its containers: `usage.json`, and a `lock` on which the
//! engine holds a POSIX write lock. It is read through `/proc/<pid>/root` of the pod's processes, which
//! the kernel names by their control group. The kernel also gives the lock's holder in *our* pid
//! namespace and drops the lock with the process, so an entry can be neither forged for another
//! process nor left behind. (Locks of open file descriptions report -1.)
//!
//! Nothing in a container leads out of it: paths are resolved with the container's root as the root,
//! and only small regular files are read.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use stowage_contracts::names::{USAGE_FILE, USAGE_LOCK_FILE};
use stowage_contracts::usage::{ClaimFile, UsageFile};
use stowage_gpu_scenario::scenario::{ReportedMemory, Reports};

/// Where a container has its report directory (`STOWAGE_GPU_REPORT_DIR`), below its root.
const REPORT_DIR: &str = "run/stowage/report";

/// One process on one simulated GPU, as NVML would list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    pub uuid: String,
    pub bytes: u64,
    pub sm_percent: u32,
}

/// Everything that runs on the GPUs of the claims under `claims`. What cannot be read is left out: a
/// broken report must not hide its neighbours.
pub fn running(claims: &Path, proc: &Path, rules: &Reports) -> Vec<Running> {
    let Ok(entries) = std::fs::read_dir(claims) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path().join("claim.json")).collect();
    files.sort();
    let claims: Vec<ClaimFile> = files.iter().filter_map(|path| json(open(rustix::fs::CWD, path)?)).collect();
    if claims.is_empty() {
        return Vec::new();
    }
    let groups = control_groups(proc);
    claims.iter().flat_map(|claim| of_claim(claim, proc, &groups, rules)).collect()
}

fn of_claim(claim: &ClaimFile, proc: &Path, groups: &[(u32, String)], rules: &Reports) -> Vec<Running> {
    let pids: Vec<u32> =
        groups.iter().filter(|(_, group)| names_pod(group, &claim.pod_uid)).map(|(pid, _)| *pid).collect();
    let report = pids.iter().find_map(|pid| Report::of(proc, *pid, &claim.pod_uid));
    let usage = report.as_ref().and_then(|report| report.usage).unwrap_or_default();
    let holder = report.and_then(|report| report.holder).filter(|holder| pids.contains(holder));
    let measured = |pid: u32| Some((pid, resident(proc, pid)?));
    let processes: Vec<(u32, u64)> = match (rules.memory_for(&claim.namespace, &claim.name), holder) {
        (ReportedMemory::Reported, holder) => holder.map(|pid| (pid, usage.bytes)).into_iter().collect(),
        (ReportedMemory::Rss, Some(pid)) => measured(pid).into_iter().collect(),
        (ReportedMemory::Rss, None) => pids.into_iter().filter_map(measured).collect(),
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
    processes.into_iter().flat_map(on_each).collect()
}

/// What lies in the report directory of a container.
struct Report {
    usage: Option<UsageFile>,
    /// The process with the write lock.
    holder: Option<u32>,
}

impl Report {
    /// The report directory that this process sees; `None`: it has none, or is no process of the pod
    /// any more.
    fn of(proc: &Path, pid: u32, pod_uid: &str) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Kept open, so that all that follows is about one process even if its number is given away.
        let process = rustix::fs::open(proc.join(pid.to_string()), flags, Mode::empty()).ok()?;
        if !names_pod(&text(open(&process, "cgroup")?)?, pod_uid) {
            return None;
        }
        let root = rustix::fs::openat(&process, "root", flags, Mode::empty()).ok()?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let dir = rustix::fs::openat2(&root, REPORT_DIR, flags, Mode::empty(), inside).ok()?;
        let usage = open(&dir, USAGE_FILE).and_then(json);
        Some(Self { usage, holder: lock_holder(&open(&dir, USAGE_LOCK_FILE)?) })
    }
}

/// Small files only: a report of gigabytes is not read into memory.
const MAX_FILE: u64 = 64 * 1024;

fn text(file: File) -> Option<String> {
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

fn json<T: for<'de> Deserialize<'de>>(file: File) -> Option<T> {
    serde_json::from_str(&text(file)?).ok()
}

/// A regular file. A link must not lead elsewhere, nor a pipe block us.
fn open(dir: impl AsFd, path: impl rustix::path::Arg) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// The process that holds a write lock on the file, as a pid of this pid namespace.
fn lock_holder(file: &File) -> Option<u32> {
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
    // -1: a lock of an open file description, which names no process.
    u32::try_from(lock.l_pid).ok().filter(|pid| held && *pid > 0)
}

/// The resident set of a process in bytes; `None` when it is gone.
pub fn resident(proc: &Path, pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(proc.join(pid.to_string()).join("statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: no arguments beyond a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// All processes with the text of their control groups.
fn control_groups(proc: &Path) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?)))
        .collect()
}

/// The kubelet writes the uid with `-`, the systemd cgroup driver with `_`.
fn names_pod(group: &str, pod_uid: &str) -> bool {
    !pod_uid.is_empty()
        && (group.contains(&format!("pod{pod_uid}")) || group.contains(&format!("pod{}", pod_uid.replace('-', "_"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    const POD: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    /// A node with one claim and, as its pod's process, a child that holds the lock of its container's report.
    struct Node {
        dir: tempfile::TempDir,
        engine: std::process::Child,
    }

    impl Node {
        fn new(bytes: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let report = dir.path().join("container").join(REPORT_DIR);
            std::fs::create_dir_all(&report).unwrap();
            let script = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print('x',flush=True); time.sleep(600)";
            let mut command = std::process::Command::new("python3");
            command.args(["-c", script]).arg(report.join("lock")).stdout(std::process::Stdio::piped());
            let mut engine = command.spawn().unwrap();
            engine.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
            let node = Self { dir, engine };
            node.usage(&format!(r#"{{"bytes":{bytes},"smPercent":7}}"#));
            std::fs::create_dir_all(node.claims().join("c1")).unwrap();
            let claim =
                serde_json::json!({"uuids": ["GPU-a"], "namespace": "a", "name": "x", "pod": "x", "podUid": POD});
            std::fs::write(node.claims().join("c1/claim.json"), claim.to_string()).unwrap();
            node.process(node.engine.id(), &format!("0::/kubepods/pod{POD}/c"), &node.container());
            node
        }

        fn claims(&self) -> PathBuf {
            self.dir.path().join("reports")
        }

        fn container(&self) -> PathBuf {
            self.dir.path().join("container")
        }

        fn proc(&self) -> PathBuf {
            self.dir.path().join("proc")
        }

        fn usage(&self, text: &str) {
            std::fs::write(self.container().join(REPORT_DIR).join(USAGE_FILE), text).unwrap();
        }

        fn process(&self, pid: u32, group: &str, root: &Path) {
            let process = self.proc().join(pid.to_string());
            std::fs::create_dir_all(&process).unwrap();
            std::fs::write(process.join("cgroup"), group).unwrap();
            symlink(root, process.join("root")).unwrap();
            symlink(format!("/proc/{pid}/statm"), process.join("statm")).unwrap();
        }

        fn seen(&self, memory: ReportedMemory) -> Vec<(u32, u64)> {
            let rules = Reports { memory, by_claim: Vec::new() };
            running(&self.claims(), &self.proc(), &rules).into_iter().map(|found| (found.pid, found.bytes)).collect()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = self.engine.kill();
            let _ = self.engine.wait();
        }
    }

    #[test]
    fn engine_in_its_container_is_found_by_pod_and_lock() {
        let node = Node::new(5);
        let pid = node.engine.id();
        // The pod's sandbox has no report directory, and is no engine.
        node.process(1, &format!("0::/kubepods/pod{POD}/sandbox"), &node.dir.path().join("nothing"));
        assert_eq!(node.seen(ReportedMemory::Reported), [(pid, 5)]);
        assert!(node.seen(ReportedMemory::Rss)[0].1 > 1 << 20, "the resident set of the lock's holder alone");
    }

    #[test]
    fn process_of_another_pod_with_the_lock_is_not_the_claims() {
        let node = Node::new(5);
        let process = node.proc().join(node.engine.id().to_string());
        std::fs::write(process.join("cgroup"), "0::/kubepods/pod99999999-1111-2222-3333-444455556666/c").unwrap();
        assert!(node.seen(ReportedMemory::Reported).is_empty());
    }

    #[test]
    fn links_in_the_container_do_not_lead_out_of_it() {
        let node = Node::new(5);
        let outside = node.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::rename(node.container().join(REPORT_DIR), outside.join("report")).unwrap();
        symlink(outside.join("report"), node.container().join(REPORT_DIR)).unwrap();
        assert!(node.seen(ReportedMemory::Reported).is_empty(), "an absolute link");
        std::fs::remove_file(node.container().join(REPORT_DIR)).unwrap();
        symlink("../../../outside/report", node.container().join(REPORT_DIR)).unwrap();
        assert!(node.seen(ReportedMemory::Reported).is_empty(), "a relative link");
        // Beside it: a link that stays inside is followed.
        std::fs::remove_file(node.container().join(REPORT_DIR)).unwrap();
        std::fs::rename(outside.join("report"), node.container().join("elsewhere")).unwrap();
        symlink("/elsewhere", node.container().join(REPORT_DIR)).unwrap();
        assert_eq!(node.seen(ReportedMemory::Reported), [(node.engine.id(), 5)]);
    }

    #[test]
    fn file_of_the_report_that_is_a_link_a_pipe_or_too_long_is_not_read() {
        let node = Node::new(5);
        let pid = node.engine.id();
        let usage = node.container().join(REPORT_DIR).join(USAGE_FILE);
        std::fs::write(node.dir.path().join("secret"), r#"{"bytes": 9}"#).unwrap();
        std::fs::remove_file(&usage).unwrap();
        symlink(node.dir.path().join("secret"), &usage).unwrap();
        assert_eq!(node.seen(ReportedMemory::Reported), [(pid, 0)]);
        std::fs::remove_file(&usage).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&usage).status().unwrap().success());
        assert_eq!(node.seen(ReportedMemory::Reported), [(pid, 0)]);
        std::fs::remove_file(&usage).unwrap();
        node.usage(&format!("{}{{}}", " ".repeat(100_000)));
        assert_eq!(node.seen(ReportedMemory::Reported), [(pid, 0)]);
    }
}

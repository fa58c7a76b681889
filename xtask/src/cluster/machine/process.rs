//! The processes that we start: each in a session of its own (so that it survives the shell), each
//! recorded by process id and start time. A pid alone could be another process's by the time of `down`.
//!
//! The record is written by the child itself before it becomes the program: a launcher that is
//! killed at any moment leaves no process without one.

use crate::base::{sh, wait};
use crate::cluster::shape::layout::Layout;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Field 22 of `/proc/PID/stat`, counted behind the program's name (which may hold blanks).
const RECORD: &str = r#"record=$1; shift
read -r stat </proc/$$/stat
set -f; tail=${stat##*) }; n=0
for field in $tail; do n=$((n + 1)); [ $n = 20 ] && start=$field; done
echo "$$ $start" >"$record.next" && mv "$record.next" "$record" && exec "$@""#;

/// A process that we started, by its record.
#[derive(Clone, Debug)]
pub struct Process {
    /// Of its record and its log.
    pub name: String,
    /// In this pid namespace.
    pub pid: i32,
    start: u64,
}

impl Process {
    /// Whether that very process still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start && state != 'Z')
    }

    /// Waits for its end.
    pub fn gone(&self) -> Result<()> {
        wait::until(&format!("the end of {}", self.name), Duration::from_secs(30), || {
            Ok(if self.alive() { wait::Seen::NotYet("alive".into()) } else { wait::Seen::Yes(()) })
        })
    }

    /// SIGKILL, and only to the process of the record: the handle is taken before the look.
    pub fn kill(&self) -> Result<()> {
        // SAFETY: plain system calls on numbers; the handle is closed below.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if handle < 0 || !self.alive() {
            return Ok(()); // gone already
        }
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle, libc::SIGKILL, 0, 0) };
        let error = std::io::Error::last_os_error();
        unsafe { libc::close(handle as i32) };
        if sent != 0 && self.alive() {
            return Err(error).with_context(|| format!("ending {} (pid {})", self.name, self.pid));
        }
        Ok(())
    }
}

/// All recorded processes, by name.
pub fn recorded(layout: &Layout) -> Vec<Process> {
    let files = fs::read_dir(layout.procs()).into_iter().flatten().flatten();
    let mut all: Vec<_> = files.filter_map(|f| read(&f.path())).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The recorded process of that name, if it lives.
pub fn living(layout: &Layout, name: &str) -> Option<Process> {
    read(&layout.procs().join(name)).filter(Process::alive)
}

/// Removes its record: it has ended, and is not missed.
pub fn forget(layout: &Layout, name: &str) -> Result<()> {
    match fs::remove_file(layout.procs().join(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("forgetting {name}")),
        _ => Ok(()),
    }
}

/// Starts `argv` as the process `name` unless it lives already.
pub fn ensure(layout: &Layout, bin: &Path, name: &str, argv: &[String]) -> Result<Process> {
    if let Some(process) = living(layout, name) {
        return Ok(process);
    }
    fs::create_dir_all(layout.procs())?;
    fs::create_dir_all(layout.logs())?;
    let record = layout.procs().join(name);
    fs::remove_file(&record).ok();
    let log = File::options().create(true).append(true).open(layout.log(name))?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", RECORD, "sh"]).arg(&record).args(argv);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    // Not the caller's environment: its proxies and kubeconfigs are not the cluster's.
    command.env_clear().env("PATH", search_path(bin)).env("HOME", &layout.state);
    // SAFETY: only system calls that are async-signal-safe and have no effect on memory.
    unsafe { command.pre_exec(detach) };
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    wait::until(&format!("starting {name}"), Duration::from_secs(20), || {
        if let Some(process) = read(&record) {
            return Ok(wait::Seen::Yes(process));
        }
        match child.try_wait()? {
            Some(status) => bail!("{name} ended at once ({status}): {}", log_tail(layout, name)),
            None => Ok(wait::Seen::NotYet("no record yet".into())),
        }
    })
}

/// In the new process: a session of its own, and none of the launcher's files. A lock that the launcher's caller holds
/// on one of them would otherwise live as long as the cluster.
fn detach() -> std::io::Result<()> {
    // SAFETY: plain system calls on numbers.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::setsid()
    };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// An error that quotes the log when the process `name` is not alive.
pub fn must_live(layout: &Layout, name: &str) -> Result<()> {
    if living(layout, name).is_none() {
        bail!("{name} has ended. The end of {}:\n{}", layout.log(name).display(), log_tail(layout, name));
    }
    Ok(())
}

/// The last lines of a process's log.
pub fn log_tail(layout: &Layout, name: &str) -> String {
    let log = fs::read(layout.log(name)).unwrap_or_default();
    sh::tail(&String::from_utf8_lossy(&log[log.len().saturating_sub(8_000)..]), 6)
}

/// The cluster's programs before the machine's.
pub fn search_path(bin: &Path) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display())
}

fn read(record: &Path) -> Option<Process> {
    let name = record.file_name()?.to_str()?.to_string();
    let text = fs::read_to_string(record).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    if name.ends_with(".next") {
        return None;
    }
    Some(Process { name, pid: pid.parse().ok()?, start: start.parse().ok()? })
}

/// State and start time (clock ticks since boot) of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> Layout {
        let dir =
            std::env::temp_dir().join(format!("stowage-proc-{}-{:?}", std::process::id(), std::thread::current().id()));
        Layout::new(Some(&dir), Path::new("/src")).unwrap()
    }

    #[test]
    fn a_started_process_is_recorded_found_and_ended() {
        let l = temporary();
        let sleep: Vec<String> = ["/bin/sleep", "1000"].map(String::from).to_vec();
        let first = ensure(&l, Path::new("/bin"), "sleep", &sleep).unwrap();
        let again = ensure(&l, Path::new("/bin"), "sleep", &sleep).unwrap();
        assert_eq!(first.pid, again.pid, "a living process is not started twice");
        first.kill().unwrap();
        first.gone().unwrap();
        fs::remove_dir_all(&l.state).unwrap();
    }

    #[test]
    fn a_pid_that_another_process_has_now_is_not_ours() {
        let me = Process { name: "me".into(), pid: std::process::id() as i32, start: 1 };
        assert!(!me.alive());
        me.kill().unwrap(); // and we are still here
    }
}

//! Which pod a process of this node belongs to: its control group, from the kernel. The
//! process itself cannot change it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

/// The node's processes, from `/proc` of the host's pid namespace.
#[derive(Debug, Clone)]
pub struct Processes {
    proc: PathBuf,
    /// How long a look at all processes serves those who ask for pods' roots.
    looks_every: Duration,
    looked: Arc<Mutex<Option<Look>>>,
}

/// The processes of each pod at some time.
#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    pods: Arc<BTreeMap<String, Vec<u32>>>,
}

impl Default for Processes {
    fn default() -> Self {
        Self { looks_every: Duration::from_millis(500), ..Self::at(Path::new("/proc")) }
    }
}

impl Processes {
    /// Of another directory of the same form, for tests: each look is a new one.
    pub fn at(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), looks_every: Duration::ZERO, looked: Arc::default() }
    }

    /// UID of the pod that a process belongs to.
    pub fn pod_of(&self, pid: u32) -> Option<String> {
        pod_in_cgroups(&std::fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")).ok()?)
    }

    /// The root directories of the processes of these pods.
    pub fn roots_of_pods(&self, pods: &[String]) -> Vec<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |pid: u32| {
            // Kept open, so that all that follows is about one process even if its number is given away.
            let process = rustix::fs::open(self.proc.join(pid.to_string()), flags, Mode::empty()).ok()?;
            let root = rustix::fs::openat(&process, "root", flags, Mode::empty()).ok()?;
            let group = rustix::fs::openat(&process, "cgroup", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            let group = std::io::read_to_string(std::fs::File::from(group)).ok()?;
            pod_in_cgroups(&group).filter(|pod| pods.contains(pod)).map(|_| root)
        };
        let seen = self.by_pod();
        pods.iter().filter_map(|pod| seen.get(pod)).flatten().copied().filter_map(open).collect()
    }

    /// The processes of each pod: many models that wait for a login look once.
    fn by_pod(&self) -> Arc<BTreeMap<String, Vec<u32>>> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = looked.as_ref().filter(|look| look.at.elapsed() < self.looks_every) {
            return Arc::clone(&look.pods);
        }
        let mut pods: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for pid in self.pids() {
            if let Some(pod) = self.pod_of(pid) {
                pods.entry(pod).or_default().push(pid);
            }
        }
        let look = looked.insert(Look { at: Instant::now(), pods: Arc::new(pods) });
        Arc::clone(&look.pods)
    }

    fn pids(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(&self.proc).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Whether a process of the pod runs on this node.
    pub fn any_of_pod(&self, pod_uid: &str) -> bool {
        self.pids().into_iter().filter_map(|pid| self.pod_of(pid)).any(|uid| uid == pod_uid)
    }
}

/// The pod's uid in the text of `/proc/<pid>/cgroup`. Written `pod<uid>` by the kubelet itself, and
/// `…-pod<uid with _>.slice` where systemd makes the groups.
fn pod_in_cgroups(text: &str) -> Option<String> {
    text.lines().flat_map(|line| line.split('/')).find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = part.rsplit_once("pod").filter(|(before, _)| before.is_empty() || before.ends_with('-'))?.1;
        let uid = uid.replace('_', "-");
        let shaped = uid.len() == 36 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        shaped.then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    #[test]
    fn pod_is_found_in_each_form_of_control_group() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(pod_in_cgroups(text).as_deref(), expect, "{text}");
        check(&format!("4:memory:/k8s-node1/kubepods/burstable/pod{UID}/0123abcd\n"), Some(UID));
        check(&format!("0::/../../kubepods/pod{UID}/x"), Some(UID));
        let systemd = UID.replace('-', "_");
        check(
            &format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-1.scope"
            ),
            Some(UID),
        );
        check("0::/user.slice/user-0.slice", None);
        check("0::/podman/podium", None);
        check("", None);
    }

    #[test]
    fn pod_runs_while_one_of_its_processes_does() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::at(dir.path());
        std::fs::create_dir(dir.path().join("7")).unwrap();
        std::fs::write(dir.path().join("7/cgroup"), "0::/user.slice").unwrap();
        assert!(!processes.any_of_pod(UID));
        std::fs::write(dir.path().join("7/cgroup"), format!("0::/kubepods/pod{UID}/c")).unwrap();
        assert!(processes.any_of_pod(UID));
        assert_eq!(processes.pod_of(7).as_deref(), Some(UID));
        assert!(!Processes::at(&dir.path().join("missing")).any_of_pod(UID));
    }
}

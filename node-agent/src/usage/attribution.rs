//! Which claim a process on a GPU belongs to, from what the kernel says about it.
//!
//! First the lock of the claim's report directory, which its holder cannot fake for another, then
//! the pod in the process' control group. Nothing that the process itself says is believed.

use std::path::PathBuf;

use fake_nvml::reports::lock_holder;

use crate::dra::checkpoint::Checkpoint;
use crate::usage::view::{Attribution, Source};

/// Looks into `/proc` and the report directories. Needs the host's pid namespace.
pub struct KernelAttribution {
    pub reports: PathBuf,
}

impl Attribution for KernelAttribution {
    fn claim_of(&self, pid: u32, checkpoint: &Checkpoint) -> Option<(String, Source)> {
        let of_pod = pod_of(pid).and_then(|pod| checkpoint.of_pod(&pod).map(str::to_owned));
        if let Some(uid) = of_pod {
            return Some((uid, Source::Nvml));
        }
        let holds = |uid: &&String| lock_holder(&self.reports.join(uid).join("lock")) == Some(pid);
        checkpoint.claims.keys().find(holds).map(|uid| (uid.clone(), Source::Report))
    }
}

fn pod_of(pid: u32) -> Option<String> {
    pod_in_cgroups(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
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

    #[test]
    fn the_pod_is_found_in_each_form_of_control_group() {
        let uid = "0a1b2c3d-1111-2222-3333-444455556666";
        let check = |text: &str, expect: Option<&str>| assert_eq!(pod_in_cgroups(text).as_deref(), expect, "{text}");
        check(&format!("4:memory:/k8s-node1/kubepods/burstable/pod{uid}/0123abcd\n"), Some(uid));
        check(&format!("0::/../../kubepods/pod{uid}/x"), Some(uid));
        let systemd = uid.replace('-', "_");
        check(
            &format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-1.scope"
            ),
            Some(uid),
        );
        check("0::/user.slice/user-0.slice", None);
        check("0::/podman/podium", None);
        check("", None);
    }
}

//! What running a cluster takes of the machine: programs (installed from Debian when missing) and a kernel and
//! privileges that allow namespaces, overlays, bridges and cgroups (named when missing).

use crate::base::sh;
use crate::programs::prereq;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// A program and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] =
    &[("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux"), ("sysctl", "procps")];

/// What running a cluster takes.
pub fn to_run() -> Result<()> {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the local cluster makes namespaces, bridges and cgroups: run it as root");
    }
    prereq::install(prereq::missing(PROGRAMS))?;
    kernel()
}

/// Tries each thing once, in namespaces that end with the try.
fn kernel() -> Result<()> {
    let tries = [
        ("true", "network, mount and pid namespaces (CAP_SYS_ADMIN; in a container: --privileged)"),
        (
            "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m && mount -t overlay o -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /mnt/m",
            "overlay mounts (CONFIG_OVERLAY_FS)",
        ),
        (
            "ip link add br9 type bridge && ip link add v9 type veth peer name v8",
            "bridges and veth pairs (CONFIG_BRIDGE, CONFIG_VETH)",
        ),
        (
            "nft add table ip t && nft 'add chain ip t c { type nat hook postrouting priority 0 ; }'",
            "nftables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT)",
        ),
        (
            "[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || { modprobe br_netfilter && [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; }",
            "br_netfilter (modprobe br_netfilter on the host)",
        ),
    ];
    for (script, what) in tries {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "sh", "-ec", script]);
        sh::output(&mut command).with_context(|| format!("this kernel or these privileges lack {what}"))?;
    }
    super::cgroup::check()?;
    raise_watches()
}

/// Each kubelet, containerd and watcher takes inotify instances; the default of 128 is shared by
/// all of root's processes. Raised (never lowered) for the machine, since it has no namespace.
fn raise_watches() -> Result<()> {
    let file = "/proc/sys/fs/inotify/max_user_instances";
    let now: u32 = std::fs::read_to_string(file)?.trim().parse()?;
    if now < 512 {
        std::fs::write(file, "512").with_context(|| format!("raising {file} from {now} to 512"))?;
    }
    Ok(())
}

//! What the machine must have: programs (installed from Debian when missing) and a kernel and
//! privileges that allow namespaces, overlays, bridges and cgroups (named when missing).

use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A program and the Debian package that has it.
const RUN: &[(&str, &str)] =
    &[("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux"), ("sysctl", "procps")];
const BUILD: &[(&str, &str)] = &[("gcc", "gcc"), ("pkg-config", "pkg-config")];

/// What running a cluster takes.
pub fn to_run() -> Result<()> {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the local cluster makes namespaces, bridges and cgroups: run it as root");
    }
    install(missing(RUN))?;
    kernel()
}

/// What building its programs takes.
pub fn to_build() -> Result<()> {
    let mut packages = missing(BUILD);
    if !Path::new("/usr/include/seccomp.h").exists() {
        packages.push("libseccomp-dev"); // without seccomp runc fails every sandbox
    }
    install(packages)?;
    if sh::which("go").is_none() {
        bail!(
            "the programs of the cluster are built from Go modules, and `go` is not in PATH (1.26 or newer, see go.dev/dl)"
        );
    }
    Ok(())
}

fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| sh::which(program).is_none()).map(|(_, package)| *package).collect()
}

/// Installs Debian packages; an empty list is fine.
pub fn install(packages: Vec<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if sh::which("apt-get").is_none() {
        bail!("missing: {list} (Debian's names; install them with this system's package manager)");
    }
    eprintln!("installing {list}");
    let apt =
        |args: &[&str]| sh::output(sh::cmd("apt-get", args).args(&packages).env("DEBIAN_FRONTEND", "noninteractive"));
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&install)
        .or_else(|_| {
            sh::output(&mut sh::cmd("apt-get", &["update", "-qq"]))?;
            apt(&install)
        })
        .with_context(|| format!("installing {list}"))?;
    Ok(())
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

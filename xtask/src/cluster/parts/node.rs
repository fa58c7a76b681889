//! A node: network, mount and pid namespaces in which containerd, the kubelet, kube-proxy and the
//! NetworkPolicy enforcer run as on a machine of their own. The kubelet's standard paths are there,
//! so a DaemonSet's hostPath volumes mean what they mean anywhere.

use crate::cluster::machine::process::{self, Process};
use crate::cluster::machine::{cgroup, network};
use crate::cluster::shape::layout::{DNS_SERVICE_IP, Layout, node_name};
use crate::cluster::shape::state::State;
use crate::cluster::shape::template;
use crate::image;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// Starts the node unless it lives.
pub fn start(layout: &Layout, state: &State, node: usize) -> Result<()> {
    let name = node_name(node);
    if process::living(layout, &name).is_some() {
        return Ok(());
    }
    prepare(layout, state, node).with_context(|| format!("preparing {name}"))?;
    let init = layout.node_dir(&name).join("init.sh").display().to_string();
    let unshare = "unshare --net --mount --pid --fork --kill-child --mount-proc /bin/bash";
    let argv: Vec<String> = unshare.split(' ').map(String::from).chain([init]).collect();
    let process: Process = process::ensure(layout, &state.bin, &name, &argv)?;
    network::connect(layout, node, state.nodes, &process)
}

/// The image of every pod's sandbox, made once per cluster.
pub fn pause_archive(layout: &Layout, state: &State) -> Result<PathBuf> {
    let archive = layout.state.join("pause.tar");
    if !archive.exists() {
        image::pause(&state.bin.join("pause"), &archive)?;
    }
    Ok(archive)
}

fn prepare(layout: &Layout, state: &State, node: usize) -> Result<()> {
    let name = node_name(node);
    let dir = layout.node_dir(&name);
    // Sockets, leases and sandboxes of an earlier life of this node.
    fs::remove_dir_all(dir.join("run")).ok();
    for sub in ["containerd", "run", "cni", "kubelet", "stowage", "cdi", "etc-cdi", "libcni", "plugins", "pods"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    cgroup::make(&layout.cgroup(&name))?;
    let values = [
        ("dir", dir.display().to_string()),
        ("bin", state.bin.display().to_string()),
        ("pki", layout.pki().display().to_string()),
        ("logs", layout.logs().display().to_string()),
        ("node", name.clone()),
        ("node_ip", layout.node_ip(node)),
        ("pod_cidr", layout.pod_cidr(node)),
        ("pods_cidr", layout.pods_cidr()),
        ("dns_ip", DNS_SERVICE_IP.to_string()),
        ("cgroup", layout.cgroup(&name)),
        ("gpu_profile", state.gpu_profile.clone()),
        ("restrict_oom", (!may_lower_oom_score()).to_string()),
        ("pause_archive", pause_archive(layout, state)?.display().to_string()),
    ];
    let files = [
        ("containerd.toml", template::CONTAINERD),
        ("cni/10-stowage.conflist", template::CNI),
        ("kubelet.yaml", template::KUBELET),
        ("kube-proxy.yaml", template::KUBE_PROXY),
        ("init.sh", template::NODE_INIT),
    ];
    for (file, text) in files {
        fs::write(dir.join(file), template::fill(text, &values).with_context(|| format!("rendering {file}"))?)?;
    }
    Ok(())
}

/// CAP_SYS_RESOURCE, bit 24 of our effective capabilities.
fn may_lower_oom_score() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|b| b & (1 << 24) != 0)
}

//! The cluster's network: a namespace with a bridge for the control plane, and one per node with a
//! cable to that bridge. Nothing in it has a route out; the machine gets in through loopback
//! forwarders only. A namespace lives exactly as long as its process (the control plane's holder,
//! a node's init), so nothing has to be removed, and a machine that lost power has nothing left.

use super::process::{self, Process};
use crate::base::{sh, wait};
use crate::cluster::shape::layout::{Layout, node_name};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The process that holds the control plane's namespace.
pub const HOLDER: &str = "cp";

/// The control plane's namespace, with its bridge.
pub fn control_plane(layout: &Layout, bin: &Path) -> Result<()> {
    let fresh = process::living(layout, HOLDER).is_none();
    let pause = bin.join("pause").display().to_string();
    let holder = process::ensure(layout, bin, HOLDER, &["unshare".into(), "--net".into(), pause])?;
    name_namespace(layout, HOLDER, &holder)?;
    if fresh {
        let ip = layout.control_ip();
        let script = format!(
            "ip link set lo up; ip link add br0 type bridge; ip addr add {ip}/24 dev br0; ip link set br0 up; sysctl -qw net.ipv4.ip_forward=1"
        );
        run_in(layout, HOLDER, &script).context("making the control plane's bridge")?;
    }
    Ok(())
}

/// Gives a node's new namespace its cable, address and routes, and everyone else the way to its pods.
pub fn connect(layout: &Layout, node: usize, nodes: usize, init: &Process) -> Result<()> {
    let name = node_name(node);
    name_namespace(layout, &name, init)?;
    let (cp, ip) = (layout.control_ip(), layout.node_ip(node));
    let route = |m: usize| format!("ip route replace {} via {};", layout.pod_cidr(m), layout.node_ip(m));
    // The old cable of a node that died went with its namespace, but perhaps not yet.
    let cable = format!(
        "ip link del v{node} 2>/dev/null || true; ip link add v{node} type veth peer name eth0 netns {pid}; \
         ip link set v{node} master br0 up; {}",
        route(node),
        pid = init.pid
    );
    run_in(layout, HOLDER, &cable).with_context(|| format!("connecting {name}"))?;
    let others: String = (1..=nodes).filter(|m| *m != node).map(route).collect();
    // The default route comes last: the node's init waits for it.
    let inside = format!(
        "ip link set lo up; ip link set eth0 up; ip addr add {ip}/24 dev eth0; {others} ip route add default via {cp}"
    );
    run_in(layout, &name, &inside).with_context(|| format!("addressing {name}"))?;
    for other in (1..=nodes).filter(|m| *m != node) {
        if process::living(layout, &node_name(other)).is_some() && layout.netns(&node_name(other)).exists() {
            run_in(layout, &node_name(other), &route(node))?;
        }
    }
    Ok(())
}

/// `nsenter` into the namespace of `cp` or of a node.
pub fn enter(layout: &Layout, name: &str) -> Vec<String> {
    vec!["nsenter".into(), format!("--net={}", layout.netns(name).display())]
}

fn run_in(layout: &Layout, name: &str, script: &str) -> Result<String> {
    let words = enter(layout, name);
    sh::output(Command::new(&words[0]).args(&words[1..]).args(["sh", "-ec", script]))
}

/// A link of a fixed name, so that forwarders find a node again after it was started anew.
fn name_namespace(layout: &Layout, name: &str, holder: &Process) -> Result<()> {
    let own = fs::read_link("/proc/self/ns/net")?;
    let theirs = format!("/proc/{}/ns/net", holder.pid);
    wait::until(&format!("the network namespace of {name}"), Duration::from_secs(10), || {
        process::must_live(layout, name)?;
        Ok(match fs::read_link(&theirs) {
            Ok(ns) if ns != own => wait::Seen::Yes(()),
            _ => wait::Seen::NotYet("not entered".into()),
        })
    })?;
    let link = layout.netns(name);
    fs::create_dir_all(layout.state.join("netns"))?;
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(theirs, &link).with_context(|| format!("naming the namespace of {name}"))
}

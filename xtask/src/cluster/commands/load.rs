//! Imports OCI archives into the nodes' image stores. A node that has the same digest under the same
//! name already is left alone.

use crate::base::progress::seconds;
use crate::base::sh;
use crate::cluster::shape::layout::{Layout, node_name};
use crate::cluster::shape::state::State;
use anyhow::{Context, Result, anyhow, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub fn run(layout: &Layout, archives: &[PathBuf]) -> Result<()> {
    let state = State::required(layout)?;
    ensure!(!archives.is_empty(), "name at least one archive (`cargo xtask image` writes them to target/images)");
    let named: Vec<_> = archives.iter().map(|a| Ok((a, stowage_oci::read_name(a)?))).collect::<Result<_>>()?;
    // Each node has its own store: they unpack side by side.
    let nodes: Vec<_> = (1..=state.nodes).map(node_name).collect();
    std::thread::scope(|scope| {
        let tasks: Vec<_> = nodes.iter().map(|n| scope.spawn(|| node(layout, &state, n, &named))).collect();
        tasks.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a load ended early"))?)
    })
}

fn node(layout: &Layout, state: &State, node: &str, archives: &[(&PathBuf, (String, String))]) -> Result<()> {
    let listed =
        sh::output(ctr(layout, state, node).args(["images", "list"])).with_context(|| format!("asking {node}"))?;
    for (archive, (name, digest)) in archives {
        let there = |l: &str| l.starts_with(&format!("{name} ")) && l.contains(digest.as_str());
        if listed.lines().any(there) {
            println!("{node}  has {name}");
            continue;
        }
        let start = Instant::now();
        import(layout, state, node, archive).with_context(|| format!("importing {} into {node}", archive.display()))?;
        println!("{node}  took {name} in {}", seconds(start.elapsed()));
    }
    Ok(())
}

fn import(layout: &Layout, state: &State, node: &str, archive: &Path) -> Result<()> {
    sh::output(ctr(layout, state, node).args(["images", "import", "--all-platforms"]).arg(archive))?;
    Ok(())
}

fn ctr(layout: &Layout, state: &State, node: &str) -> Command {
    let mut ctr = sh::cmd(state.bin.join("ctr"), &["-n", "k8s.io"]);
    ctr.arg("-a").arg(layout.containerd_socket(node));
    ctr
}

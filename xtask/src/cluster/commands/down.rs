//! Ends exactly the processes that were recorded and removes what they leave: cgroups and the state
//! directory. Namespaces, bridges and mounts need nothing: they end with their processes.

use crate::base::wait::{self, Seen};
use crate::cluster::machine::{cgroup, process};
use crate::cluster::shape::layout::Layout;
use anyhow::{Context, Result, bail};
use std::fs;
use std::time::{Duration, Instant};

pub fn run(layout: &Layout) -> Result<()> {
    if !layout.state.exists() && cgroup::ours(&prefix(layout)).is_empty() {
        println!("nothing to end: no cluster in {}", layout.state.display());
        return Ok(());
    }
    let start = Instant::now();
    let ended = clean(layout)?;
    println!(
        "ended {ended} processes and removed {} in {}",
        layout.state.display(),
        crate::base::progress::seconds(start.elapsed())
    );
    Ok(())
}

/// As `run`, without output; returns how many processes it ended.
pub fn clean(layout: &Layout) -> Result<usize> {
    let living: Vec<_> = process::recorded(layout).into_iter().filter(|p| p.alive()).collect();
    for process in &living {
        process.kill()?;
    }
    wait::until("the end of the cluster's processes", Duration::from_secs(60), || {
        let left: Vec<_> = living.iter().filter(|p| p.alive()).map(|p| p.name.clone()).collect();
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::NotYet(left.join(", ")) })
    })?;
    // A node's containers end with its init, but their groups are in use until the last is gone.
    wait::until("the end of the nodes' containers", Duration::from_secs(60), || {
        Ok(match cgroup::remove(&prefix(layout)) {
            Ok(()) => Seen::Yes(()),
            Err(e) => Seen::NotYet(format!("{e:#}")),
        })
    })?;
    refuse_mounts(layout)?;
    match fs::remove_dir_all(&layout.state) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", layout.state.display()))
        }
        _ => Ok(living.len()),
    }
}

/// Nothing of ours is mounted outside the nodes; whatever is, must not be deleted through its mount.
fn refuse_mounts(layout: &Layout) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let inside =
        mounts.lines().filter_map(|l| l.split(' ').nth(4)).find(|m| std::path::Path::new(m).starts_with(&layout.state));
    match inside {
        Some(mount) => bail!("{mount} is mounted below the state directory: unmount it first"),
        None => Ok(()),
    }
}

fn prefix(layout: &Layout) -> String {
    layout.cgroup("")
}

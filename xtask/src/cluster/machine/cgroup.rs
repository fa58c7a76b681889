//! One group per node, made before its kubelet wants it and removed with it. Nothing is mounted or
//! remounted. Version 1 has a hierarchy per controller, version 2 a single one.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Whether groups can be made here.
pub fn check() -> Result<()> {
    let all = hierarchies();
    if all.is_empty() {
        bail!("no cgroup hierarchy is mounted below {ROOT}");
    }
    for needed in ["memory", "cpu", "pids"] {
        let there = all.iter().any(|h| has(h, needed));
        if !there {
            bail!("no cgroup controller `{needed}` below {ROOT}: the kubelet needs it");
        }
    }
    Ok(())
}

/// Makes the group in every hierarchy.
pub fn make(group: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(group);
        if is_v2_root(&hierarchy) {
            delegate(&hierarchy).context("handing cgroup controllers down")?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("making the cgroup {}", dir.display()))?;
        if is_v2_root(&hierarchy) {
            delegate(&dir)?;
        }
        // An empty cpuset (version 1 does not inherit) admits no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (hierarchy.join(file), dir.join(file));
            if from.exists() && to.exists() {
                fs::write(&to, fs::read(&from)?).with_context(|| format!("writing {}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes the groups whose name starts with `prefix`; the error names one that still has processes.
pub fn remove(prefix: &str) -> Result<()> {
    for dir in ours(prefix) {
        remove_tree(&dir).with_context(|| format!("removing the cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// The groups (of all hierarchies) whose name starts with `prefix`.
pub fn ours(prefix: &str) -> Vec<PathBuf> {
    let children = hierarchies().into_iter().flat_map(|h| fs::read_dir(h).into_iter().flatten().flatten());
    children.map(|e| e.path()).filter(|p| p.is_dir() && name_starts(p, prefix)).collect()
}

fn name_starts(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for child in fs::read_dir(dir)?.flatten().filter(|c| c.path().is_dir()) {
        remove_tree(&child.path())?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root];
    }
    let mut found: Vec<PathBuf> = fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.path()).collect();
    // Links (cpu -> cpu,cpuacct) would name one hierarchy twice.
    found.retain(|p| !p.is_symlink() && p.join("cgroup.procs").exists());
    found.sort();
    found
}

fn is_v2_root(hierarchy: &Path) -> bool {
    hierarchy == Path::new(ROOT)
}

fn has(hierarchy: &Path, controller: &str) -> bool {
    let listed = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
    let named = hierarchy.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    listed.split_whitespace().chain(named.split(',')).any(|c| c == controller)
}

/// Version 2: children get the controllers that their parent hands down.
fn delegate(dir: &Path) -> Result<()> {
    let all = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in all.split_whitespace() {
        let file = dir.join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}")).with_context(|| {
            format!(
                "{}: +{controller} (a group with processes of its own cannot hand controllers down)",
                file.display()
            )
        })?;
    }
    Ok(())
}

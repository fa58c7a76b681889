//! Writes what is generated from the types: the CRDs' YAML. The files are committed, so a change of
//! a type is visible as a diff in review.
//!
//! `cargo test -p stowage-crds` compares too; this is the command that its message names.

use std::path::Path;

use anyhow::{Context, ensure};

/// Relative to the repository's root.
const CRDS: &str = "charts/stowage-crds/templates";

/// Writes the files, or with `check` fails when one would change.
pub fn run(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join(CRDS);
    let wanted = stowage_crds::crd::manifests();
    let mut stale = Vec::new();
    for (name, content) in &wanted {
        let path = folder.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == *content) {
            continue;
        }
        stale.push(format!("{CRDS}/{name}"));
        if !check {
            std::fs::create_dir_all(&folder).with_context(|| format!("creating {CRDS}"))?;
            std::fs::write(&path, content).with_context(|| format!("writing {CRDS}/{name}"))?;
            println!("wrote {CRDS}/{name}");
        }
    }
    for name in orphans(&folder, &wanted)? {
        stale.push(format!("{CRDS}/{name} (no kind of this name)"));
    }
    ensure!(!check || stale.is_empty(), "out of date: {}; run `cargo xtask codegen` and commit", stale.join(", "));
    Ok(())
}

/// Files that no kind makes any more; a person removes them.
fn orphans(folder: &Path, wanted: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let mut orphans = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {CRDS}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") && !wanted.iter().any(|(known, _)| *known == name) {
            orphans.push(name);
        }
    }
    Ok(orphans)
}

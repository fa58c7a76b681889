//! Writes what is generated from the types: the CRDs' YAML and the page of unsupported fields. The files are
//! committed, so a change of a type is visible in a diff.
//!
//! `cargo test -p stowage-crds` compares too; this is the command that its message names.

use std::path::Path;

use anyhow::{Context, ensure};

/// Relative to the repository's root.
const CRDS: &str = "charts/stowage-crds/templates";

/// Writes the files, or with `check` fails when one would change.
pub fn run(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let wanted = stowage_crds::crd::generated();
    let mut stale = Vec::new();
    for (file, content) in &wanted {
        let path = root.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == *content) {
            continue;
        }
        stale.push(file.clone());
        if !check {
            let folder = path.parent().context("a generated file lies in a folder")?;
            std::fs::create_dir_all(folder).with_context(|| format!("creating the folder of {file}"))?;
            std::fs::write(&path, content).with_context(|| format!("writing {file}"))?;
            println!("wrote {file}");
        }
    }
    for name in orphans(&root.join(CRDS), &stowage_crds::crd::manifests())? {
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

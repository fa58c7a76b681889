//! Debian packages: installed when missing; and what building the cluster's programs takes.

use crate::base::sh;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// A program and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[("gcc", "gcc"), ("pkg-config", "pkg-config")];

/// What building its programs takes.
pub fn to_build() -> Result<()> {
    let mut packages = missing(PROGRAMS);
    if !Path::new("/usr/include/seccomp.h").exists() {
        packages.push("libseccomp-dev"); // without seccomp runc fails every sandbox
    }
    install(packages)?;
    if sh::which("go").is_none() {
        bail!(
            "the programs of the cluster are built from Go modules, and `go` is not in PATH (1.26 or newer, see go.dev/dl)"
        );
    }
    Ok(())
}

/// The packages of those programs that are not in PATH.
pub fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| sh::which(program).is_none()).map(|(_, package)| *package).collect()
}

/// Installs Debian packages; an empty list is fine.
pub fn install(packages: Vec<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if sh::which("apt-get").is_none() {
        bail!("missing: {list} (Debian's names; install them with this system's package manager)");
    }
    eprintln!("installing {list}");
    let apt =
        |args: &[&str]| sh::output(sh::cmd("apt-get", args).args(&packages).env("DEBIAN_FRONTEND", "noninteractive"));
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&install)
        .or_else(|_| {
            sh::output(&mut sh::cmd("apt-get", &["update", "-qq"]))?;
            apt(&install)
        })
        .with_context(|| format!("installing {list}"))?;
    Ok(())
}

//! `cargo xtask bench scale`: the operator on simulated nodes. A cluster of its own, with the real API server, scheduler
//! and controllers; what is measured and how is at the head of `e2e/tests-runner/src/scale/mod.rs`.

use crate::base::{paths, sh};
use crate::product::{self, Target};
use crate::programs::build;
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Beside the checkout's own cluster.
const PLACE: [&str; 2] = ["--state-dir", "/var/tmp/stowage-scale"];

const OPERATOR: &str = "--operator";

pub fn run(options: &[String]) -> Result<()> {
    product::build()?;
    // With `--operator FILE` another build is measured.
    if !options.iter().any(|option| option == OPERATOR) {
        let mut cargo = sh::cargo(&["build", "--release", "--quiet", "-p", "stowage-operator"]);
        ensure!(cargo.status().context("start cargo")?.success(), "the build failed (see above)");
    }
    let cluster = |words: &[&str]| product::own(&[&["cluster"], words, &PLACE].concat());
    eprint!("{}", cluster(&["up", "--nodes", "1"])?);
    let measured = cluster(&["kubeconfig"]).and_then(|kubeconfig| measure(kubeconfig.trim(), options));
    cluster(&["down"]).context("end the cluster of this measurement")?;
    measured
}

fn measure(kubeconfig: &str, options: &[String]) -> Result<()> {
    let target = Target { kubeconfig: kubeconfig.into(), bin: Some(build::ensure(build::DEFAULT_VERSION)?) };
    product::install_without_processes(&target)?;
    let mut scale = Command::new(product::built("stowage-e2e"));
    scale.arg("scale").args(options).env("KUBECONFIG", kubeconfig);
    if !options.iter().any(|option| option == OPERATOR) {
        scale.arg(OPERATOR).arg(paths::target().join("release/stowage-operator"));
    }
    ensure!(scale.status().context("start the measurement")?.success(), "the measurement failed (see above)");
    Ok(())
}

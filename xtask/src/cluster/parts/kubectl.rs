//! The cluster's own kubectl, as one would use it from a shell.

use crate::base::sh;
use crate::cluster::shape::layout::Layout;
use crate::cluster::shape::state::State;
use anyhow::Result;
use std::process::Command;

/// kubectl with this cluster's kubeconfig.
pub fn command(layout: &Layout, state: &State, args: &[&str]) -> Command {
    let mut kubectl = sh::cmd(state.bin.join("kubectl"), &[]);
    kubectl.arg("--kubeconfig").arg(layout.kubeconfig());
    kubectl.arg("--cache-dir").arg(layout.state.join("kubectl-cache")).args(args);
    kubectl
}

/// Standard output, or an error with what kubectl printed.
pub fn get(layout: &Layout, state: &State, args: &[&str]) -> Result<String> {
    sh::output(&mut command(layout, state, args)).map(|text| text.trim().to_string())
}

/// Server-side apply of a manifest.
pub fn apply(layout: &Layout, state: &State, manifest: &str) -> Result<()> {
    let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    sh::output_with_input(&mut command(layout, state, &args), manifest)?;
    Ok(())
}

//! What of a cluster runs, and the logs of its processes.

use crate::base::sh;
use crate::cluster::commands::observe;
use crate::cluster::machine::process;
use crate::cluster::parts::kubectl;
use crate::cluster::shape::layout::{Layout, node_name};
use crate::cluster::shape::state::State;
use anyhow::{Context, Result, ensure};

pub fn run(layout: &Layout) -> Result<()> {
    let state = State::required(layout)?;
    println!(
        "Kubernetes {} in {}, {} simulated on each node",
        state.version,
        layout.state.display(),
        state.gpu_profile
    );
    let mut dead = Vec::new();
    for p in process::recorded(layout) {
        let alive = p.alive();
        println!("  {:<26} {:<8} {}", p.name, p.pid, if alive { "runs" } else { "ended" });
        if !alive && !observe::PROCESSES.contains(&p.name.as_str()) {
            dead.push(p.name);
        }
    }
    for (name, f) in &state.forwards {
        println!("  http://127.0.0.1:{:<8} → {} through {} ({name})", f.port, f.to, f.via);
    }
    ensure!(state.complete, "the last start did not end well: `cargo xtask cluster up` starts anew");
    ensure!(dead.is_empty(), "ended: {}. `cargo xtask cluster up` starts them again", dead.join(", "));
    let missing = (1..=state.nodes).map(node_name).find(|n| process::living(layout, n).is_none());
    ensure!(missing.is_none(), "{} does not run", missing.unwrap_or_default());
    let nodes = kubectl::get(layout, &state, &["get", "nodes", "-o", "wide", "--request-timeout=5s"]);
    println!("{}", nodes.context("asking the API server")?);
    Ok(())
}

pub fn logs(layout: &Layout, name: Option<&str>, lines: usize) -> Result<()> {
    let Some(name) = name else {
        let files =
            std::fs::read_dir(layout.logs()).with_context(|| format!("no logs in {}", layout.logs().display()))?;
        let mut names: Vec<_> = files.flatten().map(|f| f.file_name().to_string_lossy().replace(".log", "")).collect();
        names.sort();
        println!("{}", names.join("\n"));
        return Ok(());
    };
    let log =
        std::fs::read(layout.log(name)).with_context(|| format!("no log of {name} (`logs` alone lists the names)"))?;
    println!("{}", sh::tail(&String::from_utf8_lossy(&log), lines));
    Ok(())
}

//! A Prometheus beside the cluster: Debian's package, in the network of the control plane, with the chart's alerts.
//! Nothing of the cluster depends on it: `up` neither starts it nor looks at it.

mod targets;

use crate::base::wait::{self, Seen};
use crate::base::{paths, private, sh};
use crate::cluster::machine::{network, process};
use crate::cluster::parts::control;
use crate::cluster::shape::layout::Layout;
use crate::cluster::shape::state::{Forward, State};
use crate::cluster::shape::template;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Names of the processes; `status` does not miss them.
pub const PROCESSES: [&str; 2] = [PROMETHEUS, TARGETS];
const PROMETHEUS: &str = "prometheus";
const TARGETS: &str = "prometheus-targets";
/// Its name among the forwards, and that of the process.
const FORWARD: &str = "prometheus";
const FORWARDER: &str = "forward-prometheus";
/// In the control plane's network.
const LISTENS: &str = "127.0.0.1:9090";

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(clap::Subcommand)]
pub enum Action {
    /// Start it, and print its address
    Up,
    /// End it, and forget what it stored
    Down,
    /// Write what it scrapes, again and again; `up` starts this
    #[command(hide = true)]
    Targets,
}

pub fn up(layout: &Layout) -> Result<()> {
    let mut state = State::required(layout)?;
    sh::output(&mut sh::cmd("prometheus", &["--version"]))
        .context("there is no prometheus; install Debian's package of that name")?;
    let folder = folder(layout);
    private::make(&folder)?;
    targets::write(layout, &state, &folder).context("writing what Prometheus scrapes")?;
    let config = folder.join("prometheus.yaml");
    let rules = paths::repo().join("charts/stowage/rules/stowage.yaml");
    let values = [("rules", rules.display().to_string()), ("folder", folder.display().to_string())];
    std::fs::write(&config, template::fill(template::PROMETHEUS, &values)?)?;
    process::ensure(layout, &state.bin, TARGETS, &follower(layout)?)?;
    let mut argv = network::enter(layout, network::HOLDER);
    argv.extend(["prometheus".to_owned(), format!("--config.file={}", config.display())]);
    argv.push(format!("--storage.tsdb.path={}", folder.join("data").display()));
    argv.push(format!("--web.listen-address={LISTENS}"));
    argv.extend(["--storage.tsdb.retention.time=6h", "--log.level=warn"].map(String::from));
    process::ensure(layout, &state.bin, PROMETHEUS, &argv)?;
    let port = forward(layout, &mut state)?;
    ready(layout, port)?;
    println!("http://127.0.0.1:{port}");
    Ok(())
}

pub fn down(layout: &Layout) -> Result<()> {
    let mut state = State::required(layout)?;
    state.forwards.remove(FORWARD);
    state.save(layout)?;
    for name in [FORWARDER, PROMETHEUS, TARGETS] {
        if let Some(process) = process::living(layout, name) {
            process.kill()?;
            process.gone()?;
        }
        process::forget(layout, name)?;
    }
    match std::fs::remove_dir_all(folder(layout)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("removing what Prometheus stored"),
        _ => Ok(()),
    }
}

/// Until it is ended.
pub fn targets(layout: &Layout) -> Result<()> {
    loop {
        // The API server may be away for a moment; what was written before stays.
        let written = State::required(layout).and_then(|state| targets::write(layout, &state, &folder(layout)));
        if let Err(why) = written {
            eprintln!("the targets stay as they are: {why:#}");
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

fn folder(layout: &Layout) -> PathBuf {
    layout.state.join("observe")
}

/// This program, as the process that writes targets.
fn follower(layout: &Layout) -> Result<Vec<String>> {
    let own = std::env::current_exe().context("finding this program")?.display().to_string();
    let state = layout.state.display().to_string();
    Ok([&own, "cluster", "--state-dir", &state, "observe", "targets"].map(String::from).to_vec())
}

/// The port on loopback: as before, where there was one.
fn forward(layout: &Layout, state: &mut State) -> Result<u16> {
    let taken: Vec<u16> = state.forwards.values().map(|f| f.port).chain([state.api_port]).collect();
    let port = match state.forwards.get(FORWARD) {
        Some(known) => known.port,
        None => control::free_port(layout, &taken)?,
    };
    let forward = Forward { port, to: LISTENS.into(), via: network::HOLDER.into() };
    state.forwards.insert(FORWARD.into(), forward.clone());
    state.save(layout)?;
    control::forward(layout, state, FORWARDER, &forward)?;
    control::listening(layout, FORWARDER, port)?;
    Ok(port)
}

fn ready(layout: &Layout, port: u16) -> Result<()> {
    let url = format!("http://127.0.0.1:{port}/-/ready");
    wait::until("Prometheus", Duration::from_secs(30), || {
        process::must_live(layout, PROMETHEUS)?;
        Ok(match sh::output(&mut sh::cmd("curl", &["-sS", "--fail", "--max-time", "5", "--noproxy", "*", &url])) {
            Ok(_) => Seen::Yes(()),
            Err(e) => Seen::NotYet(format!("{e:#}")),
        })
    })
}

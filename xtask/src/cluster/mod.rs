//! `cargo xtask cluster`: a real Kubernetes on this machine, without a container engine. What it is
//! made of and how to use it is in `e2e/cluster/README.md`. Its rooms, in the order of use: `shape` (values),
//! `machine`, `parts`, `commands`.

mod commands;
pub mod machine;
mod parts;
mod shape;

use crate::base::{paths, private, wait};
use crate::programs::build;
use anyhow::{Context, Result};
use commands::{check, down, forward, load, observe, status, up};
use machine::process;
use shape::layout::Layout;
use shape::state::State;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Where everything of the cluster lies; another directory is another cluster
    #[arg(long, global = true, env = "STOWAGE_CLUSTER_STATE")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Build the cluster's programs only, and print where they lie
    Build {
        /// As for `up`
        #[arg(long, default_value = build::DEFAULT_VERSION, env = "STOWAGE_KUBERNETES")]
        kubernetes: String,
    },
    /// Start the cluster, or what is missing of it; cleans what a dead start left
    Up(up::Args),
    /// End every process of the cluster and remove all its traces
    Down,
    /// What runs; exit code 1 when something does not
    Status,
    /// Print the kubeconfig's path
    Kubeconfig,
    /// Print what a shell needs: eval "$(cargo xtask cluster env)"
    Env,
    /// Print the end of a process's log, or all names
    Logs {
        name: Option<String>,
        /// Lines to print
        #[arg(short = 'n', long, default_value_t = 200)]
        lines: usize,
    },
    /// Import OCI archives into every node that lacks them
    Load { archives: Vec<PathBuf> },
    /// A loopback port that leads to an address inside the cluster, for instance a Service's
    Forward(forward::Args),
    /// A Prometheus (Debian's package) that scrapes Stowage's processes and engines, with its alerts
    Observe(observe::Args),
    /// End one process (a node, kube-apiserver, …) at once; `up` starts it again
    Kill { name: String },
    /// Run the functional checks
    Check {
        /// Only those whose name has this part
        name: Option<String>,
    },
}

pub fn run(args: Args) -> Result<()> {
    let layout = Layout::new(args.state_dir.as_deref(), &paths::repo())?;
    if !matches!(args.action, Action::Build { .. }) {
        private::check_state(&layout.state)?;
    }
    match args.action {
        Action::Build { kubernetes } => {
            println!("{}", build::ensure(&kubernetes)?.display());
            Ok(())
        }
        Action::Up(up) => locked(&layout, || up::run(&layout, &up)),
        Action::Down => locked(&layout, || down::run(&layout)),
        Action::Forward(forward) => locked(&layout, || forward::run(&layout, &forward)),
        Action::Load { archives } => load::run(&layout, &archives),
        Action::Observe(observe::Args { action }) => match action {
            observe::Action::Up => locked(&layout, || observe::up(&layout)),
            observe::Action::Down => locked(&layout, || observe::down(&layout)),
            observe::Action::Targets => observe::targets(&layout),
        },
        Action::Status => status::run(&layout),
        Action::Kubeconfig => {
            State::required(&layout)?;
            println!("{}", layout.kubeconfig().display());
            Ok(())
        }
        Action::Env => {
            let state = State::required(&layout)?;
            println!("export KUBECONFIG={}", layout.kubeconfig().display());
            println!("export PATH={}:$PATH", state.bin.display());
            Ok(())
        }
        Action::Logs { name, lines } => status::logs(&layout, name.as_deref(), lines),
        Action::Kill { name } => {
            State::required(&layout)?;
            let process =
                process::living(&layout, &name).with_context(|| format!("no process {name} runs (see `status`)"))?;
            process.kill()?;
            process.gone()
        }
        Action::Check { name } => check::run(&layout, name.as_deref()),
    }
}

/// One change of a cluster at a time. The lock is an abstract socket: it ends with this process,
/// however that ends, and leaves no file.
fn locked(layout: &Layout, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let address = SocketAddr::from_abstract_name(format!("stowage-cluster-{}", layout.id))?;
    let mut reported = false;
    let _lock = wait::until("another `cargo xtask cluster` on this cluster", Duration::from_secs(3600), || {
        match UnixListener::bind_addr(&address) {
            Ok(lock) => Ok(wait::Seen::Yes(lock)),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                if !reported {
                    eprintln!("waiting for another `cargo xtask cluster` on this cluster");
                    reported = true;
                }
                Ok(wait::Seen::NotYet("it still runs".into()))
            }
            Err(e) => Err(e).context("taking the cluster's lock"),
        }
    })?;
    change()
}

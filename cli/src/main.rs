//! `kubectl stowage`: the state of deployments, its reasons and the next step, for people at a terminal.
//!
//! A file per command. Each gathers objects at the edge (`cluster`) and renders them with pure
//! functions, which the tests call on fixtures. Nothing is decided here: `explain` shows what the operator
//! decided, as the planner renders it. Nothing is shown that was not measured.
//!
//! Exit codes: 0 fine, 1 the answer is "no", 2 usage, 3 the cluster cannot be reached.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cluster;
mod doctor;
mod explain;
mod model;
mod out;
mod remedy;
mod status;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cluster::{Cluster, ClusterError};
use crate::out::{Format, Paint};

/// What runs where on the GPUs of this cluster, and why.
#[derive(Debug, Parser)]
#[command(name = "kubectl-stowage", bin_name = "kubectl stowage", version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Namespace; the context's otherwise.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, global = true)]
    all_namespaces: bool,
    /// Context of the kubeconfig file.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Kubeconfig file; $KUBECONFIG or ~/.kube/config otherwise.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// json, yaml or wide; text for people otherwise. The file to write, of `model pack`.
    #[arg(short, long, global = true)]
    output: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The state of one deployment, or of all of them.
    Status {
        /// Name of an InferenceDeployment.
        name: Option<String>,
    },
    /// The last decision about a deployment, its reasons and what would change it.
    Explain {
        /// Name of an InferenceDeployment.
        name: String,
        /// Decisions of this long ago and later, for example 2h.
        #[arg(long, default_value = "1h")]
        since: String,
    },
    /// Whether this installation works, and how to fix what does not.
    Doctor,
    /// What a model is and needs, and an image of it. Needs no cluster.
    #[command(subcommand)]
    Model(model::Command),
}

/// Why a command ended without an answer.
#[derive(Debug)]
enum Failure {
    Usage(String),
    Model(String),
    Cluster(ClusterError),
}

impl From<ClusterError> for Failure {
    fn from(e: ClusterError) -> Self {
        Failure::Cluster(e)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    match run(&cli).await {
        Ok(answer) => {
            out::print(&answer.text);
            ExitCode::from(u8::from(!answer.yes))
        }
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Model(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Cluster(e)) => {
            eprintln!("error: {e}");
            ExitCode::from(if e.unreachable() { 3 } else { 1 })
        }
    }
}

/// What a command prints, and whether the answer is "yes".
pub struct Answer {
    pub text: String,
    pub yes: bool,
}

async fn run(cli: &Cli) -> Result<Answer, Failure> {
    let paint = Paint::for_stdout();
    let g = &cli.global;
    if let Command::Model(command) = &cli.command {
        return model::run(command, g.output.as_deref(), paint).await;
    }
    let format = Format::asked(g.output.as_deref())?;
    let since_ms = match &cli.command {
        Command::Explain { since, .. } => duration_ms(since)?,
        _ => 0,
    };
    let cluster = Cluster::connect(g.kubeconfig.as_deref(), g.context.as_deref()).await?;
    let namespace = g.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    match &cli.command {
        Command::Status { name: Some(name) } => Ok(status::one(&cluster, &namespace, name, format, paint).await?),
        Command::Status { name: None } => {
            let scope = (!g.all_namespaces).then_some(namespace.as_str());
            Ok(status::list(&cluster, scope, format, paint).await?)
        }
        Command::Explain { name, .. } => Ok(explain::run(&cluster, &namespace, name, since_ms, format, paint).await?),
        Command::Doctor => Ok(doctor::run(&cluster, format, paint).await?),
        // Answered above, without a cluster.
        Command::Model(_) => Ok(Answer { text: String::new(), yes: true }),
    }
}

fn duration_ms(text: &str) -> Result<u64, Failure> {
    stowage_crds::quantity::parse_duration(text)
        .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        .map_err(|e| Failure::Usage(format!("--since: {e}")))
}

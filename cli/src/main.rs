//! `kubectl stowage`: the state of deployments, its reasons and the next step, for people at a terminal.
//!
//! A file per command. Each gathers objects at the edge (`cluster`) and renders them with pure
//! functions, which the tests call on fixtures. Nothing is decided here: `explain` shows what the operator
//! decided, as the planner renders it. Nothing is shown that was not measured.
//!
//! Exit codes: 0 fine, 1 the answer is "no", 2 usage, 3 the cluster cannot be reached.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bottleneck;
mod cluster;
mod complete;
mod dashboard;
mod doctor;
mod explain;
mod model;
mod out;
mod overview;
mod plan;
mod remedy;
mod simulate;
mod status;
#[cfg(test)]
mod testing;
mod top;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

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
    /// Which stage of a request limits a deployment, what was measured, and what would help most.
    Bottleneck {
        /// Name of an InferenceDeployment.
        name: String,
    },
    /// What would come of manifests: where replicas would go, what would end, what it costs. Changes nothing.
    Plan(plan::Args),
    /// What the planner would do on a trace of requests: objectives kept, replica-hours, decisions. Needs no cluster.
    Simulate(Box<simulate::Args>),
    /// GPUs, deployments and tenants, live.
    Top(top::Args),
    /// A page to look at in a browser, on this machine alone: GPUs, deployments, decisions, what if.
    Dashboard(dashboard::Args),
    /// Whether this installation works, and how to fix what does not.
    Doctor,
    /// What a model is and needs, and an image of it. Needs no cluster.
    #[command(subcommand)]
    Model(model::Command),
    /// A script that completes command lines in a shell.
    Completion { shell: complete::Shell },
    /// What may end a command line, in kubectl's protocol.
    #[command(name = "__complete", hide = true)]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
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
            eprintln!("error: {}", out::harmless(&message));
            ExitCode::from(2)
        }
        Err(Failure::Model(message)) => {
            eprintln!("error: {}", out::harmless(&message));
            ExitCode::from(1)
        }
        Err(Failure::Cluster(e)) => {
            eprintln!("error: {}", out::harmless(&e.to_string()));
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
    match &cli.command {
        Command::Completion { shell } => {
            return Ok(Answer { text: complete::script(*shell, Cli::command()), yes: true });
        }
        Command::Complete { words } => return Ok(completed(g, words).await),
        _ => {}
    }
    let format = Format::asked(g.output.as_deref())?;
    if let Command::Simulate(args) = &cli.command {
        return simulate::run(args, format, paint);
    }
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
        Command::Bottleneck { name } => Ok(bottleneck::run(&cluster, &namespace, name, format, paint).await?),
        Command::Plan(args) => plan::run(&cluster, args, g.namespace.as_deref(), format, paint).await,
        Command::Top(args) => top::run(&cluster, args, &namespace, format, paint).await,
        Command::Dashboard(args) => dashboard::run(&cluster, args, &namespace).await,
        Command::Doctor => Ok(doctor::run(&cluster, format, paint).await?),
        // Answered above, without a cluster.
        Command::Model(_) | Command::Simulate(_) | Command::Completion { .. } | Command::Complete { .. } => {
            Ok(Answer { text: String::new(), yes: true })
        }
    }
}

/// Candidates for the end of a command line. A cluster that does not answer offers no names.
async fn completed(g: &Global, words: &[String]) -> Answer {
    let mut command = Cli::command();
    command.build();
    let offer = complete::offer(&command, words);
    let mut names = Vec::new();
    if let complete::Offer::Deployments(namespace) = &offer
        && let Ok(cluster) = Cluster::connect(g.kubeconfig.as_deref(), g.context.as_deref()).await
    {
        let namespace = namespace.as_deref().unwrap_or_else(|| cluster.default_namespace());
        let found = cluster.read_all(cluster.within::<stowage_crds::InferenceDeployment>(namespace)).await;
        names = found.got().into_iter().flatten().filter_map(|d| d.metadata.name.clone()).collect();
    }
    let prefix = words.last().map(String::as_str).unwrap_or_default();
    Answer { text: complete::protocol(&offer, &names, prefix), yes: true }
}

fn duration_ms(text: &str) -> Result<u64, Failure> {
    stowage_crds::quantity::parse_duration(text)
        .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        .map_err(|e| Failure::Usage(format!("--since: {e}")))
}

//! Starts a cluster, or what is missing of one. Every step looks first and acts only where something
//! is missing, so that the same function starts, repairs and does nothing.

use super::down;
use crate::base::private;
use crate::base::progress::seconds;
use crate::base::wait::{self, Seen};
use crate::cluster::machine::{network, prereq, process};
use crate::cluster::parts::{control, kubectl, node, pki};
use crate::cluster::shape::layout::{Layout, MAX_NODES, node_name};
use crate::cluster::shape::state::State;
use crate::programs::build;
use anyhow::{Context, Result, bail, ensure};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// How many nodes; a running cluster can grow
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The simulated GPUs of each node, as the node's label says
    #[arg(long, default_value = "h100-80g-x8")]
    gpu_profile: String,
    /// Kubernetes version: one that e2e/cluster/kube has a module file for
    #[arg(long, default_value = build::DEFAULT_VERSION, env = "STOWAGE_KUBERNETES")]
    kubernetes: String,
}

const READY: Duration = Duration::from_secs(180);

pub fn run(layout: &Layout, args: &Args) -> Result<()> {
    ensure!((1..=MAX_NODES).contains(&args.nodes), "--nodes must be between 1 and {MAX_NODES}");
    prereq::to_run()?;
    let bin = build::ensure(&args.kubernetes)?;
    let start = Instant::now();
    let mut state = match running(layout, args)? {
        Some(state) => state,
        None => {
            down::clean(layout).context("cleaning what an earlier cluster left")?;
            private::make_state(&layout.state)?;
            State {
                version: args.kubernetes.clone(),
                bin,
                nodes: 0,
                gpu_profile: args.gpu_profile.clone(),
                api_port: control::free_port(layout, &[])?,
                complete: false,
                forwards: Default::default(),
            }
        }
    };
    state.nodes = state.nodes.max(args.nodes);
    state.save(layout)?;
    launch(layout, &state)?;
    let times = ready(layout, &state, start)?;
    state.complete = true;
    state.save(layout)?;
    println!("cluster      {times}");
    println!(
        "             {} node(s) · Kubernetes {} · {} simulated on each",
        state.nodes, state.version, state.gpu_profile
    );
    println!("             export KUBECONFIG={}", layout.kubeconfig().display());
    Ok(())
}

/// The cluster that a complete start left and whose network still lives.
fn running(layout: &Layout, args: &Args) -> Result<Option<State>> {
    let Some(state) = State::load(layout).filter(|s| s.complete) else {
        return Ok(None);
    };
    if process::living(layout, network::HOLDER).is_none() || !state.bin.exists() {
        eprintln!("the cluster in {} is dead: starting anew", layout.state.display());
        return Ok(None);
    }
    private::check_programs(&state.bin)?;
    if state.version != args.kubernetes || state.gpu_profile != args.gpu_profile {
        bail!(
            "a cluster with Kubernetes {} and {} runs in {}: end it with `cargo xtask cluster down`, or use another --state-dir",
            state.version,
            state.gpu_profile,
            layout.state.display()
        );
    }
    Ok(Some(state))
}

fn launch(layout: &Layout, state: &State) -> Result<()> {
    pki::ensure(layout, state.nodes, state.api_port).context("making certificates")?;
    network::control_plane(layout, &state.bin)?;
    control::start(layout, state)?;
    for node in 1..=state.nodes {
        node::start(layout, state, node)?;
    }
    for (name, forward) in &state.forwards {
        control::forward(layout, state, &format!("forward-{name}"), forward)?;
    }
    Ok(())
}

/// Waits until pods can start everywhere; how long each stage took.
fn ready(layout: &Layout, state: &State, start: Instant) -> Result<String> {
    wait::until("the API server", READY, || {
        process::must_live(layout, "etcd")?;
        process::must_live(layout, "kube-apiserver")?;
        seen(kubectl::get(layout, state, &["get", "--raw=/readyz"]))
    })
    .with_context(|| hint(layout, "kube-apiserver"))?;
    let api = start.elapsed();
    control::controllers(layout, state)?;
    control::coredns(layout, state)?;
    wait::until("the Service kube-dns", READY, || {
        seen(kubectl::apply(layout, state, &control::dns_service(layout)?).map(|()| String::new()))
    })?;
    for node in 1..=state.nodes {
        node_ready(layout, state, &node_name(node))?;
    }
    let nodes = start.elapsed();
    // Until its controller made it, creating a pod is Forbidden.
    wait::until("the default ServiceAccount", READY, || {
        process::must_live(layout, "kube-controller-manager")?;
        seen(kubectl::get(layout, state, &["get", "serviceaccount", "default", "-o", "name"]))
    })?;
    let pods = start.elapsed();
    for process in process::recorded(layout) {
        process::must_live(layout, &process.name)?;
    }
    Ok(format!("control plane {} · nodes Ready {} · pods can start {}", seconds(api), seconds(nodes), seconds(pods)))
}

fn node_ready(layout: &Layout, state: &State, name: &str) -> Result<()> {
    let kubelet = format!("--raw=/api/v1/nodes/{name}/proxy/healthz");
    let path = "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.status.conditions[?(@.type==\"Ready\")].message}";
    wait::until(&format!("{name} Ready"), READY, || {
        process::must_live(layout, name)?;
        Ok(match kubectl::get(layout, state, &["get", "node", name, path]) {
            // The object of a node that was started again still has its old status.
            Ok(text) if text.starts_with("True") => return seen(kubectl::get(layout, state, &["get", &kubelet])),
            Ok(text) => Seen::NotYet(text),
            Err(e) => Seen::NotYet(format!("{e:#}")),
        })
    })
    .with_context(|| hint(layout, &format!("{name}-kubelet")))
}

fn hint(layout: &Layout, log: &str) -> String {
    format!("the end of {}:\n{}\n", layout.log(log).display(), process::log_tail(layout, log))
}

fn seen(answer: Result<String>) -> Result<Seen<()>> {
    Ok(match answer {
        Ok(_) => Seen::Yes(()),
        Err(e) => Seen::NotYet(format!("{e:#}")),
    })
}

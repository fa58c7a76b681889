//! Recorded loopback ports that lead into the cluster, such as the one of the gateway's Service.

use crate::cluster::machine::process;
use crate::cluster::parts::control;
use crate::cluster::shape::layout::Layout;
use crate::cluster::shape::state::{Forward, State};
use anyhow::{Context, Result};

#[derive(clap::Args)]
pub struct Args {
    /// What the forwarder is called; the same name again replaces it
    #[arg(long)]
    name: String,
    /// Address and port as seen by the node: a Service's ClusterIP, a pod's address
    #[arg(long)]
    to: std::net::SocketAddrV4,
    /// The node whose network is used (Services are known to nodes only)
    #[arg(long, default_value = "node1")]
    via: String,
}

pub fn run(layout: &Layout, args: &Args) -> Result<()> {
    let mut state = State::required(layout)?;
    process::living(layout, &args.via).with_context(|| format!("no node {} runs", args.via))?;
    let process_name = format!("forward-{}", args.name);
    let old = state.forwards.get(&args.name).cloned();
    let port = match &old {
        Some(old) => old.port,
        None => {
            let taken: Vec<u16> = state.forwards.values().map(|f| f.port).chain([state.api_port]).collect();
            control::free_port(layout, &taken)?
        }
    };
    let new = Forward { port, to: args.to.to_string(), via: args.via.clone() };
    if old.as_ref() != Some(&new)
        && let Some(process) = process::living(layout, &process_name)
    {
        process.kill()?;
        process.gone()?;
    }
    state.forwards.insert(args.name.clone(), new.clone());
    state.save(layout)?;
    control::forward(layout, &state, &process_name, &new)?;
    control::listening(layout, &process_name, port)?;
    println!("http://127.0.0.1:{port}");
    Ok(())
}

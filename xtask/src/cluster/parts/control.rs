//! The control plane's processes, all in its namespace, and the forwarders on loopback that lead in.

use crate::base::wait::{self, Seen};
use crate::cluster::machine::{network, process};
use crate::cluster::shape::layout::{API_SERVICE_IP, DNS_SERVICE_IP, Layout, PORTS, SERVICE_CIDR};
use crate::cluster::shape::state::{Forward, State};
use crate::cluster::shape::template;
use anyhow::{Context, Result, bail};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// The forwarder to the API server.
pub const API_FORWARDER: &str = "forward-api";

/// Starts the API server and what it needs, where they do not run.
pub fn start(layout: &Layout, state: &State) -> Result<()> {
    etcd(layout, state)?;
    api_server(layout, state)?;
    let api = Forward { port: state.api_port, to: "127.0.0.1:6443".into(), via: network::HOLDER.into() };
    forward(layout, state, API_FORWARDER, &api)
}

/// Starts the controllers and the scheduler. They need the API server: on a busy machine they would give up before it answers.
pub fn controllers(layout: &Layout, state: &State) -> Result<()> {
    let pki = layout.pki();
    let kubeconfig = |name: &str| format!("--kubeconfig={}/{name}.kubeconfig", pki.display());
    run(
        layout,
        state,
        "kube-controller-manager",
        vec![
            kubeconfig("kube-controller-manager"),
            format!("--service-account-private-key-file={}/sa.key", pki.display()),
            format!("--root-ca-file={}/ca.crt", pki.display()),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
        ],
    )?;
    let scheduler =
        vec![kubeconfig("kube-scheduler"), "--leader-elect=false".into(), "--bind-address=127.0.0.1".into()];
    run(layout, state, "kube-scheduler", scheduler)
}

/// Needs the API server: it ends when it cannot reach one at its start.
pub fn coredns(layout: &Layout, state: &State) -> Result<()> {
    let corefile = layout.state.join("Corefile");
    std::fs::write(&corefile, template::fill(template::COREFILE, &[("pki", layout.pki().display().to_string())])?)?;
    run(layout, state, "coredns", vec!["-conf".into(), corefile.display().to_string()])
}

/// The Service through which pods find CoreDNS.
pub fn dns_service(layout: &Layout) -> Result<String> {
    template::fill(template::KUBE_DNS, &[("dns_ip", DNS_SERVICE_IP.into()), ("control_ip", layout.control_ip())])
}

/// A loopback port that leads into the network of `forward.via`.
pub fn forward(layout: &Layout, state: &State, name: &str, forward: &Forward) -> Result<()> {
    let netns = layout.netns(&forward.via).display().to_string();
    let listen = format!("127.0.0.1:{}", forward.port);
    let argv = [state.bin.join("netfwd").display().to_string(), "-netns".into(), netns, "-listen".into(), listen];
    let argv: Vec<String> = argv.into_iter().chain(["-to".into(), forward.to.clone()]).collect();
    process::ensure(layout, &state.bin, name, &argv)?;
    Ok(())
}

/// Waits until the forwarder answers on its port.
pub fn listening(layout: &Layout, name: &str, port: u16) -> Result<()> {
    wait::until(&format!("{name} on port {port}"), Duration::from_secs(10), || {
        process::must_live(layout, name)?;
        Ok(match TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => Seen::Yes(()),
            Err(e) => Seen::NotYet(e.to_string()),
        })
    })
}

/// The first of the cluster's ports that no process listens on.
pub fn free_port(layout: &Layout, taken: &[u16]) -> Result<u16> {
    let first = layout.first_port();
    let free = |port: &u16| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let Some(port) = (first..first + PORTS).find(free) else {
        bail!("all loopback ports from {first} to {} are taken; choose another --state-dir", first + PORTS - 1);
    };
    Ok(port)
}

fn etcd(layout: &Layout, state: &State) -> Result<()> {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    let mut args: Vec<String> = vec!["--data-dir".into(), layout.state.join("etcd").display().to_string()];
    // A cluster that ends with the machine need not survive a power cut.
    args.push("--unsafe-no-fsync".into());
    let rest = [
        "--log-level",
        "warn",
        "--listen-client-urls",
        client,
        "--advertise-client-urls",
        client,
        "--listen-peer-urls",
        peer,
    ];
    args.extend(rest.map(String::from));
    run(layout, state, "etcd", args)
}

fn api_server(layout: &Layout, state: &State) -> Result<()> {
    let pki = layout.pki().display().to_string();
    let control_ip = layout.control_ip();
    let flags = format!(
        "--etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=0.0.0.0 --advertise-address={control_ip}
        --service-cluster-ip-range={SERVICE_CIDR} --allow-privileged=true
        --client-ca-file={pki}/ca.crt --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file={pki}/sa.pub
        --service-account-signing-key-file={pki}/sa.key
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
        --kubelet-client-certificate={pki}/kubelet-client.crt --kubelet-client-key={pki}/kubelet-client.key
        --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true
        --requestheader-client-ca-file={pki}/ca.crt --requestheader-allowed-names=front-proxy-client
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group
        --requestheader-extra-headers-prefix=X-Remote-Extra-
        --proxy-client-cert-file={pki}/front-proxy.crt --proxy-client-key-file={pki}/front-proxy.key"
    );
    // The Service 10.96.0.1 must be the first address of the range.
    debug_assert!(SERVICE_CIDR.starts_with(API_SERVICE_IP.trim_end_matches(".1")));
    run(layout, state, "kube-apiserver", flags.split_whitespace().map(String::from).collect())
}

fn run(layout: &Layout, state: &State, name: &str, args: Vec<String>) -> Result<()> {
    let mut argv = network::enter(layout, network::HOLDER);
    argv.push(state.bin.join(name).display().to_string());
    argv.extend(args);
    process::ensure(layout, &state.bin, name, &argv).with_context(|| format!("starting {name}"))?;
    Ok(())
}

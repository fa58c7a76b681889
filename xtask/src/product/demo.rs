//! `make demo`: from a clean clone to an answer of a real model in a pod that our operator placed.
//! Seven steps, each with what it did and how long it took. `down` ends the local cluster.

use crate::base::progress::seconds;
use crate::base::{paths, sh};
use crate::cluster::machine::prereq;
use crate::product;
use crate::programs::build;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Build, start, install, apply the quickstart, ask
    Up {
        #[arg(long, default_value_t = 3)]
        nodes: usize,
    },
    /// End the local cluster and everything in it
    Down,
}

const QUESTION: &str = "What is the capital of France?";
const NAMESPACE: &str = "team-a";
const DEPLOYMENT: &str = "chat";
const STEPS: usize = 7;
/// On a cluster that is not ours.
const TO_END: &str = "docs/operations.md, A trial on a cluster that is there already";

pub fn run(args: &Args) -> Result<()> {
    match args.action {
        Action::Up { nodes } => up(nodes),
        Action::Down if product::is_current() => {
            bail!("the cluster of the present kubeconfig context is not ended; what the demo made there: {TO_END}")
        }
        Action::Down => {
            print!("{}", product::own(&["cluster", "down"])?);
            std::fs::remove_file(paths::target().join("demo.env")).ok(); // there may have been none
            Ok(())
        }
    }
}

fn up(nodes: usize) -> Result<()> {
    let own = format!("real Kubernetes {} on this machine, {nodes} nodes, 8", build::DEFAULT_VERSION);
    let whose = if product::is_current() { "the cluster of the present kubeconfig context," } else { &own };
    println!("stowage demo · {whose} simulated H100 80GB each (no GPU here: engines run on the CPU)");
    step(1, "tools", tools)?;
    if product::is_current() {
        only_ours(&product::Target::find()?)?;
    }
    if !product::is_current() {
        step(2, "kubernetes", || build::ensure(build::DEFAULT_VERSION).map(|_| "built".into()))?;
    }
    step(3, "stowage", || product::build().map(|()| "operator, gateway, node-agent, engine, kubectl-stowage".into()))?;
    if !product::is_current() {
        step(4, "cluster", || {
            let output = product::own(&["cluster", "up", "--nodes", &nodes.to_string()])?;
            product::load(&[])?;
            let line = output.lines().find_map(|l| l.strip_prefix("cluster")).unwrap_or("running").trim().to_owned();
            Ok(format!("{line} · images and model on every node"))
        })?;
    }
    if product::is_current() {
        step(4, "images", || {
            product::own(&["image", "--all"]).map(|_| "in target/images; the nodes need them".into())
        })?;
    }
    let target = product::Target::find()?;
    step(5, "helm install", || product::install(&target, None).map(|()| "stowage-crds, stowage".into()))?;
    let key = step_value(6, "quickstart", || quickstart(&target))?;
    let (url, forward) = product::endpoint(&target)?.leave_open();
    let env = environment(&target, &url, &key)?;
    step(7, "ask", || ask(&url, &key))?;
    println!("\nwhy there   {}", why(&target)?);
    println!(
        "try         . {env}; kubectl stowage status -n {NAMESPACE} {DEPLOYMENT}        kubectl stowage explain -n {NAMESPACE} {DEPLOYMENT}"
    );
    if let Some(address) = observed()? {
        println!("observe     {address} (Prometheus: queries, alerts)        dashboards: charts/stowage/dashboards");
    }
    println!("            curl $STOWAGE_URL/v1/models -H \"Authorization: Bearer $STOWAGE_API_KEY\"        make e2e");
    println!("stop        {}", if product::is_current() { TO_END } else { "make demo-down" });
    if let Some(process) = forward {
        println!("            kill {process}        ends kubectl port-forward, which STOWAGE_URL leads through");
    }
    Ok(())
}

/// On a cluster that is not ours, nothing is changed that an earlier demo did not make.
fn only_ours(target: &product::Target) -> Result<()> {
    if product::existing::release(target)? {
        return Ok(());
    }
    let found = target.kubectl(&["get", "namespace", NAMESPACE, "--ignore-not-found", "--output", "name"])?;
    ensure!(
        found.trim().is_empty(),
        "the namespace {NAMESPACE} exists, and the demo would write into it; use another cluster, or remove the namespace"
    );
    Ok(())
}

/// With OBSERVE=1: the address of a Prometheus beside the cluster.
fn observed() -> Result<Option<String>> {
    if std::env::var("OBSERVE").map_or(true, |wanted| wanted.is_empty() || wanted == "0") {
        return Ok(None);
    }
    ensure!(
        !product::is_current(),
        "OBSERVE=1 starts a Prometheus beside the local cluster only; yours scrapes this one"
    );
    product::own(&["cluster", "observe", "up"]).map(|address| Some(address.trim().to_owned()))
}

fn step(number: usize, name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    step_value(number, name, || work().map(|result| (result, ())))
}

/// Runs one step; its line is printed when it is done, its failure names it.
fn step_value<T>(number: usize, name: &str, work: impl FnOnce() -> Result<(String, T)>) -> Result<T> {
    let start = Instant::now();
    let (result, value) = work().with_context(|| format!("step {number} of {STEPS}, {name}"))?;
    println!("[ {number}/{STEPS}] {name:<16} {result:<90} {}", seconds(start.elapsed()));
    Ok(value)
}

fn tools() -> Result<String> {
    if !product::is_current() {
        prereq::to_run()?;
    }
    let version = |program: &str, arg: &str, word: usize| -> Result<String> {
        let output = sh::output(&mut sh::cmd(program, &[arg]))?;
        Ok(output.split_whitespace().nth(word).unwrap_or("?").to_owned())
    };
    Ok(format!(
        "{} · rustc {} · Debian packages ok",
        version("go", "version", 2)?.replace("go1", "go 1"),
        version("rustc", "--version", 1)?
    ))
}

/// The tenant, a fresh key, the deployment; waits until it is Ready.
fn quickstart(target: &product::Target) -> Result<(String, String)> {
    let folder = paths::repo().join("examples/quickstart");
    target.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &folder.display().to_string()])?;
    let key = new_key()?;
    let hash: String = Sha256::digest(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "stowage.dev/api-keys",
        "metadata": {"name": "team-a-keys", "namespace": product::SYSTEM}, "stringData": {"demo": hash}});
    target.apply(&secret.to_string())?;
    let wait = target.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "--timeout=120s",
        &format!("infd/{DEPLOYMENT}"),
    ]);
    if let Err(e) = wait {
        let seen = target.kubectl(&["-n", NAMESPACE, "get", "infd,pods,events", "-o", "wide"]).unwrap_or_default();
        bail!("{NAMESPACE}/{DEPLOYMENT} did not become Ready: {e:#}\n{seen}");
    }
    let status = status(target)?;
    let (placement, gpu) = (&status["placements"][0], &status["placements"][0]["gpus"][0]);
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let result = format!(
        "{NAMESPACE}/{DEPLOYMENT}: placed on {} {} ({}, {} % SM, simulated) · Ready",
        text(&placement["node"]),
        text(&gpu["uuid"]),
        text(&gpu["memory"]),
        text(&gpu["compute"])
    );
    Ok((result, key))
}

fn status(target: &product::Target) -> Result<Value> {
    let object = target.kubectl(&["-n", NAMESPACE, "get", "infd", DEPLOYMENT, "-o", "json"])?;
    let object: Value = serde_json::from_str(&object).context("read the deployment")?;
    Ok(object["status"].clone())
}

fn new_key() -> Result<String> {
    let mut bytes = [0u8; 24];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("read random bytes")?;
    Ok(format!("sk-{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

/// Writes `target/demo.env`; the path, as a shell would type it.
fn environment(target: &product::Target, url: &str, key: &str) -> Result<String> {
    let file = paths::target().join("demo.env");
    let mut path = product::built("").display().to_string();
    if let Some(bin) = &target.bin {
        path = format!("{path}:{}", bin.display());
    }
    let text = format!(
        "export STOWAGE_URL={url}\nexport STOWAGE_API_KEY={key}\nexport STOWAGE_MODEL=smollm2-135m-instruct\nexport KUBECONFIG={}\nexport PATH={path}:$PATH\n",
        target.kubeconfig.display()
    );
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file.strip_prefix(paths::repo()).unwrap_or(&file).display().to_string())
}

/// Asks over the streaming API, so that the time to the first token is the user's.
fn ask(url: &str, key: &str) -> Result<String> {
    let body = json!({"model": "smollm2-135m-instruct", "temperature": 0, "max_tokens": 32, "stream": true,
        "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": QUESTION}]});
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let start = Instant::now();
        match stream(url, key, &body, start) {
            Ok(answer) => return Ok(answer),
            // kube-proxy and the gateways' watch follow `Ready` by a moment.
            Err(e) if Instant::now() > limit => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn stream(url: &str, key: &str, body: &Value, start: Instant) -> Result<String> {
    use std::io::BufRead;
    let mut curl =
        sh::cmd("curl", &["-sSN", "--fail-with-body", "--max-time", "60", "-H", "content-type: application/json"]);
    curl.args([
        "-H",
        &format!("authorization: Bearer {key}"),
        "-d",
        &body.to_string(),
        &format!("{url}/v1/chat/completions"),
    ]);
    let mut child = curl.stdout(std::process::Stdio::piped()).spawn().context("start curl")?;
    let (mut text, mut first, mut tokens) = (String::new(), None, 0);
    for line in std::io::BufReader::new(child.stdout.take().context("no output")?).lines() {
        let Some(event) = line?.strip_prefix("data: ").map(str::to_owned) else { continue };
        let Ok(event) = serde_json::from_str::<Value>(&event) else { continue };
        if let Some(part) = event["choices"][0]["delta"]["content"].as_str().filter(|p| !p.is_empty()) {
            first.get_or_insert_with(|| start.elapsed());
            text += part;
        }
        tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
    }
    let (status, total) = (child.wait()?, start.elapsed());
    if !status.success() || text.is_empty() {
        bail!("the gateway at {url} did not answer ({status})");
    }
    let first = first.unwrap_or(total);
    let rate = tokens.saturating_sub(1) as f64 / (total - first).as_secs_f64().max(1e-6);
    Ok(format!(
        "\"{QUESTION}\"\n       → {text}            TTFT {:.0} ms · {tokens} tokens · {rate:.0} tok/s",
        first.as_secs_f64() * 1000.0
    ))
}

/// Why the replica is where it is, in the words of the operator's event. The status holds the newest
/// decision of any kind; events keep the one that matters here.
fn why(target: &product::Target) -> Result<String> {
    let events =
        target.kubectl(&["-n", NAMESPACE, "get", "events", "--sort-by=.metadata.creationTimestamp", "-o", "json"])?;
    let events: Value = serde_json::from_str(&events).context("read the events")?;
    let placed = |e: &&Value| {
        e["involvedObject"]["name"] == DEPLOYMENT && e["message"].as_str().is_some_and(|m| m.starts_with("Replica "))
    };
    let message = events["items"].as_array().and_then(|all| all.iter().rev().find(placed)?["message"].as_str());
    Ok(match message {
        Some(message) => message.to_owned(),
        None => status(target)?["decision"]["message"].as_str().unwrap_or("no decision is recorded").to_owned(),
    })
}

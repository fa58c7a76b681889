//! The main job: apply, and a real model answers.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::tools::cluster::text;
use crate::tools::process;
use crate::tools::world::{NODES, SYSTEM, Wish, World};

/// Asked and read by the ordinary Python client, so that what we call compatible is.
const OPENAI_CLIENT: &str = r#"
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)
messages = [{"role": "user", "content": "What is the capital of France?"}]
whole = client.chat.completions.create(model=sys.argv[3], messages=messages, temperature=0, max_tokens=16)
stream = client.chat.completions.create(model=sys.argv[3], messages=messages, temperature=0, max_tokens=16, stream=True, stream_options={"include_usage": True})
parts, usage = [], None
for event in stream:
    usage = event.usage or usage
    parts += [c.delta.content for c in event.choices if c.delta.content]
print(whole.choices[0].message.content)
print("".join(parts))
print(len(parts), usage.completion_tokens, whole.usage.completion_tokens, [m.id for m in client.models.list()])
"#;

pub async fn quickstart_answers_through_the_gateway_with_the_openai_client(w: World) -> anyhow::Result<()> {
    let python = w.env.python.clone().context("no Python with the openai package given (STOWAGE_PYTHON)")?;
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let run = tokio::process::Command::new(python)
        .args(["-c", OPENAI_CLIENT, &tenant.caller.url, &tenant.caller.key, "chat"])
        .output()
        .await
        .context("run the openai client")?;
    let output = String::from_utf8_lossy(&run.stdout);
    ensure!(run.status.success(), "the openai client failed: {}", String::from_utf8_lossy(&run.stderr));
    let lines: Vec<&str> = output.lines().collect();
    ensure!(lines.len() == 3, "unexpected output: {output}");
    ensure!(lines[0] == "The capital of France is Paris.", "whole answer: {}", lines[0]);
    ensure!(lines[1] == lines[0], "streamed answer: {}", lines[1]);
    ensure!(lines[2].ends_with("['chat']"), "models: {}", lines[2]);
    let streamed: usize = lines[2].split(' ').next().unwrap_or_default().parse()?;
    ensure!(streamed >= 5, "the stream came in {streamed} parts: it was not streamed");
    Ok(())
}

pub async fn a_model_is_ready_within_15_seconds_of_apply_when_warm(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "warm", &Wish::default()).await?;
    let started = Instant::now();
    w.deploy_ready(&tenant, "timed", &Wish::default()).await?;
    let taken = started.elapsed();
    ensure!(taken < Duration::from_secs(15), "{:.1} s from apply to Ready", taken.as_secs_f64());
    Ok(())
}

pub async fn our_processes_stay_small(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    let limits =
        [(SYSTEM, "stowage-operator", 80.0), (SYSTEM, "stowage-gateway", 60.0), (NODES, "stowage-node-agent", 40.0)];
    for (namespace, name, limit) in limits {
        let pods = w.cluster().list("Pod", namespace, &format!("app.kubernetes.io/name={name}")).await?;
        ensure!(!pods.is_empty(), "no pod of {name} in {namespace}");
        // An agent on a reserved node may be ended by the test that has the node.
        for pod in pods.iter().filter(|p| !w.env.is_reserved(&text(p, "/spec/nodeName"))) {
            let uid = text(pod, "/metadata/uid");
            let pids = process::of_pod(&uid, name);
            ensure!(!pids.is_empty(), "no process of {name} found; is the cluster on this machine?");
            for pid in pids {
                let used = process::resident_mib(pid)?;
                w.note(&format!("{name} {used:.1} MiB resident"));
                ensure!(used <= limit, "{name} uses {used:.1} MiB, more than {limit}");
            }
        }
    }
    Ok(())
}

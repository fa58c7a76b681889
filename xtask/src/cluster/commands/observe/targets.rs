//! What Prometheus scrapes, from the cluster's pods, as the chart's monitors would find it: our three kinds of
//! processes on their port `admin`, and engines on their port `http`.

use crate::cluster::parts::kubectl;
use crate::cluster::shape::layout::Layout;
use crate::cluster::shape::state::State;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

const OURS: [&str; 3] = ["stowage-operator", "stowage-gateway", "stowage-node-agent"];

/// Both files, each in one step, where they would say something else than before.
pub fn write(layout: &Layout, state: &State, folder: &Path) -> Result<()> {
    let pods = kubectl::get(layout, state, &["get", "pods", "-A", "-o", "json", "--request-timeout=5s"])?;
    let pods: Value = serde_json::from_str(&pods).context("reading the list of pods")?;
    let (processes, engines) = of(&pods);
    for (name, targets) in [("processes.json", processes), ("engines.json", engines)] {
        let (file, next) = (folder.join(name), folder.join(format!("{name}.next")));
        let text = Value::from(targets).to_string();
        if std::fs::read_to_string(&file).is_ok_and(|before| before == text) {
            continue;
        }
        std::fs::write(&next, text).with_context(|| format!("writing {}", next.display()))?;
        std::fs::rename(&next, &file)?;
    }
    Ok(())
}

/// Of our processes, and of engines.
fn of(pods: &Value) -> (Vec<Value>, Vec<Value>) {
    let all =
        || pods["items"].as_array().into_iter().flatten().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let label = |pod: &Value, name: &str| pod["metadata"]["labels"][name].as_str().unwrap_or_default().to_owned();
    let named = |pod: &&Value| OURS.contains(&label(pod, "app.kubernetes.io/name").as_str());
    let ours = all().filter(named).filter_map(|pod| target(pod, "metrics", &label(pod, "app.kubernetes.io/name")));
    let engine = |pod: &&Value| {
        label(pod, "app.kubernetes.io/managed-by") == "stowage" && !label(pod, "stowage.dev/deployment").is_empty()
    };
    let engines = all().filter(engine).filter_map(|pod| target(pod, "http", "stowage-engine"));
    (ours.collect(), engines.collect())
}

/// `None`: it has no address yet, or no such port.
fn target(pod: &Value, port: &str, job: &str) -> Option<Value> {
    let address = pod["status"]["podIP"].as_str()?;
    let containers = pod["spec"]["containers"].as_array()?.iter();
    let mut ports = containers.filter_map(|c| c["ports"].as_array()).flatten();
    let number = ports.find(|p| p["name"] == port)?["containerPort"].as_u64()?;
    let meta = &pod["metadata"];
    Some(json!({"targets": [format!("{address}:{number}")],
        "labels": {"job": job, "namespace": meta["namespace"], "pod": meta["name"]}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, labels: Value, port: &str, rest: Value) -> Value {
        let mut pod = json!({"metadata": {"name": name, "namespace": "team-a", "labels": labels},
            "spec": {"containers": [{"ports": [{"name": "other", "containerPort": 1}, {"name": port, "containerPort": 8083}]}]},
            "status": {"podIP": "10.1.2.3"}});
        for (key, value) in rest.as_object().into_iter().flatten() {
            pod[key] = value.clone();
        }
        pod
    }

    #[test]
    fn our_processes_and_engines_are_targets_on_their_ports_while_they_have_an_address() {
        let name = |name: &str| json!({"app.kubernetes.io/name": name});
        let engine = json!({"app.kubernetes.io/managed-by": "stowage", "stowage.dev/deployment": "chat"});
        let leaving =
            json!({"metadata": {"name": "x", "labels": name("stowage-operator"), "deletionTimestamp": "now"}});
        let items = json!([
            pod("operator", name("stowage-operator"), "metrics", json!({})),
            pod("leaving", name("stowage-operator"), "metrics", leaving),
            pod("starting", name("stowage-gateway"), "metrics", json!({"status": {}})),
            pod("portless", name("stowage-gateway"), "http", json!({})),
            pod("other", name("nginx"), "metrics", json!({})),
            pod("chat-1", engine, "http", json!({})),
            pod("job", json!({"app.kubernetes.io/managed-by": "stowage"}), "http", json!({})),
        ]);
        let found = of(&json!({"items": items}));
        let target = |job: &str, pod: &str| json!({"targets": ["10.1.2.3:8083"], "labels": {"job": job, "namespace": "team-a", "pod": pod}});
        assert_eq!(found, (vec![target("stowage-operator", "operator")], vec![target("stowage-engine", "chat-1")]));
        assert_eq!(of(&json!({})), (vec![], vec![]));
    }
}

//! What GPUs do to us: a device fails, a tenant takes more than it was promised.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::{condition, text, wait_for};
use crate::load::Load;
use crate::scenario::{Scenario, device};
use crate::world::{Tenant, Wish, World};

fn on_node1() -> Value {
    json!({"podTemplate": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}})
}

/// A runtime whose "engine" holds `mib` of memory for `seconds`.
async fn hog_runtime(w: &World, mib: u32, seconds: u32) -> anyhow::Result<String> {
    let name = w.unique("hog");
    w.also_remove("InferenceRuntime", "", &name);
    let runtime = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceRuntime", "metadata": {"name": name},
        "spec": {"adapter": "stowage", "version": "0", "image": "localhost/stowage/probe:dev", "imagePullPolicy": "Never",
            "command": ["/bin/probe"], "args": ["hog", ":8000", mib.to_string(), seconds.to_string()],
            "resources": {"limits": {"memory": "3Gi"}, "requests": {"memory": "64Mi", "cpu": "10m"}}}});
    w.cluster().apply_value("", &runtime).await?;
    Ok(name)
}

/// The scenario counts the hog's real memory, read from /proc.
fn measured_by_proc(scenario: &Scenario, tenant: &Tenant) -> anyhow::Result<()> {
    scenario.change(|s| s["reports"]["byClaim"] = json!([{"namespace": tenant.name, "memory": "rss"}]))?;
    Ok(())
}

pub async fn who_takes_more_than_its_slice_is_evicted_and_its_neighbour_notices_nothing(
    w: World,
) -> anyhow::Result<()> {
    let (good, bad) = (w.tenant("good").await?, w.tenant("bad").await?);
    let scenario = Scenario::of(&w.env, "node1")?;
    measured_by_proc(&scenario, &bad)?;
    w.deploy_ready(&good, "chat", &Wish::default().overlay(on_node1())).await?;
    w.answers(&good, "chat").await?;
    let load = Load::start(&good.caller, "chat", 2, 16);
    let mut overlay = on_node1();
    overlay["runtime"] = json!({"ref": hog_runtime(&w, 1400, 0).await?});
    w.deploy(&bad, "hog", &Wish::default().overlay(overlay)).await?;
    let told = w
        .until(&bad, "hog", "evicted and told why", Duration::from_secs(40), |o| {
            let said = ["Degraded", "Ready", "Placed"]
                .iter()
                .filter_map(|c| condition(o, c))
                .any(|(_, reason, _)| reason.contains("Overshoot"));
            said || text(o, "/status/decision/action").contains("Evict")
        })
        .await?;
    let neighbours = (w.slices(&good, "chat").await?, told);
    wait_for("an event that names the overshoot", Duration::from_secs(10), || async {
        let events = w.cluster().list("Event", &bad.name, "").await?;
        let said =
            events.iter().any(|e| text(e, "/reason").contains("Evict") || text(e, "/reason").contains("Overshoot"));
        Ok(if said { Ok(()) } else { Err(format!("{} events", events.len())) })
    })
    .await?;
    let outcome = load.finish().await;
    ensure!(
        outcome.failures.is_empty() && outcome.succeeded > 0,
        "the neighbour lost requests: {:?} ({neighbours:?})",
        outcome.failures.first()
    );
    Ok(())
}

pub async fn a_peak_shorter_than_five_samples_evicts_nobody(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, "node1")?;
    measured_by_proc(&scenario, &tenant)?;
    let mut overlay = on_node1();
    overlay["runtime"] = json!({"ref": hog_runtime(&w, 1400, 2).await?});
    w.deploy_ready(&tenant, "peak", &Wish::default().overlay(overlay)).await?;
    let before = text(w.pods(&tenant, "peak").await?.first().context("no pod")?, "/metadata/uid");
    // Eight seconds hold any five samples of one second and an operator's plan after them.
    let steady = wait_for("another pod than before", Duration::from_secs(8), || async {
        let pods = w.pods(&tenant, "peak").await?;
        let same = pods.len() == 1 && text(&pods[0], "/metadata/uid") == before;
        Ok(if same { Err::<(), _>("the same".to_owned()) } else { Ok(()) })
    })
    .await;
    ensure!(steady.is_err(), "the pod was replaced after a short peak");
    Ok(())
}

pub async fn an_xid_takes_a_replica_out_of_routing_and_moves_it(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, "node1")?;
    w.deploy_ready(&tenant, "moved", &Wish::default().overlay(on_node1())).await?;
    w.answers(&tenant, "moved").await?;
    let uuid = w.slices(&tenant, "moved").await?.first().context("no slice")?.0.clone();
    scenario.change(|s| {
        if let Some(d) = device(s, &uuid) {
            d["xidEvents"] = json!([{"id": 1, "xid": 79}]);
        }
    })?;
    verdict(&w, &uuid, "Unhealthy", Duration::from_secs(3)).await?;
    wait_for("the replica on another device", Duration::from_secs(60), || async {
        let slices = w.slices(&tenant, "moved").await?;
        let moved = slices.len() == 1 && slices[0].0 != uuid;
        Ok(if moved { Ok(()) } else { Err(format!("{slices:?}")) })
    })
    .await?;
    w.ready(&tenant, "moved", 1).await?;
    w.answers(&tenant, "moved").await?;
    scenario.change(|s| {
        if let Some(d) = device(s, &uuid) {
            d["xidEvents"] = json!([]);
        }
    })?;
    verdict(&w, &uuid, "Healthy", Duration::from_secs(10)).await
}

async fn verdict(w: &World, uuid: &str, wanted: &str, limit: Duration) -> anyhow::Result<()> {
    wait_for(&format!("{uuid} to be {wanted}"), limit, || async {
        let node = w.cluster().get("GpuNode", "", "node1").await?.unwrap_or_default();
        let devices = node.pointer("/status/devices").and_then(Value::as_array).cloned().unwrap_or_default();
        let found = devices.iter().find(|d| text(d, "/uuid") == uuid).map(|d| text(d, "/verdict/health"));
        Ok(if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

/// A scenario that cannot be read is reported; what ran goes on running.
pub async fn a_truncated_scenario_is_survived(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default().overlay(on_node1())).await?;
    w.answers(&tenant, "chat").await?;
    let agents = restarts(&w).await?;
    {
        let scenario = Scenario::of(&w.env, "node1")?;
        scenario.replace(b"{\"version\": 1, \"dev")?;
        let load = Load::start(&tenant.caller, "chat", 2, 16);
        wait_for("twenty answers", Duration::from_secs(60), || async {
            Ok(if load.succeeded() >= 20 { Ok(()) } else { Err(load.succeeded().to_string()) })
        })
        .await?;
        let outcome = load.finish().await;
        ensure!(outcome.failures.is_empty(), "requests failed: {:?}", outcome.failures.first());
    }
    ensure!(restarts(&w).await? == agents, "an agent restarted");
    Ok(())
}

async fn restarts(w: &World) -> anyhow::Result<Vec<String>> {
    let agents = w.cluster().list("Pod", crate::world::NODES, "app.kubernetes.io/name=stowage-node-agent").await?;
    Ok(agents
        .iter()
        .map(|p| format!("{} {}", text(p, "/metadata/uid"), text(p, "/status/containerStatuses/0/restartCount")))
        .collect())
}

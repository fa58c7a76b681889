//! A device fails, or a tenant uses more than its slice.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::reserved::on;
use crate::tools::cluster::{condition, text, wait_for};
use crate::tools::load::Load;
use crate::tools::parts::{agent_reports, agent_restarts, gateways, refused, without_operators};
use crate::tools::process;
use crate::tools::scenario::{OUT_OF_ROUTING, Scenario, device};
use crate::tools::world::{Tenant, Wish, World};

/// From the moment the offender holds too much to the decision in its status: five samples, a plan, a write.
const EVICTED: Duration = Duration::from_secs(10);
/// What it holds, of 1 GiB promised: above the margin of 256 MiB as well.
const TOO_MUCH_MIB: f64 = 1280.0;
/// The node of the test that has the whole cluster.
const NODE: &str = "node1";

/// A runtime whose "engine" holds `mib` of memory for `seconds`.
async fn hog_runtime(w: &World, mib: u32, seconds: u32) -> anyhow::Result<String> {
    let name = w.unique(&format!("hog-{mib}-{seconds}"));
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

pub async fn a_replica_over_its_slice_is_evicted_and_its_neighbour_keeps_serving(w: World) -> anyhow::Result<()> {
    let (good, bad) = (w.tenant("good").await?, w.tenant("bad").await?);
    let scenario = Scenario::of(&w.env, w.node()?)?;
    measured_by_proc(&scenario, &bad)?;
    w.deploy_ready(&good, "chat", &Wish::default().overlay(on(w.node()?))).await?;
    w.answers(&good, "chat").await?;
    let load = Load::start(&good.caller, "chat", 2, 16);
    let mut overlay = on(w.node()?);
    overlay["runtime"] = json!({"ref": hog_runtime(&w, 1400, 0).await?});
    w.deploy(&bad, "hog", &Wish::default().overlay(overlay)).await?;
    let pod = wait_for("the offender to run", Duration::from_secs(40), || async {
        let pod = w.pods(&bad, "hog").await?.first().cloned().unwrap_or_default();
        Ok(if text(&pod, "/status/phase") == "Running" { Ok(pod) } else { Err(pod["status"].to_string()) })
    })
    .await?;
    let neighbours = (w.slices(&good, "chat").await?, w.slices(&bad, "hog").await?);
    ensure!(neighbours.0[0].0 == neighbours.1[0].0, "not on one GPU, the test proves nothing: {neighbours:?}");
    let evicted = |o: &Value| {
        let reasons = ["Degraded", "Ready", "Placed"].iter().filter_map(|c| condition(o, c));
        let mut reasons = reasons.map(|(_, reason, _)| reason);
        reasons.any(|reason| reason.contains("Overshoot")) || text(o, "/status/decision/action").contains("Evict")
    };
    // How long it takes to touch its memory on a busy machine does not count.
    let holds_too_much = || async {
        let pid = *process::of_pod(&text(&pod, "/metadata/uid"), "probe").first().context("no process")?;
        let holds = process::resident_mib(pid)?;
        Ok(if holds > TOO_MUCH_MIB { Ok(()) } else { Err(format!("{holds:.0} MiB")) })
    };
    wait_for("the offender to hold more than the margin", Duration::from_secs(30), holds_too_much).await?;
    let offends = std::time::Instant::now();
    w.until(&bad, "hog", "evicted, with the reason", EVICTED, evicted).await?;
    w.note(&format!("evicted {:.1} s after it held too much", offends.elapsed().as_secs_f64()));
    wait_for("the offender's pod to be gone", Duration::from_secs(15), || async {
        let uid = text(&pod, "/metadata/uid");
        let left = w.pods(&bad, "hog").await?.iter().any(|p| text(p, "/metadata/uid") == uid);
        Ok(if left { Err("still there".to_owned()) } else { Ok(()) })
    })
    .await?;
    let explained = tokio::process::Command::new(crate::tools::world::Env::built("kubectl-stowage")?)
        .args(["explain", "hog", "-n", &bad.name])
        .output()
        .await?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains("promised"), "`explain` does not name the overshoot:\n{explained}");
    wait_for("an event that names the overshoot", Duration::from_secs(10), || async {
        let events = w.cluster().list("Event", &bad.name, "").await?;
        let named =
            events.iter().any(|e| text(e, "/reason").contains("Evict") || text(e, "/reason").contains("Overshoot"));
        Ok(if named { Ok(()) } else { Err(format!("{} events", events.len())) })
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

/// Above the promise of 1 GiB for two seconds only, and above it for ever by less than the margin of 256 MiB.
pub async fn a_short_peak_and_a_small_excess_evict_nobody(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, w.node()?)?;
    measured_by_proc(&scenario, &tenant)?;
    let mut overlay = on(w.node()?);
    overlay["runtime"] = json!({"ref": hog_runtime(&w, 1400, 2).await?});
    let mut below = on(w.node()?);
    below["runtime"] = json!({"ref": hog_runtime(&w, 1150, 0).await?});
    w.deploy(&tenant, "below", &Wish::default().overlay(below)).await?;
    w.deploy(&tenant, "peak", &Wish::default().overlay(overlay)).await?;
    let uids = async || -> anyhow::Result<Vec<String>> {
        let pods = [w.pods(&tenant, "peak").await?, w.pods(&tenant, "below").await?].concat();
        Ok(pods.iter().map(|p| text(p, "/metadata/uid")).collect())
    };
    let before = wait_for("both pods", Duration::from_secs(30), || async {
        let now = uids().await?;
        Ok(if now.len() == 2 { Ok(now) } else { Err(format!("{now:?}")) })
    })
    .await?;
    w.ready(&tenant, "peak", 1).await?;
    w.ready(&tenant, "below", 1).await?;
    // Eight seconds hold any five samples of one second and an operator's plan after them.
    let steady = wait_for("other pods than before", Duration::from_secs(8), || async {
        Ok(if uids().await? == before { Err::<(), _>("the same".to_owned()) } else { Ok(()) })
    })
    .await;
    ensure!(steady.is_err(), "a pod was replaced after a short peak or a small excess");
    Ok(())
}

pub async fn an_xid_takes_a_replica_out_of_routing_and_moves_it(w: World) -> anyhow::Result<()> {
    moved_and_taken_back(w, "Xid", "xidEvents", [json!([{"id": 1, "xid": 79}]), json!([])]).await
}

pub async fn an_uncorrectable_memory_error_moves_a_replica_until_the_device_is_reset(w: World) -> anyhow::Result<()> {
    let errors = |n: u32| json!({"volatileUncorrected": n, "aggregateUncorrected": 1});
    moved_and_taken_back(w, "ECCUncorrectable", "ecc", [errors(1), errors(0)]).await
}

/// A field of the replica's device goes bad, and later good again.
async fn moved_and_taken_back(w: World, reason: &str, field: &str, [bad, good]: [Value; 2]) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, w.node()?)?;
    w.deploy_ready(&tenant, "moved", &Wish::default().overlay(on(w.node()?))).await?;
    w.answers(&tenant, "moved").await?;
    let uuid = w.slices(&tenant, "moved").await?.first().context("no slice")?.0.clone();
    let set = |value: Value| {
        scenario.change(|s| {
            if let Some(d) = device(s, &uuid) {
                d[field] = value;
            }
        })
    };
    set(bad)?;
    verdict(&w, w.node()?, &uuid, ("Unhealthy", reason), Duration::from_secs(3)).await?;
    wait_for("the replica on another device", Duration::from_secs(60), || async {
        let slices = w.slices(&tenant, "moved").await?;
        let moved = slices.len() == 1 && slices[0].0 != uuid;
        Ok(if moved { Ok(()) } else { Err(format!("{slices:?}")) })
    })
    .await?;
    w.ready(&tenant, "moved", 1).await?;
    w.answers(&tenant, "moved").await?;
    set(good)?;
    verdict(&w, w.node()?, &uuid, ("Healthy", ""), Duration::from_secs(10)).await
}

/// The gateways watch the verdicts themselves: no operator is needed to stop the traffic.
pub async fn an_xid_stops_routing_within_two_seconds_without_an_operator(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, NODE)?;
    // More than half of a GPU each: two replicas, two GPUs.
    let half = Wish::default().replicas(2).slice("41Gi", 51).overlay(on(NODE));
    w.deploy_ready(&tenant, "pair", &half).await?;
    w.answers(&tenant, "pair").await?;
    let status = w.until(&tenant, "pair", "two placements", Duration::from_secs(10), |o| {
        o.pointer("/status/placements").and_then(Value::as_array).is_some_and(|p| p.len() == 2)
    });
    let placements = status.await?["status"]["placements"].clone();
    let (unhealthy, uuid) = (text(&placements[0], "/name"), text(&placements[0], "/gpus/0/uuid"));
    ensure!(uuid != text(&placements[1], "/gpus/0/uuid"), "both replicas on one GPU: the test proves nothing");
    without_operators(&w, out_of_routing(&w, &scenario, &tenant, &unhealthy, &uuid)).await?;
    // And with an operator again: moved.
    wait_for("the replica on another device", Duration::from_secs(60), || async {
        let slices = w.slices(&tenant, "pair").await?;
        let moved = slices.len() == 2 && slices.iter().all(|s| s.0 != uuid);
        Ok(if moved { Ok(()) } else { Err(format!("{slices:?}")) })
    })
    .await
}

async fn out_of_routing(
    w: &World,
    scenario: &Scenario,
    tenant: &Tenant,
    unhealthy: &str,
    uuid: &str,
) -> anyhow::Result<()> {
    let changed = scenario.change(|s| {
        if let Some(d) = device(s, uuid) {
            d["xidEvents"] = json!([{"id": 1, "xid": 79}]);
        }
    })?;
    let gateways = gateways(w).await?;
    for gateway in &gateways {
        let left = OUT_OF_ROUTING.saturating_sub(changed.elapsed());
        wait_for("the replica on the unhealthy device to be out of routing", left, || {
            refused(*gateway, tenant, unhealthy)
        })
        .await?;
    }
    w.note(&format!("out of routing {:.1} s after the Xid", changed.elapsed().as_secs_f64()));
    for turn in 0..6 {
        let answer = tenant.caller.chat("pair", &format!("Question {turn}: name a colour."), 8).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    }
    Ok(())
}

async fn verdict(w: &World, node: &str, uuid: &str, wanted: (&str, &str), limit: Duration) -> anyhow::Result<()> {
    wait_for(&format!("{uuid} to be {wanted:?}"), limit, || async {
        let node = w.cluster().get("GpuNode", "", node).await?.unwrap_or_default();
        let devices = node.pointer("/status/devices").and_then(Value::as_array).cloned().unwrap_or_default();
        let found = devices.iter().find(|d| text(d, "/uuid") == uuid).context("the device is not listed")?;
        let found = (text(found, "/verdict/health"), text(found, "/verdict/reason"));
        Ok(if (found.0.as_str(), found.1.as_str()) == wanted { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

/// A scenario that cannot be read is reported; what ran goes on running.
pub async fn a_truncated_scenario_is_survived(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default().overlay(on(w.node()?))).await?;
    w.answers(&tenant, "chat").await?;
    let agents = agent_restarts(&w, w.node()?).await?;
    {
        let scenario = Scenario::of(&w.env, w.node()?)?;
        scenario.replace(b"{\"version\": 1, \"dev")?;
        agent_reports(&w, w.node()?, "ScenarioInvalid").await?;
        let load = Load::start(&tenant.caller, "chat", 2, 16);
        wait_for("twenty answers", Duration::from_secs(60), || async {
            Ok(if load.succeeded() >= 20 { Ok(()) } else { Err(load.succeeded().to_string()) })
        })
        .await?;
        let outcome = load.finish().await;
        ensure!(outcome.failures.is_empty(), "requests failed: {:?}", outcome.failures.first());
    }
    ensure!(agent_restarts(&w, w.node()?).await? == agents, "the agent restarted");
    agent_reports(&w, w.node()?, "").await
}

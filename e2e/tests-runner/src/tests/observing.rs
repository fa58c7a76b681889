//! What people see of a running cluster: dashboards and alerts on a real Prometheus.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::reserved::on;
use crate::terminal::Terminal;
use crate::tools::cluster::wait_for;
use crate::tools::http::Caller;
use crate::tools::load::{Load, under_way};
use crate::tools::scenario::{Scenario, device};
use crate::tools::world::{Env, Wish, World};

/// Panels, or queries, that need a condition which the test does not make, and which.
const WITHOUT_DATA: [(&str, &str); 6] = [
    ("max(stowage_predicted_ready_seconds", "a replica that is starting, after others of its deployment did"),
    ("Retries", "a request that was tried on another replica"),
    ("Requests over the tenant's limits", "a tenant over its rate"),
    ("Prediction error", "a replica that started after others of its deployment"),
    ("Failed", "a request that failed"),
    ("Memory of unknown processes", "a process without a claim on a GPU"),
];
/// The alert that the test provokes: a GPU's Xid, for a minute.
const ALERT: &str = "StowageGpuUnhealthy";
const NODE: &str = "node1";

/// A Prometheus beside the cluster; it ends with [`Prometheus::end`].
struct Prometheus {
    env: Env,
    api: Caller,
}

impl Prometheus {
    async fn start(env: &Env) -> anyhow::Result<Self> {
        let address = env.cluster_command(&["observe", "up"]).await?;
        Ok(Self { env: env.clone(), api: Caller::new(&address, "")? })
    }

    async fn end(&self) -> anyhow::Result<()> {
        self.env.cluster_command(&["observe", "down"]).await.map(drop)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.api.get(path).await?;
        ensure!(answer.status == 200, "Prometheus answered {path} with {} {}", answer.status, answer.body);
        Ok(answer.body["data"].clone())
    }

    /// Samples that are numbers.
    async fn query(&self, expr: &str) -> anyhow::Result<usize> {
        let data = self.get(&format!("/api/v1/query?query={}", percent(expr))).await?;
        let samples = data["result"].as_array().with_context(|| format!("no list of samples: {data}"))?;
        let number =
            |s: &&Value| s["value"][1].as_str().and_then(|v| v.parse::<f64>().ok()).is_some_and(|v| !v.is_nan());
        Ok(samples.iter().filter(number).count())
    }

    /// Targets by job that were scraped well, and what is wrong with the others.
    async fn targets(&self) -> anyhow::Result<(BTreeMap<String, usize>, Vec<String>)> {
        let data = self.get("/api/v1/targets?state=active").await?;
        let (mut well, mut faults) = (BTreeMap::new(), Vec::new());
        for target in data["activeTargets"].as_array().context("no targets")? {
            let job = target["labels"]["job"].as_str().unwrap_or_default().to_owned();
            match target["health"].as_str() {
                Some("up") => *well.entry(job).or_default() += 1,
                _ => faults.push(format!("{job} {}: {}", target["scrapeUrl"], target["lastError"])),
            }
        }
        Ok((well, faults))
    }
}

/// For a URL's query.
fn percent(text: &str) -> String {
    let escaped = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(escaped).collect()
}

/// Every query of every dashboard in the chart: board and panel, and what Prometheus is asked.
fn queries(env: &Env) -> anyhow::Result<Vec<(String, String, String)>> {
    let folder = env.root.join("charts/stowage/dashboards");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let board: Value = serde_json::from_slice(&std::fs::read(entry?.path())?).context("parse a dashboard")?;
        let title = board["title"].as_str().unwrap_or_default();
        for panel in board["panels"].as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let panel = panel["title"].as_str().unwrap_or_default();
                let expr = target["expr"].as_str().context("a target without a query")?;
                all.push((title.to_owned(), panel.to_owned(), filled_in(expr)));
            }
        }
    }
    ensure!(all.len() > 100, "only {} queries in {}", all.len(), folder.display());
    Ok(all)
}

/// With all values of each variable, as a dashboard that was just opened.
fn filled_in(expr: &str) -> String {
    let mut text = expr.replace("$__rate_interval", "1m");
    for variable in ["namespace", "deployment", "tenant", "node", "pod"] {
        text = text.replace(&format!("\"${variable}\""), "\".*\"");
    }
    text
}

pub async fn dashboards_have_data_and_an_alert_fires_on_a_real_prometheus(w: World) -> anyhow::Result<()> {
    let prometheus = Prometheus::start(&w.env).await?;
    let result = observed(&w, &prometheus).await;
    prometheus.end().await?;
    result
}

async fn observed(w: &World, prometheus: &Prometheus) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    let scenario = Scenario::of(&w.env, NODE)?;
    let follows = json!({"replicas": null, "objectives": {"ttft": "4s", "itl": "2s"},
        "scaling": {"mode": "Active", "minReplicas": 1, "maxReplicas": 2}});
    w.deploy_ready(&tenant, "observed", &Wish::default().overlay(follows)).await?;
    w.answers(&tenant, "observed").await?;
    w.deploy_ready(&tenant, "struck", &Wish::default().overlay(on(NODE))).await?;
    // More than its tenant may have: something is limited.
    w.deploy(&tenant, "limited", &Wish::default().slice("70Gi", 90).replicas(5)).await?;
    let uuid = w.slices(&tenant, "struck").await?.first().context("no slice")?.0.clone();
    scenario.change(|s| {
        if let Some(d) = device(s, &uuid) {
            d["xidEvents"] = json!([{"id": 1, "xid": 79}]);
        }
    })?;
    let load = Load::start(&tenant.caller, "observed", 4, 16);
    let seen = everything(w, prometheus, &load).await;
    let limits = |o: &Value| !o["status"]["bottleneck"]["stage"].is_null() && !o["status"]["load"].is_null();
    let named = w.until(&tenant, "observed", "what limits it, in its status", Duration::from_secs(90), limits).await;
    let outcome = load.finish().await;
    w.note(&format!("{} requests were answered meanwhile, {} failed", outcome.succeeded, outcome.failures.len()));
    seen.and(named.map(drop))
}

async fn everything(w: &World, prometheus: &Prometheus, load: &Load) -> anyhow::Result<()> {
    under_way(load, 4).await?;
    wait_for("every kind of process to be scraped", Duration::from_secs(60), || async {
        let (well, faults) = prometheus.targets().await?;
        Ok(if well.len() == 4 && faults.is_empty() { Ok(()) } else { Err(format!("{well:?}; {faults:?}")) })
    })
    .await?;
    let queries = queries(&w.env)?;
    let (asked, excused): (Vec<_>, Vec<_>) = queries.iter().partition(|(_, panel, expr)| {
        !WITHOUT_DATA.iter().any(|(without, _)| without == panel || expr.starts_with(without))
    });
    let all = asked.len();
    let left = Mutex::new(asked);
    wait_for("data for every panel", Duration::from_secs(150), || async {
        let mut left = left.lock().await;
        for query in std::mem::take(&mut *left) {
            if prometheus.query(&query.2).await? == 0 {
                left.push(query);
            }
        }
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} of {all} without: {left:#?}", left.len())) })
    })
    .await?;
    w.note(&format!("{all} queries of panels returned data; {} are excused: {WITHOUT_DATA:?}", excused.len()));
    wait_for(&format!("the alert {ALERT}"), Duration::from_secs(150), || async {
        let alerts = prometheus.get("/api/v1/alerts").await?;
        let fires = |a: &Value| a["labels"]["alertname"] == ALERT && a["state"] == "firing";
        let all = alerts["alerts"].as_array().context("no alerts")?;
        Ok(if all.iter().any(fires) { Ok(()) } else { Err(alerts.to_string()) })
    })
    .await
}

/// `kubectl stowage top` on a terminal: the replica's slice in its GPU's bar, the deployment, sorting, filter and explanation.
pub async fn top_shows_a_placed_replica_and_ends_on_q(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "on-a-terminal", &Wish::default()).await?;
    let deployment = format!("{}/on-a-terminal", tenant.name);
    let slices = w.slices(&tenant, "on-a-terminal").await?;
    let (uuid, _, _) = slices.first().context("no slice")?;
    // As NVML writes it, up to the second hyphen.
    let gpu = uuid.splitn(3, '-').take(2).collect::<Vec<_>>().join("-");
    let mut top = Terminal::start(&Env::built("kubectl-stowage")?, &["top", "-n", &tenant.name])?;
    let has_slice =
        |line: &str| line.contains(&gpu) && line.contains('[') && (line.contains('█') || line.contains('▒'));
    let bars = top.shows("a bar with a slice on the replica's GPU", |screen| screen.lines().any(has_slice)).await?;
    ensure!(bars.contains("[1 GPUs]") && bars.contains("simulated"), "{bars}");
    top.press("2").await?;
    // Names are cut where they are long.
    let start: String = deployment.chars().take(36).collect();
    let on_target = |line: &str| line.contains(&start) && line.contains("1/1");
    top.shows("the deployment with its replica", |screen| screen.lines().any(on_target)).await?;
    top.press("s").await?;
    top.shows("another order", |screen| screen.contains("s sort: ") && !screen.contains("s sort: name")).await?;
    top.press("/").await?;
    top.shows("the filter", |screen| screen.contains("filter: _")).await?;
    top.press("on-a-terminal\r").await?;
    top.shows("one deployment", |screen| screen.contains("only on-a-terminal") && screen.contains("1/1")).await?;
    top.press("e").await?;
    let explained = format!("{deployment} wants 1");
    top.shows("why it is there", |screen| screen.contains(&explained)).await?;
    // Back to the list, and out.
    top.press("q").await?;
    top.shows("the list", |screen| screen.contains("[2 Deployments]")).await?;
    top.press("q").await?;
    let ended = top.ended().await?;
    ensure!(ended.code == 0, "it ended with {}", ended.code);
    ensure!(ended.is_restored(), "the terminal is left as {}", ended.settings);
    Ok(())
}

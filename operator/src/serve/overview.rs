//! `GET /stowage/v1/overview`: the state of the last plan as people look at it. Rendered from what is published.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use stowage_contracts::summary::{Device, Health as Verdict};
use stowage_planner::overview::PATH;
use stowage_planner::overview::{Deployment, Gpu, Overview, Requests, Slice, Tenant, Usage};
use stowage_planner::render::condition_message;
use stowage_planner::report::{DeploymentReport, TenantReport};
use stowage_planner::snapshot::{self, Freshness, Health, Node, ScalingMode, SliceOwner, Snapshot};
use tokio::sync::watch;

use crate::observe::signals::Load;
use crate::observe::view::View;
use crate::serve::published::Published;

pub fn router(published: watch::Receiver<Arc<Published>>) -> Router {
    Router::new().route(PATH, get(answer)).with_state(published)
}

async fn answer(State(published): State<watch::Receiver<Arc<Published>>>) -> Json<Overview> {
    let published = published.borrow().clone();
    Json(overview(&published))
}

/// What is published, for people.
pub fn overview(published: &Published) -> Overview {
    let Published { frozen, snapshot, report, basis, .. } = published;
    let (Some(snapshot), Some(report), Some(basis)) = (snapshot, report, basis) else {
        let paused = frozen.clone().or_else(|| Some("no plan has been made yet".to_owned()));
        return Overview { paused, ..Overview::default() };
    };
    let view = basis.view.as_ref();
    let mut gpus: Vec<Gpu> = snapshot.nodes.iter().flat_map(|node| of_node(node, view)).collect();
    gpus.sort_by(|a, b| (&a.node, a.index).cmp(&(&b.node, b.index)));
    let deployments: BTreeMap<_, _> = snapshot.deployments.iter().map(|d| (&d.id, d)).collect();
    let one = |r: &DeploymentReport| {
        let d = deployments.get(&r.deployment).map(|d| &***d);
        deployment(r, d, snapshot, d.and_then(|d| view.gateways.load(&d.id, &d.uid)))
    };
    Overview {
        at_ms: report.at,
        paused: frozen.clone(),
        missing: Vec::new(),
        gpus,
        deployments: report.deployments.iter().map(one).collect(),
        tenants: report.tenants.iter().map(tenant).collect(),
    }
}

fn of_node<'a>(node: &'a Node, view: &'a View) -> impl Iterator<Item = Gpu> + use<'a> {
    let agent = view.agents.get(&node.name);
    let stored = view.gpu_nodes.get(&(String::new(), node.name.clone()));
    let simulated = stored.and_then(|n| n.status.as_ref()).is_some_and(|status| status.simulated);
    node.gpus.iter().map(move |g| {
        let summary = agent.and_then(|agent| agent.summary.as_ref());
        let device = summary.and_then(|summary| summary.devices.iter().find(|d| d.uuid == g.uuid));
        gpu(node, g, device, agent.map_or(0, |a| a.age_ms), simulated)
    })
}

fn gpu(node: &Node, g: &snapshot::Gpu, device: Option<&Device>, summary_age_ms: u64, simulated: bool) -> Gpu {
    let (health, reason) = match &g.health {
        Health::Healthy => (Verdict::Healthy, String::new()),
        Health::Degraded { reason } => (Verdict::Degraded, reason.clone()),
        Health::Unhealthy { reason } => (Verdict::Unhealthy, reason.clone()),
    };
    let mut slices: Vec<Slice> = g.slices.iter().map(slice).collect();
    slices.sort();
    let age_ms = device.and_then(|d| d.age_seconds).map(|s| summary_age_ms + (s.max(0.0) * 1000.0) as u64);
    Gpu {
        node: node.name.clone(),
        index: g.index,
        uuid: g.uuid.clone(),
        product: g.product.clone(),
        class: g.class.clone().unwrap_or_default(),
        health,
        reason,
        closed: closed(node).to_owned(),
        simulated,
        memory_bytes: g.memory_bytes,
        used_bytes: device.and_then(|d| d.used_bytes),
        used_sm_percent: device.and_then(|d| d.used_sm_percent),
        age_ms,
        slices,
    }
}

fn closed(node: &Node) -> &'static str {
    match (node.ready, node.cordoned, node.freshness) {
        (false, ..) => "node is not Ready",
        (_, true, _) => "node is cordoned",
        (_, _, Freshness::Stale { .. }) => "no fresh data of the node",
        (_, _, Freshness::Missing) => "the node never reported",
        (true, false, Freshness::Fresh { .. }) => "",
    }
}

fn slice(s: &snapshot::Slice) -> Slice {
    let owner = match &s.owner {
        SliceOwner::Replica(replica) => replica.deployment.to_string(),
        SliceOwner::Foreign { claim } => claim.clone(),
    };
    let tenant = s.tenant.as_ref().map(|t| t.0.clone()).unwrap_or_default();
    Slice { tenant, owner, memory_bytes: s.promise.memory_bytes, sm_percent: s.promise.sm_percent }
}

fn deployment(
    r: &DeploymentReport,
    d: Option<&snapshot::Deployment>,
    snapshot: &Snapshot,
    load: Option<&Load>,
) -> Deployment {
    let classes = d.into_iter().flat_map(|d| &d.variants).filter_map(|v| v.accelerator.class());
    let priced =
        |class: &String| snapshot.classes.iter().find(|c| &c.name == class && c.price_per_hour_micros.is_some());
    let currency = { classes }.find_map(priced).map(|c| c.currency.clone());
    let ruled = d.filter(|d| d.scaling.mode != ScalingMode::Manual);
    let counted = load.and_then(|load| load.counted).filter(|c| c.to_ms > c.from_ms);
    Deployment {
        namespace: r.deployment.namespace.clone(),
        name: r.deployment.name.clone(),
        tenant: r.tenant.as_ref().map(|t| t.0.clone()).unwrap_or_default(),
        state: format!("{:?}", r.outcome),
        well: r.outcome.well(),
        wanted: r.counts.wanted,
        ready: r.counts.ready,
        most: ruled.map(|d| d.scaling.max_replicas),
        price_per_hour_micros: r.prediction.price_per_hour_micros,
        currency: currency.unwrap_or_default(),
        arrivals_milli: counted.map(|c| c.arrivals.saturating_mul(1_000_000) / (c.to_ms - c.from_ms)),
        requests: load.map(|load| Requests {
            running: load.replicas.values().map(|r| u64::from(r.in_flight)).sum(),
            queued: load.queued,
            held: load.held,
        }),
        predicted_us: r.prediction.ttft_us.zip(r.prediction.itl_us),
        message: condition_message(r),
    }
}

fn tenant(t: &TenantReport) -> Tenant {
    let usage = t.usage.iter().map(|u| Usage {
        class: u.class.clone(),
        nominal_milli: u.nominal_milli,
        held_milli: u.held_milli,
        borrowed_milli: u.borrowed_milli,
        pending_milli: u.pending_milli,
    });
    Tenant {
        name: t.tenant.0.clone(),
        usage: usage.collect(),
        waiting: u32::try_from(t.waiting.len()).unwrap_or(u32::MAX),
    }
}

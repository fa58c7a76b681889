//! The administrative port: probes, metrics, and what the operator reads every second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use stowage_contracts::load::LoadReport;
use stowage_contracts::names::PATH_SIGNALS;
use stowage_contracts::signals::{
    self, DeploymentSignals, DrainSignals, EngineReport, ReplicaSignals, Signals, TenantSignals,
};
use stowage_telemetry::metrics::Registry;
use stowage_telemetry::{health, metrics};

use crate::gateway::Gateway;
use crate::gauges::Gauges;
use crate::outcome::Outcome;
use crate::queue::pool::{PoolStatus, ReplicaStatus};

/// `/metrics`, with the gauges of each deployment.
pub fn metrics(gateway: &Arc<Gateway>, mut registry: Registry) -> Router {
    registry.register_collector(Box::new(Gauges(gateway.clone())));
    metrics::router(registry)
}

/// `/healthz`, `/readyz`, the signals, and what [`metrics`] has.
pub fn router(gateway: Arc<Gateway>, metrics: Router, healthz: health::Check) -> Router {
    let readyz = gateway.readiness.check();
    Router::new()
        .route(PATH_SIGNALS, get(report))
        .with_state(gateway)
        .merge(health::router(healthz, readyz))
        .merge(metrics)
}

async fn report(State(gateway): State<Arc<Gateway>>) -> Json<Signals> {
    let view = gateway.directory.view();
    // A tenant may have thousands of deployments without replicas, and each operator reads this every second.
    let listed = view.pools().map(|pool| pool.status()).filter(PoolStatus::has_something_to_report);
    let mut deployments: Vec<_> = listed.map(deployment).collect();
    deployments.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Json(Signals {
        version: signals::VERSION,
        epoch: gateway.epoch.name.clone(),
        uptime_ms: millis(gateway.epoch.began.elapsed()),
        deployments,
        tenants: tenants(&gateway),
        keys: view.world.key_faults.clone(),
        salt_key: Some(view.world.salt_key.is_some()),
        draining: Some(
            gateway.directory.draining().into_iter().map(|(uid, in_flight)| DrainSignals { uid, in_flight }).collect(),
        ),
    })
}

fn deployment(status: PoolStatus) -> DeploymentSignals {
    let (queued, held) = if status.held { (0, status.waiting) } else { (status.waiting, 0) };
    DeploymentSignals {
        namespace: status.deployment.key.namespace.clone(),
        name: status.deployment.key.name.clone(),
        uid: status.deployment.uid.clone(),
        model: status.deployment.model.to_string(),
        arrivals: status.arrivals,
        sequences: Some(status.sequences),
        placed: Some(status.placed),
        input_tokens: status.input_tokens as u64,
        cached_tokens: status.cached_tokens as u64,
        mean_output_tokens: status.mean_output,
        queued: queued as u64,
        held: held as u64,
        waiting_tokens: status.waiting_tokens as u64,
        replicas: status.replicas.into_iter().map(replica).collect(),
    }
}

fn replica(status: ReplicaStatus) -> ReplicaSignals {
    ReplicaSignals {
        pod: status.pod,
        uid: status.uid,
        in_flight: status.in_flight,
        refused: status.refused.map(|reason| reason.label().to_owned()),
        backlog_tokens: status.backlog_tokens as u64,
        engine: status.report.map(|(report, age)| engine(&report, age)),
    }
}

fn engine(report: &LoadReport, age: Duration) -> EngineReport {
    EngineReport {
        age_ms: millis(age),
        sequences: Some(report.running.saturating_add(report.waiting)),
        unprefilled_tokens: report.prefill_backlog_tokens,
        kv_blocks_used: report.kv_blocks_used,
        kv_blocks_total: report.kv_blocks_total,
        coefficients: report.coefficients,
    }
}

fn tenants(gateway: &Gateway) -> Vec<TenantSignals> {
    let throttled = gateway.tenants.throttled();
    let used = gateway.metrics.all_series().into_iter().filter(|series| !series.model.is_empty());
    let mut all: Vec<_> = used
        .map(|series| TenantSignals {
            tenant: series.tenant.to_string(),
            model: series.model.to_string(),
            arrivals: series.arrivals.load(Ordering::Relaxed),
            prompt_tokens: series.arrived_tokens.load(Ordering::Relaxed),
            output_tokens: series.output_tokens(),
            succeeded: series.counted(Outcome::Ok),
            throttled: throttled.iter().find(|(name, _)| *name == series.tenant).map_or(0, |(_, count)| *count),
        })
        .collect();
    all.sort_by(|a, b| (&a.tenant, &a.model).cmp(&(&b.tenant, &b.model)));
    all
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

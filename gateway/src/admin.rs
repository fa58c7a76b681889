//! The administrative port: probes, metrics, and what the operator reads every second.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use stowage_contracts::names::PATH_SIGNALS;
use stowage_telemetry::metrics::Registry;
use stowage_telemetry::{health, metrics};

use crate::gateway::Gateway;
use crate::outcome::Outcome;
use crate::queue::pool::PoolStatus;

/// `/healthz`, `/readyz`, `/metrics` and the signals.
pub fn router(gateway: Arc<Gateway>, registry: Registry) -> Router {
    let readyz = gateway.readiness.check();
    Router::new()
        .route(PATH_SIGNALS, get(signals))
        .with_state(gateway)
        .merge(health::router(health::always(), readyz))
        .merge(metrics::router(registry))
}

/// Counts since this gateway started; the reader takes differences.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Signals {
    models: Vec<ModelSignals>,
    tenants: Vec<TenantSignals>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelSignals {
    namespace: String,
    deployment: String,
    model: String,
    /// Waiting for room on a replica.
    queued: usize,
    /// Waiting for a first replica.
    held: usize,
    /// Estimated prompt tokens of both.
    waiting_tokens: f64,
    mean_output_tokens: f64,
    replicas: Vec<ReplicaSignals>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplicaSignals {
    pod: String,
    in_flight: u32,
    /// Un-prefilled tokens.
    backlog_tokens: f64,
    routable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TenantSignals {
    tenant: String,
    model: String,
    /// Requests let in, and their estimated prompt tokens.
    arrivals: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    succeeded: u64,
    /// Requests refused for the tenant's limits, over all its models.
    throttled: u64,
}

async fn signals(State(gateway): State<Arc<Gateway>>) -> Json<Signals> {
    let view = gateway.directory.view();
    let mut models: Vec<_> = view.pools().map(|pool| model_signals(pool.status())).collect();
    models.sort_by(|a, b| (&a.namespace, &a.deployment).cmp(&(&b.namespace, &b.deployment)));
    Json(Signals { models, tenants: tenant_signals(&gateway) })
}

fn model_signals(status: PoolStatus) -> ModelSignals {
    let replicas = status.replicas.into_iter().map(|replica| ReplicaSignals {
        pod: replica.pod,
        in_flight: replica.in_flight,
        backlog_tokens: replica.backlog_tokens,
        routable: replica.refused.is_none(),
        refused: replica.refused.map(|reason| reason.label()),
    });
    let (queued, held) = if status.held { (0, status.waiting) } else { (status.waiting, 0) };
    ModelSignals {
        namespace: status.deployment.key.namespace.clone(),
        deployment: status.deployment.key.name.clone(),
        model: status.deployment.model.to_string(),
        queued,
        held,
        waiting_tokens: status.waiting_tokens,
        mean_output_tokens: status.mean_output,
        replicas: replicas.collect(),
    }
}

fn tenant_signals(gateway: &Gateway) -> Vec<TenantSignals> {
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

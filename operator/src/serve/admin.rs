//! The operator's administrative port: probes, metrics, the decision log, a dry run.
//!
//! Read-only. Who may come here is the NetworkPolicy's business.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use stowage_crds::names::PATH_DECISIONS;
use stowage_telemetry::health::{Readiness, always};
use stowage_telemetry::metrics::Registry;
use tokio::sync::watch;

use crate::serve::decisions::DecisionLog;
use crate::serve::published::Published;

/// The last plan and its report; more than `explain` needs, for people who debug.
const PATH_LAST_PLAN: &str = "/stowage/v1/plan/last";

#[derive(Clone)]
struct Shared {
    log: Arc<DecisionLog>,
    published: watch::Receiver<Arc<Published>>,
}

pub fn router(
    readiness: &Readiness,
    registry: Registry,
    log: Arc<DecisionLog>,
    published: watch::Receiver<Arc<Published>>,
) -> Router {
    Router::new()
        .route(PATH_DECISIONS, get(decisions))
        .route(PATH_LAST_PLAN, get(last_plan))
        .with_state(Shared { log, published })
        .merge(stowage_telemetry::health::router(always(), readiness.check()))
        .merge(stowage_telemetry::metrics::router(registry))
}

#[derive(Deserialize)]
struct Since {
    /// RFC 3339 or milliseconds since the epoch. Absent: all that is kept.
    since: Option<String>,
    /// `namespace/name`.
    object: Option<String>,
}

async fn decisions(State(shared): State<Shared>, Query(query): Query<Since>) -> impl IntoResponse {
    let since = match query.since.as_deref().map(moment) {
        None => 0,
        Some(Some(millis)) => millis,
        Some(None) => {
            let message = "since is neither RFC 3339 (2026-01-31T12:00:00Z) nor milliseconds since the epoch";
            return (StatusCode::BAD_REQUEST, Json(json!({"error": message})));
        }
    };
    (StatusCode::OK, Json(json!({"decisions": shared.log.since(since, query.object.as_deref())})))
}

fn moment(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().or_else(|| {
        let at: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(at.as_millisecond()).ok()
    })
}

async fn last_plan(State(shared): State<Shared>) -> impl IntoResponse {
    let published = shared.published.borrow().clone();
    Json(json!({
        "leading": published.leading,
        "frozen": published.frozen,
        "plan": published.plan,
        "report": published.report,
        "violations": published.violations,
    }))
}

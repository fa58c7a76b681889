//! The operator's administrative port: probes, metrics, the decision log, a dry run.
//!
//! Read-only. Who may come here is the NetworkPolicy's business.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use stowage_crds::names::PATH_DECISIONS;
use stowage_telemetry::health::{Heartbeat, Readiness};
use tokio::sync::watch;

use crate::serve::decisions::{Annotation, DecisionLog, Query as Wanted};
use crate::serve::published::Published;
use crate::serve::{dry_run, overview};

/// The decisions as Grafana's annotations.
const PATH_ANNOTATIONS: &str = "/stowage/v1/annotations";
/// The last plan and its report; more than `explain` needs, for people who debug.
const PATH_LAST_PLAN: &str = "/stowage/v1/plan/last";

/// A process that has not planned for this long hangs. A new leader lists everything before its first plan.
const STUCK_AFTER: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct Shared {
    log: Arc<DecisionLog>,
    published: watch::Receiver<Arc<Published>>,
}

pub fn router(
    readiness: &Readiness,
    heartbeat: &Heartbeat,
    metrics: Router,
    log: Arc<DecisionLog>,
    published: watch::Receiver<Arc<Published>>,
) -> Router {
    Router::new()
        .route(PATH_DECISIONS, get(decisions))
        .route(PATH_ANNOTATIONS, get(annotations))
        .route(PATH_LAST_PLAN, get(last_plan))
        .with_state(Shared { log, published: published.clone() })
        .merge(dry_run::router(published.clone()))
        .merge(overview::router(published))
        .merge(stowage_telemetry::health::router(heartbeat.check(STUCK_AFTER, "plan"), readiness.check()))
        .merge(metrics)
}

/// Moments are RFC 3339 or milliseconds since the epoch.
#[derive(Deserialize)]
struct Asked {
    /// Absent: all that is kept.
    since: Option<String>,
    /// Not included. Absent: up to now.
    until: Option<String>,
    namespace: Option<String>,
    /// `namespace/name`.
    object: Option<String>,
}

impl Asked {
    fn query(&self) -> Result<Wanted<'_>, Refused> {
        Ok(Wanted {
            since: moment("since", self.since.as_deref())?.unwrap_or(0),
            until: moment("until", self.until.as_deref())?,
            namespace: self.namespace.as_deref(),
            object: self.object.as_deref(),
        })
    }
}

type Refused = (StatusCode, Json<serde_json::Value>);

async fn decisions(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<impl IntoResponse, Refused> {
    Ok(Json(json!({"decisions": shared.log.find(asked.query()?)})))
}

/// For Grafana: a JSON list of marks, with `since=${__from}&until=${__to}`.
async fn annotations(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<impl IntoResponse, Refused> {
    let found = shared.log.find(asked.query()?);
    Ok(Json(found.iter().map(Annotation::from).collect::<Vec<_>>()))
}

fn moment(name: &str, text: Option<&str>) -> Result<Option<u64>, Refused> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = text.parse::<u64>().ok().or_else(|| {
        let at: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(at.as_millisecond()).ok()
    });
    let message = format!(
        "{name} is neither RFC 3339 (2026-01-31T12:00:00Z) nor milliseconds since the epoch; write one of them"
    );
    parsed.map(Some).ok_or((StatusCode::BAD_REQUEST, Json(json!({"error": message}))))
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

//! Read-only routes: models and load.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;
use stowage_openai_api::{ApiError, Model, ModelList};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{App, respond};

/// A watcher gets a line at most this often …
const AT_MOST: Duration = Duration::from_millis(100);
/// … and at least this often, changed or not.
const AT_LEAST: Duration = Duration::from_secs(1);

pub(super) async fn models(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList::new(vec![describe(&app)]))
}

pub(super) async fn model(State(app): State<App>, Path(name): Path<String>) -> Response {
    if name == app.model { Json(describe(&app)).into_response() } else { respond(&ApiError::model_not_found(&name)) }
}

fn describe(app: &App) -> Model {
    Model::new(app.model.clone(), app.created, u32::try_from(app.engine.max_sequence).ok())
}

#[derive(Debug, Deserialize)]
pub(super) struct LoadQuery {
    watch: Option<String>,
}

pub(super) async fn load(State(app): State<App>, Query(query): Query<LoadQuery>) -> Response {
    if matches!(query.watch.as_deref(), None | Some("0")) {
        return Json(app.engine.load()).into_response();
    }
    let lines = stream::unfold((app, None::<Instant>), |(app, last)| async move {
        if let Some(last) = last {
            let mut changes = app.engine.watch_load();
            changes.mark_unchanged();
            sleep_until(last + AT_MOST).await;
            // Changed, silent for a second, or the engine is gone: all are worth a line.
            let _ = timeout_at(last + AT_LEAST, changes.changed()).await;
        }
        let mut line = serde_json::to_vec(&app.engine.load()).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), (app, Some(Instant::now()))))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

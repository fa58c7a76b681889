//! The agent's port: probes, metrics, and the summary once or as a stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use stowage_contracts::names::PATH_SUMMARY;
use stowage_contracts::summary::Summary;
use stowage_telemetry::health::Check;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::serve::summary;
use crate::usage::view::NodeView;

/// A line at least so often, so that silence means that we are gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the routes read.
#[derive(Clone)]
pub struct Api {
    pub node: String,
    pub views: watch::Receiver<Arc<NodeView>>,
}

pub fn router(api: Api, metrics: Router, healthz: Check, readyz: Check) -> Router {
    Router::new()
        .route(PATH_SUMMARY, get(answer))
        .with_state(api)
        .merge(stowage_telemetry::health::router(healthz, readyz))
        .merge(metrics)
}

#[derive(Debug, Deserialize)]
struct Watch {
    watch: Option<String>,
}

async fn answer(State(api): State<Api>, Query(query): Query<Watch>) -> Response {
    match query.watch.as_deref() {
        None | Some("0" | "false") => {
            let text = line(&current(&api));
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Some("1" | "true") => {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(follow(api, sender));
            let stream = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
            ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(stream)).into_response()
        }
        Some(_) => (StatusCode::BAD_REQUEST, "watch is 0 or 1\n").into_response(),
    }
}

fn current(api: &Api) -> Summary {
    summary::of(&api.node, &api.views.borrow(), jiff::Timestamp::now())
}

fn line(summary: &Summary) -> Bytes {
    let mut text = serde_json::to_vec(summary).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// The full state first, then a line a second at most when something changed, and heartbeats. Views
/// come once a second, which is what bounds it. A reader that is slow gets the newest, not all.
async fn follow(mut api: Api, lines: mpsc::Sender<Bytes>) {
    loop {
        let summary = current(&api);
        if lines.send(line(&summary)).await.is_err() {
            return;
        }
        let silence = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                () = &mut silence => break,
                () = lines.closed() => return,
                changed = api.views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !current(&api).same_content(&summary) {
                        break;
                    }
                }
            }
        }
    }
}

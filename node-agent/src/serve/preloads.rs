//! Takes the list of models that the operator wants on this node ahead of need.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Json, Router};
use stowage_contracts::names::PATH_PRELOADS;
use stowage_contracts::preload::Preloads;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::models::preloads::Asked;

pub fn router(asked: watch::Sender<Asked>) -> Router {
    Router::new().route(PATH_PRELOADS, put(take)).with_state(asked)
}

async fn take(State(asked): State<watch::Sender<Asked>>, Json(list): Json<Preloads>) -> StatusCode {
    asked.send_replace(Asked::read(list, Instant::now()));
    StatusCode::NO_CONTENT
}

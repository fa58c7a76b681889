//! How much memory a model needs, for the operator: it places a model whose files are not here yet.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use stowage_contracts::estimate::EstimateRequest;
use stowage_contracts::names::PATH_ESTIMATE;

use crate::models::estimate::Estimator;

/// For one estimate, the wait for others included.
const LIMIT: Duration = Duration::from_secs(90);

pub fn router(estimator: Arc<Estimator>) -> Router {
    Router::new().route(PATH_ESTIMATE, post(answer)).with_state(estimator)
}

async fn answer(State(estimator): State<Arc<Estimator>>, Json(request): Json<EstimateRequest>) -> Response {
    match tokio::time::timeout(LIMIT, estimator.estimate(&request)).await {
        Ok(Ok(estimate)) => Json(estimate).into_response(),
        Ok(Err(err)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{err}\n")).into_response(),
        Err(_) => {
            let why = format!(
                "its headers were not read within {} s; write a size, or use a faster source\n",
                LIMIT.as_secs()
            );
            (StatusCode::UNPROCESSABLE_ENTITY, why).into_response()
        }
    }
}

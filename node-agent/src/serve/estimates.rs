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

/// For one estimate, from when it has its place.
const LIMIT: Duration = Duration::from_secs(60);
/// For its place.
const WAIT: Duration = Duration::from_secs(50);

pub fn router(estimator: Arc<Estimator>) -> Router {
    Router::new().route(PATH_ESTIMATE, post(answer)).with_state(estimator)
}

async fn answer(State(estimator): State<Arc<Estimator>>, Json(request): Json<EstimateRequest>) -> Response {
    let Ok(place) = tokio::time::timeout(WAIT, estimator.place(&request.tenant)).await else {
        let why = "other models are looked at; it is tried again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    match tokio::time::timeout(LIMIT, estimator.estimate_in(place, &request)).await {
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

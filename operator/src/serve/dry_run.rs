//! `POST /stowage/v1/plan`: what would come of some manifests. Nothing is written and nothing is remembered.
//!
//! The state is that of the last plan, its memory included, and the functions are the ones that the loop calls:
//! the objects with the manifests in them are translated, planned for and checked, and the two plans are compared.
//! One dry run at a time, because it takes as long as a plan that knows nothing of the one before.
//!
//! Who may ask is decided by the API server, whose proxy is the only way for people to this port.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use stowage_contracts::names::{MAX_PLAN_BYTES, PATH_PLAN};
use stowage_crds::conditions::reasons;
use stowage_planner::difference::{Decision, Document, DryRun, DryRunRequest, Refused, difference};
use stowage_planner::snapshot::{DeploymentId, TenantId};
use tokio::sync::{Semaphore, watch};

use crate::serve::published::{Basis, Published};
use crate::translate::proposed::{ProposalError, propose};
use crate::translate::snapshot::replicas::millis;
use crate::translate::validate::Verdict;
use crate::translate::{Built, build};

/// A request waits this long for the one before.
const TURN: Duration = Duration::from_secs(5);
/// And this long for its answer.
const LIMIT: Duration = Duration::from_secs(15);

/// What an estimate that is not known yet means here.
const NOT_ASKED: &str = " once the deployment is applied; to plan it before, write the size that `kubectl stowage model inspect` prints in place of memory: Auto";

#[derive(Clone)]
struct Shared {
    published: watch::Receiver<Arc<Published>>,
    turn: Arc<Semaphore>,
}

pub fn router(published: watch::Receiver<Arc<Published>>) -> Router {
    Router::new()
        .route(PATH_PLAN, post(answer))
        .layer(DefaultBodyLimit::max(MAX_PLAN_BYTES))
        .with_state(Shared { published, turn: Arc::new(Semaphore::new(1)) })
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DryRunError {
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    #[error("the request cannot be read: {0}")]
    Unreadable(String),
    #[error("the request has more than {MAX_PLAN_BYTES} bytes; plan fewer manifests at a time")]
    TooLarge,
    #[error("planning is paused: {0}")]
    Paused(String),
    #[error("no plan has been made yet; ask again in a few seconds")]
    NotYet,
    #[error("another dry run is being answered; ask again")]
    Busy,
    #[error("no answer within {} s", LIMIT.as_secs())]
    TooLong,
    #[error("the plan that would be made violates an invariant and would not be carried out: {0}. Please report it")]
    Violation(String),
}

async fn answer(
    State(shared): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<DryRun>, DryRunError> {
    let body = body.map_err(|err| match err.status() {
        StatusCode::PAYLOAD_TOO_LARGE => DryRunError::TooLarge,
        _ => DryRunError::Unreadable(err.to_string()),
    })?;
    let request: DryRunRequest<Value> =
        serde_json::from_slice(&body).map_err(|err| DryRunError::Unreadable(err.to_string()))?;
    let turn = tokio::time::timeout(TURN, shared.turn.acquire_owned()).await;
    let Ok(Ok(turn)) = turn else { return Err(DryRunError::Busy) };
    let published = shared.published.borrow().clone();
    let work = tokio::task::spawn_blocking(move || {
        // Until the work is done, also when nobody waits for it any more.
        let _turn = turn;
        dry_run(&published, &request)
    });
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(done)) => done.map(Json),
        Ok(Err(failed)) => Err(DryRunError::Violation(failed.to_string())),
        Err(_) => Err(DryRunError::TooLong),
    }
}

/// The answer on the state of the last plan.
pub fn dry_run(published: &Published, request: &DryRunRequest<Value>) -> Result<DryRun, DryRunError> {
    if let Some(why) = &published.frozen {
        return Err(DryRunError::Paused(why.clone()));
    }
    let Published { basis: Some(basis), snapshot: Some(snapshot), plan: Some(plan), report: Some(report), .. } =
        published
    else {
        return Err(DryRunError::NotYet);
    };
    let Basis { view, memory, policy } = basis.as_ref();
    let (proposed, mut documents) = propose(view, request)?;
    let built = build(&proposed, memory, snapshot.sequence);
    documents.iter_mut().for_each(|document| judge(document, &built));
    let (next, next_report) = stowage_planner::plan(&built.snapshot, policy, millis(view.now));
    if let Some(violation) = stowage_planner::check::check(&built.snapshot, &next).first() {
        return Err(DryRunError::Violation(violation.to_string()));
    }
    let before = Decision { snapshot, plan, report };
    let after = Decision { snapshot: &built.snapshot, plan: &next, report: &next_report };
    let (deployments, tenants) = asked(&documents);
    Ok(DryRun { leading: published.leading, difference: difference(&deployments, &tenants, before, after), documents })
}

/// Takes in whether the object would be accepted beside the others.
fn judge(document: &mut Document, built: &Built) {
    if document.refusal.is_some() || document.proposal == stowage_planner::difference::Proposal::Delete {
        return;
    }
    let refused = |reason: &str, message: &String| {
        // The loop asks for what is stored; a question about what may never be would be for nothing.
        let asks = if reason == reasons::ESTIMATING_MEMORY { NOT_ASKED } else { "" };
        Refused { reason: reason.to_owned(), message: format!("{message}{asks}") }
    };
    document.refusal = if document.kind == "TenantQuota" {
        built.tenants.refused.get(&document.name).map(|(reason, message)| refused(reason, message))
    } else {
        let judged = built.judged.get(&DeploymentId::new(&document.namespace, &document.name));
        judged.and_then(|judged| match &judged.verdict {
            Verdict::Accepted(_) => None,
            Verdict::Refused { reason, message } => Some(refused(reason, message)),
        })
    };
}

fn asked(documents: &[Document]) -> (BTreeSet<DeploymentId>, BTreeSet<TenantId>) {
    let (quotas, deployments): (Vec<&Document>, Vec<&Document>) =
        documents.iter().partition(|document| document.kind == "TenantQuota");
    (
        deployments.iter().map(|d| DeploymentId::new(&d.namespace, &d.name)).collect(),
        quotas.iter().map(|d| TenantId(d.name.clone())).collect(),
    )
}

// === impl DryRunError ===

impl DryRunError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Proposal(_) | Self::Unreadable(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Paused(_) | Self::NotYet | Self::Busy | Self::TooLong => StatusCode::SERVICE_UNAVAILABLE,
            Self::Violation(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for DryRunError {
    /// As Kubernetes writes errors, so that its clients show the message.
    fn into_response(self) -> Response {
        let code = self.status();
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""),
            "code": code.as_u16()});
        (code, Json(status)).into_response()
    }
}

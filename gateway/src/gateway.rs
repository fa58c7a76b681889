//! From a request to its answer: the order in which things are decided.
//!
//! Route, credential, body, model, tenant's limits, place, attempt, relay: each step is a module of
//! its own, and here is only their order. What costs memory or an engine's time comes after what can
//! refuse for free, so a stranger's body is never read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use stowage_openai_api::{ApiError, Envelope, Model, ModelList};
use stowage_planner::route::RequestView;
use stowage_telemetry::health::Readiness;

use crate::listen::body::{self, BodyBudget, BodyLimits, HeldBody};
use crate::listen::credentials;
use crate::listen::paths::{self, Inference, Route};
use crate::metrics::{Metrics, Retry};
use crate::outcome::{self, Outcome, Refused};
use crate::queue::directory::{Directory, View};
use crate::queue::pool::{Ask, Pool};
use crate::queue::tenants::Tenants;
use crate::relay::account::Account;
use crate::relay::attempt::{self, Attempt, EngineClient, Outgoing};
use crate::relay::stream::{self, OutBody, Relay, StreamPatience};
use crate::world::snapshot::{Deployment, Tenant};

/// Attempts that reached an engine: the first and one more.
const MAX_SENT: usize = 2;
/// Attempts in all, those without a connection included.
const MAX_ATTEMPTS: usize = 5;
/// Bytes of a JSON body per token, roughly; only used before the engine has counted.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Settings of the request path.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub body: BodyLimits,
    pub stream: StreamPatience,
    /// Gateways that share a tenant's rate.
    pub gateways: u32,
}

/// The request path.
pub struct Gateway {
    settings: Settings,
    pub directory: Arc<Directory>,
    pub tenants: Tenants,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    client: EngineClient,
    budget: Arc<BodyBudget>,
    /// Request ids: a part drawn at start, and a count.
    id_prefix: u64,
    next_id: AtomicU64,
}

/// A request that knows who sends it and where it may go.
struct Admitted {
    envelope: Envelope,
    body: HeldBody,
    deployment: Arc<Deployment>,
    pool: Arc<Pool>,
    account: Account,
    ask: Ask,
}

impl Gateway {
    pub fn new(
        settings: Settings,
        directory: Arc<Directory>,
        client: EngineClient,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let id_prefix = u64::from(std::process::id()) ^ jiff::Timestamp::now().as_nanosecond() as u64;
        Arc::new(Self {
            settings,
            directory,
            tenants: Tenants::default(),
            readiness: Readiness::starting("no state from the API server yet"),
            client,
            budget: BodyBudget::new(metrics.clone()),
            metrics,
            id_prefix,
            next_id: AtomicU64::new(0),
        })
    }

    /// Answers one request; never fails, since every failure is an answer.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<OutBody>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let arrived = Instant::now();
        let request_id = self.request_id();
        let (head, body) = request.into_parts();
        let mut response = match self.dispatch(&head, body, arrived, &request_id).await {
            Ok(response) => response,
            Err(error) => error_response(&error, head.uri.path()),
        };
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert("x-request-id", value);
        }
        response
    }

    async fn dispatch<B>(
        &self,
        head: &Parts,
        body: B,
        arrived: Instant,
        id: &str,
    ) -> Result<Response<OutBody>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let early = |outcome: Outcome, tenant: Option<&Arc<Tenant>>| {
            let name = tenant.map(|tenant| &tenant.name);
            let metrics = self.metrics.clone();
            let name = name.cloned();
            move |error: ApiError| {
                metrics.count_early(name.as_ref(), outcome);
                error
            }
        };
        let route = paths::route(&head.method, head.uri.path()).map_err(early(Outcome::Invalid, None))?;
        match route {
            Route::Healthz => return Ok(plain(StatusCode::OK, "ok\n")),
            Route::Readyz => return Ok(self.readyz()),
            _ => {}
        }
        let view = self.directory.view();
        let tenant = self.authenticate(head, &view).map_err(early(Outcome::Unauthenticated, None))?;
        match route {
            Route::Models => Ok(models(&view, &tenant)),
            Route::Model(name) => model(&view, &tenant, name).map_err(early(Outcome::ModelNotFound, Some(&tenant))),
            Route::Inference(route) => {
                let admitted = match self.admit(head, body, &view, &tenant, arrived, id).await {
                    Ok(admitted) => admitted,
                    Err(refused) => return Err(early(refused.outcome, Some(&tenant))(refused.error)),
                };
                drop(view);
                self.serve(route, head, admitted, &tenant).await
            }
            Route::Healthz | Route::Readyz => Ok(self.readyz()),
        }
    }

    fn authenticate(&self, head: &Parts, view: &View) -> Result<Arc<Tenant>, ApiError> {
        paths::check_query(head.uri.query())?;
        let key = credentials::bearer(&head.headers)?;
        let tenant = view.world.keys.tenant_of(key).and_then(|name| view.world.tenant(name));
        tenant.cloned().ok_or_else(credentials::unknown_key)
    }

    /// Everything that can be refused without an engine.
    async fn admit<B>(
        &self,
        head: &Parts,
        body: B,
        view: &View,
        tenant: &Arc<Tenant>,
        arrived: Instant,
        id: &str,
    ) -> Result<Admitted, Refused>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let body = body::read(&head.headers, body, self.settings.body, &self.budget).await?;
        let envelope = Envelope::parse(&body.bytes).map_err(Refused::invalid)?;
        let not_found = || Refused::new(Outcome::ModelNotFound, ApiError::model_not_found(&envelope.model));
        let deployment = view.world.resolve(&tenant.name, &envelope.model).ok_or_else(not_found)?.clone();
        let pool = view.pool(&deployment).ok_or_else(not_found)?.clone();
        let prompt_tokens = (body.bytes.len() as f64 / BYTES_PER_TOKEN).ceil();
        let bound = envelope.max_tokens.map_or(f64::INFINITY, f64::from);
        let output_tokens = pool.mean_output().min(bound) * f64::from(envelope.n);
        let reserved = prompt_tokens + output_tokens;
        let handle = self.tenants.get(&tenant.name);
        handle
            .admit(tenant, reserved, self.settings.gateways)
            .map_err(|reason| outcome::limited(reason, &tenant.name, tenant.limits.per_minute))?;
        let series = self.metrics.series(&tenant.name, &deployment.model);
        let account =
            Account::open(id.to_owned(), series, pool.clone(), handle, arrived, prompt_tokens as u64, reserved);
        let ask = Ask {
            tenant: tenant.name.clone(),
            request: RequestView { prompt_tokens, output_tokens },
            arrived,
            max_queued: tenant.limits.max_queued,
        };
        Ok(Admitted { envelope, body, deployment, pool, account, ask })
    }

    /// Finds a place, tries, tries once more, and hands the answer to the relay.
    async fn serve(
        &self,
        route: Inference,
        head: &Parts,
        request: Admitted,
        tenant: &Tenant,
    ) -> Result<Response<OutBody>, ApiError> {
        let Admitted { envelope, body, deployment, pool, mut account, ask } = request;
        let refuse = |account: &mut Account, refused: Refused| {
            account.finish(refused.outcome, None);
            refused.error
        };
        let out = match outgoing(route, head, &body, &envelope, tenant, account.request_id()) {
            Some(out) => out,
            None => return Err(refuse(&mut account, Refused::invalid(ApiError::internal("cannot build the request")))),
        };
        let (mut sent, mut tried) = (0, Vec::new());
        for attempt in 1..=MAX_ATTEMPTS {
            let lease = match pool.acquire(ask.clone(), tried.clone()).await {
                Ok(lease) => lease,
                Err(reason) => return Err(refuse(&mut account, outcome::unplaced(reason, &deployment))),
            };
            if attempt == 1 {
                account.on_placed();
            }
            let again = match attempt::attempt(&self.client, &lease, &out).await {
                Attempt::Whole { content_type, body } => {
                    account.on_first_byte();
                    return Ok(success(content_type, envelope.stream, stream::whole(body, envelope.stream, account)));
                }
                Attempt::Begun { content_type, first, rest } => {
                    account.on_first_byte();
                    let relay = Relay::new(first, rest, envelope.stream, lease, account, self.settings.stream);
                    return Ok(success(content_type, envelope.stream, OutBody::Relay(relay)));
                }
                Attempt::Refused { status, body, retry_after } => {
                    account.finish(Outcome::EngineRefused, None);
                    return Ok(passed_on(status, body, retry_after));
                }
                Attempt::Busy { status, body, retry_after } => {
                    // A draining replica is replaced soon, so waiting is worth it even alone.
                    let elsewhere = pool.has_alternative(&lease.replica) || pool.is_draining(&lease.replica);
                    if !elsewhere || sent + 1 >= MAX_SENT {
                        account.finish(Outcome::EngineFailed, None);
                        return Ok(passed_on(status, body, retry_after));
                    }
                    Retry::Refused
                }
                Attempt::Failed(reason) => reason,
            };
            tracing::info!(
                pod = lease.replica.pod,
                request = account.request_id(),
                reason = again.label(),
                "trying another replica"
            );
            sent += usize::from(again != Retry::Unreachable);
            if sent >= MAX_SENT {
                break;
            }
            self.metrics.count_retry(again);
            tried.push(lease.replica.id);
        }
        Err(refuse(&mut account, outcome::engine_lost(&deployment.model)))
    }

    fn readyz(&self) -> Response<OutBody> {
        match self.readiness.check()() {
            Ok(()) => plain(StatusCode::OK, "ok\n"),
            Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
        }
    }

    fn request_id(&self) -> String {
        let count = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("req-{:016x}{count:08x}", self.id_prefix)
    }
}

fn outgoing(
    route: Inference,
    head: &Parts,
    body: &HeldBody,
    envelope: &Envelope,
    tenant: &Tenant,
    id: &str,
) -> Option<Outgoing> {
    Some(Outgoing {
        route,
        body: body.bytes.clone(),
        stream: envelope.stream,
        salt: HeaderValue::from_str(&tenant.salt).ok()?,
        request_id: HeaderValue::from_str(id).ok()?,
        traceparent: head.headers.get("traceparent").cloned(),
    })
}

fn models(view: &View, tenant: &Tenant) -> Response<OutBody> {
    let callable = view.world.callable(&tenant.name);
    json(StatusCode::OK, &ModelList::new(callable.values().map(|deployment| shown(deployment)).collect()))
}

fn model(view: &View, tenant: &Tenant, name: &str) -> Result<Response<OutBody>, ApiError> {
    let found = view.world.resolve(&tenant.name, name).ok_or_else(|| ApiError::model_not_found(name))?;
    Ok(json(StatusCode::OK, &shown(found)))
}

/// The owner is shown as a constant: which tenant shares a model is not the caller's business.
fn shown(deployment: &Deployment) -> Model {
    Model::new(&*deployment.model, deployment.created.max(0) as u64, deployment.max_model_len)
}

fn success(content_type: Option<HeaderValue>, stream: bool, body: OutBody) -> Response<OutBody> {
    let mut response = Response::new(body);
    let usual = if stream { "text/event-stream" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(usual)));
    if stream {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Proxies in front of us must not collect a stream.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    response
}

fn passed_on(status: StatusCode, body: Bytes, retry_after: Option<HeaderValue>) -> Response<OutBody> {
    let mut response = Response::new(OutBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<OutBody> {
    passed_on(status, serde_json::to_vec(value).unwrap_or_default().into(), None)
}

fn plain(status: StatusCode, text: &str) -> Response<OutBody> {
    let mut response = Response::new(OutBody::full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn error_response(error: &ApiError, path: &str) -> Response<OutBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = passed_on(status, error.to_json().into(), error.retry_after.map(HeaderValue::from));
    match error.status {
        401 => {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        405 => {
            let allowed = if path.starts_with("/v1/") && !path.starts_with("/v1/models") { "POST" } else { "GET" };
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        _ => {}
    }
    response
}

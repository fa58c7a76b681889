//! From a request to its answer: the order in which things are decided.
//!
//! Route, credential, body, model, tenant's limits, exchange: each step is a module of its own, and here
//! is only their order. What costs memory or an engine's time comes after what can refuse for free, so the
//! body of a caller without a key is never read.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use stowage_openai_api::{ApiError, Envelope, ErrorKind, Model, ModelList};
use stowage_planner::route::RequestView;
use stowage_telemetry::health::Readiness;
use stowage_telemetry::traces::Tracer;

use crate::listen::body::{Bodies, BodyLimits};
use crate::listen::cors::Cors;
use crate::listen::credentials;
use crate::listen::paths::{self, Inference, Route};
use crate::listen::peers::Peer;
use crate::listen::server::Handler;
use crate::metrics::Metrics;
use crate::outcome::{Outcome, Refused};
use crate::queue::ask::Ask;
use crate::queue::client::EngineClient;
use crate::queue::directory::{Directory, View};
use crate::queue::limits::Wanted;
use crate::queue::tenants::Tenants;
use crate::relay::account::{Account, Charge, Meters};
use crate::relay::answers;
use crate::relay::exchange::{Admitted, Exchanges};
use crate::relay::outgoing::{self, Outgoing};
use crate::relay::refusals;
use crate::relay::spans::RequestSpans;
use crate::relay::stream::{OutBody, StreamPatience};
use crate::relay::usage::Bounds;
use crate::world::snapshot::{Deployment, Tenant};

/// Bytes of a JSON body per token, roughly; only used before the engine has counted.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Settings of the request path.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub body: BodyLimits,
    pub stream: StreamPatience,
    /// Gateways that share a tenant's rate.
    pub gateways: u32,
    /// Headers of one request.
    pub max_headers: usize,
    /// Sequences of one request: prompts times choices.
    pub max_sequences: u32,
}

/// The request path.
pub struct Gateway {
    settings: Settings,
    pub directory: Arc<Directory>,
    pub tenants: Tenants,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub epoch: Epoch,
    cors: Cors,
    bodies: Bodies,
    exchanges: Exchanges,
    tracer: Tracer,
    ids: RequestIds,
}

/// This start of the process: counts of another one are not comparable.
pub struct Epoch {
    /// No other start has it.
    pub name: String,
    pub began: Instant,
}

/// Request ids: a count behind two keyed hashes, so that an id does not show how many requests there were.
struct RequestIds {
    keys: [RandomState; 2],
    next: AtomicU64,
}

/// One request on its way through the steps.
struct Asking<'a> {
    head: &'a Parts,
    id: &'a str,
    arrived: Instant,
}

impl Gateway {
    pub fn new(
        settings: Settings,
        cors: Cors,
        directory: Arc<Directory>,
        client: EngineClient,
        metrics: Arc<Metrics>,
        tracer: Tracer,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            directory,
            tenants: Tenants::default(),
            readiness: Readiness::starting("no state from the API server yet"),
            epoch: Epoch::new(),
            cors,
            bodies: Bodies::new(settings.body, metrics.clone()),
            exchanges: Exchanges { client, metrics: metrics.clone(), patience: settings.stream },
            metrics,
            tracer,
            ids: RequestIds { keys: [RandomState::new(), RandomState::new()], next: AtomicU64::new(0) },
        })
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<OutBody> {
        let arrived = Instant::now();
        let id = self.ids.next();
        let (head, body) = request.into_parts();
        let mut tenant = None;
        let asking = Asking { head: &head, id: &id, arrived };
        let mut response = match self.dispatch(asking, body, &mut tenant).await {
            Ok(response) => response,
            Err(refused) => {
                self.metrics.count_early(tenant.as_ref().map(|tenant| &tenant.name), refused.outcome);
                answers::refusal(&refused.error, head.uri.path())
            }
        };
        if let Some(peer) = head.extensions.get::<Arc<Peer>>().filter(|_| tenant.is_none()) {
            peer.on_answered_guest();
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", value);
        }
        self.cors.allow(&head.headers, response.headers_mut());
        if head.method == Method::HEAD { answers::head_only(response) } else { response }
    }

    /// `tenant` is set as soon as it is known. A refusal has not been counted yet.
    async fn dispatch(
        &self,
        asking: Asking<'_>,
        body: Incoming,
        tenant: &mut Option<Arc<Tenant>>,
    ) -> Result<Response<OutBody>, Refused> {
        let head = asking.head;
        self.check_headers(head)?;
        if self.cors.is_preflight(&head.method, &head.headers) {
            return Ok(answers::empty());
        }
        let route = paths::route(&head.method, head.uri.path()).map_err(Refused::invalid)?;
        let view = self.directory.view();
        let inference = match route {
            Route::Healthz => return Ok(answers::plain(StatusCode::OK, "ok\n")),
            Route::Readyz => return Ok(self.readyz()),
            Route::Models => return Ok(models(&view, tenant.insert(authenticate(head, &view)?))),
            Route::Model(name) => return model(&view, tenant.insert(authenticate(head, &view)?), name),
            Route::Inference(inference) => inference,
        };
        let tenant = tenant.insert(authenticate(head, &view)?);
        let mut spans = RequestSpans::begin(&self.tracer, head, asking.arrived, inference, &tenant.name, asking.id);
        let admitted = self.admit(&asking, inference, body, &view, tenant, &mut spans).await;
        let admitted = admitted.inspect_err(|refused| spans.refused(refused))?;
        drop(view);
        Ok(self.exchanges.run(admitted, head.uri.path()).await)
    }

    fn check_headers(&self, head: &Parts) -> Result<(), Refused> {
        let limit = self.settings.max_headers;
        if head.headers.len() <= limit {
            return Ok(());
        }
        let message = format!("The request has {} headers; at most {limit} are read.", head.headers.len());
        Err(Refused::invalid(ApiError::new(431, ErrorKind::InvalidRequest, "too_many_headers", message)))
    }

    /// Everything that can be refused without an engine. Who is let in takes the spans along.
    async fn admit(
        &self,
        asking: &Asking<'_>,
        route: Inference,
        body: Incoming,
        view: &View,
        tenant: &Arc<Tenant>,
        spans: &mut RequestSpans,
    ) -> Result<Admitted, Refused> {
        let body = self.bodies.read(&asking.head.headers, body, &tenant.name).await?;
        let envelope = Envelope::parse(&body.bytes).map_err(Refused::invalid)?;
        let not_found = || Refused::new(Outcome::ModelNotFound, ApiError::model_not_found(&envelope.model));
        let deployment = view.world.resolve(&tenant.name, &envelope.model).ok_or_else(not_found)?.clone();
        let pool = view.pool(&deployment).ok_or_else(not_found)?.clone();
        spans.model(&deployment);
        let salt = view.world.salt(&deployment, tenant);
        if salt.is_none() && deployment.tenant != tenant.name {
            return Err(refusals::not_shared(&envelope.model));
        }
        let most = self.settings.max_sequences;
        let sequences = u32::try_from(envelope.sequences()).unwrap_or(u32::MAX);
        if sequences > most {
            let error = ApiError::too_many_sequences(envelope.prompts as usize, envelope.n, most as usize);
            return Err(Refused::invalid(error));
        }
        let prompt_tokens = (body.bytes.len() as f64 / BYTES_PER_TOKEN).ceil();
        let longest = envelope.max_tokens.map_or(f64::INFINITY, f64::from);
        let output_tokens = pool.expected_output(&tenant.name).min(longest) * f64::from(sequences);
        let reserved = Wanted { tokens: prompt_tokens + output_tokens, sequences };
        let handle = self.tenants.get(&tenant.name);
        handle
            .admit(tenant, reserved, self.settings.gateways)
            .map_err(|reason| refusals::limited(reason, &envelope, tenant))?;
        let bounds =
            Bounds::new(body.bytes.len(), envelope.prompts, envelope.n, envelope.max_tokens, deployment.max_model_len);
        let charge = Charge { reserved, prompt_estimate: prompt_tokens as u64, bounds };
        let meters = Meters {
            series: self.metrics.series(&tenant.name, &deployment.model),
            served: self.metrics.served(&deployment.tenant, &deployment.key.namespace, &deployment.key.name),
            streamed: envelope.stream,
            objectives: deployment.objectives.map(|objectives| pool.promised(objectives, prompt_tokens)),
        };
        let id = asking.id.to_owned();
        let account = Account::open(id, std::mem::take(spans), meters, pool.clone(), handle, asking.arrived, charge);
        let ask = Ask {
            tenant: tenant.name.clone(),
            request: RequestView { prompt_tokens, output_tokens },
            sequences,
            since: asking.arrived,
            max_queued: tenant.limits.max_queued,
        };
        let header = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        let out = Outgoing {
            route,
            body: outgoing::body(body.bytes.clone(), &envelope.model, &deployment.model),
            stream: envelope.stream,
            salt: salt.as_deref().map(header),
            request_id: header(asking.id),
        };
        Ok(Admitted { held: body, deployment, pool, account, ask, out })
    }

    fn readyz(&self) -> Response<OutBody> {
        match self.readiness.check()() {
            Ok(()) => answers::plain(StatusCode::OK, "ok\n"),
            Err(reason) => answers::plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
        }
    }
}

impl Handler for Gateway {
    type Body = OutBody;

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<OutBody>> + Send {
        self.respond(request)
    }
}

impl Epoch {
    fn new() -> Self {
        Self { name: format!("{:016x}", RandomState::new().hash_one(std::process::id())), began: Instant::now() }
    }
}

impl RequestIds {
    fn next(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let [first, second] = &self.keys;
        format!("req-{:016x}{:016x}", first.hash_one(count), second.hash_one(count))
    }
}

fn authenticate(head: &Parts, view: &View) -> Result<Arc<Tenant>, Refused> {
    let refused = |error| Refused::new(Outcome::Unauthenticated, error);
    paths::check_query(head.uri.query()).map_err(refused)?;
    let key = credentials::bearer(&head.headers).map_err(refused)?;
    let tenant = view.world.keys.tenant_of(key).and_then(|name| view.world.tenant(name));
    let tenant = tenant.cloned().ok_or_else(|| refused(credentials::unknown_key()))?;
    if let Some(peer) = head.extensions.get::<Arc<Peer>>() {
        peer.on_known();
    }
    Ok(tenant)
}

fn models(view: &View, tenant: &Tenant) -> Response<OutBody> {
    let callable = view.world.callable(&tenant.name);
    answers::json(&ModelList::new(callable.iter().map(|(name, deployment)| shown(name, deployment)).collect()))
}

fn model(view: &View, tenant: &Tenant, name: &str) -> Result<Response<OutBody>, Refused> {
    let not_found = || Refused::new(Outcome::ModelNotFound, ApiError::model_not_found(name));
    let found = view.world.resolve(&tenant.name, name).ok_or_else(not_found)?;
    Ok(answers::json(&shown(name, found)))
}

/// Under the name by which the caller asks for it.
fn shown(name: &str, deployment: &Deployment) -> Model {
    let mut model = Model::new(name, deployment.created.max(0) as u64, deployment.max_model_len);
    model.owned_by = deployment.tenant.to_string();
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_do_not_show_a_count() {
        let ids = RequestIds { keys: [RandomState::new(), RandomState::new()], next: AtomicU64::new(0) };
        let drawn: Vec<_> = (0..1000).map(|_| ids.next()).collect();
        let distinct: std::collections::HashSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), drawn.len());
        assert!(drawn.iter().all(|id| id.len() == 36), "{}", drawn[0]);
        // Neighbours share neither end nor beginning.
        let alike = |a: &str, b: &str| a[4..12] == b[4..12] || a[28..] == b[28..];
        assert!(drawn.windows(2).all(|pair| !alike(&pair[0], &pair[1])));
    }
}

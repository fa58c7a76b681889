//! `dashboard`: a page to look at, served on loopback by the command itself with the caller's rights. It opens no new door in
//! the cluster, and it only reads; its what-if form asks for dry runs, as `plan` does.
//!
//! Other pages in the same browser must not get at it: the address holds a random token, the `Host` header must name this
//! address (a foreign name that resolves to loopback is refused), what is posted needs a header that a foreign page cannot
//! send unasked, and the page itself may load nothing from elsewhere and be framed by nobody ([`guard`]).

mod guard;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stowage_crds::names::{MAX_PLAN_BYTES, PATH_DECISIONS};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, ClusterError};
use crate::{Answer, Failure, overview, plan};
use guard::Address;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Port on 127.0.0.1; 0: any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

struct Shared {
    cluster: Cluster,
    namespace: String,
}

/// Serves until the process gets ^C.
pub(crate) async fn run(cluster: &Cluster, args: &Args, namespace: &str) -> Result<Answer, Failure> {
    // A client that cannot be answered is reported here, not in a browser.
    overview::fetch(cluster, namespace, now_ms()).await?;
    let failed = |what: &str, e: &dyn std::fmt::Display| Failure::Usage(format!("{what}: {e}"));
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)))
        .await
        .map_err(|e| failed(&format!("listening on 127.0.0.1:{}", args.port), &e))?;
    let port = listener.local_addr().map_err(|e| failed("listening", &e))?.port();
    let address = Address { port, token: token().map_err(|e| failed("drawing a token", &e))? };
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{}\nWith the rights of this account, for this machine alone; ^C ends it.", address.url());
    let _ = stdout.flush();
    let router = router(cluster.clone(), namespace, &address);
    // At once: a page that is open asks again and again, and an API server that hangs would hold its requests.
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served.map_err(|e| failed("serving the page", &e))?,
        () = stopped() => {}
    }
    Ok(Answer { text: String::new(), yes: true })
}

fn router(cluster: Cluster, namespace: &str, address: &Address) -> Router {
    let shared = Arc::new(Shared { cluster, namespace: namespace.to_owned() });
    // A wrong token is a path that is not there.
    let at = |path: &str| format!("/{}/{path}", address.token);
    let guarded = address.clone();
    Router::new()
        .route(&at(""), get(|| async { file("text/html; charset=utf-8", PAGE) }))
        .route(&at("page.css"), get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .route(&at("page.js"), get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
        .route(&at("overview.json"), get(shown))
        .route(&at("decisions.json"), get(decisions))
        .route(&at("plan"), post(planned))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(DefaultBodyLimit::max(2 * MAX_PLAN_BYTES))
        .with_state(shared)
        .layer(middleware::from_fn(move |request, next| guard::check(guarded.clone(), request, next)))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn shown(State(shared): State<Arc<Shared>>) -> Response {
    answer(overview::fetch(&shared.cluster, &shared.namespace, now_ms()).await)
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn decisions(State(shared): State<Arc<Shared>>, Query(query): Query<Since>) -> Response {
    let found = shared.cluster.operator::<Decisions>(&format!("{PATH_DECISIONS}?since={}", query.since)).await;
    answer(found.map(Decisions::newest))
}

/// Decisions that the page is given at once.
const NEWEST: usize = 1000;

/// The part of the operator's answer that the page shows. An operator keeps up to 10,000 decisions with all their candidates.
#[derive(Deserialize, Serialize)]
struct Decisions {
    decisions: Vec<Decision>,
}

#[derive(Deserialize, Serialize)]
struct Decision {
    id: String,
    time: u64,
    kind: String,
    action: String,
    object: Value,
    message: String,
}

impl Decisions {
    fn newest(mut self) -> Self {
        self.decisions.drain(..self.decisions.len().saturating_sub(NEWEST));
        self
    }
}

/// What the form sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WhatIf {
    manifests: String,
    #[serde(default)]
    delete: bool,
}

async fn planned(State(shared): State<Arc<Shared>>, Json(asked): Json<WhatIf>) -> Response {
    match plan::ask(&shared.cluster, &asked.manifests, "the form", asked.delete, Some(&shared.namespace), None).await {
        Ok(planned) => Json(json!({"text": planned.text(), "fits": planned.fits()})).into_response(),
        Err(Failure::Usage(why) | Failure::Model(why)) => problem(StatusCode::BAD_REQUEST, &why),
        Err(Failure::Cluster(e)) => refused(&e),
    }
}

fn answer<T: Serialize>(done: Result<T, ClusterError>) -> Response {
    match done {
        Ok(value) => Json(value).into_response(),
        Err(e) => refused(&e),
    }
}

fn refused(e: &ClusterError) -> Response {
    let code = match (e.unreachable(), e.forbidden()) {
        (true, _) => StatusCode::BAD_GATEWAY,
        (_, true) => StatusCode::FORBIDDEN,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(code, &e.to_string())
}

fn problem(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({"error": why}))).into_response()
}

fn token() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn stopped() {
    let _ = tokio::signal::ctrl_c().await;
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

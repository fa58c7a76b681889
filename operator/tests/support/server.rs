//! The HTTP side: paths and verbs to the store, watches as streams, and faults between the two.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::life;
use super::store::{Denied, Key, Store};

/// A fake API server; clones share it.
#[derive(Clone)]
pub struct Server {
    store: Arc<Mutex<Store>>,
    version: watch::Sender<u64>,
    /// Milliseconds by which watches are behind; with a plural, those of that kind.
    lag: Arc<Mutex<(u64, Option<&'static str>)>>,
    /// Milliseconds that the creation of a pod takes, and how many such creations have begun, dry runs included.
    slow: Arc<AtomicU64>,
    slowed: Arc<AtomicU64>,
    /// Plural → why the creation of such an object is refused.
    refused: Arc<Mutex<BTreeMap<String, String>>>,
    /// Creations that were refused, dry runs included.
    refusals: Arc<AtomicU64>,
}

/// One client of the server: what it wrote, and what is done to it.
#[derive(Clone, Default)]
pub struct Link(Arc<Mutex<LinkState>>);

#[derive(Default)]
struct LinkState {
    /// Writes that changed or tried to change something; leases, events and the key of the salts left out.
    writes: Vec<String>,
    requests: u64,
    /// Creations of the key of the salts, refused ones included.
    keys_created: u64,
    /// After this many writes the line is cut: the last one is carried out, its answer never comes.
    cut_after: Option<usize>,
    cut: bool,
    /// Answers to the next writes, in place of what the store would say; `None` lets one through.
    faults: VecDeque<Option<u16>>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Server {
    pub fn new() -> Self {
        Self {
            store: Arc::default(),
            version: watch::channel(0).0,
            lag: Arc::default(),
            slow: Arc::default(),
            slowed: Arc::default(),
            refused: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// From now on watches deliver everything this much later; lists do not.
    pub fn lag(&self, millis: u64) {
        *self.lag.lock().unwrap() = (millis, None);
    }

    /// From now on watches of this kind deliver everything this much later.
    pub fn lag_of(&self, plural: &'static str, millis: u64) {
        *self.lag.lock().unwrap() = (millis, Some(plural));
    }

    /// From now on the creation of a pod takes this long.
    pub fn slow(&self, millis: u64) {
        self.slow.store(millis, Ordering::Relaxed);
    }

    /// How many creations of pods were slow so far, dry runs included.
    pub fn slowed(&self) -> u64 {
        self.slowed.load(Ordering::Relaxed)
    }

    /// From now on creations of this kind are refused, as a quota or a policy would; `None`: no longer.
    pub fn refuse(&self, plural: &str, why: Option<&str>) {
        let mut refused = self.refused.lock().unwrap();
        match why {
            Some(why) => drop(refused.insert(plural.to_owned(), why.to_owned())),
            None => drop(refused.remove(plural)),
        }
    }

    /// How many creations were refused so far, dry runs included.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Changes objects as another client would, and notifies the watches.
    pub fn act<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.announce();
        result
    }

    /// Simulates the rest of the cluster, as long as the returned task is kept.
    pub fn live(&self) -> tokio::task::JoinHandle<()> {
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                server.act(life::step);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
    }

    pub fn client(&self, link: &Link) -> Client {
        let (server, link) = (self.clone(), link.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, link) = (server.clone(), link.clone());
            async move { Ok::<_, Infallible>(server.answer(&link, request).await) }
        });
        Client::new(service, "default")
    }

    fn announce(&self) {
        let version = self.store().version;
        self.version.send_replace(version);
    }

    async fn answer(&self, link: &Link, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        if link.is_cut() {
            std::future::pending::<()>().await;
        }
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (key, subresource) = parse(parts.uri.path());
        let query = parts.uri.query().unwrap_or_default();
        // Lists come in pages, as of an API server without the feature gate `WatchList`.
        if query.contains("sendInitialEvents=true") {
            return denied((422, "Invalid"));
        }
        if parts.method == Method::GET && query.contains("watch=true") {
            return self.watch(&key.0, query);
        }
        let quiet = matches!(key.0.as_str(), "leases" | "events" | "secrets");
        let dry_run = query.contains("dryRun");
        let write = parts.method != Method::GET && !quiet && !dry_run;
        if key.0 == "secrets" {
            link.0.lock().unwrap().keys_created += 1;
        }
        if let Some(code) = link.next_fault(write) {
            return denied((code, "InternalError"));
        }
        if parts.method == Method::POST
            && let Some(why) = self.refused.lock().unwrap().get(&key.0)
        {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let name = body["metadata"]["name"].as_str().unwrap_or_default();
            return refused(&format!("{} \"{name}\" is forbidden: {why}", key.0));
        }
        if parts.method == Method::POST && key.0 == "pods" {
            let millis = self.slow.load(Ordering::Relaxed);
            self.slowed.fetch_add(u64::from(millis > 0), Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
        }
        if dry_run {
            return json_answer(StatusCode::CREATED, &body);
        }
        let apply = parts
            .headers
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"));
        let result = self.act(|store| carry_out(store, &parts.method, &key, &subresource, query, body, apply));
        if write
            && link.wrote(format!(
                "{} {}/{}{}",
                parts.method,
                key.0,
                key.2,
                if subresource.is_empty() { "" } else { "/status" }
            ))
        {
            std::future::pending::<()>().await;
        }
        match result {
            Ok(value) => json_answer(StatusCode::OK, &value),
            Err(why) => denied(why),
        }
    }

    fn watch(&self, plural: &str, query: &str) -> Answer {
        let from: u64 = parameter(query, "resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let (store, plural, selector, lag) = (self.store.clone(), plural.to_owned(), selector(query), self.lag.clone());
        let start = (from, self.version.subscribe());
        let stream = futures::stream::unfold(start, move |(seen, mut version)| {
            let (store, plural, selector, lag) = (store.clone(), plural.clone(), selector.clone(), lag.clone());
            async move {
                loop {
                    version.borrow_and_update();
                    let (lines, newest) = events(&store.lock().unwrap(), &plural, &selector, seen);
                    if !lines.is_empty() {
                        let (millis, kind) = *lag.lock().unwrap();
                        let late = kind.is_none_or(|kind| kind == plural);
                        tokio::time::sleep(Duration::from_millis(if late { millis } else { 0 })).await;
                        return Some((Ok(hyper::body::Frame::data(Bytes::from(lines))), (newest, version)));
                    }
                    version.changed().await.ok()?;
                }
            }
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn events(store: &Store, plural: &str, selector: &Option<(String, String)>, seen: u64) -> (String, u64) {
    let mut lines = String::new();
    for (version, kind, event, object) in store.log.iter().filter(|(version, ..)| *version > seen) {
        if kind == plural && selected(object, selector) {
            lines += &json!({"type": event, "object": object}).to_string();
            lines.push('\n');
        }
        let _ = version;
    }
    (lines, store.version)
}

fn carry_out(
    store: &mut Store,
    method: &Method,
    key: &Key,
    subresource: &str,
    query: &str,
    body: Value,
    apply: bool,
) -> Result<Value, Denied> {
    match *method {
        Method::GET if key.2.is_empty() => {
            let items: Vec<&Value> = store
                .objects
                .iter()
                .filter(|((plural, namespace, _), object)| {
                    *plural == key.0 && (key.1.is_empty() || *namespace == key.1) && selected(object, &selector(query))
                })
                .map(|(_, object)| object)
                .collect();
            Ok(
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": store.version.to_string()}, "items": items}),
            )
        }
        Method::GET => store.get(key).cloned().ok_or((404, "NotFound")),
        Method::POST => {
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            store.create(&(key.0.clone(), key.1.clone(), name), body)
        }
        Method::PUT => store.replace(key, body),
        Method::PATCH if apply => store.apply(key, subresource, body),
        Method::PATCH => store.merge(key, body),
        Method::DELETE => store.delete(key, body["preconditions"]["uid"].as_str()),
        _ => Err((405, "MethodNotAllowed")),
    }
}

/// `/apis/<group>/<version>/namespaces/<ns>/<plural>/<name>/<subresource>` and its shorter forms.
fn parse(path: &str) -> (Key, String) {
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    parts.drain(..if parts[0] == "api" { 2 } else { 3 });
    let namespace =
        if parts[0] == "namespaces" && parts.len() > 2 { parts.drain(..2).nth(1).unwrap_or_default() } else { "" };
    let at = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
    ((at(0), namespace.to_owned(), at(1)), at(2))
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(pair.replace("%3D", "=").replace("%2F", "/").replace("%2C", ","))
}

/// A single `key=value`, which is all that we use.
fn selector(query: &str) -> Option<(String, String)> {
    let text = parameter(query, "labelSelector")?;
    text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn selected(object: &Value, selector: &Option<(String, String)>) -> bool {
    selector.as_ref().is_none_or(|(key, value)| object["metadata"]["labels"][key] == *value)
}

fn json_answer(code: StatusCode, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer
}

fn refused(message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message});
    json_answer(StatusCode::FORBIDDEN, &status)
}

fn denied((code, reason): Denied) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    json_answer(StatusCode::from_u16(code).unwrap(), &status)
}

// === impl Link ===

impl Link {
    pub fn cut_after(writes: usize) -> Self {
        let link = Self::default();
        link.0.lock().unwrap().cut_after = Some(writes);
        link
    }

    pub fn with_faults(faults: impl IntoIterator<Item = Option<u16>>) -> Self {
        let link = Self::default();
        link.0.lock().unwrap().faults = faults.into_iter().collect();
        link
    }

    pub fn writes(&self) -> Vec<String> {
        self.0.lock().unwrap().writes.clone()
    }

    pub fn requests(&self) -> u64 {
        self.0.lock().unwrap().requests
    }

    pub fn keys_created(&self) -> u64 {
        self.0.lock().unwrap().keys_created
    }

    pub fn is_cut(&self) -> bool {
        self.0.lock().unwrap().cut
    }

    pub fn cut(&self) {
        self.0.lock().unwrap().cut = true;
    }

    fn next_fault(&self, write: bool) -> Option<u16> {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        if write { state.faults.pop_front().flatten() } else { None }
    }

    /// Answers whether the line is cut now.
    fn wrote(&self, what: String) -> bool {
        let mut state = self.0.lock().unwrap();
        state.writes.push(what);
        if state.cut_after.is_some_and(|limit| state.writes.len() >= limit) {
            state.cut = true;
        }
        state.cut
    }
}

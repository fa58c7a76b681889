//! What the gateway counts. Names, labels and help texts: [`stowage_telemetry::catalog`].
//!
//! Handles are looked up once per (tenant, model) and kept in a [`Series`], and once per deployment in a
//! [`Served`], so that a request pays two hash look-ups and some atomic additions. Tenants, models and
//! deployments come from objects, never from the request, and are capped ([`Shown`]): past the cap they count as
//! `other`. What leaves the world leaves the tables.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use stowage_telemetry::catalog::{OTHER, gateway as catalog};
use stowage_telemetry::labels::Shown;
use stowage_telemetry::metrics::{LATENCY_SECONDS, STEP_SECONDS, histogram};
use stowage_telemetry::traces::SpanCounts;

use crate::outcome::Outcome;

/// Label value where the caller or the model is not known yet.
const NONE: &str = "";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    tenant: String,
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeploymentLabels {
    pub namespace: String,
    pub deployment: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectiveLabels {
    namespace: String,
    deployment: String,
    objective: &'static str,
    attained: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    tenant: String,
    model: String,
    direction: &'static str,
    cached: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    reason: &'static str,
}

/// Latency histograms are made by a plain function, so that families can be cloned and stored.
type Histograms = Family<DeploymentLabels, Histogram, fn() -> Histogram>;

/// By tenant and model.
#[derive(Debug, Default)]
struct SeriesTable {
    handles: HashMap<(Arc<str>, Arc<str>), Arc<Series>>,
    tenants: Shown,
    models: Shown,
}

/// By namespace and deployment.
#[derive(Debug, Default)]
struct ServedTable {
    handles: HashMap<String, HashMap<String, Named>>,
    shown: Shown,
    /// Of all that are not shown.
    other: Option<Arc<Served>>,
}

/// The handles of a deployment with a name of its own.
#[derive(Debug)]
struct Named {
    owner: Arc<str>,
    served: Arc<Served>,
}

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histograms,
    first_token: Histograms,
    inter_token: Histograms,
    queue_wait: Histograms,
    objectives: Family<ObjectiveLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    implausible_usage: Counter,
    /// Open client connections.
    pub connections: Gauge<i64>,
    /// Connections refused because their address has as many as it may.
    pub refused_connections: Counter,
    /// Bytes of request bodies that are held.
    pub buffered_bytes: Gauge<i64>,
    /// Times that a malformed object was met and passed over.
    pub malformed_objects: Counter,
    /// Bumped with each new world.
    pub world_changes: Counter,
    pub trace_spans: SpanCounts,
    series: RwLock<SeriesTable>,
    served: RwLock<ServedTable>,
}

/// The handles of one tenant's use of one model.
#[derive(Debug)]
pub struct Series {
    pub tenant: Arc<str>,
    pub model: Arc<str>,
    outcomes: [Counter; Outcome::ALL.len()],
    prompt: Counter,
    prompt_cached: Counter,
    output: Counter,
    /// Answers whose reported usage cannot be true.
    pub implausible_usage: Counter,
    /// Requests that were let in, and their estimated prompt tokens; for the operator.
    pub arrivals: AtomicU64,
    pub arrived_tokens: AtomicU64,
}

/// The handles of one deployment.
#[derive(Debug)]
pub struct Served {
    pub duration: Histogram,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub queue_wait: Histogram,
    /// By objective; missed, then attained.
    objectives: [[Counter; 2]; Objective::ALL.len()],
}

/// What a deployment promises of each stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    FirstToken,
    InterToken,
}

impl Objective {
    pub const ALL: [Self; 2] = [Self::FirstToken, Self::InterToken];

    pub fn label(self) -> &'static str {
        match self {
            Self::FirstToken => "ttft",
            Self::InterToken => "itl",
        }
    }
}

/// Why a request was sent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No connection.
    Unreachable,
    /// The connection broke before the first byte.
    Broken,
    /// The replica was found hung or gone while the request waited there.
    Lost,
    /// The replica is full.
    Refused,
    /// The replica is about to end and takes nothing new.
    Draining,
    /// The answer made no sense.
    Garbled,
}

impl Retry {
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Draining => "draining",
            Self::Garbled => "garbled",
        }
    }
}

/// Tokens of one request, as the engine counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub prompt: u64,
    pub cached: u64,
    pub output: u64,
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything under the registry's prefix.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let latency: fn() -> Histogram = || histogram(&LATENCY_SECONDS);
        let step: fn() -> Histogram = || histogram(&STEP_SECONDS);
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(latency),
            first_token: Family::new_with_constructor(latency),
            inter_token: Family::new_with_constructor(step),
            queue_wait: Family::new_with_constructor(latency),
            objectives: Family::default(),
            tokens: Family::default(),
            retries: Family::default(),
            implausible_usage: Counter::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            buffered_bytes: Gauge::default(),
            malformed_objects: Counter::default(),
            world_changes: Counter::default(),
            trace_spans: SpanCounts::register(&catalog::TRACE_SPANS, registry),
            series: RwLock::default(),
            served: RwLock::default(),
        };
        let Self {
            requests,
            duration,
            first_token,
            inter_token,
            queue_wait,
            objectives,
            tokens,
            retries,
            implausible_usage,
            connections,
            refused_connections,
            buffered_bytes,
            malformed_objects,
            world_changes,
            trace_spans: _,
            series: _,
            served: _,
        } = &metrics;
        catalog::REQUESTS.register(registry, requests.clone());
        catalog::REQUEST_DURATION.register(registry, duration.clone());
        catalog::TIME_TO_FIRST_TOKEN.register(registry, first_token.clone());
        catalog::INTER_TOKEN_LATENCY.register(registry, inter_token.clone());
        catalog::QUEUE_WAIT.register(registry, queue_wait.clone());
        catalog::OBJECTIVE_REQUESTS.register(registry, objectives.clone());
        catalog::TOKENS.register(registry, tokens.clone());
        catalog::RETRIES.register(registry, retries.clone());
        catalog::IMPLAUSIBLE_USAGE.register(registry, implausible_usage.clone());
        catalog::CONNECTIONS.register(registry, connections.clone());
        catalog::REFUSED_CONNECTIONS.register(registry, refused_connections.clone());
        catalog::BUFFERED.register(registry, buffered_bytes.clone());
        catalog::MALFORMED_OBJECTS.register(registry, malformed_objects.clone());
        catalog::WORLD_CHANGES.register(registry, world_changes.clone());
        Arc::new(metrics)
    }

    /// The handles of a tenant's use of a model.
    pub fn series(&self, tenant: &Arc<str>, model: &Arc<str>) -> Arc<Series> {
        let key = (tenant.clone(), model.clone());
        if let Some(found) = self.series.read().unwrap_or_else(PoisonError::into_inner).handles.get(&key) {
            return found.clone();
        }
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let SeriesTable { handles, tenants, models } = &mut *all;
        if let Some(found) = handles.get(&key) {
            return found.clone();
        }
        let label = |shown: bool, name: &Arc<str>| if shown { name.to_string() } else { OTHER.to_owned() };
        let tenant_label = label(tenants.admit(tenant, ""), tenant);
        let model_label = label(models.admit(tenant, model), model);
        let made = Arc::new(self.make(tenant, model, &tenant_label, &model_label));
        handles.insert(key, made.clone());
        made
    }

    /// The handles of a tenant's deployment.
    pub fn served(&self, owner: &Arc<str>, namespace: &str, deployment: &str) -> Arc<Served> {
        let found = |all: &ServedTable| Some(all.handles.get(namespace)?.get(deployment)?.served.clone());
        if let Some(found) = found(&self.served.read().unwrap_or_else(PoisonError::into_inner)) {
            return found;
        }
        let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = found(&all) {
            return found;
        }
        if !all.shown.admit(owner, &format!("{namespace}/{deployment}")) {
            return all.other.get_or_insert_with(|| Arc::new(self.make_served(&labels(OTHER, OTHER)))).clone();
        }
        let served = Arc::new(self.make_served(&labels(namespace, deployment)));
        let named = Named { owner: owner.clone(), served: served.clone() };
        all.handles.entry(namespace.to_owned()).or_default().insert(deployment.to_owned(), named);
        served
    }

    /// Drops what no object names any more: deployments that are not there, and models that none of them has.
    pub fn keep<'a>(&self, deployments: impl Iterator<Item = (&'a str, &'a str, &'a str)>) {
        let (mut there, mut models) = (HashSet::new(), HashSet::from([NONE]));
        for (namespace, deployment, model) in deployments {
            there.insert((namespace, deployment));
            models.insert(model);
        }
        self.keep_deployments(|namespace, deployment| there.contains(&(namespace, deployment)));
        self.keep_models(|model| models.contains(model));
    }

    fn keep_deployments(&self, there: impl Fn(&str, &str) -> bool) {
        let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let ServedTable { handles, shown, other: _ } = &mut *all;
        handles.retain(|namespace, deployments| {
            for (deployment, named) in deployments.extract_if(|deployment, _| !there(namespace, deployment)) {
                shown.drop(&named.owner, &format!("{namespace}/{deployment}"));
                self.remove_served(&labels(namespace, &deployment));
            }
            !deployments.is_empty()
        });
    }

    fn keep_models(&self, there: impl Fn(&str) -> bool) {
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let SeriesTable { handles, tenants: _, models } = &mut *all;
        for ((tenant, model), _) in handles.extract_if(|(_, model), _| !there(model)) {
            models.drop(&tenant, &model);
            self.remove_series(&tenant, &model);
        }
    }

    fn remove_served(&self, labels: &DeploymentLabels) {
        for family in [&self.duration, &self.first_token, &self.inter_token, &self.queue_wait] {
            family.remove(labels);
        }
        for objective in Objective::ALL {
            for attained in ATTAINED {
                self.objectives.remove(&objective_labels(labels, objective, attained));
            }
        }
    }

    fn remove_series(&self, tenant: &str, model: &str) {
        for outcome in Outcome::ALL {
            self.requests.remove(&request_labels(tenant, model, outcome));
        }
        for (direction, cached) in TOKEN_KINDS {
            self.tokens.remove(&token_labels(tenant, model, direction, cached));
        }
    }

    fn make_served(&self, labels: &DeploymentLabels) -> Served {
        let counter = |objective: Objective, attained| {
            self.objectives.get_or_create(&objective_labels(labels, objective, attained)).clone()
        };
        Served {
            duration: self.duration.get_or_create(labels).clone(),
            first_token: self.first_token.get_or_create(labels).clone(),
            inter_token: self.inter_token.get_or_create(labels).clone(),
            queue_wait: self.queue_wait.get_or_create(labels).clone(),
            objectives: Objective::ALL.map(|objective| ATTAINED.map(|attained| counter(objective, attained))),
        }
    }

    /// All series in use, for the operator's signals.
    pub fn all_series(&self) -> Vec<Arc<Series>> {
        self.series.read().unwrap_or_else(PoisonError::into_inner).handles.values().cloned().collect()
    }

    /// Counts a request that ended before its tenant or model was known.
    pub fn count_early(&self, tenant: Option<&Arc<str>>, outcome: Outcome) {
        let none: Arc<str> = NONE.into();
        self.series(tenant.unwrap_or(&none), &none).count(outcome);
    }

    pub fn count_retry(&self, reason: Retry) {
        self.retries.get_or_create(&RetryLabels { reason: reason.label() }).inc();
    }

    fn make(&self, tenant: &Arc<str>, model: &Arc<str>, tenant_label: &str, model_label: &str) -> Series {
        let outcome =
            |outcome| self.requests.get_or_create(&request_labels(tenant_label, model_label, outcome)).clone();
        let [prompt, prompt_cached, output] = TOKEN_KINDS.map(|(direction, cached)| {
            self.tokens.get_or_create(&token_labels(tenant_label, model_label, direction, cached)).clone()
        });
        Series {
            tenant: tenant.clone(),
            model: model.clone(),
            outcomes: Outcome::ALL.map(outcome),
            prompt,
            prompt_cached,
            output,
            implausible_usage: self.implausible_usage.clone(),
            arrivals: AtomicU64::new(0),
            arrived_tokens: AtomicU64::new(0),
        }
    }
}

impl Series {
    pub fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    pub fn counted(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].get()
    }

    pub fn count_tokens(&self, tokens: Tokens) {
        self.prompt.inc_by(tokens.prompt.saturating_sub(tokens.cached));
        self.prompt_cached.inc_by(tokens.cached.min(tokens.prompt));
        self.output.inc_by(tokens.output);
    }

    /// Output tokens so far.
    pub fn output_tokens(&self) -> u64 {
        self.output.get()
    }
}

impl Served {
    /// A stream attained or missed an objective.
    pub fn judged(&self, objective: Objective, attained: bool) {
        self.objectives[objective as usize][usize::from(attained)].inc();
    }
}

/// Whether an objective was attained.
const ATTAINED: [&str; 2] = ["false", "true"];
/// Direction, and whether the tokens came from a cache: prompt, cached prompt, output.
const TOKEN_KINDS: [(&str, &str); 3] = [("input", "false"), ("input", "true"), ("output", "false")];

fn labels(namespace: &str, deployment: &str) -> DeploymentLabels {
    DeploymentLabels { namespace: namespace.to_owned(), deployment: deployment.to_owned() }
}

fn objective_labels(of: &DeploymentLabels, objective: Objective, attained: &'static str) -> ObjectiveLabels {
    let DeploymentLabels { namespace, deployment } = of.clone();
    ObjectiveLabels { namespace, deployment, objective: objective.label(), attained }
}

fn request_labels(tenant: &str, model: &str, outcome: Outcome) -> RequestLabels {
    RequestLabels { tenant: tenant.to_owned(), model: model.to_owned(), outcome: outcome.label() }
}

fn token_labels(tenant: &str, model: &str, direction: &'static str, cached: &'static str) -> TokenLabels {
    TokenLabels { tenant: tenant.to_owned(), model: model.to_owned(), direction, cached }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use stowage_telemetry::catalog::LABEL_CAP;

    fn page(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn every_outcome_stands_at_its_own_place() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }

    #[test]
    fn a_request_shows_under_tenant_model_and_outcome() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let series = metrics.series(&"a".into(), &"m".into());
        series.count(Outcome::Ok);
        series.count_tokens(Tokens { prompt: 10, cached: 4, output: 3 });
        let text = page(&registry);
        assert!(text.contains(r#"stowage_requests_total{tenant="a",model="m",outcome="ok"} 1"#), "{text}");
        assert!(
            text.contains(r#"stowage_tokens_total{tenant="a",model="m",direction="input",cached="true"} 4"#),
            "{text}"
        );
    }

    #[test]
    fn deployments_past_the_cap_count_together_and_objectives_are_kept_apart() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        for i in 0..LABEL_CAP + 3 {
            // Each of another tenant: one alone has half of the cap.
            let served = metrics.served(&format!("t{i}").into(), "a", &format!("d{i}"));
            served.judged(Objective::FirstToken, true);
            served.judged(Objective::InterToken, false);
            served.queue_wait.observe(0.1);
        }
        let text = page(&registry);
        let line = |objective, attained, count| {
            format!(
                "stowage_objective_requests_total{{namespace=\"other\",deployment=\"other\",objective=\"{objective}\",attained=\"{attained}\"}} {count}"
            )
        };
        for wanted in [line("ttft", "true", 3), line("ttft", "false", 0), line("itl", "false", 3)] {
            assert!(text.contains(&wanted), "{wanted}");
        }
        assert!(!text.contains(&format!("d{LABEL_CAP}\"")));
    }

    #[test]
    fn labels_are_capped() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        for i in 0..LABEL_CAP + 50 {
            metrics.series(&format!("t{i}").into(), &"m".into()).count(Outcome::Ok);
        }
        let text = page(&registry);
        assert!(text.contains(r#"tenant="other",model="other",outcome="ok"} 50"#));
    }

    #[test]
    fn names_of_one_tenant_without_end_leave_another_its_own() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        for i in 0..LABEL_CAP * 2 {
            metrics.series(&"greedy".into(), &format!("m{i}").into()).count(Outcome::Ok);
            metrics.served(&"greedy".into(), "greedy", &format!("d{i}"));
        }
        metrics.series(&"b".into(), &"chat".into()).count(Outcome::Ok);
        metrics.served(&"b".into(), "b", "chat").judged(Objective::FirstToken, true);
        let text = page(&registry);
        assert!(text.contains(r#"stowage_requests_total{tenant="b",model="chat",outcome="ok"} 1"#));
        let own =
            r#"stowage_objective_requests_total{namespace="b",deployment="chat",objective="ttft",attained="true"} 1"#;
        assert!(text.contains(own));
    }

    #[test]
    fn what_left_the_world_leaves_the_page_and_makes_room() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        for model in ["stays", "goes"] {
            metrics.series(&"a".into(), &model.into()).count(Outcome::Ok);
            metrics.served(&"a".into(), "ns", model).queue_wait.observe(0.1);
        }
        metrics.count_early(None, Outcome::Ok);
        metrics.keep([("ns", "stays", "stays")].into_iter());
        let text = page(&registry);
        assert!(text.contains(r#"model="stays""#) && text.contains(r#"deployment="stays""#));
        assert!(!text.contains("goes"), "{text}");
        assert!(text.contains(r#"tenant="",model="",outcome="ok"} 1"#), "requests without a model are counted on");
        assert_eq!(metrics.all_series().len(), 2);
    }
}

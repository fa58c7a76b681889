//! What the gateway counts. Names and labels are documented in `docs/gateway.md`.
//!
//! Handles are looked up once per (tenant, model) and kept in a [`Series`], so that a request pays
//! one hash look-up and some atomic additions. Tenants and models come from objects, never from the
//! request, and are capped: past the cap they count as `other`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use stowage_telemetry::metrics::{LATENCY_SECONDS, STEP_SECONDS, histogram};

use crate::outcome::Outcome;

/// Distinct values of `tenant` and of `model`.
const LABEL_CAP: usize = 1000;
const OTHER: &str = "other";
/// Label value where the caller or the model is not known yet.
const NONE: &str = "";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    tenant: String,
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
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
type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;

/// By tenant and model.
type SeriesTable = HashMap<(Arc<str>, Arc<str>), Arc<Series>>;

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histograms,
    first_token: Histograms,
    inter_token: Histograms,
    queue_wait: Histograms,
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
    series: RwLock<SeriesTable>,
}

/// The handles of one tenant's use of one model.
#[derive(Debug)]
pub struct Series {
    pub tenant: Arc<str>,
    pub model: Arc<str>,
    outcomes: [Counter; Outcome::ALL.len()],
    pub duration: Histogram,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub queue_wait: Histogram,
    prompt: Counter,
    prompt_cached: Counter,
    output: Counter,
    /// Answers whose reported usage cannot be true.
    pub implausible_usage: Counter,
    /// Requests that were let in, and their estimated prompt tokens; for the operator.
    pub arrivals: AtomicU64,
    pub arrived_tokens: AtomicU64,
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
            tokens: Family::default(),
            retries: Family::default(),
            implausible_usage: Counter::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            buffered_bytes: Gauge::default(),
            malformed_objects: Counter::default(),
            world_changes: Counter::default(),
            series: RwLock::default(),
        };
        let Self {
            requests,
            duration,
            first_token,
            inter_token,
            queue_wait,
            tokens,
            retries,
            implausible_usage,
            connections,
            refused_connections,
            buffered_bytes,
            malformed_objects,
            world_changes,
            series: _,
        } = &metrics;
        registry.register("requests", "Requests by how they ended", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From the request's head to the answer's last byte",
            Unit::Seconds,
            duration.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From the request's head to the first byte of the answer",
            Unit::Seconds,
            first_token.clone(),
        );
        registry.register_with_unit(
            "inter_token_latency",
            "Mean time between the events of one stream",
            Unit::Seconds,
            inter_token.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time a request waited for a replica",
            Unit::Seconds,
            queue_wait.clone(),
        );
        registry.register("tokens", "Tokens as the engines counted them", tokens.clone());
        registry.register(
            "gateway_retries",
            "Requests sent to another replica before their first byte",
            retries.clone(),
        );
        registry.register(
            "gateway_implausible_usage",
            "Answers whose reported usage the request cannot have had; they are charged as estimated",
            implausible_usage.clone(),
        );
        registry.register("gateway_connections", "Open client connections", connections.clone());
        registry.register(
            "gateway_refused_connections",
            "Connections refused because their address has as many as it may",
            refused_connections.clone(),
        );
        registry.register("gateway_buffered_bytes", "Bytes of request bodies held", buffered_bytes.clone());
        registry.register("gateway_malformed_objects", "Malformed API objects passed over", malformed_objects.clone());
        registry.register(
            "gateway_world_changes",
            "Changes of what the gateway knows of tenants, keys, models and replicas",
            world_changes.clone(),
        );
        Arc::new(metrics)
    }

    /// The handles of a tenant's use of a model.
    pub fn series(&self, tenant: &Arc<str>, model: &Arc<str>) -> Arc<Series> {
        let key = (tenant.clone(), model.clone());
        if let Some(found) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return found.clone();
        }
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(&key) {
            return found.clone();
        }
        let tenant_label = capped(tenant, all.keys().map(|(tenant, _)| tenant));
        let model_label = capped(model, all.keys().map(|(_, model)| model));
        let made = Arc::new(self.make(tenant, model, &tenant_label, &model_label));
        // Past the caps the handles are made again and again rather than kept without bound.
        if all.len() < LABEL_CAP * 10 {
            all.insert(key, made.clone());
        }
        made
    }

    /// All series in use, for the operator's signals.
    pub fn all_series(&self) -> Vec<Arc<Series>> {
        self.series.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
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
        let by_model = ModelLabels { model: model_label.to_owned() };
        let outcome = |outcome: Outcome| {
            let labels = RequestLabels {
                tenant: tenant_label.to_owned(),
                model: model_label.to_owned(),
                outcome: outcome.label(),
            };
            self.requests.get_or_create(&labels).clone()
        };
        let token = |direction, cached| {
            let labels =
                TokenLabels { tenant: tenant_label.to_owned(), model: model_label.to_owned(), direction, cached };
            self.tokens.get_or_create(&labels).clone()
        };
        Series {
            tenant: tenant.clone(),
            model: model.clone(),
            outcomes: Outcome::ALL.map(outcome),
            duration: self.duration.get_or_create(&by_model).clone(),
            first_token: self.first_token.get_or_create(&by_model).clone(),
            inter_token: self.inter_token.get_or_create(&by_model).clone(),
            queue_wait: self.queue_wait.get_or_create(&by_model).clone(),
            prompt: token("input", "false"),
            prompt_cached: token("input", "true"),
            output: token("output", "false"),
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

/// `value`, or `other` when it is new and the cap is reached.
fn capped<'a>(value: &Arc<str>, known: impl Iterator<Item = &'a Arc<str>>) -> String {
    let known: HashSet<&str> = known.map(|known| &**known).collect();
    if known.len() < LABEL_CAP || known.contains(&**value) { value.to_string() } else { OTHER.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

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
        assert!(text.contains("stowage_time_to_first_token_seconds_count"), "{text}");
    }

    #[test]
    fn labels_are_capped() {
        let mut registry = stowage_telemetry::metrics::registry();
        let metrics = Metrics::register(&mut registry);
        for i in 0..LABEL_CAP + 50 {
            metrics.series(&format!("t{i}").into(), &"m".into()).count(Outcome::Ok);
        }
        let text = page(&registry);
        assert!(text.contains(r#"tenant="other",model="m",outcome="ok"} 50"#));
    }
}

//! What fetching models takes, as metrics: time by phase, how fetches end, bytes, and what the cache holds.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use stowage_telemetry::catalog::agent as catalog;
use stowage_telemetry::metrics::Registry;

/// Seconds: a small file from a near store, to hundreds of gigabytes from afar.
const SECONDS: [f64; 10] = [0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// Handles of the metrics.
#[derive(Debug, Clone)]
pub struct Figures {
    seconds: Family<ByPhase, Histogram, fn() -> Histogram>,
    fetches: Family<ByOutcome, Counter>,
    fetched_bytes: Counter,
    cache_bytes: Gauge,
    cached_models: Gauge,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            fetches: Family::default(),
            fetched_bytes: Counter::default(),
            cache_bytes: Gauge::default(),
            cached_models: Gauge::default(),
        }
    }
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    Failed,
}

impl Figures {
    /// That are exported.
    pub fn register(registry: &mut Registry) -> Self {
        let figures = Self::default();
        catalog::MODEL_SECONDS.register(registry, figures.seconds.clone());
        catalog::MODEL_FETCHES.register(registry, figures.fetches.clone());
        catalog::MODEL_BYTES.register(registry, figures.fetched_bytes.clone());
        catalog::MODEL_CACHE_BYTES.register(registry, figures.cache_bytes.clone());
        catalog::MODELS_CACHED.register(registry, figures.cached_models.clone());
        figures
    }

    /// A claim's model waited for so long until its fetch began.
    pub fn queued(&self, waited: Duration) {
        self.seconds("queue", waited);
    }

    /// A model is complete: so many bytes came, and of the time its digest took the second part.
    pub fn complete(&self, bytes: u64, fetch: Duration, verify: Duration) {
        self.seconds("fetch", fetch);
        self.seconds("verify", verify);
        self.fetched_bytes.inc_by(bytes);
        self.ended(Outcome::Complete);
    }

    pub fn ended(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Complete => "complete",
            Outcome::Failed => "failed",
        };
        self.fetches.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub fn cached(&self, models: usize, bytes: u64) {
        self.cached_models.set(i64::try_from(models).unwrap_or(i64::MAX));
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn seconds(&self, phase: &'static str, time: Duration) {
        self.seconds.get_or_create(&ByPhase { phase }).observe(time.as_secs_f64());
    }
}

//! What the engine counts. Names, labels and help texts: [`stowage_telemetry::catalog`].

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use stowage_engine_core::engine::{Load, StepStats};
use stowage_telemetry::catalog::engine as catalog;
use stowage_telemetry::metrics::{LATENCY_SECONDS, Registry, STEP_SECONDS, histogram};
use stowage_telemetry::traces::SpanCounts;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Ok,
    /// The client went away.
    Cancelled,
    /// The request was wrong.
    Invalid,
    /// The queue was full.
    QueueFull,
    Draining,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Input,
    Output,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabel {
    direction: Direction,
    /// `true` for prompt tokens that came from the prefix cache.
    cached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Some tokens of a prompt were computed.
    Prefill,
    /// Only next tokens.
    Decode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: Phase,
}

/// Label values are lower case, as elsewhere in Prometheus.
macro_rules! label_values {
    ($kind:ident: $($variant:ident = $text:literal),+) => {
        impl $kind {
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                EncodeLabelValue::encode(&self.label(), encoder)
            }
        }
    };
}

label_values!(Outcome: Ok = "ok", Cancelled = "cancelled", Invalid = "invalid", QueueFull = "queue_full", Draining = "draining", Failed = "failed");
label_values!(Direction: Input = "input", Output = "output");
label_values!(Phase: Prefill = "prefill", Decode = "decode");

/// All metrics of the engine; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<OutcomeLabel, Counter>,
    tokens: Family<TokenLabel, Counter>,
    pub duration: Histogram,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub queue_wait: Histogram,
    running: Gauge,
    waiting: Gauge,
    blocks_used: Gauge,
    blocks_total: Gauge,
    blocks_touched: Gauge,
    prefill_backlog: Gauge,
    draining: Gauge,
    preemptions: Counter,
    evictions: Counter,
    step_failures: Counter,
    steps: Family<PhaseLabel, Histogram, fn() -> Histogram>,
    batch: Histogram,
    pub connections: Gauge,
    pub trace_spans: SpanCounts,
}

fn step_histogram() -> Histogram {
    histogram(&STEP_SECONDS)
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            tokens: Family::default(),
            duration: histogram(&LATENCY_SECONDS),
            first_token: histogram(&LATENCY_SECONDS),
            inter_token: step_histogram(),
            queue_wait: histogram(&LATENCY_SECONDS),
            running: Gauge::default(),
            waiting: Gauge::default(),
            blocks_used: Gauge::default(),
            blocks_total: Gauge::default(),
            blocks_touched: Gauge::default(),
            prefill_backlog: Gauge::default(),
            draining: Gauge::default(),
            preemptions: Counter::default(),
            evictions: Counter::default(),
            step_failures: Counter::default(),
            steps: Family::new_with_constructor(step_histogram),
            batch: histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            connections: Gauge::default(),
            trace_spans: SpanCounts::register(&catalog::TRACE_SPANS, registry),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        catalog::REQUESTS.register(registry, self.requests.clone());
        catalog::TOKENS.register(registry, self.tokens.clone());
        catalog::REQUEST_DURATION.register(registry, self.duration.clone());
        catalog::TIME_TO_FIRST_TOKEN.register(registry, self.first_token.clone());
        catalog::INTER_TOKEN_LATENCY.register(registry, self.inter_token.clone());
        catalog::QUEUE_WAIT.register(registry, self.queue_wait.clone());
        catalog::STEP_DURATION.register(registry, self.steps.clone());
        catalog::RUNNING.register(registry, self.running.clone());
        catalog::WAITING.register(registry, self.waiting.clone());
        catalog::KV_BLOCKS_USED.register(registry, self.blocks_used.clone());
        catalog::KV_BLOCKS.register(registry, self.blocks_total.clone());
        catalog::KV_BLOCKS_TOUCHED.register(registry, self.blocks_touched.clone());
        catalog::PREFILL_BACKLOG.register(registry, self.prefill_backlog.clone());
        catalog::DRAINING.register(registry, self.draining.clone());
        catalog::PREEMPTIONS.register(registry, self.preemptions.clone());
        catalog::KV_EVICTIONS.register(registry, self.evictions.clone());
        catalog::STEP_FAILURES.register(registry, self.step_failures.clone());
        catalog::BATCH.register(registry, self.batch.clone());
        catalog::CONNECTIONS.register(registry, self.connections.clone());
    }

    pub fn finished(&self, outcome: Outcome) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub fn counted(&self, prompt: u32, cached: u32, completion: u32) {
        let add = |direction, cached, n: u32| {
            self.tokens.get_or_create(&TokenLabel { direction, cached }).inc_by(u64::from(n));
        };
        add(Direction::Input, false, prompt.saturating_sub(cached));
        add(Direction::Input, true, cached);
        add(Direction::Output, false, completion);
    }

    pub fn step(&self, stats: &StepStats, seconds: f64) {
        let phase = if stats.prefill_tokens > 0 { Phase::Prefill } else { Phase::Decode };
        self.steps.get_or_create(&PhaseLabel { phase }).observe(seconds);
        self.batch.observe(stats.sequences as f64);
    }

    pub fn step_failed(&self) {
        self.step_failures.inc();
    }

    /// Brings the gauges up to `load`. Counters there only grow.
    pub fn load(&self, load: &Load, draining: bool) {
        let set = |gauge: &Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(&self.running, load.running);
        set(&self.waiting, load.waiting);
        set(&self.blocks_used, load.blocks_used);
        set(&self.blocks_total, load.blocks_total);
        set(&self.blocks_touched, load.blocks_touched);
        set(&self.prefill_backlog, load.prefill_backlog);
        self.draining.set(i64::from(draining));
        self.preemptions.inc_by(load.preemptions.saturating_sub(self.preemptions.get()));
        self.evictions.inc_by(load.evictions.saturating_sub(self.evictions.get()));
    }
}

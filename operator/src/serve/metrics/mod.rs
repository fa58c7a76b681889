//! The operator's metrics. Names, labels and help texts: [`stowage_telemetry::catalog`].
//!
//! What describes the current plan ([`figures`]) and what it costs ([`money`]) is exported by the leader alone: a
//! standby plans too, from less knowledge, and sums over both would count everything twice.

mod figures;
pub mod money;
pub mod startup;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use stowage_planner::report::DecisionRecord;
use stowage_planner::{DecisionReport, Snapshot};
use stowage_telemetry::catalog::operator as catalog;
use stowage_telemetry::metrics::{Registry, STEP_SECONDS, Together, histogram, registry};

use figures::Figures;
use money::Meter;
use startup::Started;

type Seconds = Gauge<f64, AtomicU64>;
type Histograms = Family<Stage, Histogram, fn() -> Histogram>;

/// Seconds from 1 to 30 min; the API server keeps whole ones.
const STARTUP_SECONDS: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 900.0, 1800.0];
/// Shares of what happened.
const ERROR_RATIOS: [f64; 10] = [0.02, 0.05, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Decision {
    kind: String,
    action: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    of: &'static str,
}

/// Handles to all metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    decisions: Family<Decision, Counter>,
    input_age: Family<Source, Seconds>,
    plan_duration: Histogram,
    plan_actions: Gauge,
    pub leading: Gauge,
    pub frozen: Gauge,
    plans: Family<Outcome, Counter>,
    writes: Family<Outcome, Counter>,
    startup: Histograms,
    prediction_error: Family<Of, Histogram, fn() -> Histogram>,
    figures: Figures,
    together: Together,
    meter: Arc<Mutex<Meter>>,
    costs: money::Costs,
}

impl Metrics {
    pub fn new() -> (Arc<Self>, Registry) {
        let metrics = Self {
            decisions: Family::default(),
            input_age: Family::default(),
            plan_duration: histogram(&STEP_SECONDS),
            plan_actions: Gauge::default(),
            leading: Gauge::default(),
            frozen: Gauge::default(),
            plans: Family::default(),
            writes: Family::default(),
            startup: Family::new_with_constructor(|| histogram(&STARTUP_SECONDS)),
            prediction_error: Family::new_with_constructor(|| histogram(&ERROR_RATIOS)),
            figures: Figures::default(),
            together: Together::default(),
            meter: Arc::default(),
            costs: money::Costs::default(),
        };
        let mut registry = registry();
        metrics.register(&mut registry);
        (Arc::new(metrics), registry)
    }

    /// What a page waits for.
    pub fn together(&self) -> Together {
        self.together.clone()
    }

    fn register(&self, registry: &mut Registry) {
        let Self {
            decisions,
            input_age,
            plan_duration,
            plan_actions,
            leading,
            frozen,
            plans,
            writes,
            startup,
            prediction_error,
            figures,
            together: _,
            meter: _,
            costs,
        } = self;
        catalog::DECISIONS.register(registry, decisions.clone());
        catalog::INPUT_AGE.register(registry, input_age.clone());
        catalog::PLAN_DURATION.register(registry, plan_duration.clone());
        catalog::PLAN_ACTIONS.register(registry, plan_actions.clone());
        catalog::LEADER.register(registry, leading.clone());
        catalog::FROZEN.register(registry, frozen.clone());
        catalog::PLANS.register(registry, plans.clone());
        catalog::WRITES.register(registry, writes.clone());
        catalog::DECISION_TO_READY.register(registry, startup.clone());
        catalog::PREDICTION_ERROR.register(registry, prediction_error.clone());
        figures.register(registry);
        costs.register(registry);
    }

    pub fn planned(&self, took: Duration, actions: usize) {
        self.plan_duration.observe(took.as_secs_f64());
        self.plan_actions.set(i64::try_from(actions).unwrap_or(i64::MAX));
    }

    /// The plan of the leader, and what its GPUs cost since the one before.
    pub fn leads(&self, snapshot: &Snapshot, report: &DecisionReport, now: Instant) {
        let _whole = self.together.change();
        self.figures.set(report);
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.advance(now, money::rates(snapshot), &self.costs);
    }

    /// Another process leads.
    pub fn stands_by(&self) {
        let _whole = self.together.change();
        self.figures.clear();
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).pause();
    }

    pub fn decided(&self, record: &DecisionRecord) {
        let labels = Decision {
            kind: format!("{:?}", record.kind),
            action: format!("{:?}", record.action),
            reason: trigger(record),
        };
        self.decisions.get_or_create(&labels).inc();
    }

    /// A replica became Ready for the first time.
    pub fn started(&self, started: &Started) {
        for (stage, took) in &started.stages {
            self.startup.get_or_create(&Stage { stage }).observe(took.as_secs_f64());
        }
        if let Some(error) = started.prediction_error() {
            self.prediction_error.get_or_create(&Of { of: "ready" }).observe(error);
        }
    }

    /// The ages of all inputs; one that is not named has none.
    pub fn ages(&self, ages: impl IntoIterator<Item = (&'static str, Duration)>) {
        let _whole = self.together.change();
        self.input_age.clear();
        for (source, age) in ages {
            self.input_age.get_or_create(&Source { source }).set(age.as_secs_f64());
        }
    }

    pub fn plan_outcome(&self, outcome: &'static str) {
        self.plans.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn write_outcome(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
    }
}

/// The trigger's variant name: a closed set, because the enums are.
pub fn trigger(record: &DecisionRecord) -> String {
    serde_json::to_value(record.trigger).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

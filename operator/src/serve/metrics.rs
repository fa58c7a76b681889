//! The operator's metrics. Labels come from closed sets; tenants and deployments are not among them,
//! except where a panel reads them per deployment and the number is capped.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use stowage_planner::DecisionReport;
use stowage_planner::report::DecisionRecord;
use stowage_telemetry::metrics::{Registry, STEP_SECONDS, Unit, histogram, registry};

/// Deployments beyond this many are summed under `other`.
const MAX_DEPLOYMENTS: usize = 1000;

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Decision {
    kind: String,
    action: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Object {
    namespace: String,
    deployment: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Source {
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

/// Handles to all metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    decisions: Family<Decision, Counter>,
    desired: Family<Object, Gauge>,
    ready: Family<Object, Gauge>,
    input_age: Family<Source, Seconds>,
    plan_duration: Histogram,
    plan_actions: Gauge,
    pub leading: Gauge,
    pub frozen: Gauge,
    pub plans: Family<Outcome, Counter>,
    pub writes: Family<Outcome, Counter>,
}

impl Metrics {
    pub fn new() -> (Arc<Self>, Registry) {
        let metrics = Self {
            decisions: Family::default(),
            desired: Family::default(),
            ready: Family::default(),
            input_age: Family::default(),
            plan_duration: histogram(&STEP_SECONDS),
            plan_actions: Gauge::default(),
            leading: Gauge::default(),
            frozen: Gauge::default(),
            plans: Family::default(),
            writes: Family::default(),
        };
        let mut registry = registry();
        let Self { decisions, desired, ready, input_age, plan_duration, plan_actions, leading, frozen, plans, writes } =
            &metrics;
        registry.register("decisions", "Decisions taken, each counted once while it stands", decisions.clone());
        registry.register("desired_replicas", "Replicas after the current plan", desired.clone());
        registry.register("ready_replicas", "Replicas that take requests", ready.clone());
        registry.register_with_unit(
            "input_age",
            "Time since the last update of an input of decisions",
            Unit::Seconds,
            input_age.clone(),
        );
        registry.register_with_unit(
            "plan_duration",
            "Time to decide on one snapshot",
            Unit::Seconds,
            plan_duration.clone(),
        );
        registry.register("plan_actions", "Actions in the current plan", plan_actions.clone());
        registry.register("leader", "1 while this process holds the lease", leading.clone());
        registry.register("frozen", "1 while inputs are incomplete or failing and planning is paused", frozen.clone());
        registry.register("plans", "Plans by outcome", plans.clone());
        registry.register("writes", "Reconciliations that wrote to the API server, by outcome", writes.clone());
        (Arc::new(metrics), registry)
    }

    pub fn planned(&self, took: Duration, actions: usize, report: &DecisionReport) {
        self.plan_duration.observe(took.as_secs_f64());
        self.plan_actions.set(i64::try_from(actions).unwrap_or(i64::MAX));
        self.desired.clear();
        self.ready.clear();
        for (position, deployment) in report.deployments.iter().enumerate() {
            let object = object(position, &deployment.deployment);
            self.desired.get_or_create(&object).inc_by(i64::from(deployment.counts.desired));
            self.ready.get_or_create(&object).inc_by(i64::from(deployment.counts.ready));
        }
    }

    pub fn decided(&self, record: &DecisionRecord) {
        let labels = Decision {
            kind: format!("{:?}", record.kind),
            action: format!("{:?}", record.action),
            reason: trigger(record),
        };
        self.decisions.get_or_create(&labels).inc();
    }

    pub fn age(&self, source: &str, age: Duration) {
        self.input_age.get_or_create(&Source { source: source.to_owned() }).set(age.as_secs_f64());
    }

    pub fn plan_outcome(&self, outcome: &'static str) {
        self.plans.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn write_outcome(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
    }
}

fn object(position: usize, id: &stowage_planner::snapshot::DeploymentId) -> Object {
    if position < MAX_DEPLOYMENTS {
        Object { namespace: id.namespace.clone(), deployment: id.name.clone() }
    } else {
        Object { namespace: "other".into(), deployment: "other".into() }
    }
}

/// The trigger's variant name: a closed set, because the enums are.
pub fn trigger(record: &DecisionRecord) -> String {
    serde_json::to_value(record.trigger).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

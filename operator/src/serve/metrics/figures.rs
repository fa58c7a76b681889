//! What the report on the current plan says in numbers: replicas, load, tenants, the cluster.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use stowage_planner::DecisionReport;
use stowage_planner::report::{ClassUsage, DeploymentReport, ScaleVerdict, TenantReport};
use stowage_planner::snapshot::DeploymentId;
use stowage_telemetry::catalog::{LABEL_CAP, OTHER, operator as catalog};
use stowage_telemetry::labels::Shown;
use stowage_telemetry::metrics::Registry;

type F64 = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Object {
    namespace: String,
    deployment: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Limited {
    namespace: String,
    deployment: String,
    by: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Tenant {
    tenant: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantGpus {
    tenant: String,
    class: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Set anew from each report.
#[derive(Clone, Default)]
pub(super) struct Figures {
    wanted: Family<Object, Gauge>,
    granted: Family<Object, Gauge>,
    desired: Family<Object, Gauge>,
    ready: Family<Object, Gauge>,
    limited: Family<Limited, Gauge>,
    offered: Family<Object, F64>,
    forecast: Family<Object, F64>,
    capacity: Family<Object, F64>,
    predicted_ready: Family<Object, F64>,
    tenant_gpus: Family<TenantGpus, F64>,
    tenant_waiting: Family<Tenant, Gauge>,
    cluster: Family<State, F64>,
    stale_nodes: Gauge,
}

impl Figures {
    pub fn register(&self, registry: &mut Registry) {
        let Self {
            wanted,
            granted,
            desired,
            ready,
            limited,
            offered,
            forecast,
            capacity,
            predicted_ready,
            tenant_gpus,
            tenant_waiting,
            cluster,
            stale_nodes,
        } = self;
        catalog::WANTED.register(registry, wanted.clone());
        catalog::GRANTED.register(registry, granted.clone());
        catalog::DESIRED.register(registry, desired.clone());
        catalog::READY.register(registry, ready.clone());
        catalog::LIMITED.register(registry, limited.clone());
        catalog::OFFERED_LOAD.register(registry, offered.clone());
        catalog::FORECAST_LOAD.register(registry, forecast.clone());
        catalog::CAPACITY.register(registry, capacity.clone());
        catalog::PREDICTED_READY.register(registry, predicted_ready.clone());
        catalog::TENANT_GPUS.register(registry, tenant_gpus.clone());
        catalog::TENANT_WAITING.register(registry, tenant_waiting.clone());
        catalog::CLUSTER_GPUS.register(registry, cluster.clone());
        catalog::STALE_NODES.register(registry, stale_nodes.clone());
    }

    pub fn clear(&self) {
        let Self {
            wanted,
            granted,
            desired,
            ready,
            limited,
            offered,
            forecast,
            capacity,
            predicted_ready,
            tenant_gpus,
            tenant_waiting,
            cluster,
            stale_nodes,
        } = self;
        [wanted, granted, desired, ready].into_iter().for_each(Family::clear);
        [offered, forecast, capacity, predicted_ready].into_iter().for_each(Family::clear);
        limited.clear();
        tenant_gpus.clear();
        tenant_waiting.clear();
        cluster.clear();
        stale_nodes.set(0);
    }

    pub fn set(&self, report: &DecisionReport) {
        self.clear();
        let mut shown = Shown::default();
        for deployment in &report.deployments {
            let owner = deployment.tenant.as_ref().map_or("", |tenant| &tenant.0);
            self.deployment(object(&mut shown, owner, &deployment.deployment), deployment);
        }
        for (position, tenant) in report.tenants.iter().enumerate() {
            let name = if position < LABEL_CAP { tenant.tenant.to_string() } else { OTHER.to_owned() };
            self.tenant(name, tenant);
        }
        let c = &report.cluster;
        let states = [
            ("total", c.total_milli),
            ("healthy", u64::from(c.healthy_gpus) * 1000),
            ("promised", c.promised_milli),
            ("fragmented", c.fragmented_milli),
        ];
        for (state, milli) in states {
            self.cluster.get_or_create(&State { state }).set(whole(milli));
        }
        self.stale_nodes.set(i64::from(c.stale_nodes));
    }

    /// Adds, because all deployments past the cap are one.
    fn deployment(&self, object: Object, report: &DeploymentReport) {
        let counts = report.counts;
        for (family, count) in [
            (&self.wanted, counts.wanted),
            (&self.granted, counts.granted),
            (&self.desired, counts.desired),
            (&self.ready, counts.ready),
        ] {
            family.get_or_create(&object).inc_by(i64::from(count));
        }
        if let ScaleVerdict::Active { advice } | ScaleVerdict::Advisory { advice, .. } = &report.scale {
            let load = &advice.load;
            let planned = load.per_replica_milli * u64::from(counts.ready);
            for (family, milli) in
                [(&self.offered, load.offered_milli), (&self.forecast, load.forecast_milli), (&self.capacity, planned)]
            {
                family.get_or_create(&object).inc_by(whole(milli));
            }
        }
        if let Some(ms) = report.prediction.ready_in_ms {
            let gauge = self.predicted_ready.get_or_create(&object);
            gauge.set(gauge.get().max(whole(ms)));
        }
        if let Some(by) = report.limited_by() {
            let Object { namespace, deployment } = object;
            let labels = Limited { namespace, deployment, by: format!("{by:?}") };
            self.limited.get_or_create(&labels).set(1);
        }
    }

    fn tenant(&self, tenant: String, report: &TenantReport) {
        for usage in &report.usage {
            let ClassUsage { class, nominal_milli, held_milli, borrowed_milli, lent_milli, pending_milli } = usage;
            for (state, milli) in [
                ("guaranteed", nominal_milli),
                ("held", held_milli),
                ("borrowed", borrowed_milli),
                ("lent", lent_milli),
                ("waiting", pending_milli),
            ] {
                let labels = TenantGpus { tenant: tenant.clone(), class: class.clone(), state };
                self.tenant_gpus.get_or_create(&labels).inc_by(whole(*milli));
            }
        }
        let waiting = i64::try_from(report.waiting.len()).unwrap_or(i64::MAX);
        self.tenant_waiting.get_or_create(&Tenant { tenant }).inc_by(waiting);
    }
}

/// Of thousandths.
fn whole(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

fn object(shown: &mut Shown, owner: &str, id: &DeploymentId) -> Object {
    if shown.admit(owner, &id.to_string()) {
        Object { namespace: id.namespace.clone(), deployment: id.name.clone() }
    } else {
        Object { namespace: OTHER.into(), deployment: OTHER.into() }
    }
}

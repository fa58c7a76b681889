//! What each deployment has at this gateway now, read when it is scraped: a deployment that is gone leaves no series.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use stowage_crds::inference_deployment::PERCENTILE;
use stowage_telemetry::catalog::{Metric, gateway as catalog};
use stowage_telemetry::labels::Shown;

use crate::gateway::Gateway;
use crate::metrics::{DeploymentLabels, Objective};

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectiveLabels {
    namespace: String,
    deployment: String,
    objective: &'static str,
}

/// Of this gateway.
pub struct Gauges(pub Arc<Gateway>);

/// What is read of the deployments.
#[derive(Default)]
struct Read {
    waiting: Family<DeploymentLabels, Gauge>,
    in_flight: Family<DeploymentLabels, Gauge>,
    routable: Family<DeploymentLabels, Gauge>,
    objective: Family<ObjectiveLabels, Seconds>,
    target: Family<DeploymentLabels, Seconds>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Gauges {
    fn read(&self) -> Read {
        let read = Read::default();
        let view = self.0.directory.view();
        // Those past the cap are left out: a sum of queues of many deployments would belong to none of them.
        let mut shown = Shown::default();
        let mut pools: Vec<_> = view.pools().collect();
        pools.sort_unstable_by_key(|pool| &pool.key);
        for status in pools.into_iter().map(|pool| pool.status()) {
            let key = &status.deployment.key;
            if !shown.admit(&status.deployment.tenant, &key.to_string()) {
                continue;
            }
            let labels = DeploymentLabels { namespace: key.namespace.clone(), deployment: key.name.clone() };
            let in_flight: i64 = status.replicas.iter().map(|replica| i64::from(replica.in_flight)).sum();
            let routable = status.replicas.iter().filter(|replica| replica.refused.is_none()).count();
            read.waiting.get_or_create(&labels).set(i64::try_from(status.waiting).unwrap_or(i64::MAX));
            read.in_flight.get_or_create(&labels).set(in_flight);
            read.routable.get_or_create(&labels).set(i64::try_from(routable).unwrap_or(i64::MAX));
            let Some((ttft, itl)) = status.deployment.objectives else { continue };
            read.target.get_or_create(&labels).set(f64::from(PERCENTILE) / 100.0);
            for (objective, time) in [(Objective::FirstToken, ttft), (Objective::InterToken, itl)] {
                let DeploymentLabels { namespace, deployment } = labels.clone();
                let labels = ObjectiveLabels { namespace, deployment, objective: objective.label() };
                read.objective.get_or_create(&labels).set(time.as_secs_f64());
            }
        }
        read
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Read { waiting, in_flight, routable, objective, target } = self.read();
        one(&mut encoder, &catalog::WAITING, &waiting)?;
        one(&mut encoder, &catalog::IN_FLIGHT, &in_flight)?;
        one(&mut encoder, &catalog::ROUTABLE, &routable)?;
        one(&mut encoder, &catalog::OBJECTIVE, &objective)?;
        one(&mut encoder, &catalog::OBJECTIVE_TARGET, &target)
    }
}

fn one(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, values: &impl EncodeMetric) -> fmt::Result {
    let (stem, unit) = metric.stem();
    // As for registered metrics, whose help gets its full stop there.
    let help = format!("{}.", metric.help);
    values.encode(encoder.encode_descriptor(stem, &help, unit.as_ref(), values.metric_type())?)
}

//! What promised and idle GPUs cost, added up over time.
//!
//! A slice is charged as quota charges it: the larger of its shares of memory and SMs. A class without a price
//! costs nothing. The rate of a plan holds until the next one; nothing is counted while another process leads.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use stowage_contracts::charge::gpu_milli;
use stowage_planner::Snapshot;
use stowage_planner::snapshot::{Class, Gpu, Health, SliceOwner};
use stowage_telemetry::catalog::{OTHER, operator as catalog};
use stowage_telemetry::labels::Shown;
use stowage_telemetry::metrics::Registry;

/// Who pays for a share, and in what.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub struct Payer {
    /// Empty: of no tenant.
    pub tenant: String,
    pub namespace: String,
    pub deployment: String,
    pub currency: String,
}

/// A class whose GPUs are not all promised.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub struct Idle {
    pub class: String,
    pub currency: String,
}

/// Prices per hour, in the currency's unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    pub promised: BTreeMap<Payer, f64>,
    pub idle: BTreeMap<Idle, f64>,
}

/// A payer that has had nothing for so long is dropped: its counter begins anew when it comes back.
const FORGOTTEN: Duration = Duration::from_secs(3600);

type F64Counter = Counter<f64, AtomicU64>;

/// What was counted so far.
#[derive(Clone, Default)]
pub struct Costs {
    promised: Family<Payer, F64Counter>,
    idle: Family<Idle, F64Counter>,
}

/// The rates since the last plan, and who is named in the counters.
#[derive(Debug, Default)]
pub struct Meter {
    current: Option<(Instant, Rates)>,
    shown: Shown,
    /// Payers with a counter, and when they last had something.
    paid: BTreeMap<Payer, Instant>,
}

impl Costs {
    pub(super) fn register(&self, registry: &mut Registry) {
        catalog::COST.register(registry, self.promised.clone());
        catalog::IDLE_COST.register(registry, self.idle.clone());
    }
}

impl Meter {
    /// Counts what the rates cost up to now, and goes on with others.
    pub fn advance(&mut self, now: Instant, rates: Rates, costs: &Costs) {
        if let Some((since, before)) = self.current.take() {
            let hours = now.saturating_duration_since(since).as_secs_f64() / 3600.0;
            for (payer, rate) in before.promised {
                let payer = self.named(payer);
                costs.promised.get_or_create(&payer).inc_by(rate * hours);
                self.paid.insert(payer, now);
            }
            for (idle, rate) in &before.idle {
                costs.idle.get_or_create(idle).inc_by(rate * hours);
            }
            self.forget(now, costs);
        }
        self.current = Some((now, rates));
    }

    pub fn pause(&mut self) {
        self.current = None;
    }

    /// The payer, or the one of all that have no name of their own.
    fn named(&mut self, payer: Payer) -> Payer {
        if self.shown.admit(&payer.tenant, &payer.name()) {
            return payer;
        }
        Payer { namespace: OTHER.into(), deployment: OTHER.into(), tenant: OTHER.into(), ..payer }
    }

    fn forget(&mut self, now: Instant, costs: &Costs) {
        for (payer, _) in self.paid.extract_if(.., |_, last| now.saturating_duration_since(*last) > FORGOTTEN) {
            costs.promised.remove(&payer);
            self.shown.drop(&payer.tenant, &payer.name());
        }
    }
}

impl Payer {
    /// Within its tenant.
    fn name(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.deployment, self.currency)
    }
}

/// What all GPUs of the snapshot cost per hour.
pub fn rates(snapshot: &Snapshot) -> Rates {
    let priced = |class: &Class| Some((class.name.clone(), (class.price_per_hour_micros?, class.currency.clone())));
    let prices: BTreeMap<String, (u64, String)> = snapshot.classes.iter().filter_map(priced).collect();
    let mut rates = Rates::default();
    for gpu in snapshot.nodes.iter().flat_map(|node| &node.gpus) {
        let Some((class, (micros, currency))) = gpu.class.as_ref().and_then(|class| Some((class, prices.get(class)?)))
        else {
            continue;
        };
        let whole = *micros as f64 / 1_000_000.0;
        let promised = promised(gpu, whole, currency, &mut rates.promised);
        if !matches!(gpu.health, Health::Unhealthy { .. }) {
            let idle = Idle { class: class.clone(), currency: currency.clone() };
            *rates.idle.entry(idle).or_default() += whole * 1000u64.saturating_sub(promised) as f64 / 1000.0;
        }
    }
    rates
}

/// Adds the slices of a GPU; answers their thousandths.
fn promised(gpu: &Gpu, price: f64, currency: &str, rates: &mut BTreeMap<Payer, f64>) -> u64 {
    let mut sum = 0;
    for slice in &gpu.slices {
        let milli = gpu_milli(slice.promise.memory_bytes, gpu.memory_bytes, slice.promise.sm_percent, gpu.sm_percent);
        sum += milli;
        let (namespace, deployment) = match &slice.owner {
            SliceOwner::Replica(replica) => (replica.deployment.namespace.clone(), replica.deployment.name.clone()),
            SliceOwner::Foreign { claim } => (claim.split('/').next().unwrap_or_default().to_owned(), String::new()),
        };
        let tenant = slice.tenant.as_ref().map(ToString::to_string).unwrap_or_default();
        let payer = Payer { tenant, namespace, deployment, currency: currency.to_owned() };
        *rates.entry(payer).or_default() += price * milli as f64 / 1000.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_telemetry::catalog::LABEL_CAP;

    fn snapshot() -> Snapshot {
        let slice = |name: &str, tenant: &str, gib: u64, sm: u32| {
            format!(
                "{{owner: {{kind: replica, deployment: {{namespace: a, name: {name}}}, index: 0, incarnation: 1}}, \
                 tenant: {tenant}, memoryBytes: {}, smPercent: {sm}}}",
                gib << 30
            )
        };
        let gpu = |index: u32, class: &str, health: &str, slices: &[String]| {
            format!(
                "{{uuid: g{index}, index: {index}, product: P, class: {class}, memoryBytes: {}, memoryStepBytes: 0, \
                 smPercent: 100, health: {health}, slices: [{}]}}",
                80u64 << 30,
                slices.join(", ")
            )
        };
        let gpus = [
            gpu(0, "h", "{state: healthy}", &[slice("chat", "t", 20, 40), slice("big", "t", 40, 10)]),
            gpu(1, "h", "{state: healthy}", &[slice("chat", "t", 20, 10)]),
            gpu(2, "h", "{state: unhealthy, reason: x}", &[]),
            gpu(3, "free", "{state: healthy}", &[slice("other", "t", 80, 100)]),
        ];
        let yaml = format!(
            "{{sequence: 1, classes: [{{name: h, pricePerHourMicros: 3000000, currency: USD}}, {{name: free}}], \
             nodes: [{{name: n, ready: true, allocatable: {{cpuMilli: 0, memoryBytes: 0, pods: 0}}, \
             freshness: {{state: fresh, ageMs: 0}}, gpus: [{}]}}]}}",
            gpus.join(", ")
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    fn payer(deployment: &str) -> Payer {
        let text = str::to_owned;
        Payer { tenant: text("t"), namespace: text("a"), deployment: text(deployment), currency: text("USD") }
    }

    #[test]
    fn slices_cost_the_larger_share_and_idle_is_the_rest_of_healthy_gpus() {
        let rates = rates(&snapshot());
        let found: Vec<_> = rates.promised.iter().map(|(payer, rate)| (payer.deployment.as_str(), *rate)).collect();
        // chat: 40 % of one GPU and a quarter of another; big: half.
        assert_eq!(found, [("big", 1.5), ("chat", 1.2 + 0.75)]);
        let idle: Vec<_> = rates.idle.values().map(|rate| (rate * 100.0).round() / 100.0).collect();
        assert_eq!(idle, [0.3 + 2.25], "the unhealthy GPU is not idle");
    }

    #[test]
    fn costs_grow_by_the_rate_of_the_plan_before_and_not_while_another_leads() {
        let (costs, mut meter, start) = (Costs::default(), Meter::default(), Instant::now());
        let spent = || costs.promised.get_or_create(&payer("chat")).get();
        let rates = |rate: f64| Rates { promised: [(payer("chat"), rate)].into(), ..Rates::default() };
        let hour = Duration::from_secs(3600);
        meter.advance(start, rates(2.0), &costs);
        assert_eq!(spent(), 0.0);
        meter.advance(start + hour, rates(6.0), &costs);
        assert_eq!(spent(), 2.0);
        meter.pause();
        meter.advance(start + hour * 10, rates(6.0), &costs);
        assert_eq!(spent(), 2.0);
        meter.advance(start + hour * 10 + hour / 2, rates(0.0), &costs);
        assert_eq!(spent(), 5.0);
    }

    #[test]
    fn payers_are_bounded_and_those_that_are_gone_are_forgotten() {
        let (costs, mut meter, mut now) = (Costs::default(), Meter::default(), Instant::now());
        for n in 0..LABEL_CAP * 2 {
            let rates = Rates { promised: [(payer(&n.to_string()), 1.0)].into(), ..Rates::default() };
            meter.advance(now, rates, &costs);
            now += Duration::from_millis(1);
        }
        assert_eq!(meter.paid.len(), LABEL_CAP / 2 + 1, "half of the cap for one tenant, and the others");
        now += FORGOTTEN + Duration::from_secs(1);
        meter.advance(now, Rates::default(), &costs);
        meter.advance(now + FORGOTTEN * 2, Rates::default(), &costs);
        assert!(meter.paid.is_empty() && costs.promised.get(&payer("0")).is_none());
    }
}

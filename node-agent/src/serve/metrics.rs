//! The agent's metrics: what was promised and what is used, per GPU and tenant, and the state of the GPUs.
//!
//! Set anew from each [`NodeView`], so a claim or GPU that is gone leaves no series behind.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use stowage_telemetry::catalog::agent as catalog;
use stowage_telemetry::metrics::{Registry, Together};

use crate::device::inventory;
use crate::device::model::Health;
use crate::usage::view::{NodeView, Trouble};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gpu {
    uuid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuInfo {
    uuid: String,
    node: String,
    product: String,
    index: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuTenant {
    uuid: String,
    /// The TenantQuota's name; empty: unknown.
    tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuHealth {
    uuid: String,
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuXid {
    uuid: String,
    /// `application`, `attention` or `ends`.
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

type F64Gauge = Gauge<f64, AtomicU64>;

/// Handles of everything that is exported.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The node's name.
    node: String,
    info: Family<GpuInfo, Gauge>,
    memory: Family<Gpu, Gauge>,
    memory_used: Family<Gpu, Gauge>,
    memory_promised: Family<GpuTenant, Gauge>,
    memory_claimed: Family<GpuTenant, Gauge>,
    memory_unclaimed: Family<Gpu, Gauge>,
    sm_promised: Family<GpuTenant, F64Gauge>,
    sm_used: Family<Gpu, F64Gauge>,
    health: Family<GpuHealth, Gauge>,
    xid: Family<GpuXid, Counter>,
    temperature: Family<Gpu, Gauge>,
    power: Family<Gpu, F64Gauge>,
    slowed: Family<Gpu, Gauge>,
    claims: Gauge,
    overshoots: Gauge,
    troubles: Family<Kind, Gauge>,
    reading_age: F64Gauge,
    together: Together,
}

impl Metrics {
    pub fn register(registry: &mut Registry, node: &str) -> Self {
        let m = Self { node: node.to_owned(), ..Self::default() };
        catalog::INFO.register(registry, m.info.clone());
        catalog::MEMORY.register(registry, m.memory.clone());
        catalog::MEMORY_USED.register(registry, m.memory_used.clone());
        catalog::MEMORY_PROMISED.register(registry, m.memory_promised.clone());
        catalog::MEMORY_CLAIMED.register(registry, m.memory_claimed.clone());
        catalog::MEMORY_UNCLAIMED.register(registry, m.memory_unclaimed.clone());
        catalog::SM_PROMISED.register(registry, m.sm_promised.clone());
        catalog::BUSY.register(registry, m.sm_used.clone());
        catalog::HEALTH.register(registry, m.health.clone());
        catalog::XID.register(registry, m.xid.clone());
        catalog::TEMPERATURE.register(registry, m.temperature.clone());
        catalog::POWER.register(registry, m.power.clone());
        catalog::SLOWED.register(registry, m.slowed.clone());
        catalog::CLAIMS.register(registry, m.claims.clone());
        catalog::OVERSHOOTS.register(registry, m.overshoots.clone());
        catalog::TROUBLE.register(registry, m.troubles.clone());
        catalog::READING_AGE.register(registry, m.reading_age.clone());
        m
    }

    /// What a page waits for.
    pub fn together(&self) -> Together {
        self.together.clone()
    }

    pub fn set(&self, view: &NodeView, now: jiff::Timestamp) {
        let _whole = self.together.change();
        self.clear();
        let promisable = inventory::promisable(&view.facts);
        for facts in &view.facts {
            let gpu = Gpu { uuid: facts.uuid.clone() };
            let memory = promisable.iter().find(|p| p.uuid == facts.uuid).map_or(0, |p| p.memory_bytes);
            self.memory.get_or_create(&gpu).set(signed(memory));
            let info = GpuInfo {
                uuid: facts.uuid.clone(),
                node: self.node.clone(),
                product: facts.product.clone(),
                index: facts.index,
            };
            self.info.get_or_create(&info).set(1);
            let unclaimed = view.unattributed.get(&facts.uuid).copied().unwrap_or(0);
            self.memory_unclaimed.get_or_create(&gpu).set(signed(unclaimed));
            let health = view.verdicts.get(&facts.uuid).map_or(Health::Healthy, |verdict| verdict.health);
            for (candidate, name) in HEALTHS {
                let label = GpuHealth { uuid: facts.uuid.clone(), health: name };
                self.health.get_or_create(&label).set(i64::from(candidate == health));
            }
        }
        self.set_readings(view, now);
        self.set_claims(view);
        self.set_xids(&view.xids);
        self.claims.set(view.checkpoint.claims.len() as i64);
        self.overshoots.set(view.overshoots.len() as i64);
        for trouble in Trouble::ALL {
            let there = view.troubles.contains_key(&trouble);
            self.troubles.get_or_create(&Kind { kind: trouble.name() }).set(i64::from(there));
        }
    }

    fn clear(&self) {
        self.info.clear();
        self.memory.clear();
        self.memory_used.clear();
        self.memory_promised.clear();
        self.memory_claimed.clear();
        self.memory_unclaimed.clear();
        self.sm_promised.clear();
        self.sm_used.clear();
        self.health.clear();
        self.temperature.clear();
        self.power.clear();
        self.slowed.clear();
    }

    fn set_readings(&self, view: &NodeView, now: jiff::Timestamp) {
        let mut oldest: f64 = 0.0;
        for (uuid, (at, reading)) in &view.readings {
            let gpu = Gpu { uuid: uuid.clone() };
            oldest = oldest.max(now.duration_since(*at).as_secs_f64());
            if let Some(bytes) = reading.used_bytes {
                self.memory_used.get_or_create(&gpu).set(signed(bytes));
            }
            if let Some(percent) = reading.sm_percent {
                self.sm_used.get_or_create(&gpu).set(f64::from(percent) / 100.0);
            }
            if let Some(celsius) = reading.temperature_celsius {
                self.temperature.get_or_create(&gpu).set(i64::from(celsius));
            }
            if let Some(milliwatts) = reading.power_milliwatts {
                self.power.get_or_create(&gpu).set(f64::from(milliwatts) / 1000.0);
            }
            self.slowed.get_or_create(&gpu).set(i64::from(reading.slowed_down));
        }
        self.reading_age.set(oldest);
    }

    fn set_claims(&self, view: &NodeView) {
        for (uid, entry) in &view.checkpoint.claims {
            let label = |uuid: &str| GpuTenant { uuid: uuid.to_owned(), tenant: entry.tenant.clone() };
            for device in &entry.devices {
                self.memory_promised.get_or_create(&label(&device.uuid)).inc_by(signed(device.memory_bytes));
                self.sm_promised.get_or_create(&label(&device.uuid)).inc_by(f64::from(device.sm_percent) / 100.0);
            }
            for held in view.uses.iter().filter(|held| held.claim_uid == *uid) {
                let bytes = held.used.map_or(0, |used| used.bytes);
                self.memory_claimed.get_or_create(&label(&held.gpu)).inc_by(signed(bytes));
            }
        }
    }

    fn set_xids(&self, counts: &BTreeMap<(String, &'static str), u64>) {
        for ((uuid, class), count) in counts {
            let counter = self.xid.get_or_create(&GpuXid { uuid: uuid.clone(), class });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}

const HEALTHS: [(Health, &str); 3] =
    [(Health::Healthy, "healthy"), (Health::Degraded, "degraded"), (Health::Unhealthy, "unhealthy")];

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::models::figures::Figures;
    use prometheus_client::encoding::text::encode;
    use stowage_telemetry::catalog::{Process, page};
    use stowage_telemetry::metrics::{registry, to_prometheus_text};

    use crate::device::model::{GpuReading, Reach};
    use crate::usage::fixtures::{gpu, promised};
    use crate::usage::view::ClaimUse;

    #[test]
    fn page_is_as_the_catalog_lists() {
        let mut registry = registry();
        let metrics = Metrics::register(&mut registry, "node1");
        let figures = Figures::register(&mut registry);
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut reading = GpuReading::unreachable("g", Reach::Ok);
        (reading.used_bytes, reading.sm_percent) = (Some(1 << 30), Some(40));
        (reading.temperature_celsius, reading.power_milliwatts) = (Some(50), Some(60_000));
        let mut view = NodeView::empty(true, now);
        view.facts = vec![gpu()];
        view.readings = [("g".to_owned(), (now, reading))].into();
        view.checkpoint = promised(&[2]);
        view.uses = vec![ClaimUse { claim_uid: "c1".to_owned(), gpu: "g".to_owned(), used: None }];
        view.xids = [(("g".to_owned(), "application"), 2)].into();
        metrics.set(&view, now);
        figures.queued(Duration::ZERO);
        figures.complete(1, Duration::ZERO, Duration::ZERO);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let text = to_prometheus_text(&text);
        page::assert_clean(Process::NodeAgent, &text);
        assert_eq!(page::missing(Process::NodeAgent, &text), Vec::<&str>::new());
        assert!(text.contains(r#"stowage_gpu_info{uuid="g",node="node1",product="NVIDIA L4",index="0"} 1"#), "{text}");
    }
}

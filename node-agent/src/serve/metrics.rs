//! The agent's metrics: what was promised and what is used, per GPU and tenant, and the state of the GPUs.
//!
//! Set anew from each [`NodeView`], so a claim or GPU that is gone leaves no series behind.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use stowage_telemetry::metrics::Registry;

use crate::device::inventory;
use crate::device::model::Health;
use crate::usage::view::{NodeView, Trouble};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gpu {
    uuid: String,
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
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("gpu_memory_bytes", "Memory of the GPU that can be promised", m.memory.clone());
        registry.register("gpu_memory_used_bytes", "Memory in use on the GPU", m.memory_used.clone());
        registry.register("gpu_memory_promised_bytes", "Memory promised to claims", m.memory_promised.clone());
        registry.register(
            "gpu_memory_claimed_bytes",
            "Memory in use by the processes of claims",
            m.memory_claimed.clone(),
        );
        registry.register(
            "gpu_memory_unclaimed_bytes",
            "Memory in use by processes of no claim",
            m.memory_unclaimed.clone(),
        );
        registry.register("gpu_sm_promised_ratio", "Share of the SMs promised to claims", m.sm_promised.clone());
        registry.register("gpu_busy_ratio", "Share of time in which some kernel ran", m.sm_used.clone());
        registry.register("gpu_health", "1 for the current verdict", m.health.clone());
        registry.register("gpu_xid_errors", "Xid errors since the agent started", m.xid.clone());
        registry.register("gpu_temperature_celsius", "Temperature of the GPU", m.temperature.clone());
        registry.register("gpu_power_watts", "Power drawn by the GPU", m.power.clone());
        registry.register(
            "gpu_slowed_down",
            "1 while heat or the power supply holds the clocks down",
            m.slowed.clone(),
        );
        registry.register("agent_claims", "Claims prepared on this node", m.claims.clone());
        registry.register("agent_overshoots", "Claims that use more memory than promised", m.overshoots.clone());
        registry.register("agent_trouble", "1 while the agent has this trouble", m.troubles.clone());
        registry.register("agent_reading_age_seconds", "Age of the oldest GPU reading", m.reading_age.clone());
        m
    }

    pub fn set(&self, view: &NodeView, now: jiff::Timestamp) {
        self.clear();
        let promisable = inventory::promisable(&view.facts);
        for facts in &view.facts {
            let gpu = Gpu { uuid: facts.uuid.clone() };
            let memory = promisable.iter().find(|p| p.uuid == facts.uuid).map_or(0, |p| p.memory_bytes);
            self.memory.get_or_create(&gpu).set(signed(memory));
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

//! The deployment that is planned for, and the cluster in which it is planned: one tenant's, with room for as many
//! replicas as the run may have, a node for each, and nothing else. The figures show the rule, not a shortage.

use crate::run::Protocol;
use stowage_planner::snapshot::{
    Accelerator, Class, ColdStart, CostOrigin, Deployment, DeploymentId, Freshness, Gpu, GpuShare, Health, Needs, Node,
    Partition, Placement, Promise, Quota, Resources, Room, Scaling, ScalingMode, Signals, Snapshot, Tenant, TenantId,
    TimeMs, Variant, VariantCost,
};

/// Time of a run's start where the trace has no dates: midnight, so that times of day are those of the trace.
pub const START_MS: TimeMs = 12 * 86_400_000;
const CLASS: &str = "h100";
/// Bytes of a GPU of which nothing says how large it is.
const GPU_BYTES: u64 = 80 << 30;

/// What a run plans for.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Bounds, objectives and mode.
    pub scaling: Scaling,
    /// Replicas in mode Manual.
    pub replicas: u32,
    /// The shape of a replica.
    pub variant: Variant,
    /// How the cost of a step is known.
    pub origin: CostOrigin,
    /// When the trace starts, in milliseconds since 1970.
    pub starts_ms: TimeMs,
}

impl Subject {
    /// That of the published protocol: four whole GPUs each, and at least one replica.
    pub fn published(protocol: &Protocol, room: Room) -> Self {
        let accelerator = Accelerator::Gpu { class: CLASS.into(), count: 4, partition: Partition::WHOLE };
        Self {
            scaling: Scaling {
                mode: ScalingMode::Active,
                min_replicas: 1,
                max_replicas: protocol.max_replicas as u32,
                objectives: Some(protocol.objective),
                room,
                ..Scaling::default()
            },
            replicas: 0,
            variant: Variant { name: "tp4".into(), accelerator, itl_us: None },
            origin: CostOrigin::Table,
            starts_ms: START_MS,
        }
    }

    /// The snapshot without replicas.
    pub(crate) fn snapshot(&self, protocol: &Protocol) -> Snapshot {
        let class = self.variant.accelerator.class();
        let quota = class.map(|class| Quota {
            class: class.clone(),
            nominal_milli: 1000 * u64::from(self.gpus().0) * protocol.max_replicas as u64,
            borrowing_limit_milli: None,
            lending_limit_milli: None,
        });
        let tenant = Tenant {
            id: TenantId("tenant".into()),
            namespaces: vec!["tenant".into()],
            cohort: None,
            weight: 1,
            quotas: quota.into_iter().collect(),
            min_runtime_ms: None,
            reclaim_grace_ms: None,
            spend_limit: None,
        };
        let class = class.map(|class| Class {
            name: class.clone(),
            allow_soft_sharing: false,
            price_per_hour_micros: None,
            currency: String::new(),
        });
        Snapshot {
            nodes: (0..protocol.max_replicas).map(|n| self.node(n).into()).collect(),
            tenants: vec![tenant],
            deployments: vec![self.deployment(protocol).into()],
            classes: class.into_iter().collect(),
            ..Snapshot::default()
        }
    }

    /// GPUs of a replica, and what it takes of each, which is all that they have.
    fn gpus(&self) -> (u32, Promise) {
        match &self.variant.accelerator {
            Accelerator::Gpu { count, partition, .. } => {
                let memory = partition.memory_bytes().unwrap_or(GPU_BYTES);
                (*count, Promise::slice(memory, partition.sm_percent().unwrap_or(100)))
            }
            Accelerator::Cpu { .. } => (0, Promise::slice(0, 0)),
        }
    }

    /// Has room for one replica.
    fn node(&self, position: usize) -> Node {
        let class = self.variant.accelerator.class().cloned();
        let (count, promise) = self.gpus();
        let gpus = (0..count).map(|index| Gpu {
            uuid: uuid(position, index),
            index,
            product: class.clone().unwrap_or_default(),
            class: class.clone(),
            memory_bytes: promise.memory_bytes,
            memory_step_bytes: 0,
            sm_percent: promise.sm_percent,
            health: Health::Healthy,
            island: Some("nvlink".into()),
            numa: None,
            mig: None,
            slices: Vec::new(),
        });
        let (cpu_milli, memory_bytes) = match self.variant.accelerator {
            Accelerator::Cpu { cpu_milli, memory_bytes } => (cpu_milli, memory_bytes),
            Accelerator::Gpu { .. } => (64_000, 1 << 40),
        };
        Node {
            name: name_of(position),
            ready: true,
            cordoned: false,
            labels: Default::default(),
            taints: Vec::new(),
            allocatable: Resources { cpu_milli, memory_bytes, pods: 110 },
            used: Resources::default(),
            host_ports: Vec::new(),
            freshness: Freshness::Fresh { age_ms: 0 },
            gpus: gpus.collect(),
            cached_models: Vec::new(),
        }
    }

    pub(crate) fn placement(&self, position: usize) -> Placement {
        let (count, promise) = self.gpus();
        let gpus = (0..count).map(|index| GpuShare { uuid: uuid(position, index), promise: promise.clone() });
        Placement { node: name_of(position), variant: self.variant.name.clone(), gpus: gpus.collect() }
    }

    /// What a replica takes of its node besides GPUs.
    pub(crate) fn taken(&self) -> Resources {
        match self.variant.accelerator {
            Accelerator::Cpu { cpu_milli, memory_bytes } => Resources { cpu_milli, memory_bytes, pods: 1 },
            Accelerator::Gpu { .. } => Resources::default(),
        }
    }

    /// What a replica takes of each of its GPUs.
    pub(crate) fn promise(&self) -> Promise {
        self.gpus().1
    }

    fn deployment(&self, protocol: &Protocol) -> Deployment {
        let cost = VariantCost {
            variant: self.variant.name.clone(),
            coefficients: protocol.cost,
            origin: self.origin,
            at_ms: 0,
        };
        let cold_start = ColdStart { remote_ms: Some((protocol.cold_start * 1000.0) as u64), ..ColdStart::default() };
        Deployment {
            id: DeploymentId::new("tenant", "model"),
            uid: "uid".into(),
            generation: 1,
            tenant: Some(TenantId("tenant".into())),
            priority: 0,
            created_ms: 0,
            wanted: self.replicas,
            scaling: self.scaling.clone(),
            signals: Signals { costs: vec![cost], cold_start, ..Signals::default() },
            memory: Default::default(),
            variants: vec![self.variant.clone()],
            objective: Default::default(),
            needs: Needs::default(),
            node_selector: Default::default(),
            tolerations: Vec::new(),
            spread: Vec::new(),
            isolation: Default::default(),
            model_key: Default::default(),
            spec_hash: "v1".into(),
            replicas: Vec::new(),
            slots: Vec::new(),
            held: None,
            deleting: false,
            force_delete: false,
            drain_timeout_ms: 600_000,
        }
    }
}

fn name_of(position: usize) -> String {
    format!("node-{position:03}")
}

fn uuid(position: usize, index: u32) -> String {
    format!("GPU-{position:03}-{index}")
}

/// The place of a node among those of a snapshot.
pub(crate) fn position_of(node: &str) -> Option<usize> {
    node.strip_prefix("node-")?.parse().ok()
}

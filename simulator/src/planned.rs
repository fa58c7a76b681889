//! The product's own decision: each tick one [`plan`] over a snapshot of simulated nodes, as the operator
//! makes one of real ones. What the plan creates, drains and removes is done to the simulated replicas.
//!
//! The cluster is one tenant's, with room for as many replicas as the run may have, and nothing else
//! stands in it: the figures show the rule, not a shortage.

use crate::cluster::{Change, Decision, Observation, State};
use crate::policy::{Policy, Totals};
use crate::run::Protocol;
use stowage_planner::plan;
use stowage_planner::plan::Action;
use stowage_planner::snapshot::{
    Accelerator, Class, ColdStart, CostOrigin, Deployment, DeploymentId, EngineSignals, Freshness, GatewaySignals, Gpu,
    GpuShare, Health, Needs, Node, Phase, Placement, Quota, Replica, ReplicaId, Resources, Room, Scaling, ScalingMode,
    Signals, Slice, SliceOwner, Snapshot, Tenant, TenantId, TimeMs, Variant, VariantCost,
};

const CLASS: &str = "h100";
const VARIANT: &str = "tp4";
/// GPUs of one replica, and bytes of one GPU.
const GPUS: u32 = 4;
const GPU_BYTES: u64 = 80 << 30;
/// The time at which a run starts.
const START_MS: TimeMs = 1_000_000_000;
/// Weight of the answers of one tick in their mean length.
const OUTPUT_WEIGHT: f64 = 0.2;

/// The planner, with the snapshot that it is asked about.
#[derive(Debug, Clone)]
pub struct Stowage {
    policy: stowage_planner::Policy,
    snapshot: Snapshot,
    /// Of each simulated replica: the planner's slot and incarnation.
    slots: Vec<Option<(u32, u32)>>,
    /// End of the last interval, and what had been counted then.
    before: Before,
    mean_output: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Before {
    ms: TimeMs,
    arrived: usize,
    finished: usize,
    output: u64,
}

impl Stowage {
    /// Without memory, as after a restart. `policy` holds the constants.
    pub fn new(protocol: &Protocol, room: Room, policy: stowage_planner::Policy) -> Self {
        let nodes = (0..protocol.max_replicas).map(|n| node(n).into()).collect();
        let quota = Quota {
            class: CLASS.into(),
            nominal_milli: 1000 * u64::from(GPUS) * protocol.max_replicas as u64,
            borrowing_limit_milli: None,
            lending_limit_milli: None,
        };
        let tenant = Tenant {
            id: TenantId("tenant".into()),
            namespaces: vec!["tenant".into()],
            cohort: None,
            weight: 1,
            quotas: vec![quota],
            min_runtime_ms: None,
            reclaim_grace_ms: None,
            spend_limit: None,
        };
        let class = Class {
            name: CLASS.into(),
            allow_soft_sharing: false,
            price_per_hour_micros: None,
            currency: String::new(),
        };
        Self {
            policy,
            snapshot: Snapshot {
                nodes,
                tenants: vec![tenant],
                deployments: vec![deployment(protocol, room).into()],
                classes: vec![class],
                ..Snapshot::default()
            },
            slots: vec![None; protocol.max_replicas],
            before: Before { ms: START_MS, ..Before::default() },
            mean_output: 0.0,
        }
    }

    fn signals(&mut self, seen: &Observation, totals: &Totals) {
        let now = START_MS + seen.now as TimeMs;
        let before = std::mem::replace(
            &mut self.before,
            Before { ms: now, arrived: seen.arrived, finished: seen.finished, output: seen.finished_output },
        );
        if seen.finished > before.finished {
            let mean = (seen.finished_output - before.output) as f64 / (seen.finished - before.finished) as f64;
            let weight = if self.mean_output == 0.0 { 1.0 } else { OUTPUT_WEIGHT };
            self.mean_output += weight * (mean - self.mean_output);
        }
        let signals = &mut self.snapshot.deployments[0].signals;
        signals.gateway = Some(GatewaySignals {
            from_ms: before.ms,
            to_ms: now,
            arrivals: (seen.arrived - before.arrived) as u64,
            input_tokens: totals.input_between(before.arrived, seen.arrived),
            cached_tokens: 0,
            mean_output_tokens: self.mean_output,
            queued: seen.queued as u64,
            queued_tokens: seen.queued_tokens,
            held: if seen.ready == 0 { seen.queued as u64 } else { 0 },
        });
        signals.engines = Some(EngineSignals {
            at_ms: now,
            unprefilled_tokens: seen.unprefilled,
            kv_used_milli: (seen.kv_used * 1000.0) as u64,
            kv_bound: seen.kv_bound as u32,
            steps: Vec::new(),
        });
    }

    /// The simulated replicas as the watches would show them.
    fn observe(&mut self, seen: &Observation) {
        let id = self.snapshot.deployments[0].id.clone();
        let mut replicas = Vec::new();
        for (position, replica) in seen.replicas.iter().enumerate() {
            let slices = &mut self.snapshot.nodes[position].gpus;
            slices.iter_mut().for_each(|gpu| gpu.slices.clear());
            let since_ms = START_MS + replica.since as TimeMs;
            let phase = match replica.state {
                State::Off => {
                    self.slots[position] = None;
                    continue;
                }
                State::Starting => Phase::Starting,
                State::Ready => Phase::Ready,
                State::Draining => Phase::Draining { since_ms, in_flight: Some(replica.running as u32) },
            };
            // What runs from the start was not created by a plan: it takes the slot of its position.
            let (index, incarnation) = *self.slots[position].get_or_insert((position as u32, 0));
            let owner = SliceOwner::Replica(ReplicaId { deployment: id.clone(), index, incarnation });
            for gpu in slices {
                gpu.slices.push(Slice {
                    owner: owner.clone(),
                    tenant: Some(TenantId("tenant".into())),
                    memory_bytes: GPU_BYTES,
                    sm_percent: 100,
                    isolation: Default::default(),
                });
            }
            replicas.push(Replica {
                index,
                incarnation,
                name: format!("replica-{index}-{incarnation}"),
                spec_hash: "v1".into(),
                phase,
                placement: Some(placement(position)),
                created_ms: since_ms,
                node_lost: false,
                overshoot: None,
                in_flight: Some(replica.running as u32),
            });
        }
        self.snapshot.deployments[0].replicas = replicas;
    }

    fn change(&mut self, action: &Action) -> Option<Change> {
        match action {
            Action::Create { replica, placement, .. } => {
                let position = position_of(&placement.node)?;
                self.slots[position] = Some((replica.index, replica.incarnation));
                Some(Change::Start(position))
            }
            Action::Drain { replica, .. } | Action::Remove { replica, .. } => {
                let slot = Some((replica.index, replica.incarnation));
                self.slots.iter().position(|known| *known == slot).map(Change::End)
            }
        }
    }
}

impl Policy for Stowage {
    fn decide(&mut self, seen: &Observation, totals: &Totals) -> Decision {
        self.signals(seen, totals);
        self.observe(seen);
        self.snapshot.sequence += 1;
        let (plan, _) = plan(&self.snapshot, &self.policy, self.before.ms);
        for (_, memory) in plan.memory {
            self.snapshot.deployments[0].memory = memory;
        }
        Decision::Changes(plan.actions.iter().filter_map(|action| self.change(action)).collect())
    }
}

/// One node holds one replica.
fn node(position: usize) -> Node {
    let gpus = (0..GPUS).map(|index| Gpu {
        uuid: uuid(position, index),
        index,
        product: CLASS.into(),
        class: Some(CLASS.into()),
        memory_bytes: GPU_BYTES,
        memory_step_bytes: 0,
        sm_percent: 100,
        health: Health::Healthy,
        island: Some("nvlink".into()),
        slices: Vec::new(),
    });
    Node {
        name: format!("node-{position:03}"),
        ready: true,
        cordoned: false,
        labels: Default::default(),
        taints: Vec::new(),
        allocatable: Resources { cpu_milli: 64_000, memory_bytes: 1 << 40, pods: 110 },
        used: Resources::default(),
        host_ports: Vec::new(),
        freshness: Freshness::Fresh { age_ms: 0 },
        gpus: gpus.collect(),
        cached_models: Vec::new(),
    }
}

fn uuid(position: usize, index: u32) -> String {
    format!("GPU-{position:03}-{index}")
}

fn position_of(node: &str) -> Option<usize> {
    node.strip_prefix("node-")?.parse().ok()
}

fn placement(position: usize) -> Placement {
    let gpus =
        (0..GPUS).map(|index| GpuShare { uuid: uuid(position, index), memory_bytes: GPU_BYTES, sm_percent: 100 });
    Placement { node: format!("node-{position:03}"), variant: VARIANT.into(), gpus: gpus.collect() }
}

fn deployment(protocol: &Protocol, room: Room) -> Deployment {
    let accelerator = Accelerator::Gpu { class: CLASS.into(), count: GPUS, memory_bytes: None, sm_percent: None };
    let cost =
        VariantCost { variant: VARIANT.into(), coefficients: protocol.cost, origin: CostOrigin::Table, at_ms: 0 };
    Deployment {
        id: DeploymentId::new("tenant", "model"),
        uid: "uid".into(),
        generation: 1,
        tenant: Some(TenantId("tenant".into())),
        priority: 0,
        created_ms: 0,
        wanted: 0,
        scaling: Scaling {
            mode: ScalingMode::Active,
            min_replicas: 1,
            max_replicas: protocol.max_replicas as u32,
            objectives: Some(protocol.objective),
            room,
            ..Scaling::default()
        },
        signals: Signals {
            costs: vec![cost],
            cold_start: ColdStart { remote_ms: Some((protocol.cold_start * 1000.0) as u64), ..ColdStart::default() },
            ..Signals::default()
        },
        memory: Default::default(),
        variants: vec![Variant { name: VARIANT.into(), accelerator, itl_us: None }],
        objective: Default::default(),
        needs: Needs::default(),
        node_selector: Default::default(),
        tolerations: Vec::new(),
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

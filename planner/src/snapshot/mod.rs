//! The input of the planner: one consistent picture of cluster, tenants and deployments.
//!
//! The picture is what the watches show **plus a journal of our own actions not yet seen there**, so
//! that plan n+1 never gives away what plan n took. Everything here is already parsed: no quantity
//! strings, no label selectors left to interpret. Units stand in the names; times are milliseconds
//! since the Unix epoch ([`TimeMs`]), durations end in `_ms`, GPU shares are thousandths of one GPU
//! (`_milli`).
//!
//! The order of the lists carries no meaning: the planner sorts by identity before it decides.

pub(crate) mod index;
mod scaling;
mod shared;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
pub use shared::Shared;
pub use stowage_contracts::model::ModelKey;

pub use scaling::{
    ColdStart, CostOrigin, EngineSignals, Gaps, GatewaySignals, History, Memory, Objectives, Room, Rule, Scaling,
    ScalingMode, Signals, StepSample, VariantCost,
};
pub(crate) use scaling::{Followed, Offered};

/// Milliseconds since the Unix epoch.
pub type TimeMs = u64;

/// The whole input of one decision, besides the [`Policy`] and the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Snapshot {
    /// Counts the snapshots of one operator; a plan names the one that it was made from.
    pub sequence: u64,
    #[serde(default)]
    pub nodes: Vec<Shared<Node>>,
    #[serde(default)]
    pub tenants: Vec<Tenant>,
    #[serde(default)]
    pub deployments: Vec<Shared<Deployment>>,
    #[serde(default)]
    pub classes: Vec<Class>,
    /// Nodes that the scheduler (or the kubelet) refused for a replica, with back-off.
    #[serde(default)]
    pub exclusions: Vec<Exclusion>,
    /// What tenants borrowed of late, as the report on the last snapshot has it; none: as they borrow now.
    #[serde(default)]
    pub shares: Vec<DecayedShare>,
}

/// What a tenant borrowed of late: old use counts half after each half-life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DecayedShare {
    pub tenant: TenantId,
    /// Largest part, over the classes, that it borrows of its cohort's nominal quota, in billionths.
    pub share_billionths: u64,
    pub at_ms: TimeMs,
}

/// A tenant's name: the name of its TenantQuota.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub String);

/// A deployment by name. The UID stands in [`Deployment`]; a re-created one is another deployment
/// with the same id and other replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct DeploymentId {
    pub namespace: String,
    pub name: String,
}

/// One life of one replica slot. The pod's name follows from it and the deployment's UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct ReplicaId {
    pub deployment: DeploymentId,
    /// Slot, from 0; stable over incarnations.
    pub index: u32,
    /// Grows by one each time the slot's pod is made anew; never reused while the old one may exist.
    pub incarnation: u32,
}

/// CPU, memory and pod slots of a node: what it has, or what is taken of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Resources {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub pods: u32,
}

/// How much what we know of a node may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Freshness {
    Fresh {
        age_ms: u64,
    },
    /// Older than the operator's limit: nothing is placed there and nothing there is ended for what
    /// was last read. Stale is never zero capacity.
    Stale {
        age_ms: u64,
    },
    /// No data was ever received: no GpuNode or no ResourceSlice.
    Missing,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Node {
    pub name: String,
    /// The Kubernetes `Ready` condition is `True`.
    pub ready: bool,
    /// `spec.unschedulable`.
    #[serde(default)]
    pub cordoned: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    /// Requests of **all** pods bound here, ours and the journal's included.
    #[serde(default)]
    pub used: Resources,
    /// Host ports taken by pods here.
    #[serde(default)]
    pub host_ports: Vec<u16>,
    pub freshness: Freshness,
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Model keys whose weights lie on this node (see [`Deployment::model_key`]).
    #[serde(default)]
    pub cached_models: Vec<ModelKey>,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Gpu {
    pub uuid: String,
    /// NVML's index: the stable order inside a node.
    pub index: u32,
    pub product: String,
    /// The GpuClass that selects this product; `None`: no class does, nothing can be placed here.
    pub class: Option<String>,
    /// As published in the ResourceSlice, that is, floored to the step.
    pub memory_bytes: u64,
    /// Requests are rounded up to a multiple of this, as the scheduler does. 0 means no rounding.
    pub memory_step_bytes: u64,
    /// As published; 100 for a whole GPU.
    pub sm_percent: u32,
    pub health: Health,
    /// NVLink island inside the node. `None`: unknown or none, the GPU is an island of its own.
    #[serde(default)]
    pub island: Option<String>,
    /// Everything promised on this GPU: allocated claims, claims of ours that the scheduler has yet
    /// to allocate, and the journal's. A slice of a terminating replica stays until its claim is gone.
    #[serde(default)]
    pub slices: Vec<Slice>,
}

/// Whether a GPU may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Health {
    Healthy,
    /// Works, but is chosen only when no healthy GPU is left.
    Degraded {
        reason: String,
    },
    /// Nothing is placed here; replicas here are replaced.
    Unhealthy {
        reason: String,
    },
}

/// A promise on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Slice {
    pub owner: SliceOwner,
    /// `None`: a claim that belongs to no tenant; every tenant counts it as another tenant's.
    pub tenant: Option<TenantId>,
    pub memory_bytes: u64,
    pub sm_percent: u32,
    /// The owner's isolation: a dedicated slice keeps others away after it was placed, too.
    #[serde(default)]
    pub isolation: Isolation,
}

/// Who holds a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum SliceOwner {
    Replica(ReplicaId),
    /// A claim on our class that is not a replica's, or whose deployment is gone: `namespace/name`.
    Foreign {
        claim: String,
    },
}

/// Who may stand beside this deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Isolation {
    /// Anyone the class allows.
    #[default]
    Shared,
    /// No slice of another deployment on its GPUs.
    #[serde(rename = "DedicatedGPU")]
    DedicatedGpu,
    /// No slice of another tenant on its node.
    DedicatedNode,
}

/// A node taint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Taint {
    pub key: String,
    #[serde(default)]
    pub value: String,
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum TaintEffect {
    NoSchedule,
    /// A wish, which placement ignores.
    PreferNoSchedule,
    NoExecute,
}

/// A pod toleration; `None` matches everything in that place, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Toleration {
    pub key: Option<String>,
    /// `None` is operator `Exists`.
    pub value: Option<String>,
    pub effect: Option<TaintEffect>,
}

/// A GpuClass as far as placement cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Class {
    pub name: String,
    /// Whether two tenants may share one GPU of the class without MIG.
    #[serde(default)]
    pub allow_soft_sharing: bool,
    /// Price of a whole GPU in millionths of the currency; `None`: not priced.
    #[serde(default)]
    pub price_per_hour_micros: Option<u64>,
    /// Of the price.
    #[serde(default)]
    pub currency: String,
}

/// A TenantQuota as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Tenant {
    pub id: TenantId,
    pub namespaces: Vec<String>,
    /// `None`: the tenant neither lends nor borrows.
    #[serde(default)]
    pub cohort: Option<String>,
    /// Its part of what the cohort can lend, relative to the weights of others; 0: only what is left.
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default)]
    pub quotas: Vec<Quota>,
    /// A borrowed replica runs at least this long before it can be reclaimed; `None`: the policy's.
    #[serde(default)]
    pub min_runtime_ms: Option<u64>,
    /// A reclaimed replica may finish its requests for this long; `None`: the policy's.
    #[serde(default)]
    pub reclaim_grace_ms: Option<u64>,
    /// Most that its GPUs may cost per hour; `None`: no limit.
    #[serde(default)]
    pub spend_limit: Option<Money>,
}

/// An amount of one currency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Money {
    /// Millionths.
    pub micros: u64,
    /// Amounts of different currencies are never compared.
    pub currency: String,
}

fn one() -> u32 {
    1
}

/// A tenant's share of one GPU class, in thousandths of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Quota {
    pub class: String,
    pub nominal_milli: u64,
    /// Most that may be held above nominal; `None`: whatever the cohort has unused.
    #[serde(default)]
    pub borrowing_limit_milli: Option<u64>,
    /// Most of nominal that others may use; `None`: all of it.
    #[serde(default)]
    pub lending_limit_milli: Option<u64>,
}

/// An InferenceDeployment as far as decisions need it, with its pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Deployment {
    pub id: DeploymentId,
    pub uid: String,
    /// `metadata.generation` that the rest of this struct was read at.
    pub generation: u64,
    /// The tenant that the namespace belongs to; `None` is refused with `NoTenant`.
    pub tenant: Option<TenantId>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    pub created_ms: TimeMs,
    /// Replicas asked for (`spec.replicas`) in `Manual` mode. In the other modes the count that the last
    /// plan is known to have settled on (`status.desiredReplicas`), for a rule without memory; 0: not known.
    pub wanted: u32,
    /// Who decides the number of replicas, and within which bounds.
    #[serde(default)]
    pub scaling: Scaling,
    /// What was measured since the last plan; not needed in `Manual` mode.
    #[serde(default)]
    pub signals: Signals,
    /// As the last plan returned it.
    #[serde(default)]
    pub memory: Memory,
    /// The ways in which one replica may be built. Which one is taken follows from `objective` and
    /// from what fits, never from their order.
    pub variants: Vec<Variant>,
    /// What is preferred among the variants and nodes that fit.
    #[serde(default)]
    pub objective: Objective,
    /// What the pod requests of its node besides GPUs.
    pub needs: Needs,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub isolation: Isolation,
    /// Identity of the weights, compared with [`Node::cached_models`]; empty: unknown.
    #[serde(default)]
    pub model_key: ModelKey,
    /// Hash over all that needs a new pod when it changes.
    pub spec_hash: String,
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// What is remembered of slots whose pods are gone.
    #[serde(default)]
    pub slots: Vec<Slot>,
    /// The API server refuses new pods of the deployment: none is planned until then.
    #[serde(default)]
    pub held: Option<Hold>,
    /// The object has a deletion timestamp: drain and remove everything.
    #[serde(default)]
    pub deleting: bool,
    /// With `deleting`: remove without drain.
    #[serde(default)]
    pub force_delete: bool,
    pub drain_timeout_ms: u64,
}

/// What is preferred among the variants and nodes that fit. Healthy GPUs come before degraded ones
/// whatever is preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Objective {
    /// What leaves the cluster most useful for the replicas to be expected.
    #[default]
    Packing,
    /// The lowest price per hour of the slices, then packing. Without a price: after all that have one.
    Cost,
    /// The lowest predicted inter-token latency, then packing. Unknown: after all that are known.
    Latency,
}

/// Requests of a replica's pod that every node has, and ports that it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Needs {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    #[serde(default)]
    pub host_ports: Vec<u16>,
}

/// One way in which a replica may be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Variant {
    pub name: String,
    pub accelerator: Accelerator,
    /// Predicted inter-token latency of a replica of this variant at its planned load, in
    /// microseconds; `None`: unknown.
    #[serde(default)]
    pub itl_us: Option<u64>,
}

/// The device that a variant runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Accelerator {
    Gpu {
        class: String,
        /// GPUs of one replica (tensor parallel, inside one NVLink island). At least 1.
        count: u32,
        /// On each GPU; `None`: the whole GPU.
        #[serde(default)]
        memory_bytes: Option<u64>,
        /// On each GPU; `None`: all of its SMs.
        #[serde(default)]
        sm_percent: Option<u32>,
    },
    /// Only if the user lists it. Adds to [`Deployment::needs`].
    Cpu { cpu_milli: u64, memory_bytes: u64 },
}

/// A pod of a deployment, or one that the journal records as created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Replica {
    pub index: u32,
    pub incarnation: u32,
    /// Pod name.
    pub name: String,
    pub spec_hash: String,
    pub phase: Phase,
    /// Where its claim points, whether or not the scheduler has bound the pod; `None`: unreadable.
    pub placement: Option<Placement>,
    pub created_ms: TimeMs,
    /// Its node is gone or unreachable beyond the operator's limit.
    #[serde(default)]
    pub node_lost: bool,
    /// Set once a process of this replica was over its promise for long enough.
    #[serde(default)]
    pub overshoot: Option<Overshoot>,
    /// Requests in flight, as the routers count them; `None`: not known. Scale-in takes the least loaded.
    #[serde(default)]
    pub in_flight: Option<u32>,
}

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum Phase {
    /// `PodScheduled` is not yet true.
    Unscheduled {
        since_ms: TimeMs,
        /// The scheduler's message, empty while there is none.
        #[serde(default)]
        message: String,
    },
    /// Bound, and its node cannot hand out its slice.
    Unprepared {
        since_ms: TimeMs,
        /// The node agent's message.
        message: String,
    },
    Starting,
    Ready,
    /// Was ready, is not now.
    Unready,
    /// Out of routing, finishing its work.
    Draining {
        since_ms: TimeMs,
        /// Requests still running; `None`: not known, so wait for the deadline.
        in_flight: Option<u32>,
    },
    /// The pod ended or cannot start (crash, image, model).
    Failed {
        reason: String,
    },
    /// Deletion is under way. Its slice counts as taken until the claim is gone.
    Terminating,
}

/// Where a replica is or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Placement {
    pub node: String,
    pub variant: String,
    /// Sorted by GPU index. Empty for a CPU variant.
    pub gpus: Vec<GpuShare>,
}

/// A promise on one GPU, after rounding to its step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct GpuShare {
    pub uuid: String,
    pub memory_bytes: u64,
    pub sm_percent: u32,
}

/// Evidence that a replica's processes use more than was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Overshoot {
    pub gpu: String,
    pub promised_bytes: u64,
    pub used_bytes: u64,
    /// Samples in a row above the margin.
    pub samples: u32,
    /// Where the figure comes from, for people: `NVML` or `engine report`.
    pub source: String,
    /// The rest of the device can bear it for a while: drain; otherwise end at once.
    pub headroom: bool,
}

/// Memory of a replica slot that outlives its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Slot {
    pub index: u32,
    /// Highest incarnation ever used here.
    pub incarnation: u32,
    /// Failures in a row; 0 again once a pod of the slot was Ready for a while.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub last_failure_ms: TimeMs,
}

/// New pods of a deployment are refused by the API server (a quota, a policy): an attempt now would
/// be refused again, and its place may serve another deployment meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// The next attempt.
    pub until_ms: TimeMs,
    /// What was refused, why, and what to do.
    pub message: String,
}

/// The scheduler refused this slot on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Exclusion {
    pub deployment: DeploymentId,
    pub index: u32,
    pub node: String,
    pub until_ms: TimeMs,
    /// The scheduler's message.
    pub reason: String,
}

/// Constants of the decisions. The defaults are what the design was judged with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Policy {
    /// How long a pinned pod may stay unscheduled before it is removed and its node excluded.
    pub schedule_patience_ms: u64,
    /// How long a node may refuse to prepare a bound pod's slice before the same.
    pub prepare_patience_ms: u64,
    /// First and longest exclusion of (replica, node), and of back-off after a failed pod; doubles
    /// with each failure in a row.
    pub backoff_base_ms: u64,
    pub backoff_max_ms: u64,
    /// The shortest drain: routers need this long to stop sending requests.
    pub drain_settle_ms: u64,
    /// Longest drain of a replica that overshoots its slice while there is headroom.
    pub overshoot_drain_ms: u64,
    /// Width of a fragmentation bucket, and the reserve for GPU types that others name.
    pub frag_bucket_milli: u32,
    pub frag_reserve_milli: u32,
    /// Signals older than this freeze the count.
    pub signals_stale_ms: u64,
    /// Constants of the autoscaling rule, by [`Room`].
    pub standard_rule: Rule,
    pub tight_rule: Rule,
    /// After this long, what a tenant borrowed counts half.
    pub share_half_life_ms: u64,
    /// Where a TenantQuota does not say: how long a borrowed replica runs at least, and how long a reclaimed
    /// one may finish its requests.
    pub min_runtime_ms: u64,
    pub reclaim_grace_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            schedule_patience_ms: 10_000,
            prepare_patience_ms: 20_000,
            backoff_base_ms: 5_000,
            backoff_max_ms: 300_000,
            drain_settle_ms: 2_000,
            overshoot_drain_ms: 10_000,
            frag_bucket_milli: 60,
            frag_reserve_milli: 700,
            share_half_life_ms: 3_600_000,
            min_runtime_ms: 600_000,
            reclaim_grace_ms: 30_000,
            signals_stale_ms: 15_000,
            standard_rule: Rule::STANDARD,
            tight_rule: Rule::TIGHT,
        }
    }
}

// === impl Accelerator ===

impl Accelerator {
    /// The GPU class; `None`: CPU only.
    pub fn class(&self) -> Option<&String> {
        match self {
            Accelerator::Gpu { class, .. } => Some(class),
            Accelerator::Cpu { .. } => None,
        }
    }
}

// === impl ids ===

impl DeploymentId {
    /// From namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        DeploymentId { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ReplicaId {
    /// The slot and its life, for logs: the pod's name is the operator's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}.{}", self.deployment, self.index, self.incarnation)
    }
}

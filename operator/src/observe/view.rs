//! Everything that one decision and its execution look at, at one instant.
//!
//! Plain data, so that tests make it from YAML. Pods and claims have the journal laid over them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stowage_contracts::estimate::Estimate;
use stowage_crds::gpu_node::{GpuNodeSpec, GpuNodeStatus};
use stowage_crds::names::{FORCE_DELETE_ANNOTATION, ORPHAN_FINALIZER};
use stowage_crds::{
    GpuClassSpec, GpuClassStatus, InferenceDeploymentSpec, InferenceDeploymentStatus, InferenceRuntimeSpec,
    InferenceRuntimeStatus, TenantQuotaSpec, TenantQuotaStatus,
};
use stowage_planner::snapshot::Shared;

use crate::observe::agents::AgentReport;
use crate::observe::history::EarlierLoads;
pub use crate::observe::parsed::slice::KnownSlice;
use crate::observe::parsed::{Parsed, trim};
use crate::observe::signals::GatewayReport;
use crate::observe::source::{Kept, Key, unversioned};

/// A pod or a claim with what it says about the replica that it belongs to.
pub type KnownPod = Parsed<Pod>;
pub type KnownClaim = Parsed<ResourceClaim>;

/// Objects of one kind by key; those of a kind of which nothing changed are the very same map as before.
pub type Objects<T> = Shared<BTreeMap<Key, Arc<T>>>;

pub type StoredDeployment = Stored<InferenceDeploymentSpec, InferenceDeploymentStatus>;
pub type StoredQuota = Stored<TenantQuotaSpec, TenantQuotaStatus>;
pub type StoredClass = Stored<GpuClassSpec, GpuClassStatus>;
pub type StoredRuntime = Stored<InferenceRuntimeSpec, InferenceRuntimeStatus>;
pub type StoredGpuNode = Stored<GpuNodeSpec, GpuNodeStatus>;

/// The cluster as planning and execution see it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// When it was taken.
    pub now: Timestamp,
    pub deployments: Objects<StoredDeployment>,
    pub quotas: Objects<StoredQuota>,
    pub classes: Objects<StoredClass>,
    pub runtimes: Objects<StoredRuntime>,
    pub gpu_nodes: Objects<StoredGpuNode>,
    pub nodes: Objects<Node>,
    /// All pods of the cluster; those that are not ours only as far as they take room.
    pub pods: Objects<KnownPod>,
    pub claims: Objects<KnownClaim>,
    pub slices: Objects<KnownSlice>,
    /// Ours only.
    pub services: Objects<Service>,
    pub policies: Objects<NetworkPolicy>,
    pub budgets: Objects<PodDisruptionBudget>,
    /// What the node agents reported last, by node.
    pub agents: BTreeMap<String, AgentReport>,
    /// How much memory models need, by the key of the question; an error is the agent's.
    pub estimates: BTreeMap<String, Result<Estimate, String>>,
    /// What the gateways reported last, all together.
    pub gateways: GatewayReport,
    /// The load of earlier days, where a Prometheus has it.
    pub earlier: Arc<EarlierLoads>,
    /// Who may read the engines' metrics, by the operator's configuration.
    pub scrapers: Arc<Vec<NetworkPolicyPeer>>,
}

/// What `kubectl apply` was given last: what a manifest leaves out is removed by it.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// More bytes of it are not kept.
const MOST_APPLIED: usize = 16 << 10;

/// A custom resource whose parts are read one by one, so that a malformed object affects only
/// itself: it was stored before a rule existed, or by an older version.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<S, T> {
    pub meta: ObjectMeta,
    /// The message names the field that could not be read.
    pub spec: Result<S, Malformed>,
    /// As this version reads it; `None` when there is none or it cannot be read.
    pub status: Option<T>,
    /// As it is stored, where this version would not write `status` like that. The JSON of a status is some 15 KB in
    /// memory.
    pub unlike: Option<Value>,
}

/// Why a stored spec cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored object cannot be read: {0}. Apply it again with the field corrected, or delete it")]
pub struct Malformed(pub String);

impl<S, T> Stored<S, T>
where
    S: DeserializeOwned,
    T: DeserializeOwned + Serialize,
{
    pub fn read(object: DynamicObject) -> Self {
        let DynamicObject { mut metadata, mut data, .. } = object;
        let applied = metadata.annotations.as_mut().and_then(|all| all.remove(LAST_APPLIED));
        trim::meta(&mut metadata);
        if let Some(applied) = applied.filter(|applied| applied.len() <= MOST_APPLIED) {
            metadata.annotations.get_or_insert_default().insert(LAST_APPLIED.to_owned(), applied);
        }
        let mut take = |field: &str| data.get_mut(field).map(Value::take).unwrap_or_default();
        let (spec, stored) = (take("spec"), take("status"));
        let spec = if spec.is_null() { Value::Object(serde_json::Map::new()) } else { spec };
        let spec = serde_json::from_value(spec).map_err(|err| Malformed(err.to_string()));
        Self { meta: metadata, spec, status: None, unlike: None }.with_status(stored)
    }

    /// The same with this status.
    pub fn with_status(self, stored: Value) -> Self {
        let status: Option<T> = T::deserialize(&stored).ok();
        let unlike = (written(&status) != stored).then_some(stored);
        Self { status, unlike, ..self }
    }

    /// The status as it is stored.
    pub fn raw_status(&self) -> Cow<'_, Value> {
        self.unlike.as_ref().map_or_else(|| Cow::Owned(written(&self.status)), Cow::Borrowed)
    }
}

fn written(status: &impl Serialize) -> Value {
    serde_json::to_value(status).unwrap_or_default()
}

/// A status in which something may move by itself.
pub trait Still {
    /// Without the time at which a node agent last looked; nothing is decided by what is read of it but its age.
    fn still(&mut self) {}
}

impl Still for InferenceDeploymentStatus {}
impl Still for TenantQuotaStatus {}
impl Still for GpuClassStatus {}
impl Still for InferenceRuntimeStatus {}
impl Still for GpuNodeStatus {
    fn still(&mut self) {
        self.observed_time = None;
    }
}

impl<S, T> Kept for Stored<S, T>
where
    S: Clone + PartialEq,
    T: Clone + PartialEq + Still,
{
    /// [`Stored::read`] has left out what is not kept.
    fn trimmed(self) -> Self {
        self
    }

    fn still(&self) -> Self {
        let mut still = self.clone();
        unversioned(&mut still.meta);
        still.status.iter_mut().for_each(Still::still);
        still.unlike.iter_mut().filter_map(Value::as_object_mut).for_each(|fields| drop(fields.remove("observedTime")));
        still
    }
}

impl<S, T> Stored<S, T> {
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.meta.namespace.as_deref().unwrap_or_default()
    }

    pub fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }

    pub fn generation(&self) -> i64 {
        self.meta.generation.unwrap_or(0)
    }

    pub fn deleting(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    /// Whether the garbage collector is about to take the object off its dependents (`--cascade=orphan`).
    pub fn orphaning(&self) -> bool {
        self.deleting() && self.meta.finalizers.iter().flatten().any(|name| name == ORPHAN_FINALIZER)
    }

    /// Whether the object carries the annotation that skips the drain.
    pub fn forced(&self) -> bool {
        self.annotation(FORCE_DELETE_ANNOTATION) == Some("true")
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.meta.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

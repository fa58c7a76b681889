//! Dereference: everything that belongs to one deployment, picked from the view. No client.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stowage_crds::names::{ANNOTATION_DRAINING, FORCE_DELETE_ANNOTATION};
use stowage_crds::quantity::parse_duration;
use stowage_planner::plan::{Action, Plan};
use stowage_planner::snapshot::DeploymentId;

use super::build::{Owner, Target};
use crate::observe::identity::identity;
use crate::observe::source::Key;
use crate::observe::view::{StoredDeployment, View};
use crate::translate::Built;

/// What `scaling.drainTimeout` is when it cannot be read.
pub const DEFAULT_DRAIN_SECONDS: u64 = 600;

/// One deployment with all that exists for it and all that was decided about it.
#[derive(Debug)]
pub struct Case {
    pub id: DeploymentId,
    pub stored: Arc<StoredDeployment>,
    pub tenant: Option<String>,
    pub pods: Vec<Arc<Pod>>,
    pub claims: Vec<Arc<ResourceClaim>>,
    pub service: Option<Arc<Service>>,
    pub policy: Option<Arc<NetworkPolicy>>,
    /// This deployment's part of the plan, in its order.
    pub actions: Vec<Action>,
    pub charge: Charge,
}

/// What the replicas hold of GPUs, as quota charges it, and what that costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Charge {
    /// Thousandths of a GPU.
    pub gpu_milli: u64,
    /// Millionths of the currency per hour, and the currency; `None`: a class without a price is among them.
    pub per_hour: Option<(u64, String)>,
}

/// All cases of one plan.
pub fn cases<'a>(view: &'a View, built: &'a Built, plan: &Plan) -> impl Iterator<Item = Case> + 'a {
    let mut actions: BTreeMap<DeploymentId, Vec<Action>> = BTreeMap::new();
    for action in &plan.actions {
        actions.entry(action.replica().deployment.clone()).or_default().push(action.clone());
    }
    view.deployments.values().map(move |stored| {
        let id = DeploymentId::new(stored.namespace(), stored.name());
        Case::of(view, stored, built, actions.remove(&id).unwrap_or_default())
    })
}

impl Case {
    fn of(view: &View, stored: &Arc<StoredDeployment>, built: &Built, actions: Vec<Action>) -> Self {
        let key: Key = (stored.namespace().to_owned(), stored.name().to_owned());
        let pods = built.owned.pods(stored.uid()).to_vec();
        Self {
            id: DeploymentId::new(key.0.clone(), key.1.clone()),
            charge: charge(&pods, built),
            pods,
            claims: built.owned.claims(stored.uid()).to_vec(),
            service: view.services.get(&key).cloned(),
            policy: view.policies.get(&key).cloned(),
            tenant: built.tenants.of(stored.namespace()).map(str::to_owned),
            stored: stored.clone(),
            actions,
        }
    }

    pub fn owner(&self) -> Owner<'_> {
        Owner {
            namespace: self.stored.namespace(),
            name: self.stored.name(),
            uid: self.stored.uid(),
            tenant: self.tenant.as_deref(),
        }
    }

    pub fn generation(&self) -> u64 {
        u64::try_from(self.stored.generation()).unwrap_or(0)
    }

    /// Whether a replica's pod or claim is there, whatever state it is in.
    pub fn anything_exists(&self) -> bool {
        !self.pods.is_empty() || !self.claims.is_empty()
    }

    /// Whether the user gave up what is in flight.
    pub fn forced(&self) -> bool {
        forced(&self.stored.meta)
    }

    /// The pod of this name, if it exists and is not only assumed.
    pub fn target(&self, pod: &str) -> Option<Target> {
        let found = self.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod))?;
        Target::of(&found.metadata)
    }

    /// Seconds until the drain of this pod must be over; `None`: it is not draining.
    pub fn drain_left(&self, pod: &str, now: Timestamp) -> Option<u32> {
        let found = self.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod))?;
        let since: Timestamp = found.metadata.annotations.as_ref()?.get(ANNOTATION_DRAINING)?.parse().ok()?;
        let passed = u64::try_from(now.as_second() - since.as_second()).unwrap_or(0);
        u32::try_from(self.drain_seconds().saturating_sub(passed)).ok()
    }

    fn drain_seconds(&self) -> u64 {
        let text = self.stored.spec.as_ref().ok().map(|spec| spec.scaling.drain_timeout.as_str());
        text.and_then(|text| parse_duration(text).ok()).map_or(DEFAULT_DRAIN_SECONDS, |timeout| timeout.as_secs())
    }
}

/// Whether the object carries the annotation that skips the drain.
pub fn forced(meta: &ObjectMeta) -> bool {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(FORCE_DELETE_ANNOTATION));
    annotation.is_some_and(|value| value == "true")
}

fn charge(pods: &[Arc<Pod>], built: &Built) -> Charge {
    let placements = pods.iter().filter_map(|pod| identity(&pod.metadata)?.placement);
    let mut charge = Charge { gpu_milli: 0, per_hour: None };
    for gpu in placements.flat_map(|placement| placement.gpus) {
        let Some(known) = built.gpus.get(&gpu.uuid) else { continue };
        let memory = gpu.memory_bytes.saturating_mul(1000).checked_div(known.memory_bytes).unwrap_or(1000);
        let milli = memory.max(u64::from(gpu.sm_percent) * 10);
        charge.gpu_milli += milli;
        if let Some((micros, currency)) = &known.price {
            let sum = charge.per_hour.get_or_insert((0, currency.clone()));
            sum.0 = sum.0.saturating_add(micros.saturating_mul(milli) / 1000);
        }
    }
    charge
}

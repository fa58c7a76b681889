//! Watches everything that a decision looks at and keeps it in memory, trimmed.
//!
//! Starts one watch per kind and hands out [`View`]s. It decides nothing, and it trusts nothing
//! before every list is complete: an empty list because of an unsynced watch must never look like an
//! empty cluster.

pub mod agents;
pub mod causes;
pub mod clock;
pub mod drains;
pub mod fresh;
pub mod gateways;
pub mod history;
pub mod identity;
pub mod journal;
pub mod parsed;
pub mod signals;
pub mod source;
pub mod takeover;
pub mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource};
use stowage_crds::names::{LABEL_MANAGED_BY, MANAGED_BY};
use stowage_crds::{GpuClass, GpuNode, InferenceDeployment, InferenceRuntime, TenantQuota};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::observe::journal::Journals;
use crate::observe::view::{
    KnownClaim, KnownPod, KnownSlice, Stored, StoredClass, StoredDeployment, StoredGpuNode, StoredQuota, StoredRuntime,
    View,
};
pub use parsed::trim::keeps_annotation;

use parsed::Parsed;
use source::{Kept, Source, Trust, follow};

/// A watch may fail for this long before planning pauses: the API server restarts faster.
const PATIENCE: Duration = Duration::from_secs(15);

/// Objects of one answer to a list: it is in memory as it came, before anything is trimmed.
const PAGE: u32 = 100;

/// All watched kinds.
pub struct Sources {
    pub deployments: Arc<Source<StoredDeployment>>,
    pub quotas: Arc<Source<StoredQuota>>,
    pub classes: Arc<Source<StoredClass>>,
    pub runtimes: Arc<Source<StoredRuntime>>,
    pub gpu_nodes: Arc<Source<StoredGpuNode>>,
    pub nodes: Arc<Source<Node>>,
    pub pods: Arc<Source<KnownPod>>,
    pub claims: Arc<Source<KnownClaim>>,
    pub slices: Arc<Source<KnownSlice>>,
    pub services: Arc<Source<Service>>,
    pub policies: Arc<Source<NetworkPolicy>>,
    pub budgets: Arc<Source<PodDisruptionBudget>>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            deployments: Source::new("inferencedeployments"),
            quotas: Source::new("tenantquotas"),
            classes: Source::new("gpuclasses"),
            runtimes: Source::new("inferenceruntimes"),
            gpu_nodes: Source::new("gpunodes"),
            nodes: Source::new("nodes"),
            pods: Source::new("pods"),
            claims: Source::new("resourceclaims"),
            slices: Source::new("resourceslices"),
            services: Source::new("services"),
            policies: Source::new("networkpolicies"),
            budgets: Source::new("poddisruptionbudgets"),
        }
    }
}

/// Why planning is paused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Frozen {
    #[error("waiting for the first complete list of: {0}")]
    Unsynced(String),
    #[error("the watch of {source_name} has been failing for {} s: {error}", since.as_secs())]
    Failing { source_name: &'static str, since: Duration, error: String },
}

impl Sources {
    /// Starts all watches; they end with the returned set.
    pub fn start(&self, client: &Client, changed: &Arc<Notify>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let all = || Config::default().page_size(PAGE);
        let ours = || all().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        let signal = || changed.clone();
        tasks.spawn(follow(
            custom::<InferenceDeployment>(client),
            all(),
            self.deployments.clone(),
            Stored::read,
            signal(),
        ));
        tasks.spawn(follow(custom::<TenantQuota>(client), all(), self.quotas.clone(), Stored::read, signal()));
        tasks.spawn(follow(custom::<GpuClass>(client), all(), self.classes.clone(), Stored::read, signal()));
        tasks.spawn(follow(custom::<InferenceRuntime>(client), all(), self.runtimes.clone(), Stored::read, signal()));
        tasks.spawn(follow(custom::<GpuNode>(client), all(), self.gpu_nodes.clone(), Stored::read, signal()));
        tasks.spawn(follow(Api::all(client.clone()), all(), self.nodes.clone(), Kept::trimmed, signal()));
        tasks.spawn(follow(Api::<Pod>::all(client.clone()), all(), self.pods.clone(), Parsed::from, signal()));
        tasks.spawn(follow(
            Api::<ResourceClaim>::all(client.clone()),
            all(),
            self.claims.clone(),
            Parsed::from,
            signal(),
        ));
        tasks.spawn(follow(
            Api::<ResourceSlice>::all(client.clone()),
            all(),
            self.slices.clone(),
            KnownSlice::from,
            signal(),
        ));
        tasks.spawn(follow(Api::all(client.clone()), ours(), self.services.clone(), Kept::trimmed, signal()));
        tasks.spawn(follow(Api::all(client.clone()), ours(), self.policies.clone(), Kept::trimmed, signal()));
        tasks.spawn(follow(Api::all(client.clone()), ours(), self.budgets.clone(), Kept::trimmed, signal()));
        tasks
    }

    /// Whether a decision may be made on what is known.
    pub fn trusted(&self, now: Instant) -> Result<(), Frozen> {
        let trusts = self.each(|name, trust, _| (name, trust), now);
        let unsynced: Vec<_> =
            trusts.iter().filter(|(_, trust)| *trust == Trust::Unsynced).map(|(name, _)| *name).collect();
        if !unsynced.is_empty() {
            return Err(Frozen::Unsynced(unsynced.join(", ")));
        }
        for (source_name, trust) in trusts {
            if let Trust::Failing { since, error } = trust
                && since > PATIENCE
            {
                return Err(Frozen::Failing { source_name, since, error });
            }
        }
        Ok(())
    }

    /// Age of the last message about each kind.
    pub fn ages(&self, now: Instant) -> Vec<(&'static str, Option<Duration>)> {
        self.each(|name, _, age| (name, age), now)
    }

    fn each<R>(&self, read: impl Fn(&'static str, Trust, Option<Duration>) -> R, now: Instant) -> Vec<R> {
        let Self {
            deployments,
            quotas,
            classes,
            runtimes,
            gpu_nodes,
            nodes,
            pods,
            claims,
            slices,
            services,
            policies,
            budgets,
        } = self;
        macro_rules! all {
            ($($source:ident),*) => { vec![$(read($source.name, $source.trust(now), $source.age(now))),*] };
        }
        all!(
            deployments,
            quotas,
            classes,
            runtimes,
            gpu_nodes,
            nodes,
            pods,
            claims,
            slices,
            services,
            policies,
            budgets
        )
    }

    /// What the watches show, with the journals laid over it.
    pub fn view(
        &self,
        journals: &Journals,
        agents: std::collections::BTreeMap<String, crate::observe::agents::AgentReport>,
    ) -> View {
        let (mut pods, mut claims) = (self.pods.all(), self.claims.all());
        journals.pods().overlay(&mut pods, &|uid| self.pods.ended(uid));
        journals.claims().overlay(&mut claims, &|uid| self.claims.ended(uid));
        View {
            now: Timestamp::now(),
            deployments: self.deployments.all(),
            quotas: self.quotas.all(),
            classes: self.classes.all(),
            runtimes: self.runtimes.all(),
            gpu_nodes: self.gpu_nodes.all(),
            nodes: self.nodes.all(),
            pods,
            claims,
            slices: self.slices.all(),
            services: self.services.all(),
            policies: self.policies.all(),
            budgets: self.budgets.all(),
            agents,
            ..View::default()
        }
    }
}

/// Untyped, because a malformed object must not stop the watch of its kind.
fn custom<K: Resource<DynamicType = ()>>(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

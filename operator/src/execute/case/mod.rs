//! Everything that belongs to one deployment, picked from the view once. No client.

pub mod rest;

use std::collections::btree_map::Iter;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use stowage_contracts::charge::gpu_milli;
use stowage_contracts::hub::HubModel;
use stowage_contracts::model::ClaimModel;
use stowage_contracts::summary::ModelFetch;
use stowage_crds::names::{ANNOTATION_DRAIN_UNTIL, ANNOTATION_DRAINING, shared_name};
use stowage_planner::DecisionReport;
use stowage_planner::demand::bottleneck::Verdict;
use stowage_planner::plan::{Action, Plan};
use stowage_planner::render::gpus;
use stowage_planner::snapshot::{Deployment, DeploymentId, Gpu, Phase, Replica, Slice, SliceOwner};

use crate::execute::build::claim::model_of;
use crate::execute::build::{Owner, Target};
use crate::observe::agents::AgentReport;
use crate::observe::drains::DrainState;
use crate::observe::identity::{Belongs, belongs};
use crate::observe::source::Key;
use crate::observe::view::{KnownClaim, KnownPod, Objects, StoredDeployment, View};
use crate::translate::Built;
use crate::translate::preloads::Held;
use crate::translate::snapshot::changed::changed;
use crate::translate::snapshot::owned::Orphans;
use crate::translate::validate::{Judged, Wanted};

/// One deployment with all that exists for it and all that was decided about it.
#[derive(Debug)]
pub struct Case {
    pub id: DeploymentId,
    pub stored: Arc<StoredDeployment>,
    pub judged: Arc<Judged>,
    pub tenant: Option<String>,
    /// Deleted with `--cascade=orphan`: its pods and claims are to outlive it.
    pub orphaning: bool,
    pub pods: Vec<Arc<KnownPod>>,
    pub claims: Vec<Arc<KnownClaim>>,
    /// Pods and claims of an earlier deployment of this name, to be adopted.
    pub orphans: Orphans,
    pub service: Option<Arc<Service>>,
    pub policy: Option<Arc<NetworkPolicy>>,
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Replicas that the plan wants; what the spec says where the planner did not consider the deployment.
    pub replicas: u32,
    /// This deployment's part of the plan, in its order.
    pub actions: Vec<Action>,
    pub charge: Charge,
    /// The tenant holds more of a class that the deployment uses than its quota allows: what that means.
    pub over_quota: Option<String>,
    /// Models that its claims wait for, with the node that fetches each.
    pub fetches: Vec<(String, ModelFetch)>,
    /// What is known of the requests on its draining pods.
    pub drains: Vec<Drain>,
    /// Who may read its engines' metrics.
    pub scrapers: Arc<Vec<NetworkPolicyPeer>>,
    /// Within which a replica starts, where enough starts were measured.
    pub cold_start: Option<Duration>,
    /// The commit that an agent resolved for the spec's revision, where the status has none yet.
    pub commit: Option<String>,
    /// What limits it.
    pub bottleneck: Verdict,
    /// What of `model.preload` is on nodes; `None`: nothing is asked for, or nothing can be fetched ahead yet.
    pub preloaded: Option<Held>,
}

/// A pod that drains and is not deleted yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    pub pod: String,
    pub since: Timestamp,
    pub state: DrainState,
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
pub fn cases<'a>(
    view: &'a View,
    built: &'a Built,
    plan: &Plan,
    report: &DecisionReport,
) -> impl Iterator<Item = Case> + 'a {
    let mut actions: HashMap<DeploymentId, Vec<Action>> = HashMap::new();
    for action in &plan.actions {
        actions.entry(action.replica().deployment.clone()).or_default().push(action.clone());
    }
    let reported = report.deployments.iter().map(|report| (report.deployment.clone(), report.counts.wanted));
    let reported: HashMap<DeploymentId, u32> = reported.collect();
    let (mut charges, over) = (charges(built), over_quota(built));
    let mut cold_starts = cold_starts(built);
    let replicas: HashMap<&DeploymentId, &[Replica]> =
        built.snapshot.deployments.iter().map(|d| (&d.id, d.replicas.as_slice())).collect();
    let fetching = Fetching::read(&view.agents);
    let (mut services, mut policies, mut budgets) =
        (Named::new(&view.services), Named::new(&view.policies), Named::new(&view.budgets));
    view.deployments.values().map(move |stored| {
        let id = DeploymentId::new(stored.namespace(), stored.name());
        let judged = built.judged.get(&id).cloned().unwrap_or_else(|| Arc::new(Judged::unknown()));
        let in_spec = || judged.wanted().map_or(0, |wanted| wanted.deployment.replicas);
        let claims = built.owned.claims(stored.uid());
        Case {
            fetches: fetching.of(claims),
            drains: drains(view, built.owned.pods(stored.uid()), replicas.get(&id).copied().unwrap_or_default()),
            scrapers: view.scrapers.clone(),
            commit: judged.wanted().and_then(|wanted| commit(view, claims, wanted.unresolved()?)),
            replicas: reported.get(&id).copied().unwrap_or_else(in_spec),
            tenant: built.tenants.of(stored.namespace()).map(str::to_owned),
            orphaning: built.orphaning.contains(stored.uid()),
            pods: built.owned.pods(stored.uid()).to_vec(),
            claims: claims.to_vec(),
            orphans: built.owned.orphans(&id),
            service: services.ours(&id, stored),
            policy: policies.ours(&id, stored),
            budget: budgets.ours(&id, stored),
            actions: actions.remove(&id).unwrap_or_default(),
            charge: charges.remove(&id).unwrap_or_default(),
            bottleneck: Verdict::default(),
            preloaded: None,
            cold_start: cold_starts.remove(&id),
            over_quota: built
                .tenants
                .of(stored.namespace())
                .and_then(|tenant| judged.wanted()?.classes().find_map(|class| over.get(&(tenant, class)).cloned())),
            judged,
            stored: stored.clone(),
            id,
        }
    })
}

fn cold_starts(built: &Built) -> HashMap<DeploymentId, Duration> {
    let measured = |d: &Deployment| Some((d.id.clone(), Duration::from_millis(d.signals.cold_start.measured_ms()?)));
    built.snapshot.deployments.iter().filter_map(|d| measured(d)).collect()
}

/// What agents fetch, in the order of nodes; and which of it for a claim, by its UID.
struct Fetching<'a> {
    all: Vec<(&'a str, &'a ModelFetch)>,
    claims: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Fetching<'a> {
    fn read(agents: &'a BTreeMap<String, AgentReport>) -> Self {
        let of_node = |(node, report): (&'a String, &'a AgentReport)| {
            report.fetches.iter().map(move |fetch| (node.as_str(), fetch))
        };
        let all: Vec<_> = agents.iter().flat_map(of_node).collect();
        let mut claims: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, (_, fetch)) in all.iter().enumerate() {
            fetch.claims.iter().for_each(|uid| claims.entry(uid).or_default().push(at));
        }
        Self { all, claims }
    }

    /// For these claims. Their UIDs decide, whatever an agent says of names.
    fn of(&self, claims: &[Arc<KnownClaim>]) -> Vec<(String, ModelFetch)> {
        let uids = claims.iter().filter_map(|claim| claim.metadata.uid.as_deref());
        let found: BTreeSet<usize> = uids.filter_map(|uid| self.claims.get(uid)).flatten().copied().collect();
        found.into_iter().map(|at| self.all[at]).map(|(node, fetch)| (node.to_owned(), fetch.clone())).collect()
    }
}

/// Of the replicas that drain by the snapshot, whose times follow a clock that was set.
fn drains(view: &View, pods: &[Arc<KnownPod>], replicas: &[Replica]) -> Vec<Drain> {
    let drain = |replica: &Replica| {
        let Phase::Draining { since_ms, .. } = replica.phase else { return None };
        let pod = pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(&replica.name))?;
        let since = Timestamp::from_millisecond(i64::try_from(since_ms).ok()?).ok()?;
        let state = view.gateways.drains.of(pod.metadata.uid.as_deref()?, since_ms);
        Some(Drain { pod: replica.name.clone(), since, state })
    };
    replicas.iter().filter_map(drain).collect()
}

/// The commit that an agent resolved for a claim of this very repository and revision.
fn commit(view: &View, claims: &[Arc<KnownClaim>], wanted: &HubModel) -> Option<String> {
    let asks = |claim: &&Arc<KnownClaim>| model_of(claim).is_some_and(|model| model == ClaimModel::Hub(wanted.clone()));
    let uids: Vec<&str> = claims.iter().filter(asks).filter_map(|claim| claim.metadata.uid.as_deref()).collect();
    let resolved = |report: &AgentReport| uids.iter().find_map(|uid| report.commits.get(*uid).cloned());
    view.agents.values().find_map(resolved)
}

/// Objects of one kind that replicas share; they mostly follow one another as their deployments do.
struct Named<'a, K> {
    all: &'a Objects<K>,
    next: Peekable<Iter<'a, Key, Arc<K>>>,
}

impl<'a, K: Resource> Named<'a, K> {
    fn new(all: &'a Objects<K>) -> Self {
        Self { all, next: all.iter().peekable() }
    }

    /// The deployment's, if it exists and is ours or an orphan of ours.
    fn ours(&mut self, id: &DeploymentId, stored: &StoredDeployment) -> Option<Arc<K>> {
        let key: Key = (id.namespace.clone(), shared_name(&id.name));
        while self.next.next_if(|(at, _)| **at < key).is_some() {}
        let next = self.next.next_if(|(at, _)| **at == key).map(|(_, found)| found);
        let found = next.or_else(|| self.all.get(&key))?;
        matches!(belongs(found.meta(), id, stored.uid()), Belongs::Ours | Belongs::Orphan).then(|| found.clone())
    }
}

/// Tenant and class of which more is held than the quota allows, with the message for people. A quota
/// that is lowered ends nothing that runs. A replica whose replacement exists is not counted beside it.
fn over_quota(built: &Built) -> BTreeMap<(&str, &str), String> {
    let limit = |(name, class): (&str, &str)| {
        let tenant = built.snapshot.tenants.iter().find(|tenant| tenant.id.0 == name)?;
        let Some(quota) = tenant.quotas.iter().find(|quota| quota.class == class) else { return Some(0) };
        let borrowed = if tenant.cohort.is_some() { quota.borrowing_limit_milli? } else { 0 };
        Some(quota.nominal_milli.saturating_add(borrowed))
    };
    let exceeds = |(key, held): (&(&str, &str), &u64)| limit(*key).is_some_and(|limit| held > &limit);
    let all = held(built, |_| true);
    if !all.iter().any(exceeds) {
        return BTreeMap::new();
    }
    let latest = latest_lives(built);
    let replaced = |owner: &SliceOwner| matches!(owner, SliceOwner::Replica(id) if latest.get(&(&id.deployment, id.index)) > Some(&id.incarnation));
    let mut over = BTreeMap::new();
    for ((tenant, class), held) in held(built, |slice| !replaced(&slice.owner)) {
        let Some(limit) = limit((tenant, class)).filter(|limit| held > *limit) else { continue };
        let message = format!(
            "{tenant} holds {} {class} and may hold {}: what runs stays, and a replica that ends is not replaced before \
             less is held. Raise spec.gpus of TenantQuota {tenant}, or scale in.",
            gpus(held),
            gpus(limit)
        );
        over.insert((tenant, class), message);
    }
    over
}

/// Of each tenant and class, what the slices that count cost, in thousandths of a GPU.
fn held(built: &Built, counts: impl Fn(&Slice) -> bool) -> BTreeMap<(&str, &str), u64> {
    let mut held: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for gpu in built.snapshot.nodes.iter().flat_map(|node| &node.gpus) {
        let Some(class) = &gpu.class else { continue };
        for slice in gpu.slices.iter().filter(|slice| counts(slice)) {
            let Some(tenant) = &slice.tenant else { continue };
            let sum = held.entry((&tenant.0, class)).or_default();
            *sum = sum.saturating_add(charge(gpu, slice));
        }
    }
    held
}

/// The latest life of each replica slot that has a pod.
fn latest_lives(built: &Built) -> HashMap<(&DeploymentId, u32), u32> {
    let mut latest = HashMap::new();
    for deployment in &built.snapshot.deployments {
        for replica in &deployment.replicas {
            let life = latest.entry((&deployment.id, replica.index)).or_insert(replica.incarnation);
            *life = replica.incarnation.max(*life);
        }
    }
    latest
}

/// By deployment, from what is promised on the GPUs: a pod's own annotations are not asked.
fn charges(built: &Built) -> HashMap<&DeploymentId, Charge> {
    let mut charges: HashMap<&DeploymentId, Charge> = HashMap::new();
    for gpu in built.snapshot.nodes.iter().flat_map(|node| &node.gpus) {
        let price = gpu.class.as_ref().and_then(|class| built.classes.price(class));
        for slice in &gpu.slices {
            let SliceOwner::Replica(replica) = &slice.owner else { continue };
            let milli = charge(gpu, slice);
            let charge = charges.entry(&replica.deployment).or_default();
            charge.gpu_milli = charge.gpu_milli.saturating_add(milli);
            if let Some((micros, currency)) = price {
                let sum = charge.per_hour.get_or_insert((0, currency.clone()));
                sum.0 = sum.0.saturating_add(micros.saturating_mul(milli) / 1000);
            }
        }
    }
    charges
}

/// What the slice costs, in thousandths of a GPU.
fn charge(gpu: &Gpu, slice: &Slice) -> u64 {
    gpu_milli(slice.promise.memory_bytes, gpu.memory_bytes, slice.promise.sm_percent, gpu.sm_percent)
}

impl Case {
    /// What was changed of the pod of this name after it was created.
    pub fn changed(&self, pod: &str) -> Option<String> {
        let found = self.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod))?;
        changed(found, self.wanted())
    }

    pub fn owner(&self) -> Owner<'_> {
        Owner {
            namespace: self.stored.namespace(),
            name: self.stored.name(),
            uid: self.stored.uid(),
            tenant: self.tenant.as_deref(),
        }
    }

    /// What the spec asks for; `None`: it was refused.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.judged.wanted()
    }

    pub fn generation(&self) -> u64 {
        u64::try_from(self.stored.generation()).unwrap_or(0)
    }

    /// Whether a replica's pod or claim is there, whatever state it is in.
    pub fn anything_exists(&self) -> bool {
        !self.pods.is_empty() || !self.claims.is_empty()
    }

    /// The pod of this name, if it exists and is not only assumed.
    pub fn target(&self, pod: &str) -> Option<Target> {
        let found = self.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod))?;
        Target::of(&found.metadata)
    }

    /// Seconds until the drain of this pod must be over; `None`: it is not draining.
    pub fn drain_left(&self, pod: &str, now: Timestamp) -> Option<u32> {
        let found = self.pods.iter().find(|found| found.metadata.name.as_deref() == Some(pod))?;
        let annotations = found.metadata.annotations.as_ref()?;
        let since: Timestamp = annotations.get(ANNOTATION_DRAINING)?.parse().ok()?;
        if let Some(until) = annotations.get(ANNOTATION_DRAIN_UNTIL).and_then(|text| text.parse::<Timestamp>().ok()) {
            return Some(u32::try_from(until.as_second() - now.as_second()).unwrap_or(0));
        }
        let passed = u64::try_from(now.as_second() - since.as_second()).unwrap_or(0);
        u32::try_from(self.judged.standing.drain_timeout.as_secs().saturating_sub(passed)).ok()
    }
}

//! What the gateway knows of tenants, keys, models and replicas: one immutable snapshot.
//!
//! [`Facts`] are what the watches (or a static file, or a test) deliver, object by object.
//! [`World::build`] judges them together: which tenant owns a namespace, which deployment answers to
//! a model's name, which replica may be routed to and why not. A request reads one `World` from
//! beginning to end, and a changed fact makes a new one. No I/O, no clock.
//!
//! Conflicts have one rule: the older object keeps what both claim, ties go by name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stowage_planner::route::Refusal;

use crate::listen::credentials::{KeyHash, KeyTable, cache_salt};

/// How long a request waits for a model without a ready replica, where its deployment does not say.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(120);
/// How many requests wait so, where the deployment does not say.
pub const DEFAULT_MAX_HELD: usize = 200;

/// Everything observed, not yet judged.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    pub quotas: Vec<QuotaFact>,
    /// By Secret name: (name of the key, hash).
    pub secrets: BTreeMap<String, Vec<(String, KeyHash)>>,
    pub deployments: Vec<DeploymentFact>,
    pub pods: Vec<PodFact>,
    /// UUIDs of GPUs on which no work may run.
    pub unhealthy_gpus: HashSet<String>,
}

/// A TenantQuota, as far as the data plane reads it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct QuotaFact {
    pub name: String,
    /// Seconds since the epoch; the older object wins.
    pub created: i64,
    pub namespaces: Vec<String>,
    pub key_secrets: Vec<String>,
    pub limits: TokenLimits,
}

/// `TenantQuota.spec.tokens`; `None` is unlimited.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct TokenLimits {
    pub per_minute: Option<u64>,
    /// Time's worth of `per_minute` that may be used at once.
    pub burst: Option<Duration>,
    pub max_concurrent: Option<u32>,
    pub max_queued: Option<u32>,
}

/// An InferenceDeployment, as far as the data plane reads it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct DeploymentFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: i64,
    pub model: String,
    pub access: Vec<String>,
    pub hold: Option<Duration>,
    pub max_held: Option<usize>,
    /// Nobody will start a replica: Manual mode with `replicas: 0`.
    pub switched_off: bool,
    /// Its deletion has begun: what runs there ends well, nothing new begins.
    pub deleting: bool,
    pub max_model_len: Option<u32>,
}

/// A pod of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct PodFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deployment: String,
    /// Uid of the owning InferenceDeployment; `None` where the source has none (static files).
    pub owner_uid: Option<String>,
    /// `None` until the pod has an address.
    pub address: Option<SocketAddr>,
    pub ready: bool,
    /// Being deleted, or annotated as draining.
    pub draining: bool,
    /// Uuids of the GPUs that it was placed on.
    pub gpus: Vec<String>,
}

/// Namespace and name of an InferenceDeployment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentKey {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for DeploymentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who pays, and within which limits.
#[derive(Debug, PartialEq)]
pub struct Tenant {
    pub name: Arc<str>,
    /// Sent to engines; keeps prefix caches apart.
    pub salt: String,
    pub limits: TokenLimits,
}

/// One servable model and its replicas.
#[derive(Debug, PartialEq)]
pub struct Deployment {
    pub key: DeploymentKey,
    pub model: Arc<str>,
    pub tenant: Arc<str>,
    pub created: i64,
    pub access: Vec<String>,
    pub hold: Duration,
    pub max_held: usize,
    pub switched_off: bool,
    /// Gone for new requests; those that wait are served while a replica takes them.
    pub deleting: bool,
    pub max_model_len: Option<u32>,
    /// Ordered by pod name.
    pub replicas: Vec<ReplicaFact>,
}

/// A replica that has an address and was ready, or is.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaFact {
    pub pod: String,
    pub uid: String,
    pub address: SocketAddr,
    /// Why the cluster's state keeps it out of routing.
    pub refused: Option<Refusal>,
}

/// The snapshot.
#[derive(Debug, Default)]
pub struct World {
    pub keys: KeyTable,
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
    /// By owner and model name.
    own: HashMap<(Arc<str>, Arc<str>), Arc<Deployment>>,
    pub deployments: Vec<Arc<Deployment>>,
    /// What was found contradictory; logged when it changes.
    pub complaints: Vec<String>,
}

// === impl World ===

impl World {
    /// Judges the facts together.
    pub fn build(facts: &Facts) -> Self {
        let mut world = Self::default();
        let namespaces = world.add_tenants(facts);
        world.add_deployments(facts, &namespaces);
        world
    }

    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// The deployment that `model` means to `tenant`: its own first, then the oldest that lists it
    /// in `access`. Anything else does not exist for that tenant.
    pub fn resolve(&self, tenant: &Arc<str>, model: &str) -> Option<&Arc<Deployment>> {
        let own = self.own.get(&(tenant.clone(), Arc::from(model)));
        own.or_else(|| self.deployments.iter().find(|d| &*d.model == model && d.lists(tenant) && !d.deleting))
    }

    /// What the tenant may call, by model name; one entry per name, the one that [`Self::resolve`] finds.
    pub fn callable(&self, tenant: &Arc<str>) -> BTreeMap<Arc<str>, Arc<Deployment>> {
        let mut models = BTreeMap::new();
        for deployment in &self.deployments {
            if (deployment.tenant == *tenant || deployment.lists(tenant))
                && let Some(found) = self.resolve(tenant, &deployment.model)
            {
                models.insert(deployment.model.clone(), found.clone());
            }
        }
        models
    }

    /// Returns the owner of each namespace.
    fn add_tenants(&mut self, facts: &Facts) -> HashMap<String, Arc<str>> {
        let mut quotas: Vec<_> = facts.quotas.iter().collect();
        quotas.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        let mut owners: HashMap<String, Arc<str>> = HashMap::new();
        for quota in quotas {
            let name: Arc<str> = quota.name.as_str().into();
            for namespace in &quota.namespaces {
                let owner = owners.entry(namespace.clone()).or_insert_with(|| name.clone());
                if *owner != name {
                    self.complaints
                        .push(format!("namespace {namespace} stays with tenant {owner}; {name} claims it too"));
                }
            }
            self.add_keys(facts, quota, &name);
            let tenant = Tenant { name: name.clone(), salt: cache_salt(&name), limits: quota.limits.clone() };
            self.tenants.insert(name, Arc::new(tenant));
        }
        owners
    }

    fn add_keys(&mut self, facts: &Facts, quota: &QuotaFact, tenant: &Arc<str>) {
        for secret in &quota.key_secrets {
            let Some(keys) = facts.secrets.get(secret) else {
                self.complaints.push(format!("tenant {tenant} names the key Secret {secret}, which is not there"));
                continue;
            };
            for (name, hash) in keys {
                if !self.keys.insert(*hash, tenant.clone()) {
                    self.complaints.push(format!(
                        "key {name} of Secret {secret} belongs to another tenant already, not to {tenant}"
                    ));
                }
            }
        }
    }

    fn add_deployments(&mut self, facts: &Facts, owners: &HashMap<String, Arc<str>>) {
        let mut pods: HashMap<(&str, &str), Vec<&PodFact>> = HashMap::new();
        for pod in &facts.pods {
            pods.entry((&pod.namespace, &pod.deployment)).or_default().push(pod);
        }
        let mut wanted: Vec<_> = facts.deployments.iter().collect();
        wanted.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
        for fact in wanted {
            // A namespace without a tenant has no one who could be asked for a key.
            let Some(tenant) = owners.get(&fact.namespace) else { continue };
            let pods = pods.remove(&(fact.namespace.as_str(), fact.name.as_str())).unwrap_or_default();
            let deployment = Arc::new(deployment(fact, tenant.clone(), &pods, &facts.unhealthy_gpus));
            let name = (tenant.clone(), deployment.model.clone());
            if deployment.deleting {
                // Its name is free for the next one.
            } else if let Some(first) = self.own.get(&name) {
                self.complaints.push(format!(
                    "model {} of tenant {tenant} is served by {}; {} has the same name and gets no requests",
                    name.1, first.key, deployment.key
                ));
            } else {
                self.own.insert(name, deployment.clone());
            }
            self.deployments.push(deployment);
        }
    }
}

impl Deployment {
    fn lists(&self, tenant: &str) -> bool {
        self.access.iter().any(|name| name == tenant)
    }
}

fn deployment(fact: &DeploymentFact, tenant: Arc<str>, pods: &[&PodFact], unhealthy: &HashSet<String>) -> Deployment {
    let mut replicas: Vec<_> = pods.iter().filter_map(|pod| replica(fact, pod, unhealthy)).collect();
    replicas.sort_by(|a, b| a.pod.cmp(&b.pod));
    Deployment {
        key: DeploymentKey { namespace: fact.namespace.clone(), name: fact.name.clone() },
        model: fact.model.as_str().into(),
        tenant,
        created: fact.created,
        access: fact.access.clone(),
        hold: fact.hold.unwrap_or(DEFAULT_HOLD),
        max_held: fact.max_held.unwrap_or(DEFAULT_MAX_HELD),
        switched_off: fact.switched_off,
        deleting: fact.deleting,
        max_model_len: fact.max_model_len,
        replicas,
    }
}

/// `None` for pods that never were replicas: of another object with the same name, without an
/// address, not ready. A draining pod stays listed, so that what runs there is still accounted.
fn replica(fact: &DeploymentFact, pod: &PodFact, unhealthy: &HashSet<String>) -> Option<ReplicaFact> {
    if pod.owner_uid.as_ref().is_some_and(|owner| *owner != fact.uid) {
        return None;
    }
    let address = pod.address?;
    let sick = pod.gpus.iter().any(|gpu| unhealthy.contains(gpu));
    let refused = if pod.draining {
        Some(Refusal::Draining)
    } else if sick {
        Some(Refusal::UnhealthyDevice)
    } else if !pod.ready {
        return None;
    } else {
        None
    };
    Some(ReplicaFact { pod: pod.name.clone(), uid: pod.uid.clone(), address, refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::credentials::hash_key;

    fn quota(name: &str, created: i64, namespaces: &[&str]) -> QuotaFact {
        QuotaFact {
            name: name.into(),
            created,
            namespaces: namespaces.iter().map(|n| (*n).into()).collect(),
            key_secrets: vec![format!("{name}-keys")],
            limits: TokenLimits::default(),
        }
    }

    fn deployment(namespace: &str, name: &str, model: &str, created: i64) -> DeploymentFact {
        DeploymentFact {
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("{namespace}-{name}"),
            created,
            model: model.into(),
            ..DeploymentFact::default()
        }
    }

    fn pod(deployment: &DeploymentFact, name: &str) -> PodFact {
        PodFact {
            namespace: deployment.namespace.clone(),
            name: name.into(),
            uid: name.into(),
            deployment: deployment.name.clone(),
            owner_uid: Some(deployment.uid.clone()),
            address: Some(([10, 0, 0, 1], 8000).into()),
            ready: true,
            draining: false,
            gpus: Vec::new(),
        }
    }

    fn two_tenants() -> Facts {
        let keys = |tenant: &str| (format!("{tenant}-keys"), vec![("k".into(), hash_key(&format!("sk-{tenant}")))]);
        Facts {
            quotas: vec![quota("a", 1, &["a"]), quota("b", 2, &["b"])],
            secrets: [keys("a"), keys("b")].into(),
            deployments: vec![deployment("a", "chat", "m", 1), deployment("b", "own", "only-b", 2)],
            ..Facts::default()
        }
    }

    fn found(world: &World, tenant: &str, model: &str) -> Option<String> {
        world.resolve(&tenant.into(), model).map(|d| d.key.to_string())
    }

    fn names(world: &World, tenant: &str) -> Vec<String> {
        world.callable(&tenant.into()).keys().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_tenant_sees_its_own_models_and_no_others() {
        let world = World::build(&two_tenants());
        assert_eq!(found(&world, "a", "m").as_deref(), Some("a/chat"));
        assert_eq!(found(&world, "b", "m"), None);
        assert_eq!((names(&world, "a"), names(&world, "b")), (vec!["m".into()], vec!["only-b".into()]));
        assert_eq!(world.keys.tenant_of("sk-a").map(|t| &**t), Some("a"));
    }

    #[test]
    fn access_shares_a_model_and_an_own_model_of_that_name_goes_first() {
        let mut facts = two_tenants();
        facts.deployments[0].access = vec!["b".into()];
        let world = World::build(&facts);
        assert_eq!(found(&world, "b", "m").as_deref(), Some("a/chat"));
        assert_eq!(names(&world, "b"), ["m", "only-b"]);
        facts.deployments.push(deployment("b", "mine", "m", 9));
        let world = World::build(&facts);
        assert_eq!(found(&world, "b", "m").as_deref(), Some("b/mine"));
        assert_eq!(found(&world, "a", "m").as_deref(), Some("a/chat"));
        assert_eq!(names(&world, "b"), ["m", "only-b"]);
    }

    #[test]
    fn the_older_tenant_keeps_a_contested_namespace() {
        let mut facts = two_tenants();
        facts.quotas[1].namespaces.push("a".into());
        facts.quotas.reverse();
        let world = World::build(&facts);
        assert_eq!(found(&world, "a", "m").as_deref(), Some("a/chat"));
        assert_eq!(found(&world, "b", "m"), None);
        assert_eq!(world.complaints.len(), 1, "{:?}", world.complaints);
    }

    #[test]
    fn of_two_deployments_with_one_model_name_the_older_serves() {
        let mut facts = two_tenants();
        facts.deployments.push(deployment("a", "chat2", "m", 0));
        let world = World::build(&facts);
        assert_eq!(found(&world, "a", "m").as_deref(), Some("a/chat2"));
        assert_eq!(world.complaints.len(), 1);
    }

    #[test]
    fn a_deployment_being_deleted_is_gone_for_new_requests_and_frees_its_name() {
        let mut facts = two_tenants();
        facts.deployments[0].deleting = true;
        facts.deployments[0].access = vec!["b".into()];
        let world = World::build(&facts);
        assert_eq!((found(&world, "a", "m"), found(&world, "b", "m")), (None, None));
        assert_eq!((names(&world, "a"), world.deployments.len()), (vec![], 2));
        facts.deployments.push(deployment("a", "chat2", "m", 9));
        assert_eq!(found(&World::build(&facts), "a", "m").as_deref(), Some("a/chat2"));
    }

    #[test]
    fn a_namespace_without_a_tenant_serves_nobody() {
        let mut facts = two_tenants();
        facts.quotas.remove(0);
        let world = World::build(&facts);
        assert!(world.deployments.iter().all(|d| d.key.namespace != "a"));
        assert_eq!(world.keys.tenant_of("sk-a"), None);
    }

    #[test]
    fn replicas_are_the_ready_pods_of_this_very_object() {
        let mut facts = two_tenants();
        facts.unhealthy_gpus = ["GPU-1".to_string()].into();
        let of = &facts.deployments[0];
        facts.pods = vec![
            pod(of, "fine"),
            PodFact { gpus: vec!["GPU-1".into()], ..pod(of, "sick") },
            PodFact { draining: true, ready: false, ..pod(of, "leaving") },
            PodFact { ready: false, ..pod(of, "starting") },
            PodFact { address: None, ..pod(of, "unborn") },
            PodFact { owner_uid: Some("another".into()), ..pod(of, "predecessor") },
            PodFact { namespace: "b".into(), ..pod(of, "stranger") },
        ];
        let world = World::build(&facts);
        let replicas: Vec<_> = world.deployments[0].replicas.iter().map(|r| (r.pod.as_str(), r.refused)).collect();
        let expected = [("fine", None), ("leaving", Some(Refusal::Draining)), ("sick", Some(Refusal::UnhealthyDevice))];
        assert_eq!(replicas, expected);
    }
}

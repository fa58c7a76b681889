//! What the gateway knows of tenants, keys, models and replicas: one immutable snapshot.
//!
//! [`World::build`] judges the [`Facts`] together: which tenant owns a namespace, which deployment answers
//! to a model's name, which replica may be routed to and why not. A request reads one `World` from
//! beginning to end, and a changed fact makes a new one. No I/O, no clock.
//!
//! Conflicts have one rule: the older object keeps what both claim, ties go by name.
//!
//! **Names of models.** A tenant cannot make another tenant's requests come to it. A bare name means the
//! caller's own deployment, or one of a tenant that the platform listed in the caller's TenantQuota. Any model
//! whose owner shares it is called `<tenant>/<model>`. A name that one deployment of the caller holds is never
//! looked up elsewhere, not even while that deployment is being deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stowage_contracts::hold::default_hold;
use stowage_contracts::names::{CACHE_KEY_ENTRY, CACHE_KEY_SECRET, SYSTEM_NAMESPACE};
use stowage_contracts::signals::{Fault, KeyFault};
use stowage_contracts::tenancy::{NamespaceClaim, Tenancy};
use stowage_planner::route::Refusal;

use crate::listen::credentials::KeyTable;
use crate::world::facts::{DeploymentFact, Facts, PodFact, QuotaFact, TokenLimits};
use crate::world::salt::SaltKey;

/// How many requests wait for a model without a ready replica, where its deployment sets no bound.
pub const DEFAULT_MAX_HELD: usize = 200;

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

/// The tenant that pays, and its limits.
#[derive(Debug, PartialEq)]
pub struct Tenant {
    pub name: Arc<str>,
    /// Tenants whose shared models are found by their bare names, in this order.
    models_from: Vec<Arc<str>>,
    pub limits: TokenLimits,
}

/// One servable model and its replicas.
#[derive(Debug, PartialEq)]
pub struct Deployment {
    pub key: DeploymentKey,
    pub uid: String,
    pub model: Arc<str>,
    pub tenant: Arc<str>,
    pub created: i64,
    pub access: Vec<String>,
    pub hold: Duration,
    pub max_held: usize,
    /// Within which a replica starts; `None`: not measured.
    pub cold_start: Option<Duration>,
    pub switched_off: bool,
    /// Gone for new requests; those that wait are served while a replica takes them.
    pub deleting: bool,
    pub max_model_len: Option<u32>,
    /// Time to first token and between tokens; `None`: nothing is promised.
    pub objectives: Option<(Duration, Duration)>,
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

/// Which deployments have one model name of one tenant.
#[derive(Debug)]
enum Held {
    Serving(Arc<Deployment>),
    /// Deployments whose deletion has begun, and no other.
    Deleting,
}

/// The snapshot.
#[derive(Debug, Default)]
pub struct World {
    pub keys: KeyTable,
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
    /// By owner and model name.
    held: HashMap<(Arc<str>, Arc<str>), Held>,
    pub deployments: Vec<Arc<Deployment>>,
    /// Contradictions between objects; logged when they change.
    pub complaints: Vec<String>,
    /// API keys that give no client access, sorted.
    pub key_faults: Vec<KeyFault>,
    /// UIDs of pods that drain or are being deleted, of whichever deployment: nothing new is sent there.
    pub draining: BTreeSet<String>,
    /// The key of the salts. Without one a tenant uses its own models only.
    pub salt_key: Option<SaltKey>,
}

// === impl World ===

impl World {
    /// Judges the facts together.
    pub fn build(facts: &Facts) -> Self {
        let mut world = Self::default();
        let tenancy = world.add_tenants(facts);
        world.add_deployments(facts, &tenancy);
        if facts.salt_key.is_none() && world.deployments.iter().any(|deployment| !deployment.access.is_empty()) {
            world.complaints.push(format!(
                "models are not shared between tenants: the Secret {CACHE_KEY_SECRET} in {SYSTEM_NAMESPACE} is missing, or its `{CACHE_KEY_ENTRY}` has fewer than 32 bytes"
            ));
        }
        world.key_faults.sort();
        world.salt_key = facts.salt_key.clone();
        let draining = facts.pods.iter().filter(|pod| pod.draining && !pod.uid.is_empty());
        world.draining = draining.map(|pod| pod.uid.clone()).collect();
        let faults = world.key_faults.iter().map(|fault| format!("tenant {}: {fault}", fault.tenant));
        world.complaints.extend(faults);
        world
    }

    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// What keeps the caller's cached prefixes apart in the deployment's engines. `None` without a key.
    pub fn salt(&self, deployment: &Deployment, caller: &Tenant) -> Option<String> {
        self.salt_key.as_ref().map(|key| key.salt(&deployment.tenant, &caller.name))
    }

    /// The deployment that `model` means to `tenant`. What is not found does not exist for that tenant.
    pub fn resolve(&self, tenant: &Arc<str>, model: &str) -> Option<&Arc<Deployment>> {
        if let Some(own) = self.held(tenant, model) {
            return own.serving();
        }
        let from = self.tenants.get(tenant).map(|tenant| &tenant.models_from[..]).unwrap_or_default();
        if let Some(shared) = from.iter().find_map(|owner| self.shared(owner, model, tenant)) {
            return Some(shared);
        }
        let (owner, model) = model.split_once('/')?;
        self.shared(&Arc::from(owner), model, tenant)
    }

    /// What the tenant may call, by each name that [`Self::resolve`] finds it by.
    pub fn callable(&self, tenant: &Arc<str>) -> BTreeMap<String, Arc<Deployment>> {
        let usable = self.deployments.iter().filter(|d| d.tenant == *tenant || d.lists(tenant));
        let names = usable.flat_map(|d| {
            let qualified = (d.tenant != *tenant).then(|| format!("{}/{}", d.tenant, d.model));
            [Some(d.model.to_string()), qualified].into_iter().flatten()
        });
        let named = names.filter_map(|name| self.resolve(tenant, &name).map(|found| (name, found.clone())));
        named.collect()
    }

    /// The holder of `owner`'s name, when it shares it with `caller`.
    fn shared(&self, owner: &Arc<str>, model: &str, caller: &Arc<str>) -> Option<&Arc<Deployment>> {
        let found = self.held(owner, model)?.serving()?;
        (found.tenant == *caller || found.lists(caller)).then_some(found)
    }

    fn held(&self, owner: &Arc<str>, model: &str) -> Option<&Held> {
        self.held.get(&(owner.clone(), Arc::from(model)))
    }

    /// Returns the owner of each namespace. A quota that claims an older one's namespace counts for nothing.
    fn add_tenants(&mut self, facts: &Facts) -> Tenancy {
        let claims = facts.quotas.iter().map(|quota| NamespaceClaim {
            tenant: quota.name.clone(),
            created: quota.created,
            namespaces: quota.namespaces.clone(),
        });
        let tenancy = Tenancy::decide(claims);
        let mut quotas: Vec<_> = facts.quotas.iter().collect();
        quotas.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        for quota in quotas {
            if let Some(taken) = tenancy.refusal(&quota.name) {
                self.complaints.push(format!("TenantQuota {} is not used: {taken}", quota.name));
                continue;
            }
            let name: Arc<str> = quota.name.as_str().into();
            self.add_keys(facts, quota, &name);
            let tenant = Tenant {
                name: name.clone(),
                models_from: quota.models_from.iter().map(|from| from.as_str().into()).collect(),
                limits: quota.limits.clone(),
            };
            self.tenants.insert(name, Arc::new(tenant));
        }
        tenancy
    }

    fn add_keys(&mut self, facts: &Facts, quota: &QuotaFact, tenant: &Arc<str>) {
        for secret in &quota.key_secrets {
            let fault = |fault| KeyFault { tenant: tenant.to_string(), secret: secret.clone(), fault };
            let Some(keys) = facts.secrets.get(secret) else {
                self.key_faults.push(fault(Fault::NotFound));
                continue;
            };
            if keys.hashes.is_empty() && keys.unreadable.is_empty() {
                self.key_faults.push(fault(Fault::Empty));
            }
            for key in &keys.unreadable {
                self.key_faults.push(fault(Fault::NotAHash { key: key.clone() }));
            }
            for (key, hash) in &keys.hashes {
                if !self.keys.insert(*hash, tenant.clone()) {
                    self.key_faults.push(fault(Fault::Taken { key: key.clone() }));
                }
            }
        }
    }

    fn add_deployments(&mut self, facts: &Facts, tenancy: &Tenancy) {
        let mut pods: HashMap<(&str, &str), Vec<&PodFact>> = HashMap::new();
        for pod in &facts.pods {
            pods.entry((&pod.namespace, &pod.deployment)).or_default().push(pod);
        }
        let mut wanted: Vec<_> = facts.deployments.iter().collect();
        wanted.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
        for fact in wanted {
            // In a namespace without a tenant no key could be valid.
            let Some(tenant) = tenancy.owner(&fact.namespace).and_then(|name| self.tenants.get(name)) else { continue };
            let tenant = tenant.name.clone();
            let pods = pods.remove(&(fact.namespace.as_str(), fact.name.as_str())).unwrap_or_default();
            let deployment = Arc::new(deployment(fact, tenant.clone(), &pods, &facts.unhealthy_gpus));
            self.hold_name(&deployment);
            self.deployments.push(deployment);
        }
    }

    /// The oldest that is not being deleted gets the name.
    fn hold_name(&mut self, deployment: &Arc<Deployment>) {
        let name = (deployment.tenant.clone(), deployment.model.clone());
        match self.held.get(&name) {
            _ if deployment.deleting => {
                self.held.entry(name).or_insert(Held::Deleting);
            }
            Some(Held::Serving(first)) => self.complaints.push(format!(
                "model {} of tenant {} is served by {}; {} has the same name and gets no requests",
                name.1, name.0, first.key, deployment.key
            )),
            Some(Held::Deleting) | None => {
                self.held.insert(name, Held::Serving(deployment.clone()));
            }
        }
    }
}

impl Held {
    fn serving(&self) -> Option<&Arc<Deployment>> {
        match self {
            Self::Serving(deployment) => Some(deployment),
            Self::Deleting => None,
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
        uid: fact.uid.clone(),
        model: fact.model.as_str().into(),
        tenant,
        created: fact.created,
        access: fact.access.clone(),
        hold: fact.hold.unwrap_or_else(|| default_hold(fact.cold_start)),
        cold_start: fact.cold_start,
        max_held: fact.max_held.unwrap_or(DEFAULT_MAX_HELD),
        switched_off: fact.switched_off,
        deleting: fact.deleting,
        max_model_len: fact.max_model_len,
        objectives: fact.objectives,
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
    let unhealthy_gpu = pod.gpus.iter().any(|gpu| unhealthy.contains(gpu));
    let refused = if pod.draining {
        Some(Refusal::Draining)
    } else if unhealthy_gpu {
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
    use crate::world::facts::SecretKeys;

    fn quota(name: &str, created: i64, namespaces: &[&str]) -> QuotaFact {
        QuotaFact {
            name: name.into(),
            created,
            namespaces: namespaces.iter().map(|n| (*n).into()).collect(),
            key_secrets: vec![format!("{name}-keys")],
            models_from: Vec::new(),
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

    fn secret(keys: &[(&str, &str)]) -> SecretKeys {
        let hashes = keys.iter().map(|(name, key)| ((*name).to_owned(), hash_key(key))).collect();
        SecretKeys { hashes, unreadable: Vec::new() }
    }

    fn two_tenants() -> Facts {
        let keys = |tenant: &str| (format!("{tenant}-keys"), secret(&[("k", &format!("sk-{tenant}"))]));
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
    fn shared_model_is_called_by_its_owner_and_name() {
        let mut facts = two_tenants();
        facts.deployments[0].access = vec!["b".into()];
        let world = World::build(&facts);
        assert_eq!(found(&world, "b", "a/m").as_deref(), Some("a/chat"));
        assert_eq!(found(&world, "a", "a/m").as_deref(), Some("a/chat"));
        assert_eq!(found(&world, "b", "m"), None, "sharing alone gives no bare name");
        assert_eq!(names(&world, "b"), ["a/m", "only-b"]);
        assert_eq!(names(&world, "a"), ["m"]);
    }

    #[test]
    fn model_that_is_not_shared_is_not_found_by_its_qualified_name() {
        let world = World::build(&two_tenants());
        for name in ["a/m", "a/", "/m", "none/m", "a/m/x"] {
            assert_eq!(found(&world, "b", name), None, "{name}");
        }
    }

    #[test]
    fn listed_tenants_shared_model_has_a_bare_name_too() {
        let mut facts = two_tenants();
        facts.quotas[1].models_from = vec!["a".into()];
        assert_eq!(found(&World::build(&facts), "b", "m"), None, "the owner does not share it");
        facts.deployments[0].access = vec!["b".into()];
        let world = World::build(&facts);
        assert_eq!(found(&world, "b", "m").as_deref(), Some("a/chat"));
        assert_eq!(names(&world, "b"), ["a/m", "m", "only-b"]);
        facts.deployments.push(deployment("b", "mine", "m", 9));
        let world = World::build(&facts);
        assert_eq!(found(&world, "b", "m").as_deref(), Some("b/mine"));
        assert_eq!(found(&world, "b", "a/m").as_deref(), Some("a/chat"));
    }

    #[test]
    fn first_listed_tenant_that_shares_the_name_serves_it() {
        let mut facts = two_tenants();
        facts.quotas.push(QuotaFact { models_from: vec!["b".into(), "a".into()], ..quota("c", 3, &["c"]) });
        facts.deployments[0].access = vec!["c".into()];
        assert_eq!(found(&World::build(&facts), "c", "m").as_deref(), Some("a/chat"));
        facts.deployments.push(DeploymentFact { access: vec!["c".into()], ..deployment("b", "chat", "m", 9) });
        assert_eq!(found(&World::build(&facts), "c", "m").as_deref(), Some("b/chat"));
    }

    #[test]
    fn own_model_that_is_missing_or_deleting_is_not_replaced_by_another_tenants() {
        let mut facts = two_tenants();
        facts.deployments.push(DeploymentFact { access: vec!["a".into()], ..deployment("b", "trap", "m", 0) });
        for name in ["m", "org/m"] {
            facts.deployments[0].model = name.into();
            facts.deployments[2].model = name.into();
            facts.deployments[0].deleting = false;
            assert_eq!(found(&World::build(&facts), "a", name).as_deref(), Some("a/chat"));
            facts.deployments[0].deleting = true;
            assert_eq!(found(&World::build(&facts), "a", name), None);
            let mut without = facts.clone();
            without.deployments.remove(0);
            assert_eq!(found(&World::build(&without), "a", name), None);
        }
        // A tenant whose name is the first part of the model's name does not get it either.
        facts.quotas[1].name = "org".into();
        facts.deployments[2].model = "m".into();
        assert_eq!(found(&World::build(&facts), "a", "org/m"), None, "deleting");
        facts.quotas[0].models_from = vec!["org".into()];
        assert_eq!(found(&World::build(&facts), "a", "org/m"), None, "deleting, whatever is listed");
        facts.deployments[0].deleting = false;
        assert_eq!(found(&World::build(&facts), "a", "org/m").as_deref(), Some("a/chat"));
    }

    #[test]
    fn younger_quota_that_claims_a_taken_namespace_counts_for_nothing() {
        let mut facts = two_tenants();
        facts.quotas[1].namespaces.push("a".into());
        facts.quotas.reverse();
        let world = World::build(&facts);
        assert_eq!(found(&world, "a", "m").as_deref(), Some("a/chat"));
        assert_eq!(found(&world, "b", "m"), None);
        assert_eq!(world.keys.tenant_of("sk-b"), None, "its keys do not count either");
        assert_eq!(found(&world, "b", "only-b"), None, "nor its other namespaces");
        assert_eq!(world.keys.tenant_of("sk-a").map(|t| &**t), Some("a"));
        assert_eq!(world.complaints.len(), 1, "{:?}", world.complaints);
    }

    #[test]
    fn salts_follow_from_the_key_and_there_is_none_without() {
        let salts = |key: Option<u8>| {
            let salt_key = key.and_then(|byte| SaltKey::new(&[byte; 32]));
            let world = World::build(&Facts { salt_key, ..two_tenants() });
            let deployment = &world.deployments[0];
            ["a", "b"].map(|tenant| world.salt(deployment, world.tenant(tenant).unwrap()))
        };
        assert_eq!(salts(None), [None, None]);
        let [a, b] = salts(Some(1));
        assert!(a.is_some() && a != b && salts(Some(1)) == [a.clone(), b.clone()]);
        assert_ne!(salts(Some(2))[0], a);
    }

    #[test]
    fn missing_salt_key_is_reported_once_a_model_is_shared() {
        let mut facts = two_tenants();
        assert!(World::build(&facts).complaints.is_empty());
        facts.deployments[0].access = vec!["b".into()];
        assert!(World::build(&facts).complaints[0].contains("stowage-cache-key"));
        facts.salt_key = SaltKey::new(&[1; 32]);
        assert!(World::build(&facts).complaints.is_empty());
    }

    #[test]
    fn key_that_gives_no_access_is_reported_without_its_value() {
        let mut facts = two_tenants();
        let b_keys = facts.secrets.get_mut("b-keys").unwrap();
        b_keys.hashes.push(("copied".into(), hash_key("sk-a")));
        b_keys.unreadable.push("plain".into());
        facts.quotas[1].key_secrets.extend(["gone".to_owned(), "empty".to_owned()]);
        facts.secrets.insert("empty".into(), SecretKeys::default());
        let world = World::build(&facts);
        let faults: Vec<_> = world.key_faults.iter().map(|f| format!("{}: {f}", f.tenant)).collect();
        assert_eq!(
            faults,
            [
                "b: Secret b-keys: the value of plain is no lower-case hexadecimal SHA-256",
                "b: Secret b-keys: copied is a key of another tenant already",
                "b: Secret empty: it holds no key",
                "b: Secret gone: there is none of this name and of the type stowage.dev/api-keys in stowage-system",
            ]
        );
        assert_eq!(world.keys.tenant_of("sk-b").map(|t| &**t), Some("b"), "its good key counts");
        assert!(world.complaints.iter().any(|c| c.contains("tenant b: Secret gone")), "{:?}", world.complaints);
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
    fn namespace_without_a_tenant_serves_no_one() {
        let mut facts = two_tenants();
        facts.quotas.remove(0);
        let world = World::build(&facts);
        assert!(world.deployments.iter().all(|d| d.key.namespace != "a"));
        assert_eq!(world.keys.tenant_of("sk-a"), None);
    }

    #[test]
    fn replicas_are_the_ready_pods_of_the_same_object() {
        let mut facts = two_tenants();
        facts.unhealthy_gpus = ["GPU-1".to_string()].into();
        let of = &facts.deployments[0];
        facts.pods = vec![
            pod(of, "fine"),
            PodFact { gpus: vec!["GPU-1".into()], ..pod(of, "bad-gpu") },
            PodFact { draining: true, ready: false, ..pod(of, "leaving") },
            PodFact { ready: false, ..pod(of, "starting") },
            PodFact { address: None, ..pod(of, "without-address") },
            PodFact { owner_uid: Some("another".into()), ..pod(of, "predecessor") },
            PodFact { namespace: "b".into(), ..pod(of, "elsewhere") },
        ];
        let world = World::build(&facts);
        let replicas: Vec<_> = world.deployments[0].replicas.iter().map(|r| (r.pod.as_str(), r.refused)).collect();
        let expected =
            [("bad-gpu", Some(Refusal::UnhealthyDevice)), ("fine", None), ("leaving", Some(Refusal::Draining))];
        assert_eq!(replicas, expected);
    }
}

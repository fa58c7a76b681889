//! What belongs to which deployment, found once for all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Resource;
use stowage_planner::snapshot::DeploymentId;

use crate::observe::identity::{Identified, controller};
use crate::observe::view::{KnownClaim, KnownPod, Objects, View};

/// Pods and claims of ours by the UID of their deployment, and those that no deployment owns.
#[derive(Debug, Default)]
pub struct Owned {
    pods: ByOwner<Pod>,
    claims: ByOwner<ResourceClaim>,
}

/// Pods and claims that were left by `kubectl delete --cascade=orphan`.
#[derive(Debug, Clone, Default)]
pub struct Orphans {
    pub pods: Vec<Arc<KnownPod>>,
    pub claims: Vec<Arc<KnownClaim>>,
}

#[derive(Debug)]
struct ByOwner<K> {
    owned: HashMap<String, Vec<Arc<Identified<K>>>>,
    orphans: BTreeMap<DeploymentId, Vec<Arc<Identified<K>>>>,
}

impl Owned {
    pub fn read(view: &View) -> Self {
        Self { pods: by_owner(&view.pods), claims: by_owner(&view.claims) }
    }

    /// In the order of their names.
    pub fn pods(&self, uid: &str) -> &[Arc<KnownPod>] {
        self.pods.owned.get(uid).map(Vec::as_slice).unwrap_or_default()
    }

    /// In the order of their names.
    pub fn claims(&self, uid: &str) -> &[Arc<KnownClaim>] {
        self.claims.owned.get(uid).map(Vec::as_slice).unwrap_or_default()
    }

    /// All pods that nobody owns, by the deployment that they were made for.
    pub fn orphaned(&self) -> impl Iterator<Item = (&DeploymentId, &[Arc<KnownPod>])> {
        self.pods.orphans.iter().map(|(id, pods)| (id, pods.as_slice()))
    }

    /// Made for a deployment of this name, and owned by nobody.
    pub fn orphans(&self, id: &DeploymentId) -> Orphans {
        Orphans {
            pods: self.pods.orphans.get(id).cloned().unwrap_or_default(),
            claims: self.claims.orphans.get(id).cloned().unwrap_or_default(),
        }
    }
}

impl Orphans {
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.claims.is_empty()
    }
}

impl<K> Default for ByOwner<K> {
    fn default() -> Self {
        Self { owned: HashMap::new(), orphans: BTreeMap::new() }
    }
}

/// Only what carries our labels: an object that merely names a deployment as its owner is not ours.
fn by_owner<K: Resource>(objects: &Objects<Identified<K>>) -> ByOwner<K> {
    let mut found = ByOwner::default();
    for object in objects.values() {
        let Some(deployment) = object.deployment() else { continue };
        match controller(object.meta()) {
            Some(owner) => match found.owned.get_mut(&owner.uid) {
                Some(known) => known.push(object.clone()),
                None => drop(found.owned.insert(owner.uid.clone(), vec![object.clone()])),
            },
            None => found.orphans.entry(deployment.clone()).or_default().push(object.clone()),
        }
    }
    found
}

//! What belongs to which deployment, found once for all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use stowage_planner::snapshot::DeploymentId;

use crate::observe::identity::controller;
use crate::observe::parsed::{Parse, Parsed};
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
struct ByOwner<K: Parse> {
    owned: HashMap<String, Vec<Arc<Parsed<K>>>>,
    orphans: BTreeMap<DeploymentId, Vec<Arc<Parsed<K>>>>,
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

impl<K: Parse> Default for ByOwner<K> {
    fn default() -> Self {
        Self { owned: HashMap::new(), orphans: BTreeMap::new() }
    }
}

/// Only what carries our labels: an object that merely names a deployment as its owner is not ours.
fn by_owner<K: Parse>(objects: &Objects<Parsed<K>>) -> ByOwner<K> {
    let mut found = ByOwner::default();
    let ours = objects.values().filter_map(|object| Some((object.deployment()?, controller(object.meta()), object)));
    let ours: Vec<_> = ours.collect();
    // Those of one deployment mostly follow one another by name.
    for run in ours.chunk_by(|(_, a, _), (_, b, _)| a.is_some() && a.map(|a| &a.uid) == b.map(|b| &b.uid)) {
        let Some((deployment, owner, _)) = run.first() else { continue };
        let objects = run.iter().map(|(_, _, object)| Arc::clone(object));
        match owner {
            Some(owner) => found.owned.entry(owner.uid.clone()).or_default().extend(objects),
            None => found.orphans.entry((*deployment).clone()).or_default().extend(objects),
        }
    }
    found
}

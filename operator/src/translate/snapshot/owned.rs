//! What belongs to which deployment, found once for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::ResourceExt;

use crate::observe::view::{Objects, View};

/// Pods and claims by the UID of their deployment. Those of a deployment of the same name that was
/// deleted before are not among them.
#[derive(Debug, Default)]
pub struct Owned {
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
    claims: BTreeMap<String, Vec<Arc<ResourceClaim>>>,
}

impl Owned {
    pub fn read(view: &View) -> Self {
        Self { pods: by_owner(&view.pods), claims: by_owner(&view.claims) }
    }

    /// In the order of their names.
    pub fn pods(&self, uid: &str) -> &[Arc<Pod>] {
        self.pods.get(uid).map(Vec::as_slice).unwrap_or_default()
    }

    /// In the order of their names.
    pub fn claims(&self, uid: &str) -> &[Arc<ResourceClaim>] {
        self.claims.get(uid).map(Vec::as_slice).unwrap_or_default()
    }
}

fn by_owner<K: ResourceExt>(objects: &Objects<K>) -> BTreeMap<String, Vec<Arc<K>>> {
    let mut owned: BTreeMap<String, Vec<Arc<K>>> = BTreeMap::new();
    for object in objects.values() {
        for owner in object.owner_references() {
            owned.entry(owner.uid.clone()).or_default().push(object.clone());
        }
    }
    owned
}

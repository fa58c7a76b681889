//! What the last snapshot was made of, so that what is made of the same objects again is not made again: of thousands of
//! objects a few change between two plans. Without it the snapshot is the same, only later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node as KubeNode;
use stowage_planner::snapshot::{DeploymentId, Node, Shared};

use super::Built;
use super::snapshot::devices::Devices;
use super::validate::Judged;
use crate::observe::source::Key;
use crate::observe::view::{Objects, StoredDeployment, StoredGpuNode, View};

#[derive(Debug, Clone, Default)]
pub struct Known {
    view: Arc<View>,
    devices: Arc<Devices>,
    judged: Arc<BTreeMap<DeploymentId, Arc<Judged>>>,
    /// By name.
    nodes: Vec<Shared<Node>>,
    labels: BTreeSet<String>,
}

impl Known {
    /// After a snapshot was made of this view.
    pub fn of(view: &Arc<View>, built: &Built) -> Self {
        Self {
            view: view.clone(),
            devices: built.devices.clone(),
            judged: built.judged.clone(),
            nodes: built.snapshot.nodes.clone(),
            labels: built.labels.clone(),
        }
    }

    /// The published GPUs, if the same slices show them as then.
    pub fn devices(&self, view: &View) -> Option<&Arc<Devices>> {
        same(&self.view.slices, &view.slices).then_some(&self.devices)
    }

    /// Whether deployments refer to the same as then.
    pub fn refers_to_the_same(&self, view: &View) -> bool {
        let then = &self.view;
        same(&then.quotas, &view.quotas)
            && same(&then.classes, &view.classes)
            && same(&then.runtimes, &view.runtimes)
            && then.estimates == view.estimates
    }

    /// How this very object was judged.
    pub fn judged(&self, stored: &Arc<StoredDeployment>) -> Option<&Arc<Judged>> {
        let key = (stored.namespace().to_owned(), stored.name().to_owned());
        let then = self.view.deployments.get(&key)?;
        let id = DeploymentId { namespace: key.0, name: key.1 };
        Arc::ptr_eq(then, stored).then(|| self.judged.get(&id))?
    }

    /// The node under this key, if the Node and the GpuNode are the same objects as then.
    pub fn node(
        &self,
        key: &Key,
        node: &Arc<KubeNode>,
        gpu_node: Option<&Arc<StoredGpuNode>>,
    ) -> Option<&Shared<Node>> {
        let then = self.view.nodes.get(key)?;
        let same = Arc::ptr_eq(then, node) && same_one(self.view.gpu_nodes.get(key), gpu_node);
        let at = self.nodes.binary_search_by(|known| known.name.as_str().cmp(&key.1)).ok().filter(|_| same)?;
        self.nodes.get(at)
    }

    /// Keys of node labels that deployments asked for.
    pub fn labels(&self) -> &BTreeSet<String> {
        &self.labels
    }

    /// Whether GPUs are of the same classes as then.
    pub fn has_classes(&self, view: &View) -> bool {
        same(&self.view.classes, &view.classes)
    }
}

/// The very same objects, not only equal ones.
fn same<T>(then: &Objects<T>, now: &Objects<T>) -> bool {
    then.len() == now.len() && then.values().zip(now.values()).all(|(then, now)| Arc::ptr_eq(then, now))
}

fn same_one<T>(then: Option<&Arc<T>>, now: Option<&Arc<T>>) -> bool {
    match (then, now) {
        (Some(then), Some(now)) => Arc::ptr_eq(then, now),
        (None, None) => true,
        _ => false,
    }
}

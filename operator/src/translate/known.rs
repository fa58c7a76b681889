//! What the last snapshot was made of, so that what is made of the same objects again is not made again: of thousands of
//! objects a few change between two plans. Without it the snapshot is the same, only later.

use std::cmp::Ordering;
use std::collections::btree_map::Iter;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
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

    /// Deployments as they were judged, to be asked for in the order of their names.
    pub fn deployments(&self) -> KnownDeployments<'_> {
        KnownDeployments {
            deployments: Ascending::new(self.view.deployments.iter()),
            judged: Ascending::new(self.judged.iter()),
        }
    }

    /// The nodes as they were, to be asked for in the order of their names.
    pub fn nodes(&self) -> KnownNodes<'_> {
        KnownNodes {
            nodes: Ascending::new(self.view.nodes.iter().zip(&self.nodes)),
            gpu_nodes: Ascending::new(self.view.gpu_nodes.iter()),
        }
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

type NodePair<'a> = std::iter::Zip<Iter<'a, Key, Arc<KubeNode>>, std::slice::Iter<'a, Shared<Node>>>;

pub struct KnownDeployments<'a> {
    deployments: Ascending<Iter<'a, Key, Arc<StoredDeployment>>>,
    judged: Ascending<Iter<'a, DeploymentId, Arc<Judged>>>,
}

impl<'a> KnownDeployments<'a> {
    /// How this very object was judged.
    pub fn judged(&mut self, key: &Key, stored: &Arc<StoredDeployment>) -> Option<&'a Arc<Judged>> {
        let (_, then) = self.deployments.find(|(at, _)| (*at).cmp(key))?;
        let named = |id: &DeploymentId| id.namespace.cmp(&key.0).then_with(|| id.name.cmp(&key.1));
        let (_, judged) = self.judged.find(|(id, _)| named(id))?;
        Arc::ptr_eq(then, stored).then_some(judged)
    }
}

pub struct KnownNodes<'a> {
    nodes: Ascending<NodePair<'a>>,
    gpu_nodes: Ascending<Iter<'a, Key, Arc<StoredGpuNode>>>,
}

impl<'a> KnownNodes<'a> {
    /// The node under this key, if the Node and the GpuNode are the same objects as then.
    pub fn get(
        &mut self,
        key: &Key,
        node: &Arc<KubeNode>,
        gpu_node: Option<&Arc<StoredGpuNode>>,
    ) -> Option<&'a Shared<Node>> {
        let ((_, then), known) = self.nodes.find(|((at, _), _)| (*at).cmp(key))?;
        let gpu_node_then = self.gpu_nodes.find(|(at, _)| (*at).cmp(key)).map(|(_, found)| found);
        (Arc::ptr_eq(then, node) && same_one(gpu_node_then, gpu_node)).then_some(known)
    }
}

/// Finds things in a sorted sequence that are asked for in its order: one step each instead of a search.
pub struct Ascending<I: Iterator>(Peekable<I>);

impl<I: Iterator<Item: Copy>> Ascending<I> {
    pub fn new(sorted: I) -> Self {
        Self(sorted.peekable())
    }

    /// `order`: how an item stands to the one that is asked for.
    pub fn find(&mut self, order: impl Fn(&I::Item) -> Ordering) -> Option<I::Item> {
        while self.0.next_if(|item| order(item) == Ordering::Less).is_some() {}
        self.0.peek().copied().filter(|item| order(item) == Ordering::Equal)
    }
}

/// The very same objects, not only equal ones.
fn same<T>(then: &Objects<T>, now: &Objects<T>) -> bool {
    then.is(now) || then.len() == now.len() && then.values().zip(now.values()).all(|(then, now)| Arc::ptr_eq(then, now))
}

fn same_one<T>(then: Option<&Arc<T>>, now: Option<&Arc<T>>) -> bool {
    match (then, now) {
        (Some(then), Some(now)) => Arc::ptr_eq(then, now),
        (None, None) => true,
        _ => false,
    }
}

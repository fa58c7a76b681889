//! Keeps this node's ResourceSlices as they should be.
//!
//! The kubelet deletes them at its own start and 30 s after our socket dies; others may edit them.
//! So: watch, and write again. What should be there is a function ([`plan`]) of the GPUs and of what
//! is there; every change raises the pool's generation, so the scheduler never mixes old and new.
//! New slices are written before old ones are deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourcePool, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use stowage_contracts::names::DRIVER;
use tokio::sync::{Notify, watch};

use crate::device::inventory;
use crate::device::model::GpuFacts;

/// The most a slice may hold.
const MAX_DEVICES: usize = 128;
/// Compared even without an event: a watch can lose one.
const RESYNC: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);
/// Field manager of everything this agent writes.
pub const FIELD_MANAGER: &str = "stowage-node-agent";
const NVIDIA_DRIVER: &str = "gpu.nvidia.com";
const NVIDIA_RESOURCE: &str = "nvidia.com/gpu";

/// Slices to write and, afterwards, names of slices to delete.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub write: Vec<ResourceSlice>,
    pub delete: Vec<String>,
}

/// What turns the slices that are there into those that should be.
pub fn plan(node: &str, owner: Option<&OwnerReference>, devices: &[Device], there: &[ResourceSlice]) -> Plan {
    let ours = || there.iter().filter(|slice| slice.spec.driver == DRIVER && slice.spec.pool.name == node);
    let newest = ours().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
    let wanted = |generation| slices(node, owner, devices, generation);
    let same =
        |want: &ResourceSlice| ours().any(|have| have.metadata.name == want.metadata.name && have.spec == want.spec);
    let current = wanted(newest);
    let settled = ours().count() == current.len() && current.iter().all(same);
    if settled {
        return Plan::default();
    }
    let write = wanted(newest + 1);
    let kept = |name: &Option<String>| write.iter().any(|slice| slice.metadata.name == *name);
    let delete = ours().filter(|slice| !kept(&slice.metadata.name)).filter_map(|slice| slice.metadata.name.clone());
    Plan { delete: delete.collect(), write }
}

fn slices(node: &str, owner: Option<&OwnerReference>, devices: &[Device], generation: i64) -> Vec<ResourceSlice> {
    let chunks: Vec<&[Device]> = devices.chunks(MAX_DEVICES).collect();
    let count = chunks.len() as i64;
    let slice = |(index, devices): (usize, &&[Device])| ResourceSlice {
        metadata: ObjectMeta {
            name: Some(format!("{node}-{DRIVER}-{index}")),
            owner_references: owner.map(|owner| vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: ResourceSliceSpec {
            driver: DRIVER.to_owned(),
            node_name: Some(node.to_owned()),
            pool: ResourcePool { generation, name: node.to_owned(), resource_slice_count: count },
            devices: Some(devices.to_vec()),
            ..ResourceSliceSpec::default()
        },
    };
    chunks.iter().enumerate().map(slice).collect()
}

/// Another driver that publishes this node's GPUs, if there is one: then this agent publishes none.
pub fn managed_elsewhere(node: &Node, on_node: &[ResourceSlice]) -> Option<String> {
    if on_node.iter().any(|slice| slice.spec.driver == NVIDIA_DRIVER) {
        return Some(format!("driver {NVIDIA_DRIVER} publishes this node's GPUs; the agent only watches them"));
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let count = allocatable.and_then(|all| all.get(NVIDIA_RESOURCE)).filter(|count| count.0 != "0")?;
    Some(format!("a device plugin hands out {} {NVIDIA_RESOURCE} on this node; the agent only watches them", count.0))
}

/// Publishes until the process ends. `api_trouble` receives what keeps it from publishing.
pub struct Publisher {
    pub client: Client,
    pub node: String,
    /// Simulated GPUs are published whichever other driver is on the node.
    pub simulated: bool,
    pub gpus: watch::Receiver<Arc<Vec<GpuFacts>>>,
    pub elsewhere: watch::Sender<Option<String>>,
    pub api_trouble: watch::Sender<Option<String>>,
}

impl Publisher {
    pub async fn run(mut self) {
        let slices_changed = Arc::new(Notify::new());
        tokio::spawn(follow(self.client.clone(), self.node.clone(), Arc::clone(&slices_changed)));
        loop {
            let wait = match self.reconcile().await {
                Ok(()) => {
                    self.api_trouble.send_replace(None);
                    RESYNC
                }
                Err(err) => {
                    tracing::warn!(%err, "cannot publish ResourceSlices");
                    self.api_trouble.send_replace(Some(format!("cannot publish ResourceSlices: {err}")));
                    RETRY
                }
            };
            tokio::select! {
                () = slices_changed.notified() => {}
                changed = self.gpus.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn reconcile(&mut self) -> Result<(), kube::Error> {
        let facts = self.gpus.borrow_and_update().clone();
        // Nothing read yet: that is not the same as no GPUs.
        if facts.is_empty() {
            return Ok(());
        }
        let slices: Api<ResourceSlice> = Api::all(self.client.clone());
        let node = Api::<Node>::all(self.client.clone()).get(&self.node).await?;
        let there = slices.list(&ListParams::default().fields(&format!("spec.nodeName={}", self.node))).await?.items;
        let elsewhere = managed_elsewhere(&node, &there).filter(|_| !self.simulated);
        let devices = if elsewhere.is_some() { Vec::new() } else { inventory::slice_devices(&facts) };
        self.elsewhere.send_replace(elsewhere);
        let plan = plan(&self.node, owner(&node).as_ref(), &devices, &there);
        for slice in &plan.write {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let params = PatchParams::apply(FIELD_MANAGER).force();
            slices.patch(name, &params, &Patch::Apply(slice)).await?;
            tracing::info!(
                slice = name,
                generation = slice.spec.pool.generation,
                devices = devices.len(),
                "ResourceSlice published"
            );
        }
        for name in &plan.delete {
            match slices.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// The node as owner: what it has goes with it.
pub fn owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        controller: Some(true),
        ..OwnerReference::default()
    })
}

/// Pokes whenever a slice of this node changes.
async fn follow(client: Client, node: String, changed: Arc<Notify>) {
    let api: Api<ResourceSlice> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node},spec.driver={DRIVER}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => changed.notify_one(),
            Err(err) => tracing::debug!(%err, "the watch on ResourceSlices broke off"),
        }
    }
}

/// By device name, for the kubelet's health interface.
pub fn by_device_name<T: Clone>(facts: &[GpuFacts], by_uuid: &BTreeMap<String, T>) -> BTreeMap<String, T> {
    facts.iter().filter_map(|gpu| Some((inventory::device_name(gpu), by_uuid.get(&gpu.uuid)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(count: usize) -> Vec<Device> {
        (0..count).map(|index| Device { name: format!("gpu-{index}"), ..Device::default() }).collect()
    }

    /// Carries the plan out.
    fn apply(there: &mut Vec<ResourceSlice>, plan: Plan) {
        for slice in plan.write {
            there.retain(|old| old.metadata.name != slice.metadata.name);
            there.push(slice);
        }
        there.retain(|slice| !plan.delete.contains(slice.metadata.name.as_ref().unwrap()));
    }

    #[test]
    fn second_look_changes_nothing() {
        let mut there = Vec::new();
        apply(&mut there, plan("n", None, &devices(8), &[]));
        assert_eq!(there[0].spec.pool.generation, 1);
        assert_eq!(plan("n", None, &devices(8), &there), Plan::default());
    }

    #[test]
    fn every_change_raises_the_generation_of_all_slices_of_the_pool() {
        let mut there = Vec::new();
        apply(&mut there, plan("n", None, &devices(129), &[]));
        assert_eq!(there.iter().map(|s| s.spec.pool.resource_slice_count).collect::<Vec<_>>(), [2, 2]);
        let fewer = plan("n", None, &devices(2), &there);
        apply(&mut there, fewer);
        assert_eq!(there.len(), 1);
        assert_eq!((there[0].spec.pool.generation, there[0].spec.pool.resource_slice_count), (2, 1));
        let gone = plan("n", None, &[], &there);
        assert_eq!((gone.write.len(), gone.delete.len()), (0, 1));
    }

    #[test]
    fn slice_that_was_changed_or_deleted_is_written_again() {
        let mut there = Vec::new();
        apply(&mut there, plan("n", None, &devices(2), &[]));
        there[0].spec.devices.as_mut().unwrap().pop();
        let repair = plan("n", None, &devices(2), &there);
        assert_eq!(repair.write[0].spec.pool.generation, 2);
        assert_eq!(plan("n", None, &devices(2), &[]).write.len(), 1);
    }

    #[test]
    fn slices_of_other_drivers_are_left_alone() {
        let mut foreign = slices("n", None, &devices(1), 7);
        foreign[0].spec.driver = "other.example.com".to_owned();
        let plan = plan("n", None, &devices(1), &foreign);
        assert_eq!((plan.write[0].spec.pool.generation, plan.delete.len()), (1, 0));
    }

    #[test]
    fn gpus_of_another_driver_are_not_published() {
        let node = |json| serde_json::from_value::<Node>(json).unwrap();
        let plain = node(serde_json::json!({"status": {"allocatable": {"cpu": "8"}}}));
        let plugin = node(serde_json::json!({"status": {"allocatable": {"nvidia.com/gpu": "8"}}}));
        let none = node(serde_json::json!({"status": {"allocatable": {"nvidia.com/gpu": "0"}}}));
        let mut nvidia = slices("n", None, &devices(1), 1);
        nvidia[0].spec.driver = NVIDIA_DRIVER.to_owned();
        assert_eq!(managed_elsewhere(&plain, &[]), None);
        assert_eq!(managed_elsewhere(&none, &[]), None);
        assert!(managed_elsewhere(&plugin, &[]).unwrap().contains("8 nvidia.com/gpu"));
        assert!(managed_elsewhere(&plain, &nvidia).unwrap().contains("gpu.nvidia.com"));
    }
}

//! From NVML's facts about the GPUs to what is published: devices of a ResourceSlice, and the status
//! of the GpuNode.
//!
//! Pure. Both are functions of the same facts, so scheduler and planner see the same GPU. Totals are
//! floored to the step of 256Mi, because the request policy wants default and maximum to be
//! min + n·step, and one device that breaks it has the whole slice rejected.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceAttribute, DeviceCapacity,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stowage_contracts::names;
use stowage_crds::gpu_node::{GpuDevice, GpuNodeStatus, Verdict as PublishedVerdict};
use stowage_crds::quantity::bytes_quantity;

use crate::device::model::{GpuFacts, Health, Verdict};

/// What can be promised of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promisable {
    /// Name in the ResourceSlice.
    pub device: String,
    pub uuid: String,
    /// A multiple of 256Mi.
    pub memory_bytes: u64,
    pub sm_percent: u32,
}

/// The GPU's name in our pool: by index, as people number them.
pub fn device_name(facts: &GpuFacts) -> String {
    format!("gpu-{}", facts.index)
}

/// What can be promised of each GPU. A GPU of less than one step is of no use and left out.
pub fn promisable(facts: &[GpuFacts]) -> Vec<Promisable> {
    facts
        .iter()
        .map(|gpu| Promisable {
            device: device_name(gpu),
            uuid: gpu.uuid.clone(),
            memory_bytes: allocatable(gpu),
            sm_percent: 100,
        })
        .filter(|gpu| gpu.memory_bytes > 0)
        .collect()
}

fn allocatable(gpu: &GpuFacts) -> u64 {
    let usable = gpu.memory_bytes.saturating_sub(gpu.reserved_bytes);
    usable - usable % names::MEMORY_STEP_BYTES
}

/// The devices of our ResourceSlice, in a stable order. GPUs in MIG mode are not published: their
/// parts would be, and this agent does not cut them.
pub fn slice_devices(facts: &[GpuFacts]) -> Vec<Device> {
    let whole: Vec<GpuFacts> = facts.iter().filter(|gpu| gpu.mig_enabled != Some(true)).cloned().collect();
    let products: BTreeMap<&str, &str> = whole.iter().map(|gpu| (gpu.uuid.as_str(), gpu.product.as_str())).collect();
    promisable(&whole)
        .into_iter()
        .map(|gpu| {
            let product = products.get(gpu.uuid.as_str()).copied().unwrap_or_default();
            let attributes = [(names::ATTRIBUTE_UUID, gpu.uuid.as_str()), (names::ATTRIBUTE_PRODUCT_NAME, product)];
            let memory = bytes_quantity(gpu.memory_bytes);
            let capacity = [
                (names::CAPACITY_MEMORY, capacity(memory, bytes_quantity(names::MEMORY_STEP_BYTES))),
                (names::CAPACITY_SM, capacity(Quantity(gpu.sm_percent.to_string()), Quantity("1".to_owned()))),
            ];
            Device {
                name: gpu.device,
                allow_multiple_allocations: Some(true),
                attributes: Some(attributes.map(|(name, value)| (name.to_owned(), text_attribute(value))).into()),
                capacity: Some(capacity.map(|(name, value)| (name.to_owned(), value)).into()),
                ..Device::default()
            }
        })
        .collect()
}

/// An attribute's text has at most 64 characters.
fn text_attribute(value: &str) -> DeviceAttribute {
    DeviceAttribute { string: Some(value.chars().take(64).collect()), ..DeviceAttribute::default() }
}

/// All of it unless less is asked for; from one step on, in steps.
fn capacity(value: Quantity, step: Quantity) -> DeviceCapacity {
    let range = CapacityRequestPolicyRange { min: step.clone(), step: Some(step), max: Some(value.clone()) };
    let policy = CapacityRequestPolicy { default: Some(value.clone()), valid_range: Some(range), valid_values: None };
    DeviceCapacity { request_policy: Some(policy), value }
}

/// The status of this node's GpuNode, without `observedTime`.
pub fn node_status(
    facts: &[GpuFacts],
    verdicts: &BTreeMap<String, Verdict>,
    driver_version: Option<String>,
    simulated: bool,
) -> GpuNodeStatus {
    let islands = islands(facts);
    let devices = facts
        .iter()
        .map(|gpu| GpuDevice {
            uuid: gpu.uuid.clone(),
            index: gpu.index,
            product: gpu.product.clone(),
            memory: bytes_quantity(allocatable(gpu)),
            sm_count: gpu.sm_count,
            architecture: gpu.architecture.clone(),
            mig_profiles: gpu.mig_profiles.clone(),
            nvlink_peers: peers(gpu, facts),
            island: islands.get(&gpu.uuid).copied(),
            numa_node: gpu.numa_node,
            sharing_mode: None,
            verdict: verdicts.get(&gpu.uuid).map(published).unwrap_or_default(),
        })
        .collect();
    GpuNodeStatus { devices, driver_version, simulated, ..GpuNodeStatus::default() }
}

fn published(verdict: &Verdict) -> PublishedVerdict {
    let healthy = verdict.health == Health::Healthy;
    PublishedVerdict {
        health: verdict.health,
        reason: (!healthy).then(|| verdict.reason.to_owned()),
        message: (!healthy).then(|| verdict.message.chars().take(1024).collect()),
        since: Some(Time(verdict.since)),
    }
}

fn peers(gpu: &GpuFacts, all: &[GpuFacts]) -> Vec<String> {
    all.iter()
        .filter(|other| other.uuid != gpu.uuid)
        .filter(|other| other.pci_bus_id.as_ref().is_some_and(|bus| gpu.nvlink_bus_ids.contains(bus)))
        .map(|other| other.uuid.clone())
        .collect()
}

/// Numbers the groups of GPUs that reach each other over NVLink, in the order of their first member.
/// GPUs behind NVSwitch name the switch as the other end: a shared far end joins them too.
fn islands(all: &[GpuFacts]) -> BTreeMap<String, u32> {
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = 0;
    for start in all {
        if found.contains_key(&start.uuid) || start.nvlink_bus_ids.is_empty() {
            continue;
        }
        let mut group: BTreeSet<&str> = BTreeSet::from([start.uuid.as_str()]);
        let mut open = vec![start];
        while let Some(gpu) = open.pop() {
            for other in all.iter().filter(|other| connected(gpu, other)) {
                if group.insert(&other.uuid) {
                    open.push(other);
                }
            }
        }
        if group.len() > 1 {
            found.extend(group.into_iter().map(|uuid| (uuid.to_owned(), next)));
            next += 1;
        }
    }
    found
}

fn connected(one: &GpuFacts, other: &GpuFacts) -> bool {
    let names = |gpu: &GpuFacts, bus: &Option<String>| bus.as_ref().is_some_and(|b| gpu.nvlink_bus_ids.contains(b));
    one.uuid != other.uuid
        && (names(one, &other.pci_bus_id)
            || names(other, &one.pci_bus_id)
            || one.nvlink_bus_ids.iter().any(|bus| other.nvlink_bus_ids.contains(bus)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_crds::quantity::parse_bytes;

    fn gpu(index: u32, memory_mib: u64, links: &[u32]) -> GpuFacts {
        GpuFacts {
            index,
            uuid: format!("GPU-{index}"),
            product: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: memory_mib << 20,
            reserved_bytes: 0,
            sm_count: 132,
            architecture: Some("Hopper".to_owned()),
            numa_node: Some(0),
            pci_bus_id: Some(format!("bus-{index}")),
            nvlink_bus_ids: links.iter().map(|link| format!("bus-{link}")).collect(),
            minor: Some(index),
            mig_enabled: Some(false),
            mig_profiles: Vec::new(),
        }
    }

    fn published_memory(memory_mib: u64) -> Option<u64> {
        let devices = slice_devices(&[gpu(0, memory_mib, &[])]);
        let capacity = &devices.first()?.capacity.as_ref().unwrap()["memory"];
        let policy = capacity.request_policy.as_ref().unwrap();
        let range = policy.valid_range.as_ref().unwrap();
        assert_eq!(policy.default.as_ref(), Some(&capacity.value));
        assert_eq!(range.max.as_ref(), Some(&capacity.value));
        assert_eq!(parse_bytes(&range.min).unwrap(), names::MEMORY_STEP_BYTES);
        Some(parse_bytes(&capacity.value).unwrap())
    }

    #[test]
    fn memory_is_floored_to_the_step_and_default_and_maximum_follow() {
        assert_eq!(published_memory(81_559), Some(81_408 << 20));
        assert_eq!(published_memory(81_920), Some(81_920 << 20));
        assert_eq!(published_memory(257), Some(256 << 20));
        assert_eq!(published_memory(255), None);
    }

    #[test]
    fn gpu_in_mig_mode_is_not_published_whole() {
        let mut cut = gpu(0, 1024, &[]);
        cut.mig_enabled = Some(true);
        assert!(slice_devices(&[cut]).is_empty());
    }

    #[test]
    fn directly_linked_gpus_and_those_behind_one_switch_form_islands() {
        let pair = [gpu(0, 1024, &[1]), gpu(1, 1024, &[0]), gpu(2, 1024, &[])];
        assert_eq!(islands(&pair), BTreeMap::from([("GPU-0".to_owned(), 0), ("GPU-1".to_owned(), 0)]));
        assert_eq!(peers(&pair[0], &pair), ["GPU-1"]);
        let switched = [gpu(0, 1024, &[90]), gpu(1, 1024, &[90]), gpu(2, 1024, &[91]), gpu(3, 1024, &[91])];
        assert_eq!(islands(&switched).values().copied().collect::<Vec<_>>(), [0, 0, 1, 1]);
        assert!(peers(&switched[0], &switched).is_empty());
    }

    #[test]
    fn verdict_is_published_with_reason_only_when_there_is_one() {
        let since = jiff::Timestamp::UNIX_EPOCH;
        let bad = Verdict { health: Health::Unhealthy, reason: "Xid", message: "Xid 79".to_owned(), since };
        let good = Verdict { health: Health::Healthy, reason: "", message: String::new(), since };
        let verdicts = BTreeMap::from([("GPU-0".to_owned(), bad), ("GPU-1".to_owned(), good)]);
        let status = node_status(&[gpu(0, 1024, &[]), gpu(1, 1024, &[])], &verdicts, None, true);
        assert_eq!(status.devices[0].verdict.reason.as_deref(), Some("Xid"));
        assert_eq!(status.devices[1].verdict.reason, None);
        assert!(status.simulated);
    }
}

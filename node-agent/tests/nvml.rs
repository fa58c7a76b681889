//! The agent's real NVML path, against the built `libfake_nvml.so`.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Engine, Node, pod_uid};
use jiff::{SignedDuration, Timestamp};
use stowage_crds::gpu_node::Health;
use stowage_gpu_scenario::Profile;
use stowage_gpu_scenario::scenario::{CallError, Measured, Process, ProcessMemory, XidEvent};
use stowage_node_agent::device::inventory;
use stowage_node_agent::device::model::{DeviceEvent, Reach, Recovery};
use stowage_node_agent::device::process::Processes;
use stowage_node_agent::dra::checkpoint::{Checkpoint, Entry, GrantedDevice, Stage};
use stowage_node_agent::usage::attribution::KernelAttribution;
use stowage_node_agent::usage::view::NodeState;

fn xid(id: u64, xid: u64) -> XidEvent {
    XidEvent { id, xid, at: None }
}

#[test]
fn h100_machine_is_read_as_nvidia_documents_it() {
    let node = Node::new(&Profile::H100x8.scenario("node1"));
    let facts = node.reader().facts().unwrap();
    assert_eq!(facts.len(), 8);
    let gpu = &facts[3];
    assert_eq!((gpu.index, gpu.product.as_str(), gpu.sm_count), (3, "NVIDIA H100 80GB HBM3", 132));
    assert_eq!((gpu.architecture.as_deref(), gpu.minor), (Some("Hopper"), Some(3)));
    assert_eq!((gpu.numa_node, facts[4].numa_node), (Some(0), Some(1)));
    assert_eq!(gpu.mig_enabled, Some(false));
    assert_eq!(gpu.mig_profiles[0], "1g.10gb");
    let status = inventory::node_status(&facts, &BTreeMap::new(), node.reader().driver_version(), true);
    assert_eq!(status.driver_version.as_deref(), Some("580.65.06"));
    assert_eq!(status.devices[0].nvlink_peers.len(), 7);
    assert!(status.devices.iter().all(|device| device.island == Some(0)));
    // 81559 MiB less the driver's 512, floored to 256.
    assert_eq!(status.devices[0].memory.0, "79Gi");
    assert_eq!(inventory::slice_devices(&facts).len(), 8);
}

#[test]
fn mixed_machine_has_two_islands_and_single_l4s() {
    let node = Node::new(&Profile::Mixed.scenario("node1"));
    let facts = node.reader().facts().unwrap();
    let status = inventory::node_status(&facts, &BTreeMap::new(), None, true);
    let islands: Vec<Option<u32>> = status.devices.iter().map(|device| device.island).collect();
    assert_eq!(islands, [Some(0), Some(0), Some(1), Some(1), None, None]);
    assert_eq!(facts[2].sm_count, 108);
    assert_eq!((facts[4].sm_count, facts[4].mig_enabled), (58, None));
}

#[test]
fn faults_of_the_scenario_are_read_as_nvml_reports_them() {
    let mut scenario = Profile::H100x8.scenario("node1");
    scenario.devices[0].lost = true;
    scenario.devices[1].xid_events = vec![xid(1, 48)];
    scenario.devices[2].ecc.volatile_uncorrected = 3;
    scenario.devices[3].errors.insert("nvmlDeviceGetTemperature".to_owned(), CallError::NotSupported);
    scenario.devices[4].errors.insert("nvmlDeviceGetMemoryInfo_v2".to_owned(), CallError::Timeout);
    let node = Node::new(&scenario);
    let uuids: Vec<String> = scenario.devices.iter().map(|device| device.uuid.clone()).collect();
    let read = node.reader().read(&uuids);
    assert!(matches!(read[0].reach, Reach::Lost(_)));
    assert_eq!(read[1].recovery, Some(Recovery::Needed));
    assert_eq!((read[2].ecc_uncorrected, read[2].recovery), (Some(3), Some(Recovery::None)));
    assert_eq!((read[3].temperature_celsius, &read[3].reach), (None, &Reach::Ok));
    assert!(matches!(read[4].reach, Reach::Failed(_)));
    assert_eq!(read[5].temperature_celsius, Some(38));
    // A lost GPU cannot be listed: the sampler remembers it.
    assert_eq!(node.reader().facts().unwrap().len(), 6);
}

#[test]
fn event_set_reports_an_xid_also_beside_a_lost_gpu() {
    let mut scenario = Profile::H100x8.scenario("node1");
    scenario.devices[0].lost = true;
    let node = Node::new(&scenario);
    let uuids: Vec<String> = scenario.devices.iter().map(|device| device.uuid.clone()).collect();
    let (events, missed) = node.reader().events(&uuids).unwrap();
    assert_eq!(missed, 1);
    assert_eq!(events.wait(0).unwrap(), None);
    scenario.devices[5].xid_events = vec![xid(7, 79)];
    node.set(&scenario);
    assert_eq!(events.wait(2000).unwrap(), Some(DeviceEvent::Xid { uuid: uuids[5].clone(), xid: 79 }));
    assert_eq!(events.wait(0).unwrap(), None);
}

#[test]
fn truncated_scenario_changes_no_answer_of_nvml() {
    let scenario = Profile::L4x1.scenario("node1");
    let node = Node::new(&scenario);
    std::fs::write(node.scenario(), "{\"version\": 1, \"dev").unwrap();
    assert_eq!(node.reader().facts().unwrap().len(), 1);
    let mut store = stowage_gpu_scenario::Store::new(node.scenario());
    assert!(store.last_error().unwrap().contains("cannot parse"));
}

#[test]
fn processes_report_by_lock_and_vanish_with_their_process() {
    let mut scenario = Profile::L4x1.scenario("node1");
    let uuid = scenario.devices[0].uuid.clone();
    let me = std::process::id();
    scenario.processes = vec![Process {
        pid: me,
        uuid: uuid.clone(),
        memory: ProcessMemory::Measured(Measured::Rss),
        sm_percent: 5,
        mps: false,
    }];
    let node = Node::new(&scenario);
    std::os::unix::fs::symlink(format!("/proc/{me}"), node.proc().join(me.to_string())).unwrap();
    node.claim("u1", &uuid, "x");
    let holder = Engine::start(&node.proc(), "x", 3 << 30);
    // The library's look at the processes is good for 100 ms.
    let seen = |pid: u32| -> Option<u64> {
        std::thread::sleep(std::time::Duration::from_millis(150));
        let read = node.reader().read(std::slice::from_ref(&uuid)).remove(0);
        read.processes.unwrap().into_iter().find(|process| process.pid == pid).map(|process| process.bytes)
    };
    assert_eq!(seen(holder.pid()), Some(3 << 30));
    assert!(seen(me).unwrap() > 1 << 20, "the resident set of this very process");
    let read = node.reader().read(std::slice::from_ref(&uuid)).remove(0);
    assert!(read.used_bytes.unwrap() > 3 << 30);
    assert_eq!(read.sm_percent, Some(30));
    let pid = holder.pid();
    drop(holder);
    assert_eq!(seen(pid), None);
}

/// The whole way: a real process reports, the library lists it, its control group names its pod, and the
/// overshoot is found after five samples and not before.
#[test]
fn claim_that_uses_more_than_promised_is_found_after_five_samples() {
    let scenario = Profile::L4x1.scenario("node1");
    let uuid = scenario.devices[0].uuid.clone();
    let node = Node::new(&scenario);
    node.claim("u1", &uuid, "x");
    let _engine = Engine::start(&node.proc(), "x", 3 << 30);

    let device = GrantedDevice {
        request: "gpu".to_owned(),
        pool: "node1".to_owned(),
        device: "gpu-0".to_owned(),
        uuid: uuid.clone(),
        memory_bytes: 2 << 30,
        sm_percent: 50,
        share_id: None,
    };
    let entry = Entry {
        model: None,
        namespace: "a".to_owned(),
        name: "stowage-x".to_owned(),
        pod: "x".to_owned(),
        pod_uid: pod_uid("x"),
        tenant: "t".to_owned(),
        stage: Stage::Completed,
        devices: vec![device],
    };
    let mut checkpoint = Checkpoint::default();
    checkpoint.claims.insert("u1".to_owned(), entry);
    let checkpoint = Arc::new(checkpoint);
    let attribution = KernelAttribution { processes: Processes::at(&node.proc()) };
    let mut now = Timestamp::now();
    let mut state = NodeState::new(true, now);
    state.facts(node.reader().facts().unwrap(), None);
    for sample in 1..=6 {
        now += SignedDuration::from_secs(1);
        let readings = node.reader().read(std::slice::from_ref(&uuid));
        state.readings(readings, Arc::clone(&checkpoint), &attribution, now);
        assert_eq!(state.view.overshoots.len(), usize::from(sample >= 5), "sample {sample}");
    }
    let overshoot = &state.view.overshoots[0];
    assert_eq!(overshoot.claim_uid, "u1");
    assert_eq!(overshoot.samples.last().unwrap().1, 3 << 30);
    assert_eq!(state.view.verdicts[&uuid].health, Health::Healthy);
    let summary = stowage_node_agent::serve::summary::of("node1", &state.view, now);
    let reported = &summary.overshoots[0];
    assert_eq!((reported.pod.as_str(), reported.samples, reported.headroom), ("x", 6, true));
}

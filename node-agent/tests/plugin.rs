//! The DRA plugin as the kubelet meets it: gRPC over unix sockets, files on disk, crashes between.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Engine, FakeApi, claim_and_pod};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use stowage_node_agent::device::model::{GpuFacts, Health, Verdict};
use stowage_node_agent::device::process::Processes;
use stowage_node_agent::dra::checkpoint::{Checkpoint, Stage};
use stowage_node_agent::dra::plugin::api::health::dra_resource_health_client::DraResourceHealthClient;
use stowage_node_agent::dra::plugin::api::health::{HealthStatus, NodeWatchResourcesRequest};
use stowage_node_agent::dra::plugin::api::registration::registration_client::RegistrationClient;
use stowage_node_agent::dra::plugin::api::registration::{InfoRequest, RegistrationStatus};
use stowage_node_agent::dra::plugin::api::v1::dra_plugin_client::DraPluginClient;
use stowage_node_agent::dra::plugin::api::v1::{Claim, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest};
use stowage_node_agent::dra::plugin::{self, DeviceVerdicts, Sockets};
use stowage_node_agent::dra::prepare::{Paths, Preparer};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

fn gpus() -> Vec<GpuFacts> {
    let gpu = |index: u32| GpuFacts {
        index,
        uuid: format!("GPU-{index}"),
        product: "NVIDIA L4".to_owned(),
        memory_bytes: 8 << 30,
        reserved_bytes: 0,
        sm_count: 58,
        architecture: None,
        numa_node: None,
        pci_bus_id: None,
        nvlink_bus_ids: Vec::new(),
        minor: Some(index),
        mig_enabled: None,
        mig_profiles: Vec::new(),
    };
    vec![gpu(0), gpu(1)]
}

/// One node's disk and API server; agents come and go on it.
struct Machine {
    dir: tempfile::TempDir,
    api: Arc<FakeApi>,
}

/// A running agent's plugin.
struct Agent {
    sockets: Sockets,
    stop: watch::Sender<bool>,
    verdicts: watch::Sender<DeviceVerdicts>,
    registered: watch::Receiver<Result<(), String>>,
    problem: Option<String>,
    checkpoint: watch::Receiver<Arc<Checkpoint>>,
    preparer: Arc<Preparer>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap(), api: Arc::default() };
        std::fs::create_dir(machine.proc()).unwrap();
        machine
    }

    /// What stands for `/proc`.
    fn proc(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    fn paths(&self) -> Paths {
        Paths { cdi: self.dir.path().join("cdi"), state: self.dir.path().join("state") }
    }

    fn agent(&self, pod_uid: &str) -> Agent {
        let (_, facts) = watch::channel(Arc::new(gpus()));
        let (mut preparer, checkpoint, problem) =
            Preparer::open("node1", true, self.paths(), self.api.clone(), facts).unwrap();
        preparer.processes = Processes::at(&self.proc());
        let preparer = Arc::new(preparer);
        let sockets = Sockets::new(&self.dir.path().join("p"), &self.dir.path().join("r"), pod_uid);
        let (stop, stopped) = watch::channel(false);
        let (verdicts, verdicts_seen) = watch::channel(DeviceVerdicts::default());
        let (registered_by, registered) = watch::channel(Err("not yet".to_owned()));
        let task = tokio::spawn({
            let (sockets, preparer) = (sockets.clone(), Arc::clone(&preparer));
            async move { plugin::serve(&sockets, preparer, verdicts_seen, registered_by, stopped).await }
        });
        Agent { sockets, stop, verdicts, registered, problem, checkpoint, preparer, task }
    }

    fn cdi_file(&self, uid: &str) -> PathBuf {
        self.paths().cdi.join(format!("gpu.stowage.dev-claim_{uid}.json"))
    }

    fn cdi(&self, uid: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.cdi_file(uid)).unwrap()).unwrap()
    }

    fn on_disk(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.paths().checkpoint()).unwrap()).unwrap()
    }

    fn reports(&self, uid: &str) -> PathBuf {
        self.paths().reports().join(uid)
    }

    fn put(&self, pod: &str, device: &str, memory: &str, sm: &str) {
        let (claim, pod) = claim_and_pod(pod, device, memory, sm);
        self.api.put(claim, pod);
    }
}

async fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    for _ in 0..200 {
        if path.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(dial).await.unwrap()
}

fn named(pod: &str) -> Claim {
    Claim { namespace: "a".to_owned(), uid: format!("uid-{pod}"), name: format!("stowage-{pod}") }
}

impl Agent {
    /// Ok: the CDI ids. Err: what the kubelet would show.
    async fn prepare(&self, pod: &str) -> Result<Vec<String>, String> {
        let mut client = DraPluginClient::new(connect(&self.sockets.dra).await);
        let answer = client.node_prepare_resources(NodePrepareResourcesRequest { claims: vec![named(pod)] }).await;
        let mut answer = answer.unwrap().into_inner();
        let claim = answer.claims.remove(&format!("uid-{pod}")).expect("one answer per claim");
        if claim.error.is_empty() {
            return Ok(claim.devices.into_iter().flat_map(|device| device.cdi_device_ids).collect());
        }
        Err(claim.error)
    }

    async fn unprepare(&self, pod: &str) -> Result<(), String> {
        let mut client = DraPluginClient::new(connect(&self.sockets.dra).await);
        let answer = client.node_unprepare_resources(NodeUnprepareResourcesRequest { claims: vec![named(pod)] }).await;
        let error = answer.unwrap().into_inner().claims.remove(&format!("uid-{pod}")).unwrap().error;
        if error.is_empty() { Ok(()) } else { Err(error) }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn kubelet_registers_the_driver_and_sockets_end_with_the_agent() {
    let machine = Machine::new();
    let agent = machine.agent("pod-1");
    assert!(agent.sockets.registration.to_str().unwrap().ends_with("gpu.stowage.dev-pod-1@reg.sock"));
    let mut client = RegistrationClient::new(connect(&agent.sockets.registration).await);
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("DRAPlugin", "gpu.stowage.dev"));
    assert_eq!(info.endpoint, agent.sockets.dra.to_str().unwrap());
    assert_eq!(info.supported_versions[0], "v1.DRAPlugin");
    let refused = RegistrationStatus { plugin_registered: false, error: "name taken".to_owned() };
    client.notify_registration_status(refused).await.unwrap();
    assert!(agent.registered.borrow().as_ref().unwrap_err().contains("name taken"));
    let accepted = RegistrationStatus { plugin_registered: true, error: String::new() };
    client.notify_registration_status(accepted).await.unwrap();
    assert_eq!(*agent.registered.borrow(), Ok(()));
    let sockets = agent.sockets.clone();
    agent.end().await;
    assert!(!sockets.dra.exists() && !sockets.registration.exists());
}

#[tokio::test]
async fn new_agent_serves_beside_the_old_one_and_removes_stale_sockets() {
    let machine = Machine::new();
    let old = machine.agent("old");
    connect(&old.sockets.registration).await;
    let dead = Sockets::new(&machine.dir.path().join("p"), &machine.dir.path().join("r"), "dead");
    for path in [&dead.dra, &dead.registration] {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    }
    let new = machine.agent("new");
    connect(&new.sockets.registration).await;
    assert!(!dead.dra.exists() && !dead.registration.exists());
    assert!(old.sockets.registration.exists());
    machine.put("one", "gpu-0", "4Gi", "50");
    machine.put("two", "gpu-0", "5Gi", "10");
    // Each starts from what the other has written.
    old.prepare("one").await.unwrap();
    assert!(new.prepare("two").await.unwrap_err().contains("over-commit"));
    new.unprepare("one").await.unwrap();
    old.prepare("two").await.unwrap();
}

#[tokio::test]
async fn claim_is_prepared_as_granted_and_unprepared() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    machine.put("one", "gpu-1", "4Gi", "40");
    let ids = agent.prepare("one").await.unwrap();
    assert_eq!(ids, ["gpu.stowage.dev/claim=uid-one-env", "gpu.stowage.dev/claim=uid-one-gpu-0"]);
    let cdi = machine.cdi("uid-one");
    let env = cdi.pointer("/devices/0/containerEdits/env").unwrap().to_string();
    for wanted in ["STOWAGE_GPU_MEMORY_BYTES=4294967296", "STOWAGE_GPU_SM_PERCENT=40", "STOWAGE_GPU_UUIDS=GPU-1"] {
        assert!(env.contains(wanted), "{env}");
    }
    let report: Value =
        serde_json::from_slice(&std::fs::read(machine.reports("uid-one").join("claim.json")).unwrap()).unwrap();
    assert_eq!((report["pod"].as_str(), report["uuids"][0].as_str()), (Some("one"), Some("GPU-1")));
    // Neither this directory nor another of the host is the pod's to write.
    let mode = std::os::unix::fs::PermissionsExt::mode(&machine.paths().reports().metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o700);
    let mounts = cdi.pointer("/devices/0/containerEdits/mounts").unwrap().as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["type"] == "tmpfs"), "{mounts:?}");
    assert_eq!(machine.on_disk().pointer("/claims/uid-one/stage").unwrap(), "Completed");

    // Again: the same answer, also without an API server.
    *machine.api.down.lock().unwrap() = true;
    assert_eq!(agent.prepare("one").await.unwrap(), ids);
    agent.unprepare("one").await.unwrap();
    agent.unprepare("one").await.unwrap();
    agent.unprepare("never seen").await.unwrap_err();
    agent.unprepare("unknown").await.unwrap();
    assert!(!machine.cdi_file("uid-one").exists() && !machine.reports("uid-one").exists());
    assert_eq!(machine.on_disk()["claims"], serde_json::json!({}));
}

#[tokio::test]
async fn third_claim_on_a_full_gpu_is_refused_until_one_is_unprepared() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    machine.put("one", "gpu-0", "4Gi", "50");
    machine.put("two", "gpu-0", "4Gi", "50");
    machine.put("three", "gpu-0", "256Mi", "1");
    agent.prepare("one").await.unwrap();
    agent.prepare("two").await.unwrap();
    let err = agent.prepare("three").await.unwrap_err();
    assert!(err.contains("over-commit GPU-0"), "{err}");
    // The message becomes an event in the namespace of the refused claim, and the others may be another tenant's.
    assert!(!err.contains("stowage-one") && !err.contains("stowage-two"), "{err}");
    agent.unprepare("two").await.unwrap();
    agent.prepare("three").await.unwrap();
}

#[tokio::test]
async fn deleted_claim_without_processes_gives_its_room_to_another() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    machine.put("one", "gpu-0", "8Gi", "100");
    machine.put("two", "gpu-0", "8Gi", "100");
    agent.prepare("one").await.unwrap();
    assert!(agent.prepare("two").await.is_err());
    machine.api.claims.lock().unwrap().remove("stowage-one");
    // Gone from the API server, but its process still runs: the room is taken.
    let engine = Engine::start(&machine.proc(), "one", 1);
    assert!(agent.prepare("two").await.unwrap_err().contains("over-commit"));
    drop(engine);
    agent.prepare("two").await.unwrap();
    assert!(!machine.cdi_file("uid-one").exists());
}

#[tokio::test]
async fn refusals_reach_the_kubelet_with_their_reason() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    let err = agent.prepare("nobody").await.unwrap_err();
    assert!(err.contains("claim stowage-nobody does not exist"), "{err}");
    let (claim, mut pod) = claim_and_pod("other", "gpu-0", "1Gi", "1");
    pod["metadata"]["labels"] = serde_json::json!({});
    machine.api.put(claim, pod);
    let err = agent.prepare("other").await.unwrap_err();
    assert!(err.contains("Only pods made by the operator may"), "{err}");
    *machine.api.down.lock().unwrap() = true;
    machine.put("one", "gpu-0", "1Gi", "1");
    assert!(agent.prepare("one").await.unwrap_err().contains("cannot read"));
    assert!(agent.checkpoint.borrow().claims.is_empty());
}

/// What a hostile pod of an earlier version leaves: its report directory was on the host's disk.
#[tokio::test]
async fn deep_report_directory_delays_neither_unprepare_nor_another_claim() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    machine.put("one", "gpu-0", "8Gi", "100");
    machine.put("two", "gpu-0", "8Gi", "100");
    agent.prepare("one").await.unwrap();
    let mut at = rustix::fs::open(machine.reports("uid-one"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..2_000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(at);
    agent.unprepare("one").await.unwrap();
    assert!(!machine.reports("uid-one").exists());
    agent.prepare("two").await.unwrap();
    let removed = machine.paths().state.join("removed");
    while !entries(&removed).is_empty() {
        tokio::task::yield_now().await;
    }
}

/// As root without `fs.protected_symlinks`, the agent would write where the link leads.
#[tokio::test]
async fn link_in_the_report_directory_is_not_written_through_at_a_repeated_prepare() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    machine.put("one", "gpu-0", "8Gi", "100");
    agent.prepare("one").await.unwrap();
    let secret = machine.dir.path().join("passwd");
    std::fs::write(&secret, "root").unwrap();
    std::os::unix::fs::symlink(&secret, machine.reports("uid-one").join("claim.tmp")).unwrap();
    std::fs::remove_file(machine.cdi_file("uid-one")).unwrap();
    agent.prepare("one").await.unwrap();
    assert_eq!(std::fs::read(&secret).unwrap(), b"root");
    assert!(machine.cdi_file("uid-one").exists());
}

/// A crash between `PrepareStarted` and `Completed`, made by a CDI directory that cannot be used.
#[tokio::test]
async fn unfinished_preparation_keeps_its_room_and_is_completed_by_the_next_agent() {
    let machine = Machine::new();
    machine.put("one", "gpu-0", "8Gi", "100");
    machine.put("two", "gpu-0", "1Gi", "1");
    std::fs::write(machine.paths().cdi, "a file in the way").unwrap();
    let agent = machine.agent("x");
    assert!(agent.prepare("one").await.unwrap_err().contains("free space on the node's disk"));
    assert_eq!(machine.on_disk().pointer("/claims/uid-one/stage").unwrap(), "PrepareStarted");
    agent.task.abort();

    std::fs::remove_file(machine.paths().cdi).unwrap();
    let next = machine.agent("y");
    assert!(next.prepare("two").await.unwrap_err().contains("over-commit"), "the room is taken");
    next.prepare("one").await.unwrap();
    assert_eq!(machine.on_disk().pointer("/claims/uid-one/stage").unwrap(), "Completed");
    assert_eq!(next.checkpoint.borrow().claims["uid-one"].stage, Stage::Completed);
    next.unprepare("one").await.unwrap();
    next.prepare("two").await.unwrap();
}

#[tokio::test]
async fn unfinished_preparation_of_a_deleted_claim_is_dropped_at_the_next_start() {
    let machine = Machine::new();
    machine.put("one", "gpu-0", "8Gi", "100");
    std::fs::write(machine.paths().cdi, "a file in the way").unwrap();
    let agent = machine.agent("x");
    agent.prepare("one").await.unwrap_err();
    agent.task.abort();
    std::fs::remove_file(machine.paths().cdi).unwrap();
    let next = machine.agent("y");
    assert_eq!(next.preparer.forget_abandoned().await.unwrap(), 0);
    machine.api.claims.lock().unwrap().clear();
    assert_eq!(next.preparer.forget_abandoned().await.unwrap(), 1);
    assert_eq!(machine.on_disk()["claims"], serde_json::json!({}));
}

#[tokio::test]
async fn truncated_checkpoint_is_rebuilt_and_over_commit_is_still_refused() {
    let machine = Machine::new();
    machine.put("one", "gpu-0", "8Gi", "100");
    machine.put("two", "gpu-0", "1Gi", "1");
    let agent = machine.agent("x");
    agent.prepare("one").await.unwrap();
    agent.end().await;
    let text = std::fs::read(machine.paths().checkpoint()).unwrap();
    std::fs::write(machine.paths().checkpoint(), &text[..text.len() / 2]).unwrap();
    let next = machine.agent("y");
    assert!(next.problem.as_ref().unwrap().contains("rebuilt from the CDI files with 1 claims"));
    assert!(next.prepare("two").await.unwrap_err().contains("over-commit"));
    next.unprepare("one").await.unwrap();
    next.prepare("two").await.unwrap();
}

#[tokio::test]
async fn kubelet_receives_the_health_of_devices() {
    let machine = Machine::new();
    let agent = machine.agent("x");
    let verdict = |health| Verdict { health, reason: "", message: String::new(), since: jiff::Timestamp::UNIX_EPOCH };
    let verdicts = |health| Arc::new(BTreeMap::from([("gpu-0".to_owned(), verdict(health))]));
    agent.verdicts.send_replace(verdicts(Health::Healthy));
    let mut client = DraResourceHealthClient::new(connect(&agent.sockets.dra).await);
    let mut stream = client.node_watch_resources(NodeWatchResourcesRequest {}).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.devices[0].health, i32::from(HealthStatus::Healthy));
    assert_eq!(first.devices[0].device.as_ref().unwrap().pool_name, "node1");
    agent.verdicts.send_replace(verdicts(Health::Unhealthy));
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.devices[0].health, i32::from(HealthStatus::Unhealthy));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever the kubelet's messages hold: an answer, no panic, no file outside our directories.
    #[test]
    fn no_message_makes_the_plugin_panic_or_leave_its_directories(
        uid in "\\PC{0,80}|[./a-z]{0,20}", name in "\\PC{0,20}", namespace in "\\PC{0,20}", unprepare: bool,
    ) {
        let machine = Machine::new();
        let before = entries(machine.dir.path());
        let (_, facts) = watch::channel(Arc::new(gpus()));
        let (preparer, _, _) = Preparer::open("node1", true, machine.paths(), machine.api.clone(), facts).unwrap();
        let asked = stowage_node_agent::dra::grant::ClaimRef { namespace, name, uid };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if unprepare {
                let _ = preparer.unprepare(&asked).await;
            } else {
                assert!(preparer.prepare(&asked).await.is_err());
            }
        });
        let mut after = entries(machine.dir.path());
        after.retain(|name| !["state", "cdi"].contains(&name.as_str()));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        use prost::Message;
        let _ = NodePrepareResourcesRequest::decode(bytes.as_slice());
        let _ = NodeUnprepareResourcesRequest::decode(bytes.as_slice());
        let _ = RegistrationStatus::decode(bytes.as_slice());
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

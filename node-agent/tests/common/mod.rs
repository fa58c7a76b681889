//! The built `libfake_nvml.so`, a scenario of its own per test, and a fake claim source.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};
use stowage_gpu_scenario::Scenario;
use stowage_node_agent::device::nvml::Reader;
use stowage_node_agent::dra::claims::{ClaimSource, LookupError};

/// Where cargo put the library: the test's binary lies in `deps`, the library there or one above.
pub fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let candidates = [deps.join("libfake_nvml.so"), deps.parent().unwrap().join("libfake_nvml.so")];
    let newest =
        candidates.iter().filter(|path| path.is_file()).max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    newest.expect("libfake_nvml.so: run `cargo build -p fake-nvml`").clone()
}

/// One simulated node. The library keeps global state and reads the environment at `nvmlInit`, so
/// each node loads a copy of its own, one at a time.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub reader: Option<Arc<Reader>>,
}

static ENVIRONMENT: Mutex<()> = Mutex::new(());

impl Node {
    pub fn new(scenario: &Scenario) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["reports", "proc"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let mut node = Self { dir, reader: None };
        node.set(scenario);
        let copy = node.dir.path().join("libnvidia-ml.so");
        std::fs::copy(library(), &copy).unwrap();
        let guard = ENVIRONMENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: all readers and writers of the environment in these tests hold the mutex.
        unsafe {
            std::env::set_var(stowage_gpu_scenario::SCENARIO_ENV, node.scenario());
            std::env::set_var(stowage_gpu_scenario::REPORTS_ENV, node.reports());
            std::env::set_var(fake_nvml::PROC_ENV, node.proc());
        }
        node.reader = Some(Arc::new(Reader::open(Some(&copy)).unwrap()));
        drop(guard);
        node
    }

    pub fn reader(&self) -> &Reader {
        self.reader.as_ref().unwrap()
    }

    pub fn scenario(&self) -> PathBuf {
        self.dir.path().join("scenario.json")
    }

    pub fn reports(&self) -> PathBuf {
        self.dir.path().join("reports")
    }

    /// What stands for `/proc`.
    pub fn proc(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    /// What the agent writes when it prepares a claim on the GPU.
    pub fn claim(&self, uid: &str, gpu: &str, pod: &str) {
        let dir = self.reports().join(uid);
        std::fs::create_dir(&dir).unwrap();
        let claim = json!({"uuids": [gpu], "namespace": "a", "name": format!("stowage-{pod}"), "pod": pod, "podUid": pod_uid(pod)});
        std::fs::write(dir.join("claim.json"), claim.to_string()).unwrap();
    }

    /// Replaces the scenario by rename, as the documentation asks.
    pub fn set(&self, scenario: &Scenario) {
        let draft = self.dir.path().join("scenario.tmp");
        std::fs::write(&draft, scenario.to_json()).unwrap();
        std::fs::rename(&draft, self.scenario()).unwrap();
    }
}

/// What the API server would answer.
#[derive(Default)]
pub struct FakeApi {
    pub claims: Mutex<HashMap<String, ResourceClaim>>,
    pub pods: Mutex<HashMap<String, Pod>>,
    pub down: Mutex<bool>,
}

impl FakeApi {
    pub fn put(&self, claim: Value, pod: Value) {
        let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let name = claim.metadata.name.clone().unwrap();
        self.claims.lock().unwrap().insert(name, claim);
        self.pods.lock().unwrap().insert(pod.metadata.name.clone().unwrap(), pod);
    }

    fn check(&self, what: &str) -> Result<(), LookupError> {
        if *self.down.lock().unwrap() {
            return Err(LookupError { what: what.to_owned(), why: "connection refused".to_owned() });
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl ClaimSource for FakeApi {
    async fn claim(&self, _: &str, name: &str) -> Result<Option<ResourceClaim>, LookupError> {
        self.check(name)?;
        Ok(self.claims.lock().unwrap().get(name).cloned())
    }

    async fn pod(&self, _: &str, name: &str) -> Result<Option<Pod>, LookupError> {
        self.check(name)?;
        Ok(self.pods.lock().unwrap().get(name).cloned())
    }
}

/// A UID of the shape that Kubernetes gives, made of the pod's name.
pub fn pod_uid(pod: &str) -> String {
    let digits: String = pod.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0>8.8}-0000-4000-8000-000000000000")
}

/// A claim `stowage-<pod>` with uid `uid-<pod>` on one device of node1, and its pod.
pub fn claim_and_pod(pod: &str, device: &str, memory: &str, sm: &str) -> (Value, Value) {
    let owner =
        json!([{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": "d1"}]);
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": format!("stowage-{pod}"), "namespace": "a", "uid": format!("uid-{pod}"), "ownerReferences": owner},
        "spec": {},
        "status": {
            "reservedFor": [{"resource": "pods", "name": pod, "uid": pod_uid(pod)}],
            "allocation": {"devices": {"results": [{
                "request": "gpu", "driver": "gpu.stowage.dev", "pool": "node1", "device": device,
                "shareID": "s", "consumedCapacity": {"memory": memory, "sm": sm}}]}}}
    });
    let made = json!({
        "metadata": {"name": pod, "uid": pod_uid(pod), "ownerReferences": owner,
            "labels": {"app.kubernetes.io/managed-by": "stowage"}},
        "spec": {"nodeName": "node1", "containers": []}
    });
    (claim, made)
}

/// An engine in a container of its pod: a process that holds the lock of its report directory (a real
/// one, since a lock is invisible to the process that holds it) and stands in `proc` as the kernel
/// would show it.
pub struct Engine {
    process: std::process::Child,
    shown: PathBuf,
}

impl Engine {
    pub fn start(proc: &Path, pod: &str, bytes: u64) -> Self {
        let script = r#"
import fcntl, json, os, sys, time
d, n = sys.argv[1], int(sys.argv[2])
f = open(d + "/lock", "w"); fcntl.lockf(f, fcntl.LOCK_EX)
open(d + "/usage.tmp", "w").write(json.dumps({"bytes": n, "smPercent": 25}))
os.rename(d + "/usage.tmp", d + "/usage.json")
print("running", flush=True)
time.sleep(600)
"#;
        let root = proc.join(format!("root-of-{pod}"));
        let report = root.join("run/stowage/report");
        std::fs::create_dir_all(&report).unwrap();
        let mut process = std::process::Command::new("python3")
            .args(["-c", script, report.to_str().unwrap(), &bytes.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert_eq!(line.trim(), "running");
        let shown = proc.join(process.id().to_string());
        std::fs::create_dir(&shown).unwrap();
        std::fs::write(shown.join("cgroup"), format!("0::/kubepods/pod{}/c\n", pod_uid(pod))).unwrap();
        std::os::unix::fs::symlink(&root, shown.join("root")).unwrap();
        std::os::unix::fs::symlink(format!("/proc/{}/statm", process.id()), shown.join("statm")).unwrap();
        Self { process, shown }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.shown);
    }
}

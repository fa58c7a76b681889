//! The built `libfake_nvml.so`, a scenario of its own per test, and a fake claim source.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fake_nvml::Scenario;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};
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
        std::fs::create_dir(dir.path().join("reports")).unwrap();
        let mut node = Self { dir, reader: None };
        node.set(scenario);
        let copy = node.dir.path().join("libnvidia-ml.so");
        std::fs::copy(library(), &copy).unwrap();
        let guard = ENVIRONMENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: all readers and writers of the environment in these tests hold the mutex.
        unsafe {
            std::env::set_var(fake_nvml::SCENARIO_ENV, node.scenario());
            std::env::set_var(fake_nvml::REPORTS_ENV, node.reports());
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

    /// Replaces the scenario by rename, as people are told to.
    pub fn set(&self, scenario: &Scenario) {
        let draft = self.dir.path().join("scenario.tmp");
        std::fs::write(&draft, scenario.to_json()).unwrap();
        std::fs::rename(&draft, self.scenario()).unwrap();
    }
}

/// What the API server would say.
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

/// A claim `stowage-<pod>` with uid `uid-<pod>` on one device of node1, and its pod.
pub fn claim_and_pod(pod: &str, device: &str, memory: &str, sm: &str) -> (Value, Value) {
    let owner =
        json!([{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": "d1"}]);
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": format!("stowage-{pod}"), "namespace": "a", "uid": format!("uid-{pod}"), "ownerReferences": owner},
        "spec": {},
        "status": {
            "reservedFor": [{"resource": "pods", "name": pod, "uid": format!("pod-{pod}")}],
            "allocation": {"devices": {"results": [{
                "request": "gpu", "driver": "gpu.stowage.dev", "pool": "node1", "device": device,
                "shareID": "s", "consumedCapacity": {"memory": memory, "sm": sm}}]}}}
    });
    let made = json!({
        "metadata": {"name": pod, "uid": format!("pod-{pod}"), "ownerReferences": owner,
            "labels": {"app.kubernetes.io/managed-by": "stowage"}},
        "spec": {"nodeName": "node1", "containers": []}
    });
    (claim, made)
}

/// A process that holds the lock of a report directory: a real one, since a lock is invisible to the
/// process that holds it.
pub struct Holder(std::process::Child);

impl Holder {
    pub fn start(dir: &Path, bytes: u64) -> Self {
        let script = r#"
import fcntl, json, os, sys, time
d, n = sys.argv[1], int(sys.argv[2])
f = open(d + "/lock", "w"); fcntl.lockf(f, fcntl.LOCK_EX)
open(d + "/usage.tmp", "w").write(json.dumps({"bytes": n, "smPercent": 25}))
os.rename(d + "/usage.tmp", d + "/usage.json")
print("running", flush=True)
time.sleep(600)
"#;
        let mut child = std::process::Command::new("python3")
            .args(["-c", script, dir.to_str().unwrap(), &bytes.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert_eq!(line.trim(), "running");
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! Messages of the kubelet: decoded, and those about claims acted upon, on a node of two GPUs whose
//! API server knows every claim that the message names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use prost::Message;
use serde_json::{Value, json};
use stowage_crds::names;
use stowage_node_agent::device::model::GpuFacts;
use stowage_node_agent::dra::claims::{ClaimSource, LookupError};
use stowage_node_agent::dra::plugin::DraService;
use stowage_node_agent::dra::plugin::api::v1::dra_plugin_server::DraPlugin;
use stowage_node_agent::dra::plugin::api::{health, registration, v1};
use stowage_node_agent::dra::prepare::{Paths, Preparer};
use tonic::Request;

use crate::{one_line, scratch, within};

/// Every message survives being written again. A claim is prepared or refused in one line; nothing
/// is asked of the API server or written to disk under a name that could mean another place; what
/// was prepared is gone after it was unprepared.
pub fn dra_message(data: &[u8]) {
    survives::<v1::NodePrepareResourcesResponse>(data);
    survives::<v1::NodeUnprepareResourcesResponse>(data);
    survives::<registration::InfoRequest>(data);
    survives::<registration::PluginInfo>(data);
    survives::<registration::RegistrationStatus>(data);
    survives::<registration::RegistrationStatusResponse>(data);
    survives::<health::NodeWatchResourcesRequest>(data);
    survives::<health::NodeWatchResourcesResponse>(data);
    let prepare = survives::<v1::NodePrepareResourcesRequest>(data);
    let unprepare = survives::<v1::NodeUnprepareResourcesRequest>(data);
    if let (Some(prepare), Some(unprepare)) = (prepare, unprepare) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(claims_come_and_go(prepare, unprepare));
    }
}

/// Two bytes make an empty claim of three strings, and a list doubles as it grows.
const PER_BYTE: usize = 128;

fn survives<M: Message + Default + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<M> {
    let message = within(PER_BYTE, data, || M::decode(data)).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&message));
    Some(message)
}

async fn claims_come_and_go(prepare: v1::NodePrepareResourcesRequest, unprepare: v1::NodeUnprepareResourcesRequest) {
    let dir = scratch();
    let paths = Paths { cdi: dir.path().join("cdi"), state: dir.path().join("state") };
    let (_gpus, facts) = tokio::sync::watch::channel(Arc::new(vec![gpu(0), gpu(1)]));
    let api = Arc::new(Api::of(&prepare.claims));
    let (preparer, promised, _) = Preparer::open("node1", true, paths, api, facts).expect("a new node");
    let service = DraService { preparer: Arc::new(preparer) };

    let claims = prepare.claims.clone();
    let answer =
        service.node_prepare_resources(Request::new(prepare)).await.expect("errors are per claim").into_inner();
    survives::<v1::NodePrepareResourcesResponse>(&answer.encode_to_vec());
    for claim in &claims {
        let answer = answer.claims.get(&claim.uid).expect("an answer per claim");
        if answer.devices.is_empty() {
            one_line(&answer.error);
            continue;
        }
        let known = cdi_devices(dir.path(), &claim.uid);
        let named = answer.devices.iter().flat_map(|device| &device.cdi_device_ids);
        named.for_each(|id| assert!(known.contains(id), "{id} is not among {known:?}"));
    }
    let of_claim =
        |uid: &String| [format!("state/reports/{uid}/claim.json"), format!("cdi/{}-claim_{uid}.json", names::DRIVER)];
    let mut files: BTreeSet<String> = promised.borrow().claims.keys().flat_map(of_claim).collect();
    files.extend(OURS.map(str::to_owned));
    let found = files_below(dir.path());
    let stray: Vec<_> = found.difference(&files).collect();
    assert!(stray.is_empty(), "unexpected files: {stray:?}");

    let answer = service.node_unprepare_resources(Request::new(unprepare)).await.expect("errors are per claim");
    answer.get_ref().claims.values().filter(|a| !a.error.is_empty()).for_each(|a| one_line(&a.error));
    assert!(promised.borrow().claims.is_empty(), "still promised: {:?}", promised.borrow().claims);
    let mut left = files_below(dir.path());
    left.retain(|file| !OURS.contains(&file.as_str()));
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// The agent's own files, which are of no claim.
const OURS: [&str; 2] = ["state/lock", "state/checkpoint.json"];

/// The qualified names of the devices in a claim's file, each one that a runtime accepts.
fn cdi_devices(dir: &Path, uid: &str) -> Vec<String> {
    let path = dir.join(format!("cdi/{}-claim_{uid}.json", names::DRIVER));
    let spec: Value = serde_json::from_slice(&std::fs::read(path).expect("the file")).expect("JSON");
    let devices = spec["devices"].as_array().expect("devices").iter();
    let names: Vec<&str> = devices.map(|device| device["name"].as_str().expect("a name")).collect();
    for name in &names {
        let inner = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-.:".contains(&c));
        let ends = [name.as_bytes().first(), name.as_bytes().last()];
        let ends = ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
        assert!(inner && ends, "{name:?} is no name of a CDI device");
    }
    names.iter().map(|name| format!("{}={name}", names::CDI_KIND)).collect()
}

fn files_below(dir: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a directory").flatten() {
            match entry.file_type().expect("its type").is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let path = entry.path();
                    files.insert(path.strip_prefix(dir).expect("below").display().to_string());
                }
            }
        }
    }
    files
}

fn gpu(index: u32) -> GpuFacts {
    GpuFacts {
        index,
        uuid: format!("GPU-{index}"),
        product: "NVIDIA L4".to_owned(),
        memory_bytes: 24 << 30,
        reserved_bytes: 0,
        sm_count: 58,
        architecture: None,
        numa_node: None,
        pci_bus_id: None,
        nvlink_bus_ids: Vec::new(),
        minor: Some(index),
        mig_enabled: None,
        mig_profiles: Vec::new(),
    }
}

/// An API server that has allocated every claim: uid by name.
struct Api(BTreeMap<String, String>);

const OWNER: &str = "deployment-uid";

impl Api {
    /// Uids that it gave are printable; names that are asked for are checked where they are asked for.
    fn of(claims: &[v1::Claim]) -> Self {
        let given = claims.iter().filter(|claim| claim.uid.bytes().all(|c| c.is_ascii_graphic()));
        Self(given.map(|claim| (claim.name.clone(), claim.uid.clone())).collect())
    }

    fn owner() -> Value {
        json!([{"apiVersion": names::API_VERSION, "kind": "InferenceDeployment", "name": "chat", "uid": OWNER}])
    }
}

#[tonic::async_trait]
impl ClaimSource for Api {
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<ResourceClaim>, LookupError> {
        assert_path_segments(namespace, name);
        let Some(uid) = self.0.get(name) else { return Ok(None) };
        let pod = name.strip_prefix(names::CLAIM_PREFIX).unwrap_or(name);
        let on = |device: &str| {
            let consumed = json!({"memory": "1Gi", "sm": "5"});
            json!({"request": "gpu", "driver": names::DRIVER, "pool": "node1", "device": device, "consumedCapacity": consumed})
        };
        let claim = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "ownerReferences": Self::owner()},
            "spec": {},
            "status": {
                "reservedFor": [{"resource": "pods", "name": pod, "uid": "pod-uid"}],
                "allocation": {"devices": {"results": [on("gpu-0"), on("gpu-1")]}},
            },
        });
        Ok(Some(serde_json::from_value(claim).expect("a claim")))
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, LookupError> {
        assert_path_segments(namespace, name);
        let pod = json!({
            "metadata": {"name": name, "uid": "pod-uid", "ownerReferences": Self::owner(),
                "labels": {names::LABEL_MANAGED_BY: names::MANAGED_BY}},
            "spec": {"nodeName": "node1", "containers": []},
        });
        Ok(Some(serde_json::from_value(pod).expect("a pod")))
    }
}

/// Both become parts of the path of an HTTP request.
fn assert_path_segments(namespace: &str, name: &str) {
    for segment in [namespace, name] {
        let plain = segment.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.');
        assert!(plain && !segment.starts_with('.') && !segment.is_empty(), "{segment:?} is asked of the API server");
    }
}

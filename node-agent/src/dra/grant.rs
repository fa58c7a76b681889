//! From a claim and its pod to what this node grants, or the reason why not.
//!
//! Pure. The scheduler has allocated and admission policies guard who may ask; the agent checks
//! again, because it hands over the device. It believes what the API
//! server reports as granted (`consumedCapacity`), never what the pod asks for.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use stowage_contracts::model::ClaimModel;
use stowage_contracts::names;
use stowage_crds::quantity::parse_bytes;

use crate::device::inventory::Promisable;
use crate::dra::checkpoint::{Entry, GrantedDevice, Stage};

/// A claim as the kubelet names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Why a claim is not prepared. The text ends up in the pod's events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the kubelet's request names no usable claim uid ({0:?})")]
    BadUid(String),
    #[error("the kubelet's request names no usable claim ({namespace:?}/{name:?})")]
    BadName { namespace: String, name: String },
    #[error("claim {0} does not exist")]
    NoClaim(String),
    #[error("claim {name} was replaced: the pod means {wanted}, the API server has {found}; delete the pod")]
    Replaced { name: String, wanted: String, found: String },
    #[error("claim {0} is not allocated; the scheduler has to do that first")]
    NotAllocated(String),
    #[error("claim {0} holds no device of {driver} on this node", driver = names::DRIVER)]
    NotOurs(String),
    #[error("claim {claim} holds device {device}, which this node does not have (any more)")]
    UnknownDevice { claim: String, device: String },
    #[error("claim {claim}: consumed capacity {what} is no usable quantity")]
    BadCapacity { claim: String, what: String },
    #[error("claim {0} asks for isolation {1}, which this agent cannot enforce")]
    Isolation(String, String),
    #[error("claim {0} names a model that this agent cannot fetch")]
    BadModel(String),
    #[error("claim {0} is not reserved for exactly one pod")]
    Reserved(String),
    #[error("pod {pod} may not use claim {claim}: {why}. Only pods made by the operator may")]
    NotOperators { pod: String, claim: String, why: &'static str },
}

/// The pod for which the claim is reserved: (name, uid).
pub fn reserved_pod(claim: &ResourceClaim, asked: &ClaimRef) -> Result<(String, String), Refusal> {
    check_identity(claim, asked)?;
    let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
    let mut pods =
        users.iter().filter(|user| user.resource == "pods" && user.api_group.as_deref().unwrap_or("").is_empty());
    match (pods.next(), pods.next()) {
        (Some(pod), None) => Ok((pod.name.clone(), pod.uid.clone())),
        _ => Err(Refusal::Reserved(asked.name.clone())),
    }
}

fn check_identity(claim: &ResourceClaim, asked: &ClaimRef) -> Result<(), Refusal> {
    let found = claim.metadata.uid.clone().unwrap_or_default();
    if found == asked.uid {
        return Ok(());
    }
    Err(Refusal::Replaced { name: asked.name.clone(), wanted: asked.uid.clone(), found })
}

/// Whether the pod is one that the operator made for this claim, on this node.
pub fn check_pod(pod: Option<&Pod>, pod_uid: &str, claim: &ResourceClaim, node: &str) -> Result<(), Refusal> {
    let claim_name = claim.metadata.name.clone().unwrap_or_default();
    let pod_name = pod.and_then(|pod| pod.metadata.name.clone()).unwrap_or_default();
    let refuse = |why| Err(Refusal::NotOperators { pod: pod_name.clone(), claim: claim_name.clone(), why });
    let Some(pod) = pod else { return refuse("the pod does not exist") };
    if pod.metadata.uid.as_deref() != Some(pod_uid) {
        return refuse("it is another pod of the same name");
    }
    if claim_name != format!("{}{pod_name}", names::CLAIM_PREFIX) {
        return refuse("its name is not the one that belongs to the claim");
    }
    let managed = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_MANAGED_BY));
    if managed.map(String::as_str) != Some(names::MANAGED_BY) {
        return refuse("it does not carry the operator's label");
    }
    let (Some(of_pod), Some(of_claim)) = (deployment(&pod.metadata), deployment(&claim.metadata)) else {
        return refuse("pod or claim is not owned by an InferenceDeployment");
    };
    if of_pod.uid != of_claim.uid {
        return refuse("pod and claim belong to different InferenceDeployments");
    }
    if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node) {
        return refuse("it does not run on this node");
    }
    Ok(())
}

/// The InferenceDeployment that owns the object.
fn deployment(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let ours = |owner: &&OwnerReference| {
        owner.kind == "InferenceDeployment" && owner.api_version.split('/').next() == Some(names::GROUP)
    };
    meta.owner_references.as_deref().unwrap_or_default().iter().find(ours)
}

/// What the claim grants on this node, as the checkpoint will hold it.
pub fn grant(
    claim: &ResourceClaim,
    asked: &ClaimRef,
    pod: (&str, &str),
    pool: &str,
    gpus: &[Promisable],
) -> Result<Entry, Refusal> {
    check_identity(claim, asked)?;
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let allocated = allocation.and_then(|allocation| allocation.devices.as_ref());
    let allocated = allocated.ok_or_else(|| Refusal::NotAllocated(asked.name.clone()))?;
    let results = allocated.results.as_deref().unwrap_or_default();
    let ours = results.iter().filter(|result| result.driver == names::DRIVER && result.pool == pool);
    let devices = ours.map(|result| device(result, &asked.name, gpus)).collect::<Result<Vec<_>, _>>()?;
    if devices.is_empty() {
        return Err(Refusal::NotOurs(asked.name.clone()));
    }
    if let Some(isolation) = isolation(claim).filter(|wanted| !ENFORCED.contains(&wanted.as_str())) {
        return Err(Refusal::Isolation(asked.name.clone(), isolation));
    }
    let tenant = claim.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_TENANT));
    Ok(Entry {
        namespace: asked.namespace.clone(),
        name: asked.name.clone(),
        pod: pod.0.to_owned(),
        pod_uid: pod.1.to_owned(),
        tenant: tenant.cloned().unwrap_or_default(),
        stage: Stage::PrepareStarted,
        devices,
        model: model(claim, asked)?,
    })
}

/// Modes in which this agent needs to do nothing but pass the budget on. MIG would have to be cut,
/// MPS needs its daemon; neither is there yet.
const ENFORCED: [&str; 1] = ["EngineBudget"];

/// `isolation` of our opaque configuration, where there is one.
fn isolation(claim: &ResourceClaim) -> Option<String> {
    parameter(claim, "isolation")?.as_str().map(str::to_owned)
}

/// A parameter of our opaque configuration, as it was allocated.
fn parameter<'a>(claim: &'a ResourceClaim, name: &str) -> Option<&'a serde_json::Value> {
    let devices = claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?;
    devices.config.as_deref().unwrap_or_default().iter().find_map(|config| {
        let opaque = config.opaque.as_ref().filter(|opaque| opaque.driver == names::DRIVER)?;
        opaque.parameters.0.get(name)
    })
}

/// The model that is to be fetched for the claim.
fn model(claim: &ResourceClaim, asked: &ClaimRef) -> Result<Option<ClaimModel>, Refusal> {
    let Some(value) = parameter(claim, "model") else { return Ok(None) };
    let parsed = serde_json::from_value::<ClaimModel>(value.clone()).ok();
    let sound = parsed.filter(|model| model.is_sound(&asked.namespace));
    sound.map(Some).ok_or_else(|| Refusal::BadModel(asked.name.clone()))
}

fn device(result: &DeviceRequestAllocationResult, claim: &str, gpus: &[Promisable]) -> Result<GrantedDevice, Refusal> {
    let unknown = || Refusal::UnknownDevice { claim: claim.to_owned(), device: result.device.clone() };
    let gpu = gpus.iter().find(|gpu| gpu.device == result.device).ok_or_else(unknown)?;
    // Without an entry the scheduler counted the device as a whole.
    let consumed = |name: &str, whole: u64| match result.consumed_capacity.as_ref().and_then(|all| all.get(name)) {
        None => Ok(whole),
        Some(quantity) => parse_bytes(quantity).map_err(|_| Refusal::BadCapacity {
            claim: claim.to_owned(),
            what: format!("{name}={}", quantity.0.chars().take(64).collect::<String>()),
        }),
    };
    let sm = consumed(names::CAPACITY_SM, u64::from(gpu.sm_percent))?;
    Ok(GrantedDevice {
        request: result.request.split('/').next().unwrap_or_default().to_owned(),
        pool: result.pool.clone(),
        device: result.device.clone(),
        uuid: gpu.uuid.clone(),
        memory_bytes: consumed(names::CAPACITY_MEMORY, gpu.memory_bytes)?,
        sm_percent: u32::try_from(sm).unwrap_or(u32::MAX),
        share_id: result.share_id.clone(),
    })
}

impl ClaimRef {
    /// The uid becomes part of file names and CDI names, namespace and name of the path of a request
    /// to the API server: only what they are made of.
    pub fn check(&self) -> Result<(), Refusal> {
        if !is_dns_name(&self.namespace) || !is_dns_name(&self.name) {
            let shown = |text: &str| text.chars().take(80).collect();
            return Err(Refusal::BadName { namespace: shown(&self.namespace), name: shown(&self.name) });
        }
        let fine = !self.uid.is_empty()
            && self.uid.len() <= 64
            && self.uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !self.uid.starts_with('-')
            && !self.uid.ends_with('-');
        if fine { Ok(()) } else { Err(Refusal::BadUid(self.uid.chars().take(80).collect())) }
    }
}

/// As Kubernetes names its objects: lower-case labels, joined by dots.
fn is_dns_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-');
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use stowage_contracts::model::FileModel;

    const UID: &str = "11111111-2222-3333-4444-555555555555";

    fn gpus() -> Vec<Promisable> {
        vec![Promisable { device: "gpu-0".into(), uuid: "GPU-a".into(), memory_bytes: 80 << 30, sm_percent: 100 }]
    }

    fn claim() -> Value {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "stowage-chat-0", "namespace": "a", "uid": UID,
                "labels": {"stowage.dev/tenant": "team-a"},
                "ownerReferences": [{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": "d1"}]},
            "spec": {},
            "status": {
                "reservedFor": [{"resource": "pods", "name": "chat-0", "uid": "p1"}],
                "allocation": {"devices": {"results": [{
                    "request": "gpu/sub", "driver": "gpu.stowage.dev", "pool": "node1", "device": "gpu-0",
                    "shareID": "s1", "consumedCapacity": {"memory": "30Gi", "sm": "40"}}]}}}
        })
    }

    fn pod() -> Value {
        json!({
            "metadata": {"name": "chat-0", "uid": "p1", "labels": {"app.kubernetes.io/managed-by": "stowage"},
                "ownerReferences": [{"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment", "name": "chat", "uid": "d1"}]},
            "spec": {"nodeName": "node1", "containers": []}
        })
    }

    fn asked() -> ClaimRef {
        ClaimRef { namespace: "a".into(), name: "stowage-chat-0".into(), uid: UID.into() }
    }

    fn set(mut value: Value, pointer: &str, to: Value) -> Value {
        *value.pointer_mut(pointer).unwrap() = to;
        value
    }

    fn granted(claim: Value) -> Result<Entry, Refusal> {
        let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        grant(&claim, &asked(), ("chat-0", "p1"), "node1", &gpus())
    }

    #[test]
    fn what_was_consumed_is_granted() {
        let entry = granted(claim()).unwrap();
        let device = &entry.devices[0];
        assert_eq!((device.memory_bytes, device.sm_percent), (30 << 30, 40));
        assert_eq!((device.request.as_str(), device.uuid.as_str()), ("gpu", "GPU-a"));
        assert_eq!((entry.tenant.as_str(), device.share_id.as_deref()), ("team-a", Some("s1")));
        let whole = granted(set(claim(), "/status/allocation/devices/results/0/consumedCapacity", json!({}))).unwrap();
        assert_eq!((whole.devices[0].memory_bytes, whole.devices[0].sm_percent), (80 << 30, 100));
    }

    #[test]
    fn claims_that_are_not_ours_to_prepare_are_refused_with_the_reason() {
        let check = |pointer: &str, to: Value, expect: &str| {
            let err = granted(set(claim(), pointer, to)).unwrap_err().to_string();
            assert!(err.contains(expect), "{pointer}: {err}");
        };
        let result = "/status/allocation/devices/results/0";
        check("/metadata/uid", json!("other"), "was replaced");
        check("/status/allocation", json!(null), "not allocated");
        check(&format!("{result}/driver"), json!("gpu.nvidia.com"), "no device of gpu.stowage.dev");
        check(&format!("{result}/pool"), json!("node2"), "no device of gpu.stowage.dev");
        check(&format!("{result}/device"), json!("gpu-7"), "does not have");
        check(&format!("{result}/consumedCapacity/memory"), json!("lots"), "no usable quantity");
        let config = |isolation: &str| {
            json!({"config": [{"source": "FromClaim", "opaque": {"driver": "gpu.stowage.dev",
            "parameters": {"isolation": isolation}}}], "results": claim().pointer("/status/allocation/devices/results").unwrap()})
        };
        check("/status/allocation/devices", config("MIG"), "isolation MIG");
        assert!(granted(set(claim(), "/status/allocation/devices", config("EngineBudget"))).is_ok());
    }

    #[test]
    fn model_of_a_claim_has_an_address_and_a_digest_or_is_of_a_hub() {
        let with = |model: Value| {
            let results = claim().pointer("/status/allocation/devices/results").unwrap().clone();
            let parameters = json!({"isolation": "EngineBudget", "model": model});
            let config =
                json!([{"source": "FromClaim", "opaque": {"driver": "gpu.stowage.dev", "parameters": parameters}}]);
            granted(set(claim(), "/status/allocation/devices", json!({"config": config, "results": results})))
        };
        assert_eq!(granted(claim()).unwrap().model, None);
        let sha256 = "0f".repeat(32);
        let entry = with(json!({"url": "https://h/m", "sha256": sha256})).unwrap();
        assert_eq!(entry.model, Some(ClaimModel::File(FileModel::open("https://h/m", &sha256))));
        for bad in [json!({}), json!("x"), json!({"url": "https://h/m"}), json!({"url": "https://h/m", "sha256": "0f"})]
        {
            assert!(matches!(with(bad.clone()), Err(Refusal::BadModel(_))), "{bad}");
        }
        assert!(with(json!({"url": "https://h/m", "sha256": sha256.to_uppercase()})).is_err());
        let hub = |namespace: &str, repo: &str| {
            let token = json!({"namespace": namespace, "secret": "hub", "key": "token"});
            with(json!({"repo": repo, "revision": "main", "token": token}))
        };
        assert!(matches!(hub("a", "o/n").unwrap().model, Some(ClaimModel::Hub(_))));
        assert!(matches!(hub("b", "o/n"), Err(Refusal::BadModel(_))), "another namespace's Secret");
        assert!(matches!(hub("a", "../n"), Err(Refusal::BadModel(_))));
        let store = |namespace: &str| {
            let login = json!({"region": "us-east-1", "namespace": namespace, "secret": "store"});
            with(json!({"url": "https://h/b/m", "sha256": sha256, "s3": login}))
        };
        assert!(matches!(store("a").unwrap().model, Some(ClaimModel::File(FileModel { s3: Some(_), .. }))));
        assert!(matches!(store("b"), Err(Refusal::BadModel(_))), "another namespace's Secret");
    }

    #[test]
    fn only_the_pod_that_the_operator_made_for_the_claim_may_use_it() {
        let check = |pod: Value, claim: Value, expect: &str| {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
            let got =
                check_pod(Some(&pod), "p1", &claim, "node1").map_or_else(|err| err.to_string(), |()| "fine".into());
            assert!(got.contains(expect), "{got}");
        };
        check(pod(), claim(), "fine");
        check(set(pod(), "/metadata/uid", json!("p2")), claim(), "another pod of the same name");
        check(
            set(pod(), "/metadata/name", json!("other")),
            claim(),
            "its name is not the one that belongs to the claim",
        );
        check(set(pod(), "/metadata/labels", json!({})), claim(), "operator's label");
        check(set(pod(), "/metadata/ownerReferences", json!([])), claim(), "not owned by");
        check(set(pod(), "/metadata/ownerReferences/0/apiVersion", json!("evil.dev/v1")), claim(), "not owned by");
        check(set(pod(), "/metadata/ownerReferences/0/uid", json!("d2")), claim(), "different InferenceDeployments");
        check(set(pod(), "/spec/nodeName", json!("node2")), claim(), "does not run on this node");
    }

    #[test]
    fn claim_is_for_one_pod() {
        let check = |users: Value, fine: bool| {
            let claim: ResourceClaim = serde_json::from_value(set(claim(), "/status/reservedFor", users)).unwrap();
            assert_eq!(reserved_pod(&claim, &asked()).is_ok(), fine);
        };
        let pod = |name: &str| json!({"resource": "pods", "name": name, "uid": name});
        let holder =
            json!({"apiGroup": "stowage.dev", "resource": "inferencedeployments", "name": "chat", "uid": "d1"});
        check(json!([pod("a")]), true);
        check(json!([pod("a"), holder]), true);
        check(json!([pod("a"), pod("b")]), false);
        check(json!([]), false);
    }

    #[test]
    fn uids_that_could_leave_their_directory_are_refused() {
        for uid in ["", "../../etc", "a/b", "a b", "a\0", "-", "-a", "a-", &"a".repeat(65)] {
            assert!(ClaimRef { uid: uid.to_owned(), ..asked() }.check().is_err(), "{uid}");
        }
        assert!(asked().check().is_ok());
    }

    #[test]
    fn names_that_could_ask_for_another_object_are_refused() {
        for name in ["", "..", "a/../b", "a?watch=1", "a%2fb", "A", ".a", "a.", "-a", "a\n", &"a".repeat(254)] {
            assert!(ClaimRef { name: name.to_owned(), ..asked() }.check().is_err(), "{name:?}");
            assert!(ClaimRef { namespace: name.to_owned(), ..asked() }.check().is_err(), "{name:?}");
        }
        assert!(ClaimRef { name: "stowage-chat.v2-0".to_owned(), ..asked() }.check().is_ok());
    }
}

//! From API objects to [`Facts`]: the few fields that the data plane reads, and nothing else.
//!
//! Pure. One function per kind; `None` means that the object holds nothing for us. A field that cannot be
//! read (a duration, a hash) is left out rather than guessed, and the object still counts.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::core::Object;
use serde::Deserialize;
use stowage_contracts::lists::{EmptyLists, Untrusted};
use stowage_contracts::names;
use stowage_crds::conditions::types;
use stowage_crds::gpu_node::Health;
use stowage_crds::inference_deployment::ScalingMode;
use stowage_crds::validate::objectives;
use stowage_crds::{GpuNode, InferenceDeployment, TenantQuota, quantity};
use stowage_planner::snapshot::Placement;

use crate::listen::credentials::parse_hash;
use crate::world::facts::{DeploymentFact, Facts, PodFact, QuotaFact, SecretKeys, TokenLimits};
use crate::world::salt::SaltKey;

/// See [`cold_start`].
const LONGEST_START: Duration = Duration::from_secs(3600);

/// A Pod with the fields that routing reads: the full type costs a megabyte per few hundred pods.
pub type LeanPod = Object<LeanPodSpec, LeanPodStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LeanPodSpec {
    containers: Vec<LeanContainer>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LeanContainer {
    ports: Vec<LeanPort>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeanPort {
    name: String,
    container_port: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeanPodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Vec<LeanCondition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LeanCondition {
    r#type: String,
    status: String,
}

/// Objects of one kind, by `namespace/name`. A new list replaces the old one when it is complete.
#[derive(Debug)]
pub struct Table<F> {
    live: BTreeMap<String, F>,
    staged: Option<BTreeMap<String, F>>,
    synced: bool,
    empty: EmptyLists,
}

/// Everything that the watches keep.
#[derive(Debug, Default)]
pub struct Observed {
    pub quotas: Table<QuotaFact>,
    pub secrets: Table<SecretFact>,
    pub salt_keys: Table<SaltKey>,
    pub deployments: Table<DeploymentFact>,
    pub pods: Table<PodFact>,
    pub nodes: Table<HashSet<String>>,
}

/// A Secret's name and its keys.
pub type SecretFact = (String, SecretKeys);

// === impl Table ===

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self { live: BTreeMap::new(), staged: None, synced: false, empty: EmptyLists::default() }
    }
}

impl<F: Clone + PartialEq> Table<F> {
    /// A list begins. What is known stays until it is complete.
    pub fn begin(&mut self) {
        self.staged = Some(BTreeMap::new());
    }

    /// The list is complete. Returns whether anything changed. No key is revoked and no model forgotten because a
    /// server has just lost its storage.
    pub fn complete(&mut self, now: Instant) -> Result<bool, Untrusted> {
        let first = !std::mem::replace(&mut self.synced, true);
        let Some(staged) = self.staged.take() else { return Ok(first) };
        self.empty.judge(!self.live.is_empty(), staged.is_empty(), now)?;
        let changed = self.live != staged;
        self.live = staged;
        Ok(changed || first)
    }

    /// An object of the list that has begun.
    pub fn stage(&mut self, key: String, fact: Option<F>) {
        if let (Some(staged), Some(fact)) = (&mut self.staged, fact) {
            staged.insert(key, fact);
        }
    }

    /// An object changed. Returns whether that changes anything for us.
    pub fn set(&mut self, key: String, fact: Option<F>) -> bool {
        match fact {
            Some(fact) if self.live.get(&key) == Some(&fact) => false,
            Some(fact) => {
                self.live.insert(key, fact);
                true
            }
            None => self.live.remove(&key).is_some(),
        }
    }

    /// What was last known of an object; kept when its new form cannot be read.
    pub fn known(&self, key: &str) -> Option<F> {
        self.live.get(key).cloned()
    }

    fn values(&self) -> impl Iterator<Item = &F> {
        self.live.values()
    }
}

impl Observed {
    /// Every kind has been listed once.
    pub fn synced(&self) -> bool {
        self.missing().is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn missing(&self) -> Vec<&'static str> {
        let kinds = [
            ("TenantQuotas", self.quotas.synced),
            ("key Secrets", self.secrets.synced),
            ("the cache key", self.salt_keys.synced),
            ("InferenceDeployments", self.deployments.synced),
            ("Pods", self.pods.synced),
            ("GpuNodes", self.nodes.synced),
        ];
        kinds.into_iter().filter(|(_, synced)| !synced).map(|(kind, _)| kind).collect()
    }

    pub fn facts(&self) -> Facts {
        Facts {
            quotas: self.quotas.values().cloned().collect(),
            secrets: self.secrets.values().cloned().collect(),
            salt_key: self.salt_keys.values().next().cloned(),
            deployments: self.deployments.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            unhealthy_gpus: self.nodes.values().flatten().cloned().collect(),
        }
    }
}

/// The fact of a TenantQuota.
pub fn quota(object: &TenantQuota) -> Option<QuotaFact> {
    let credentials = object.spec.credentials.as_ref();
    Some(QuotaFact {
        name: object.name_any(),
        created: created(object),
        namespaces: object.spec.namespaces.clone(),
        key_secrets: credentials
            .map(|c| c.api_keys.iter().map(|key| key.secret_name.clone()).collect())
            .unwrap_or_default(),
        models_from: object.spec.models.as_ref().map(|models| models.from.clone()).unwrap_or_default(),
        limits: object.spec.tokens.as_ref().map(token_limits).unwrap_or_default(),
    })
}

/// The limits in `spec.tokens`.
pub fn token_limits(tokens: &stowage_crds::tenant_quota::TokenQuota) -> TokenLimits {
    TokenLimits {
        per_minute: tokens.per_minute,
        burst: tokens.burst.as_deref().and_then(|text| quantity::parse_duration(text).ok()),
        max_concurrent: tokens.max_concurrent,
        max_queued: tokens.max_queued,
    }
}

/// The key hashes of a Secret of our type.
pub fn secret(object: &Secret) -> Option<SecretFact> {
    if object.type_.as_deref() != Some(names::API_KEYS_SECRET_TYPE) {
        return None;
    }
    let mut keys = SecretKeys::default();
    for (name, value) in object.data.iter().flatten() {
        match std::str::from_utf8(&value.0).ok().and_then(parse_hash) {
            Some(hash) => keys.hashes.push((name.clone(), hash)),
            None => keys.unreadable.push(name.clone()),
        }
    }
    Some((object.name_any(), keys))
}

/// The key of the salts in the Secret of its name.
pub fn salt_key(object: &Secret) -> Option<SaltKey> {
    if object.type_.as_deref() != Some(names::CACHE_KEY_SECRET_TYPE) {
        return None;
    }
    SaltKey::new(&object.data.as_ref()?.get(names::CACHE_KEY_ENTRY)?.0)
}

/// The fact of an InferenceDeployment.
pub fn deployment(object: &InferenceDeployment) -> Option<DeploymentFact> {
    let spec = &object.spec;
    let cold = spec.scaling.cold_start.as_ref();
    Some(DeploymentFact {
        namespace: object.namespace()?,
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        created: created(object),
        model: spec.model.name.clone().unwrap_or_else(|| object.name_any()),
        access: access(object),
        hold: cold.and_then(|cold| quantity::parse_duration(cold.hold.as_ref()?).ok()),
        max_held: cold.and_then(|cold| Some(cold.max_held? as usize)),
        cold_start: cold_start(object),
        switched_off: spec.scaling.mode == ScalingMode::Manual && spec.replicas == 0,
        deleting: object.metadata.deletion_timestamp.is_some(),
        max_model_len: spec.runtime.options.as_ref().and_then(|options| options.max_model_len),
        objectives: objectives(spec),
    })
}

/// What the operator measured of its starts. Longer than it ever believes one to be is nonsense.
fn cold_start(object: &InferenceDeployment) -> Option<Duration> {
    let measured = object.status.as_ref()?.cold_start.as_ref()?;
    let expected = quantity::parse_duration(&measured.expected).ok()?;
    Some(expected).filter(|expected| !expected.is_zero() && *expected <= LONGEST_START)
}

/// The tenants that may call the model. None when the operator refuses the object: its runtime may be one that
/// cannot keep tenants' caches apart.
fn access(object: &InferenceDeployment) -> Vec<String> {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let refused = conditions.into_iter().any(|c| c.type_ == types::ACCEPTED && c.status == "False");
    let listed = object.spec.model.access.as_ref().map(|access| access.tenants.clone());
    if refused { Vec::new() } else { listed.unwrap_or_default() }
}

/// The fact of a pod of ours.
pub fn pod(object: &LeanPod) -> Option<PodFact> {
    let deployment = object.labels().get(names::LABEL_DEPLOYMENT)?.clone();
    let status = object.status.clone().unwrap_or_default();
    let ip: Option<IpAddr> = status.pod_ip.and_then(|ip| ip.parse().ok());
    let owner = object.owner_references().iter().find(|owner| owner.kind == "InferenceDeployment");
    Some(PodFact {
        namespace: object.namespace()?,
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        deployment,
        // A pod that our operator made has an owner; one that has none matches no deployment.
        owner_uid: Some(owner.map(|owner| owner.uid.clone()).unwrap_or_default()),
        address: ip.map(|ip| SocketAddr::new(ip, port(&object.spec))),
        ready: status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"),
        draining: object.metadata.deletion_timestamp.is_some()
            || object.annotations().contains_key(names::ANNOTATION_DRAINING),
        gpus: object.annotations().get(names::ANNOTATION_PLACEMENT).map(|text| placed_on(text)).unwrap_or_default(),
    })
}

/// The port on which the engine serves: the one that the pod publishes under the name of ours.
fn port(spec: &LeanPodSpec) -> u16 {
    let mut ports = spec.containers.iter().flat_map(|container| &container.ports);
    let published = ports.find(|port| port.name == names::HTTP_PORT_NAME && port.container_port > 0);
    published.map_or(names::ENGINE_PORT, |port| port.container_port)
}

/// Uuids in a placement that the operator wrote. From the pod and not from the deployment's status, which lists
/// some replicas only and comes later.
fn placed_on(annotation: &str) -> Vec<String> {
    let placement: Option<Placement> = serde_json::from_str(annotation).ok();
    placement.into_iter().flat_map(|placement| placement.gpus).map(|share| share.uuid).collect()
}

/// The GPUs of a node on which no work may run.
pub fn unhealthy_gpus(object: &GpuNode) -> Option<HashSet<String>> {
    let devices = object.status.iter().flat_map(|status| &status.devices);
    Some(
        devices.filter(|device| device.verdict.health == Health::Unhealthy).map(|device| device.uuid.clone()).collect(),
    )
}

fn created(object: &impl ResourceExt) -> i64 {
    object.creation_timestamp().map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::credentials::hash_key;
    use serde::de::DeserializeOwned;

    fn object<T: DeserializeOwned>(yaml: &str) -> T {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn a_minimal_deployment_takes_its_name_for_the_model() {
        let fact = deployment(&object(
            "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment,
              metadata: {name: chat, namespace: a, uid: u1, creationTimestamp: '2026-01-01T00:00:10Z'},
              spec: {model: {source: {image: {reference: x, path: /m}}}, variants: [{name: v, class: h}],
                     scaling: {mode: Manual}, replicas: 0}}",
        ))
        .unwrap();
        assert_eq!((fact.model.as_str(), fact.uid.as_str(), fact.switched_off), ("chat", "u1", true));
        assert_eq!(fact.hold, None);
    }

    #[test]
    fn hold_and_access_are_read() {
        let fact = deployment(&object(
            "{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment,
              metadata: {name: chat, namespace: a},
              spec: {model: {name: m, source: {image: {reference: x, path: /m}}, access: {tenants: [b]}},
                     variants: [{name: v, class: h}],
                     scaling: {mode: Manual, coldStart: {hold: 90s, maxHeld: 7}}, replicas: 1}}",
        ))
        .unwrap();
        assert_eq!((fact.model.as_str(), fact.access, fact.max_held), ("m", vec!["b".to_owned()], Some(7)));
        assert_eq!((fact.hold, fact.switched_off), (Some(Duration::from_secs(90)), false));
        assert_eq!(fact.objectives, None, "nothing is promised in mode Manual");
    }

    #[test]
    fn time_of_a_start_is_believed_within_an_hour() {
        let check = |status: &str, want: Option<u64>| {
            let fact = deployment(&object(&format!(
                "{{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {{name: chat, namespace: a}},
                  spec: {{model: {{source: {{image: {{reference: x, path: /m}}}}}}, variants: [{{name: v, class: h}}]}},
                  status: {status}}}"
            )));
            assert_eq!(fact.unwrap().cold_start.map(|time| time.as_secs()), want, "{status}");
        };
        check("{}", None);
        check("{coldStart: {expected: 42s}}", Some(42));
        check("{coldStart: {expected: 1h}}", Some(3600));
        check("{coldStart: {expected: 61m}}", None);
        check("{coldStart: {expected: 0s}}", None);
        check("{coldStart: {expected: soon}}", None);
    }

    #[test]
    fn objectives_are_read_and_have_defaults() {
        let check = |objectives: &str, want: Option<(u64, u64)>| {
            let fact = deployment(&object(&format!(
                "{{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, metadata: {{name: chat, namespace: a}},
                  spec: {{model: {{source: {{image: {{reference: x, path: /m}}}}}}, variants: [{{name: v, class: h}}],
                         scaling: {{mode: Active}}{objectives}}}}}"
            )));
            let millis = |(ttft, itl): (Duration, Duration)| (ttft.as_millis() as u64, itl.as_millis() as u64);
            assert_eq!(fact.unwrap().objectives.map(millis), want, "{objectives}");
        };
        check("", Some((1000, 100)));
        check(", objectives: {ttft: 800ms}", Some((800, 100)));
        check(", objectives: {ttft: 2s, itl: 60ms}", Some((2000, 60)));
        check(", objectives: {ttft: soon}", None);
    }

    #[test]
    fn a_pods_gpus_are_those_of_the_placement_that_was_decided_for_it() {
        let placement = r#"{"node":"n","variant":"v","gpus":[{"uuid":"GPU-1","memoryBytes":1,"smPercent":2}]}"#;
        let fact = pod_yaml(&format!(", annotations: {{stowage.dev/placement: '{placement}'}}"), "{}");
        assert_eq!(fact.gpus, ["GPU-1"]);
        assert!(pod_yaml(", annotations: {stowage.dev/placement: nonsense}", "{}").gpus.is_empty());
    }

    #[test]
    fn empty_list_in_place_of_objects_is_not_trusted_for_thirty_seconds() {
        let (mut table, start) = (Table::default(), Instant::now());
        let mut list = |facts: &[u8], after: u64| {
            table.begin();
            facts.iter().for_each(|fact| table.stage(fact.to_string(), Some(*fact)));
            let done = table.complete(start + Duration::from_secs(after)).ok();
            (done, table.values().count())
        };
        assert_eq!(list(&[], 0), (Some(true), 0), "nothing was there");
        assert_eq!(list(&[1], 0), (Some(true), 1));
        assert_eq!(list(&[], 1), (None, 1));
        assert_eq!(list(&[1], 20), (Some(false), 1));
        assert_eq!(list(&[], 40), (None, 1));
        assert_eq!(list(&[], 70), (Some(true), 0));
    }

    fn pod_yaml(extra_meta: &str, status: &str) -> PodFact {
        pod(&object(&format!(
            "{{metadata: {{name: chat-1, namespace: a, uid: p1, labels: {{stowage.dev/deployment: chat}},
               ownerReferences: [{{apiVersion: stowage.dev/v1alpha1, kind: InferenceDeployment, name: chat, uid: u1}}]{extra_meta}}},
              spec: {{containers: [], nodeName: n}}, status: {status}}}"
        )))
        .unwrap()
    }

    #[test]
    fn a_ready_pod_has_an_address_and_an_owner() {
        let fact = pod_yaml("", "{podIP: 10.1.2.3, conditions: [{type: Ready, status: 'True'}]}");
        assert_eq!(fact.address, Some("10.1.2.3:8000".parse().unwrap()));
        assert_eq!((fact.ready, fact.draining, fact.owner_uid.as_deref()), (true, false, Some("u1")));
    }

    #[test]
    fn engine_is_reached_on_the_port_that_its_pod_publishes() {
        let address = |containers: &str| {
            let yaml = format!(
                "{{metadata: {{name: x, namespace: a, labels: {{stowage.dev/deployment: chat}}}},
                  spec: {{containers: {containers}}}, status: {{podIP: 10.1.2.3}}}}"
            );
            pod(&object(&yaml)).unwrap().address.unwrap().port()
        };
        assert_eq!(
            address("[{name: engine, ports: [{name: metrics, containerPort: 9}, {name: http, containerPort: 8200}]}]"),
            8200
        );
        assert_eq!(address("[{name: engine}]"), names::ENGINE_PORT);
    }

    #[test]
    fn deletion_and_the_annotation_both_mean_draining() {
        for meta in [
            ", deletionTimestamp: '2026-01-01T00:00:00Z'",
            ", annotations: {stowage.dev/draining: '2026-01-01T00:00:00Z'}",
        ] {
            assert!(pod_yaml(meta, "{}").draining, "{meta}");
        }
        assert!(!pod_yaml("", "{}").draining);
    }

    #[test]
    fn pod_with_our_label_and_no_owner_belongs_to_no_deployment() {
        let fact = pod(&object(
            "{metadata: {name: x, namespace: a, labels: {stowage.dev/deployment: chat}}, spec: {}, status: {podIP: 10.0.0.9}}",
        ));
        assert_eq!(fact.unwrap().owner_uid.as_deref(), Some(""));
        assert_eq!(pod(&object("{metadata: {name: x, namespace: a}, spec: {}}")), None);
    }

    #[test]
    fn only_unhealthy_devices_stop_routing() {
        let gpus = unhealthy_gpus(&object(
            "{apiVersion: stowage.dev/v1alpha1, kind: GpuNode, metadata: {name: n}, spec: {},
              status: {devices: [
                {uuid: GPU-1, index: 0, product: H, memory: 80Gi, verdict: {health: Unhealthy, reason: Xid}},
                {uuid: GPU-2, index: 1, product: H, memory: 80Gi, verdict: {health: Degraded}},
                {uuid: GPU-3, index: 2, product: H, memory: 80Gi}]}}",
        ));
        assert_eq!(gpus, Some(["GPU-1".to_owned()].into()));
    }

    #[test]
    fn secrets_of_our_type_give_the_hashes_that_can_be_read() {
        let hex: String = hash_key("sk-1").iter().map(|b| format!("{b:02x}")).collect();
        let encode = |text: &str| serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap();
        let json = |kind: &str| {
            serde_json::from_value::<Secret>(serde_json::json!({
                "metadata": {"name": "keys"}, "type": kind,
                "data": {"laptop": encode(&hex), "typo": encode("sk-1")},
            }))
            .unwrap()
        };
        assert_eq!(
            secret(&json("stowage.dev/api-keys")),
            Some((
                "keys".into(),
                SecretKeys { hashes: vec![("laptop".into(), hash_key("sk-1"))], unreadable: vec!["typo".into()] }
            ))
        );
        assert_eq!(secret(&json("Opaque")), None);
    }

    #[test]
    fn salt_key_is_read_from_a_secret_of_its_type_with_enough_bytes() {
        let secret = |kind: &str, bytes: usize| {
            let key = k8s_openapi::ByteString(vec![7; bytes]);
            let data = serde_json::json!({"metadata": {"name": "k"}, "type": kind, "data": {"key": key}});
            salt_key(&serde_json::from_value(data).unwrap())
        };
        assert_eq!(secret("stowage.dev/cache-key", 32), SaltKey::new(&[7; 32]));
        assert_eq!(secret("stowage.dev/cache-key", 31), None);
        assert_eq!(secret("Opaque", 32), None);
        assert_eq!(salt_key(&Secret::default()), None);
    }

    #[test]
    fn a_list_replaces_what_is_known_only_when_it_is_complete() {
        let mut table = Table::<u32>::default();
        table.begin();
        table.stage("a".into(), Some(1));
        assert_eq!(table.complete(Instant::now()), Ok(true));
        table.begin();
        assert_eq!(table.known("a"), Some(1), "a list that never ends loses nothing");
        table.begin();
        table.stage("b".into(), Some(2));
        assert_eq!(table.complete(Instant::now()), Ok(true));
        assert_eq!((table.known("a"), table.known("b")), (None, Some(2)));
        assert!(!table.set("b".into(), Some(2)), "the same again");
        assert!(table.set("b".into(), None));
    }
}

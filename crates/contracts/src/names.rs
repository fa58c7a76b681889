//! Every name that two parts share, from `docs/contracts.md`. Change it there first.
//!
//! Only constants and the two functions that join them; nothing here is configurable, because a
//! name that differs between operator and agent is a lost pod.

/// API group of all six kinds.
pub const GROUP: &str = "stowage.dev";
/// The only served version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all six kinds.
pub const API_VERSION: &str = "stowage.dev/v1alpha1";

/// DRA driver name, and the domain of its unprefixed device attributes.
pub const DRIVER: &str = "gpu.stowage.dev";
/// The DeviceClass that our claims name.
pub const DEVICE_CLASS: &str = "stowage-gpu";
/// Name of the single request in a claim, and of the pod's `resourceClaims` entry.
pub const CLAIM_REQUEST: &str = "gpu";
/// Device attribute (driver's domain): the GPU's UUID, as NVML prints it.
pub const ATTRIBUTE_UUID: &str = "uuid";
/// Device attribute (driver's domain): the product name, as NVML prints it.
pub const ATTRIBUTE_PRODUCT_NAME: &str = "productName";
/// Device capacity: bytes, published and requested in steps of [`MEMORY_STEP_BYTES`].
pub const CAPACITY_MEMORY: &str = "memory";
/// Device capacity: per cent of the streaming multiprocessors, step 1.
pub const CAPACITY_SM: &str = "sm";
/// 256Mi: published totals are floored to it, requests are rounded up to it.
pub const MEMORY_STEP_BYTES: u64 = 256 << 20;

/// Namespace of operator and gateway (`restricted`).
pub const SYSTEM_NAMESPACE: &str = "stowage-system";
/// Namespace of the node agent (privileged).
pub const NODE_NAMESPACE: &str = "stowage-node";
/// ServiceAccount of the operator, in [`SYSTEM_NAMESPACE`].
pub const OPERATOR_SERVICE_ACCOUNT: &str = "stowage-operator";

/// On an InferenceDeployment for which something was made: pods end only after their work has.
pub const DRAIN_FINALIZER: &str = "stowage.dev/drain";
/// On an object that is deleted with `--cascade=orphan`, by the API server.
pub const ORPHAN_FINALIZER: &str = "orphan";
/// Set to `"true"` it skips the drain on deletion; requests in flight are lost.
pub const FORCE_DELETE_ANNOTATION: &str = "stowage.dev/force-delete";
/// Set to `"none"` on an InferenceDeployment, it has no PodDisruptionBudget.
pub const ANNOTATION_DISRUPTION_BUDGET: &str = "stowage.dev/disruption-budget";
/// Field manager of every server-side apply by the operator.
pub const FIELD_MANAGER: &str = "stowage-operator";
/// The leader's Lease, in [`SYSTEM_NAMESPACE`].
pub const LEASE: &str = "stowage-operator";

/// Label key on everything that we create.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "stowage";
/// Label key on every pod of ours: which program it is.
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label: name of the InferenceDeployment that owns the object.
pub const LABEL_DEPLOYMENT: &str = "stowage.dev/deployment";
/// Label: name of the TenantQuota whose budget pays.
pub const LABEL_TENANT: &str = "stowage.dev/tenant";
/// Label of a capacity pod and its claim: name of the InferenceDeployment that a node is asked for.
pub const LABEL_CAPACITY: &str = "stowage.dev/capacity";
/// Kubernetes' label of a node's name: no other node has its value, also not one that an autoscaler imagines.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
/// All labels of ours begin with this; `spec.podTemplate` may not set them.
pub const RESERVED_KEY_PREFIX: &str = "stowage.dev/";

/// Pod annotation: RFC 3339 time since when gateways must not route here.
pub const ANNOTATION_DRAINING: &str = "stowage.dev/draining";
/// Pod annotation: RFC 3339 time at which its drain must be over.
pub const ANNOTATION_DRAIN_UNTIL: &str = "stowage.dev/drain-until";
/// Pod annotation: why it drains. A drain for want of demand or quota is cancelled when it is wanted again.
pub const ANNOTATION_DRAIN_REASON: &str = "stowage.dev/drain-reason";
/// Pod annotation: the model's name as clients send it.
pub const ANNOTATION_MODEL: &str = "stowage.dev/model";
/// Pod annotation: how often this replica index was created, from 0.
pub const ANNOTATION_INCARNATION: &str = "stowage.dev/incarnation";
/// Pod annotation: which replica this is, from 0.
pub const ANNOTATION_REPLICA_INDEX: &str = "stowage.dev/replica-index";
/// Pod annotation: hash of what the pod was built from; another hash means a rollout.
pub const ANNOTATION_SPEC_HASH: &str = "stowage.dev/spec-hash";
/// Annotation on pods and claims, `true`: the pod was made so that the Ready one of its replica index can end.
pub const ANNOTATION_TAKES_OVER: &str = "stowage.dev/takes-over";

/// Annotation on pods and claims: the placement that was decided, as JSON.
pub const ANNOTATION_PLACEMENT: &str = "stowage.dev/placement";
/// Pod annotation: RFC 3339 time at which the operator last made the kubelet look at a pod whose start is overdue.
pub const ANNOTATION_WOKEN: &str = "stowage.dev/woken";

/// Claims of ours begin with it; only the operator may create pods that name such a claim.
pub const CLAIM_PREFIX: &str = "stowage-";
/// CDI kind (vendor/class) of the agent's devices.
pub const CDI_KIND: &str = "gpu.stowage.dev/claim";

/// Container of the engine in a pod.
pub const ENGINE_CONTAINER: &str = "engine";
/// Uid and gid of the engine's process.
pub const ENGINE_UID: i64 = 65532;
/// Container that waits for a model that the node agent fetches; the engine starts after it.
pub const WAIT_CONTAINER: &str = "wait-model";
/// Where the model is mounted: an image, a volume, or what the node agent fetched.
pub const MODEL_MOUNT: &str = "/models";
/// Writable scratch of an engine (`emptyDir`).
pub const CACHE_MOUNT: &str = "/cache";
/// Port of an engine and of the headless Service per deployment; port name [`HTTP_PORT_NAME`].
pub const ENGINE_PORT: u16 = 8000;
/// Name of the serving port on engines and gateways.
pub const HTTP_PORT_NAME: &str = "http";
/// Name of the administrative port on operator, gateway and agent.
pub const ADMIN_PORT_NAME: &str = "admin";
/// Operator, gateway and agent: metrics alone, for scrapers. Port name [`METRICS_PORT_NAME`].
pub const METRICS_PORT: u16 = 8083;
/// Name of the port of metrics on operator, gateway and agent.
pub const METRICS_PORT_NAME: &str = "metrics";
/// Gateway, for clients.
pub const GATEWAY_PORT: u16 = 8080;
/// Gateway, administration.
pub const GATEWAY_ADMIN_PORT: u16 = 8081;
/// Operator, administration.
pub const OPERATOR_ADMIN_PORT: u16 = 8081;
/// Node agent, administration.
pub const NODE_AGENT_ADMIN_PORT: u16 = 8082;
/// Service of the gateway (80 → [`GATEWAY_PORT`]), in [`SYSTEM_NAMESPACE`].
pub const GATEWAY_SERVICE: &str = "stowage-gateway";
/// Service of the operator's administrative port, in [`SYSTEM_NAMESPACE`].
pub const OPERATOR_SERVICE: &str = "stowage-operator";

/// Liveness of every process of ours.
pub const PATH_HEALTHZ: &str = "/healthz";
/// Readiness of every process of ours; 503 while draining.
pub const PATH_READYZ: &str = "/readyz";
/// Prometheus text on every process of ours.
pub const PATH_METRICS: &str = "/metrics";
/// Engine: load report, once or `?watch=1`.
pub const PATH_LOAD: &str = "/stowage/v1/load";
/// Gateway: what the operator reads every second.
pub const PATH_SIGNALS: &str = "/stowage/v1/signals";
/// Operator: decision records.
pub const PATH_DECISIONS: &str = "/stowage/v1/decisions";
/// Operator: dry run.
pub const PATH_PLAN: &str = "/stowage/v1/plan";
/// Kinds whose manifests a dry run takes.
pub const PLANNED_KINDS: [&str; 2] = ["InferenceDeployment", "TenantQuota"];
/// Most manifests of one dry run.
pub const MAX_PLAN_MANIFESTS: usize = 100;
/// Most bytes of one dry run's request.
pub const MAX_PLAN_BYTES: usize = 1 << 20;
/// Node agent: readings, once or `?watch=1`.
pub const PATH_SUMMARY: &str = "/stowage/v1/summary";
/// Node agent: the memory of a model that is not on the node, by POST.
pub const PATH_ESTIMATE: &str = "/stowage/v1/estimate";
/// Node agent: the models that the node is to hold ahead of need, by PUT.
pub const PATH_PRELOADS: &str = "/stowage/v1/preloads";

/// Bytes of GPU memory that were granted (`consumedCapacity`).
pub const ENV_GPU_MEMORY_BYTES: &str = "STOWAGE_GPU_MEMORY_BYTES";
/// Per cent of the SMs that were granted.
pub const ENV_GPU_SM_PERCENT: &str = "STOWAGE_GPU_SM_PERCENT";
/// UUIDs of the granted GPUs, comma separated.
pub const ENV_GPU_UUIDS: &str = "STOWAGE_GPU_UUIDS";
/// `1` on a simulated GPU, otherwise absent.
pub const ENV_GPU_SIMULATED: &str = "STOWAGE_GPU_SIMULATED";
/// Directory per claim into which an engine reports its use.
pub const ENV_GPU_REPORT_DIR: &str = "STOWAGE_GPU_REPORT_DIR";
/// Every environment variable of the slice contract begins with it; users may not set one.
pub const RESERVED_ENV_PREFIX: &str = "STOWAGE_";
/// Use of a claim, replaced by rename, in [`ENV_GPU_REPORT_DIR`].
pub const USAGE_FILE: &str = "usage.json";
/// Locked by the writer of [`USAGE_FILE`] for its life.
pub const USAGE_LOCK_FILE: &str = "lock";
/// The agent's files on a node.
pub const NODE_STATE_DIR: &str = "/var/lib/stowage";

/// Header of every engine response: the short form of its load report.
pub const HEADER_LOAD: &str = "x-stowage-load";
/// Request header from gateway to engine: salt of the prefix cache.
pub const HEADER_TENANT_SALT: &str = "x-stowage-tenant-salt";

/// Seconds that requests have to finish before their replica or gateway ends, where nothing else is written.
pub const DEFAULT_DRAIN_SECONDS: u64 = 600;
/// Milliseconds within which a node agent writes `GpuNode.status.observedTime` anew.
pub const GPU_NODE_WRITTEN_EVERY_MS: u64 = 60_000;
/// Milliseconds after which a GpuNode says nothing any more: one and a half times that.
pub const GPU_NODE_STALE_AFTER_MS: u64 = 90_000;
/// An engine's exit code where the model itself is refused: another start would end the same way.
pub const EXIT_MODEL_REFUSED: i32 = 78;

/// Type of the Secrets that hold hashed API keys, in [`SYSTEM_NAMESPACE`].
pub const API_KEYS_SECRET_TYPE: &str = "stowage.dev/api-keys";
/// The Secret that holds the key of the salts of prefix caches, in [`SYSTEM_NAMESPACE`].
pub const CACHE_KEY_SECRET: &str = "stowage-cache-key";
/// Its type.
pub const CACHE_KEY_SECRET_TYPE: &str = "stowage.dev/cache-key";
/// Its only entry, at least 32 random bytes.
pub const CACHE_KEY_ENTRY: &str = "key";

/// The bundled InferenceRuntime, installed by the chart, and the default of `spec.runtime.ref`.
pub const DEFAULT_RUNTIME: &str = "stowage-engine";

/// Longest name of an InferenceDeployment, so that pods and claims fit into 63 characters.
pub const MAX_DEPLOYMENT_NAME: usize = 40;

/// Name of a replica's pod.
pub fn pod_name(deployment: &str, id: &str) -> String {
    format!("{deployment}-{id}")
}

/// Name of a replica's claim: the pod's name with the reserved prefix.
pub fn claim_name(deployment: &str, id: &str) -> String {
    format!("{CLAIM_PREFIX}{deployment}-{id}")
}

/// Name of the Service, NetworkPolicy and PodDisruptionBudget of a deployment: with the reserved prefix,
/// because a user's own Service may well have the deployment's name.
pub fn shared_name(deployment: &str) -> String {
    format!("{CLAIM_PREFIX}{deployment}")
}

/// The user name by which the API server knows the operator.
pub fn operator_username() -> String {
    format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{OPERATOR_SERVICE_ACCOUNT}")
}

//! Every condition type and every reason, with its meaning.
//!
//! Reasons are API: they appear in conditions, events, metrics and the decision log, and people
//! write alerts on them. A message gives what happened, why, and the next step.

/// Condition types.
pub mod types {
    /// The spec is understood and this release honours all of it. Always present, on every kind.
    pub const ACCEPTED: &str = "Accepted";
    /// The tenant's budget covers the wanted replicas. Always present.
    pub const QUOTA_RESERVED: &str = "QuotaReserved";
    /// Every wanted replica has a node and a slice. Always present.
    pub const PLACED: &str = "Placed";
    /// The wanted replicas take requests. Always present; `kubectl wait --for=condition=Ready`.
    pub const READY: &str = "Ready";
    /// The operator is changing something. Only while true.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will change until a person changes the object or what it depends on. Only while true.
    pub const STALLED: &str = "Stalled";
    /// More replicas are wanted than are allowed or possible. Only while true.
    pub const SCALING_LIMITED: &str = "ScalingLimited";
    /// It serves, but with fewer or worse replicas than wanted. On a GpuNode: its agent does not work fully. Only
    /// while true.
    pub const DEGRADED: &str = "Degraded";
    /// At least one replica finishes its requests before it ends. Only while true.
    pub const DRAINING: &str = "Draining";
    /// On a TenantQuota that names key Secrets: clients get access with every key in them.
    pub const KEYS_USABLE: &str = "KeysUsable";
}

/// Reasons, grouped by the condition that carries them.
pub mod reasons {
    // --- Accepted ---
    /// Accepted=True.
    pub const ACCEPTED: &str = "Accepted";
    /// A field asks for what this release does not do; the message names what to write instead.
    pub const NOT_SUPPORTED_YET: &str = "NotSupportedYet";
    /// A field contradicts itself or another one.
    pub const INVALID: &str = "Invalid";
    /// The stored object cannot be read as this version of the kind.
    pub const MALFORMED: &str = "Malformed";
    /// `spec.runtime.ref` names no InferenceRuntime.
    pub const RUNTIME_NOT_FOUND: &str = "RuntimeNotFound";
    /// The runtime exists and cannot do what the deployment asks.
    pub const CAPABILITY_MISSING: &str = "CapabilityMissing";
    /// `extraArgs` has a flag that the runtime's `allowedArgs` does not list, or that the operator manages.
    pub const ARG_NOT_ALLOWED: &str = "ArgNotAllowed";
    /// `podTemplate.env` has a variable that the runtime's `allowedEnv` does not list, or that can run code.
    pub const ENV_NOT_ALLOWED: &str = "EnvNotAllowed";
    /// A variant or a quota names no GpuClass.
    pub const CLASS_NOT_FOUND: &str = "ClassNotFound";
    /// No TenantQuota lists the namespace.
    pub const NO_TENANT: &str = "NoTenant";
    /// Another deployment of the tenant already serves a model of this name.
    pub const MODEL_NAME_TAKEN: &str = "ModelNameTaken";
    /// Another TenantQuota, older than this one, lists one of the namespaces.
    pub const NAMESPACE_TAKEN: &str = "NamespaceTaken";
    /// The class' selector matches no GPU of the cluster.
    pub const SELECTS_NOTHING: &str = "SelectsNothing";

    // --- KeysUsable of a TenantQuota ---
    /// Every Secret is there, and every value in it is a hash of this tenant's key.
    pub const KEYS_USABLE: &str = "KeysUsable";
    /// A Secret is missing, or of another type than `stowage.dev/api-keys`.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// A Secret holds no key.
    pub const NO_KEY: &str = "NoKey";
    /// A value is no SHA-256 in lower-case hex, for example the key itself.
    pub const KEY_NOT_A_HASH: &str = "KeyNotAHash";
    /// An older tenant has the same key.
    pub const KEY_TAKEN: &str = "KeyTaken";

    // --- QuotaReserved ---
    /// Covered by what is guaranteed.
    pub const WITHIN_NOMINAL: &str = "WithinNominal";
    /// Covered partly by what others of the cohort do not use.
    pub const BORROWING: &str = "Borrowing";
    /// Would exceed guaranteed plus borrowing limit.
    pub const OVER_QUOTA: &str = "OverQuota";
    /// Within the borrowing limit, but the cohort has nothing idle to lend.
    pub const NOTHING_TO_BORROW: &str = "NothingToBorrow";

    // --- Placed and Ready ---
    /// Every wanted replica has its slice.
    pub const PLACED: &str = "Placed";
    /// No replica is wanted.
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    /// No node fits; the message counts the nodes by reason, and names what would fit.
    pub const WAITING_FOR_GPU: &str = "WaitingForGPU";
    /// The budget does not cover a replica; see QuotaReserved.
    pub const WAITING_FOR_QUOTA: &str = "WaitingForQuota";
    /// The chosen node was refused by kube-scheduler; another one is tried.
    pub const SCHEDULER_REFUSED: &str = "SchedulerRefused";
    /// What is known of the nodes is too old to decide on.
    pub const STALE_INPUT: &str = "StaleInput";
    /// A replica serves on a cordoned node, and no other node has room for its replacement.
    pub const NODE_CORDONED: &str = "NodeCordoned";
    /// As many replicas take requests as are wanted.
    pub const ON_TARGET: &str = "OnTarget";
    /// Placed, and the pods are starting or loading weights.
    pub const STARTING: &str = "Starting";
    /// Some replicas take requests, others do not yet.
    pub const PARTLY_READY: &str = "PartlyReady";
    /// The spec was refused; see Accepted.
    pub const NOT_ACCEPTED: &str = "NotAccepted";
    /// The deployment is being deleted.
    pub const DELETING: &str = "Deleting";

    /// A node agent reads the headers of the model's files, for `memory: Auto`.
    pub const ESTIMATING_MEMORY: &str = "EstimatingMemory";
    /// The headers cannot be read, or the bundled engine does not serve the model; the message has the cause.
    pub const ESTIMATE_FAILED: &str = "EstimateFailed";

    // --- Reconciling ---
    /// The number of replicas changes.
    pub const SCALING: &str = "Scaling";
    /// Replicas are replaced because the spec changed.
    pub const ROLLING_OUT: &str = "RollingOut";

    // --- Stalled and Degraded ---
    /// The engine refused the model with a reason; it is not started again until the spec changes.
    pub const MODEL_REFUSED: &str = "ModelRefused";
    /// The engine ends again and again; the next start waits.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// The engine's or the model's image cannot be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// The node agent fetches the model; the message has how far it has come.
    pub const FETCHING_MODEL: &str = "FetchingModel";
    /// The node agent cannot fetch the model; it tries again, and the message has the cause.
    pub const MODEL_FETCH_FAILED: &str = "ModelFetchFailed";
    /// The API server refused an object of ours, for example by quota or policy.
    pub const API_REFUSED: &str = "ApiRefused";
    /// An object of another owner has the name of one that the deployment needs; it is left as it is.
    pub const NAME_CLASH: &str = "NameClash";
    /// A replica's pod was changed after it was created (another image, a debug container) and was ended.
    pub const POD_CHANGED: &str = "PodChanged";
    /// A GPU of a replica is unhealthy.
    pub const GPU_UNHEALTHY: &str = "GPUUnhealthy";
    /// A node of a replica is gone.
    pub const NODE_LOST: &str = "NodeLost";
    /// The node's agent cannot hand out a replica's slice, for example because its disk is full; after 20 s
    /// another node is tried.
    pub const NODE_CANNOT_PREPARE: &str = "NodeCannotPrepare";
    /// A replica used more memory than it was promised and was ended.
    pub const OVERSHOOT_EVICTED: &str = "OvershootEvicted";

    // --- ScalingLimited ---
    /// The tenant's budget.
    pub const LIMITED_BY_QUOTA: &str = "Quota";
    /// Free GPUs.
    pub const LIMITED_BY_CAPACITY: &str = "Capacity";
    /// `scaling.maxReplicas`.
    pub const LIMITED_BY_MAXIMUM: &str = "MaxReplicas";
    /// What the scaling rule decides by is missing, stale or nonsense: the count stays as it is.
    pub const LIMITED_BY_SIGNALS: &str = "Signals";

    // --- Draining ---
    /// Fewer replicas are wanted.
    pub const SCALING_IN: &str = "ScalingIn";
    /// The replica used more than it was promised.
    pub const OVERSHOOT: &str = "Overshoot";

    // --- GpuNode verdicts ---
    /// The driver reported an Xid that ends work on the GPU.
    pub const XID: &str = "Xid";
    /// Uncorrectable memory errors.
    pub const ECC_UNCORRECTABLE: &str = "ECCUncorrectable";
    /// The driver no longer sees the GPU.
    pub const FELL_OFF_BUS: &str = "FellOffBus";
    /// Its clocks are held down by heat or power.
    pub const THROTTLED: &str = "Throttled";
    /// Reading it failed; the last known facts are shown.
    pub const TELEMETRY_FAILED: &str = "TelemetryFailed";

    // --- Degraded of a GpuNode ---
    /// The NVML library cannot be used; it is tried again every five seconds.
    pub const NVML_UNAVAILABLE: &str = "NvmlUnavailable";
    /// The scenario of simulated GPUs cannot be read; the last one that could be stands, and nothing new is placed.
    pub const SCENARIO_INVALID: &str = "ScenarioInvalid";
    /// The record of prepared claims was damaged and was made anew from what is prepared. Until the agent's next start.
    pub const CHECKPOINT_REBUILT: &str = "CheckpointRebuilt";
    /// Another driver hands out this node's GPUs; ours only watches.
    pub const MANAGED_ELSEWHERE: &str = "ManagedElsewhere";
    /// The API server refused what the agent had to write.
    pub const API_SERVER: &str = "ApiServer";
}

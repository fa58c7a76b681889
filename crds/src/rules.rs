//! Every rule that the API server checks, with its message; the same words are used by [`crate::validate`].
//!
//! A rule stands beside its field (`#[x_kube(validation = …)]`); this file holds the expressions and the
//! sentences, so that the refusal at `kubectl apply` and the condition of an object that was stored before
//! the rule existed cannot drift apart. Each has a manifest in `crds/tests/bad/` that it refuses.
//!
//! A message says what to write instead. [`Reason::NotSupportedYet`] marks what a later release will honour.

use kube::core::Rule;
use serde::{Deserialize, Serialize};

/// Why something is refused. The variant names are the reasons of `Accepted=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// Contradicts itself, another field, or what the field can hold.
    Invalid,
    /// Makes sense, and this release does not do it.
    NotSupportedYet,
}

impl Reason {
    /// The condition's reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => crate::conditions::reasons::INVALID,
            Self::NotSupportedYet => crate::conditions::reasons::NOT_SUPPORTED_YET,
        }
    }
}

/// A CEL expression that must hold, and what is said when it does not.
#[derive(Clone, Copy, Debug)]
pub struct CelRule {
    pub reason: Reason,
    /// Must be true; `self` is the value that the rule stands beside.
    pub expression: &'static str,
    /// What is wrong and what to write, without the field's path.
    pub message: &'static str,
}

impl CelRule {
    /// For `#[x_kube(validation = …)]`.
    pub fn cel(&self) -> Rule {
        Rule::new(self.expression).message(self.text().as_str())
    }

    /// The message as the API server says it.
    pub fn text(&self) -> String {
        match self.reason {
            Reason::Invalid => self.message.to_owned(),
            Reason::NotSupportedYet => format!("NotSupportedYet: {}", self.message),
        }
    }
}

const fn invalid(expression: &'static str, message: &'static str) -> CelRule {
    CelRule { reason: Reason::Invalid, expression, message }
}

const fn not_yet(expression: &'static str, message: &'static str) -> CelRule {
    CelRule { reason: Reason::NotSupportedYet, expression, message }
}

/// InferenceDeployment.
pub mod deployment {
    use super::{CelRule, invalid, not_yet};

    pub const NAME_LENGTH: CelRule = invalid(
        "size(self.metadata.name) <= 40",
        "metadata.name is longer than 40 characters, and pods and claims add to it; write a shorter name",
    );
    pub const NAME_SHAPE: CelRule = invalid(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name is a Service's name too; write lower-case letters, digits and '-', beginning with a letter",
    );
    pub const REPLICAS_OUTSIDE_MANUAL: CelRule = invalid(
        "self.scaling.mode == 'Manual' || self.replicas == 0",
        "replicas belongs to mode Manual and stays 0 in the others; set scaling.mode: Manual",
    );
    pub const SERVICE_CLASS: CelRule = not_yet(
        "self == 'Interactive'",
        "NearRealTime and Batch have no queue of their own; write serviceClass: Interactive",
    );
    pub const OBJECTIVES: CelRule = not_yet(
        "!has(self.objectives)",
        "objectives steer the autoscaler, and scaling.mode Manual has none; remove spec.objectives",
    );
    pub const DISAGGREGATION: CelRule =
        not_yet("!has(self.disaggregation)", "prefill and decode run in one replica; remove spec.disaggregation");
    pub const NODES: CelRule = not_yet("self.count == 1", "a replica runs on one node; write nodes.count: 1");

    pub const ONE_SOURCE: CelRule = invalid(
        "[has(self.image), has(self.huggingFace), has(self.http), has(self.s3), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
        "exactly one source is needed; write source.image with reference and path, and no other",
    );
    pub const ONLY_IMAGES: CelRule = not_yet(
        "!has(self.huggingFace) && !has(self.http) && !has(self.s3) && !has(self.persistentVolumeClaim)",
        "huggingFace, http, s3 and persistentVolumeClaim are not fetched; pack the weights into an OCI image and write source.image",
    );
    pub const IMAGE_PATH: CelRule = invalid(
        "self.startsWith('/') && !self.contains('..') && size(self) > 1",
        "path is absolute inside the image and has no '..'; write for example /model.gguf",
    );
    pub const ADAPTERS: CelRule = not_yet(
        "!has(self.adapters) || size(self.adapters) == 0",
        "LoRA adapters are not served; remove model.adapters",
    );

    pub const SPECULATIVE: CelRule =
        not_yet("!has(self.speculative)", "speculative decoding is not done; remove options.speculative");
    pub const EXTRA_ARGS: CelRule = invalid(
        "self.all(arg, arg.startsWith('--'))",
        "each entry is one flag with its value; write for example --seed=7",
    );

    pub const GPU_CLASS: CelRule = invalid(
        "self.accelerator != 'GPU' || has(self.class)",
        "a GPU variant needs class, the name of a GpuClass (kubectl get gpuc); write for example class: h100-80g",
    );
    pub const CPU_FIELDS: CelRule = invalid(
        "self.accelerator != 'CPU' || (has(self.cpu) && has(self.memory) && !has(self.class) && !has(self.count) && !has(self.compute) && !has(self.migProfile))",
        "a CPU variant has cpu and memory and nothing of a GPU; write for example cpu: \"8\", memory: 16Gi",
    );
    pub const GPU_HAS_NO_CPU: CelRule = invalid(
        "self.accelerator != 'GPU' || !has(self.cpu)",
        "cpu belongs to accelerator CPU; write podTemplate.resources.requests.cpu for the cores beside a GPU",
    );
    pub const MIG_PROFILE: CelRule =
        not_yet("!has(self.migProfile)", "MIG is not cut; write memory and compute instead of migProfile");
    pub const MEMORY: CelRule = invalid(
        "self == 'Auto' || (isQuantity(self) && quantity(self).isGreaterThan(quantity('0')))",
        "memory is a quantity above 0; write for example memory: 20Gi",
    );
    pub const MEMORY_ABSENT: CelRule = not_yet(
        "self.accelerator == 'CPU' || has(self.memory) || !has(self.compute)",
        "memory is not estimated; write memory beside compute, weights plus KV cache, for example memory: 2Gi, or neither for whole GPUs",
    );
    pub const MEMORY_AUTO: CelRule =
        not_yet("self != 'Auto'", "memory is not estimated; write weights plus KV cache, for example memory: 2Gi");
    pub const CPU: CelRule = invalid(
        "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
        "cpu is a quantity above 0; write for example cpu: \"8\" or 500m",
    );

    pub const SHARING: CelRule = not_yet(
        "self == 'Auto' || self == 'EngineBudget'",
        "MIG, MPS and TimeSlice are not set up on nodes; write sharing: Auto or EngineBudget",
    );

    /// Beside the spec, not the field: a default that its own rule refuses makes the CRD invalid.
    pub const SCALING_MODE: CelRule = not_yet(
        "self.scaling.mode == 'Manual'",
        "the autoscaler is not in this release; write scaling.mode: Manual and spec.replicas",
    );
    pub const SCALING_FIELDS: CelRule = not_yet(
        "!has(self.minReplicas) && !has(self.maxReplicas) && !has(self.objective) && !has(self.idle) && !has(self.coldStart)",
        "minReplicas, maxReplicas, objective, idle and coldStart belong to the autoscaler; remove them and write spec.replicas",
    );
    pub const MIN_MAX: CelRule = invalid(
        "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        "minReplicas is above maxReplicas; write minReplicas at most maxReplicas",
    );
    pub const DRAIN_TIMEOUT: CelRule = invalid(
        "self.matches('^[0-9]{1,9}(ms|s|m|h)$')",
        "drainTimeout is a whole number and ms, s, m or h; write for example drainTimeout: 600s",
    );

    pub const LABELS: CelRule = invalid(
        "!has(self.labels) || self.labels.all(key, !key.startsWith('stowage.dev/') && key != 'app.kubernetes.io/managed-by')",
        "labels of stowage.dev and app.kubernetes.io/managed-by are the operator's; write other keys",
    );
    pub const ANNOTATIONS: CelRule = invalid(
        "!has(self.annotations) || self.annotations.all(key, !key.startsWith('stowage.dev/'))",
        "annotations of stowage.dev are the operator's; write other keys",
    );
    pub const TOPOLOGY_SPREAD: CelRule = not_yet(
        "!has(self.topologySpreadConstraints) || size(self.topologySpreadConstraints) == 0",
        "placement does not spread over topologies; remove topologySpreadConstraints",
    );
    pub const ENV: CelRule = invalid(
        "!has(self.env) || self.env.all(entry, !entry.name.startsWith('STOWAGE_'))",
        "environment variables that begin with STOWAGE_ are the operator's; write another name",
    );
    pub const RESOURCES: CelRule = invalid(
        "(!has(self.requests) || self.requests.all(key, key in ['cpu', 'memory', 'ephemeral-storage'])) && (!has(self.limits) || self.limits.all(key, key in ['cpu', 'memory', 'ephemeral-storage']))",
        "resources are cpu, memory and ephemeral-storage; GPUs are asked for in spec.variants",
    );
    pub const TOLERATION: CelRule = invalid(
        "!(has(self.operator) && self.operator == 'Exists' && has(self.value)) && (has(self.key) || (has(self.operator) && self.operator == 'Exists'))",
        "a toleration has key and value, or operator: Exists without a value; write for example key: gpu, operator: Exists",
    );

    pub const CANARY: CelRule = not_yet(
        "self.strategy == 'Auto' && !has(self.canary)",
        "canaries are not rolled out; write rollout.strategy: Auto and remove rollout.canary",
    );
}

/// GpuClass.
pub mod class {
    use super::{CelRule, invalid, not_yet};

    pub const SELECTS: CelRule = invalid(
        "has(self.productNames) || has(self.minMemory) || has(self.architectures)",
        "an empty selector would take every GPU; write productNames, minMemory or architectures",
    );
    pub const MIN_MEMORY: CelRule = invalid(
        "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
        "minMemory is a quantity above 0; write for example minMemory: 79Gi",
    );
    pub const PRICE: CelRule = invalid(
        "self.matches('^[0-9]{1,12}([.][0-9]{1,6})?$')",
        "pricePerHour is digits with at most six decimals; write for example \"3.00\"",
    );
    pub const CURRENCY: CelRule =
        invalid("self.matches('^[A-Z]{3}$')", "currency is three capital letters; write for example USD");
    pub const PRICE_NEEDS_CURRENCY: CelRule = invalid(
        "has(self.pricePerHour) == has(self.currency)",
        "pricePerHour and currency go together; write both or neither",
    );
    pub const SHARING: CelRule = not_yet(
        "self.all(mode, mode == 'EngineBudget')",
        "MIG, MPS and TimeSlice are not set up on nodes; write allowedSharing: [EngineBudget]",
    );
}

/// TenantQuota.
pub mod quota {
    use super::{CelRule, invalid, not_yet};

    pub const WEIGHT: CelRule =
        not_yet("!has(self.weight) || self.weight == 1", "tenants are served alike; remove spec.weight");
    pub const TOKENS: CelRule =
        not_yet("!has(self.tokens)", "tokens are not counted against a limit; remove spec.tokens");
    pub const SPEND: CelRule = not_yet("!has(self.spend)", "spending is shown, not limited; remove spec.spend");
    pub const RECLAIM: CelRule = not_yet(
        "!has(self.minRuntime) && !has(self.reclaimGrace)",
        "borrowed GPUs are not reclaimed, a tenant gives them back itself; remove spec.minRuntime and spec.reclaimGrace",
    );
    pub const NEEDS_COHORT: CelRule = invalid(
        "has(self.cohort) || !has(self.gpus) || self.gpus.all(g, !has(g.borrowingLimit) && !has(g.lendingLimit))",
        "borrowingLimit and lendingLimit need others to borrow from and lend to; write spec.cohort",
    );
    pub const QUANTITY: CelRule = invalid(
        "isQuantity(self) && !quantity(self).isLessThan(quantity('0'))",
        "this is a number of GPUs of at least 0; write for example \"4\" or 500m",
    );
    pub const LENDING: CelRule = invalid(
        "!has(self.lendingLimit) || !isQuantity(self.lendingLimit) || !isQuantity(self.nominalQuota) || quantity(self.lendingLimit).compareTo(quantity(self.nominalQuota)) <= 0",
        "lendingLimit is above nominalQuota; write at most what is guaranteed",
    );
    pub const JWT: CelRule =
        not_yet("!has(self.jwt)", "OIDC tokens are not accepted; remove credentials.jwt and write credentials.apiKeys");
    pub const SERVICE_ACCOUNTS: CelRule = not_yet(
        "!has(self.serviceAccounts) || !self.serviceAccounts",
        "ServiceAccount tokens are not accepted; remove credentials.serviceAccounts and write credentials.apiKeys",
    );
}

/// InferenceRuntime.
pub mod runtime {
    use super::{CelRule, invalid, not_yet};

    pub const ADAPTER: CelRule = not_yet(
        "self == 'stowage' || self == 'vllm' || self == 'sglang'",
        "this release knows the adapters stowage, vllm and sglang; write one of them",
    );
    pub const ALLOWED_ARGS: CelRule = invalid(
        "self.all(flag, flag.startsWith('--') && !flag.contains('='))",
        "allowedArgs names flags without values; write for example --seed",
    );
    pub const ENV: CelRule = invalid(
        "self.all(entry, !entry.name.startsWith('STOWAGE_'))",
        "environment variables that begin with STOWAGE_ are the operator's; write another name",
    );
    pub const PROBE_PATH: CelRule =
        invalid("self.startsWith('/')", "a probe's path is absolute; write for example /readyz");
}

/// InferenceBatch.
pub mod batch {
    use super::{CelRule, not_yet};

    pub const NO_BATCHES: CelRule = not_yet(
        "size(self.model) == 0",
        "batches are not worked off; send the requests to /v1/chat/completions of the gateway",
    );
}

//! Rules of InferenceDeployment.

use super::{CelRule, IMAGE_PATTERN, invalid};

/// Pods, claims and labels add to the name.
pub const NAME_LENGTH: CelRule = invalid(
    "size(self.metadata.name) <= 40",
    "metadata.name is longer than 40 characters, and pods and claims add to it; write a shorter name",
);
/// The name of a Service, too.
pub const NAME_SHAPE: CelRule = invalid(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name is a Service's name too; write lower-case letters, digits and '-', beginning with a letter",
);
/// 1 is the default, so it is the same as an absent field.
pub const REPLICAS_OUTSIDE_MANUAL: CelRule = invalid(
    "self.scaling.mode == 'Manual' || self.replicas == 1",
    "replicas belongs to mode Manual; remove it, or set scaling.mode: Manual",
);

/// What decides the number where no user does.
pub const MANUAL_HAS_NO_RULE: CelRule = invalid(
    "self.scaling.mode != 'Manual' || (!has(self.scaling.minReplicas) && !has(self.scaling.maxReplicas) && !has(self.scaling.idle) && !has(self.objectives))",
    "minReplicas, maxReplicas, idle and objectives are for the rule of modes Active and Advisory; remove them, or set scaling.mode: Active",
);

/// The model's name as clients send it.
pub const MODEL_NAME: CelRule = invalid(
    "self.trim() == self && !self.matches('[\\\\x00-\\\\x1f\\\\x7f]')",
    "name begins or ends with a space or has a control character, which clients cannot send; remove it",
);
/// Exactly one of the sources.
pub const ONE_SOURCE: CelRule = invalid(
    "[has(self.image), has(self.huggingFace), has(self.http), has(self.s3), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
    "exactly one source is needed; write source.image with reference and path, and no other",
);
/// A reference that no registry can hold is never pulled.
pub const IMAGE_REFERENCE: CelRule = invalid(
    IMAGE_PATTERN,
    "this is not an image reference; write for example registry.example.com/models/smollm2:q4, without https://",
);
/// Path of the weights inside the image.
pub const IMAGE_PATH: CelRule = invalid(
    "self.startsWith('/') && !self.contains('..') && size(self) > 1",
    "path is absolute inside the image and has no '..'; write for example /model.gguf",
);
/// Fetched by the node agent; credentials would be readable in the object.
pub const HTTP_URL: CelRule = invalid(
    "self.matches('^https?://[^/?#@\\\\s]+(/[^\\\\s]*)?$')",
    "url is the http or https address of one file, or of a directory with '/' at its end, without a user's name; write for example https://models.example.com/smollm2.gguf",
);
/// Without it a file could change behind its address.
pub const SHA256: CelRule = invalid(
    "self.matches('^[0-9a-f]{64}$')",
    "sha256 is the digest of the file, or of the directory's SHA256SUMS, 64 lower-case hexadecimal digits; write what `sha256sum` prints",
);
/// One segment or two of the hub's address.
pub const HUB_REPO: CelRule = invalid(
    "self.matches('^([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?/)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$') && !self.contains('..')",
    "repo is the name of a repository on the hub; write for example HuggingFaceTB/SmolLM2-135M-Instruct, without an address",
);
/// A name in git.
pub const HUB_REVISION: CelRule = invalid(
    "self.matches('^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(/[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?)*$') && !self.contains('..')",
    "revision is a branch, a tag or a commit; write for example main or a commit's 40 digits",
);
/// Below the repository.
pub const HUB_PATH: CelRule = invalid(
    "self.matches('^([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?/)*[A-Za-z0-9_][A-Za-z0-9_.-]*[.]gguf$') && !self.contains('..')",
    "path is a GGUF file of the repository; write for example model-q4_0.gguf, or leave path out for safetensors",
);
/// A Secret and a key in it.
pub const TOKEN_SECRET: CelRule = invalid(
    "!format.dns1123Subdomain().validate(self.name).hasValue() && (!has(self.key) || (self.key.matches('^[-._a-zA-Z0-9]+$') && self.key != '.' && !self.key.startsWith('..')))",
    "tokenSecretRef names a Secret of this namespace and a key in it; write for example {name: hub, key: token}",
);
/// Part of the store's address.
pub const S3_BUCKET: CelRule = invalid(
    "self.matches('^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$') && !self.contains('..')",
    "bucket is the name of a bucket: 3 to 63 lower-case letters, digits, '-' and '.'; write for example models",
);
/// Part of the store's address.
pub const S3_KEY: CelRule = invalid(
    "self.matches('^[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)*/?$') && !self.matches('(^|/)[.][.]?(/|$)')",
    "key is names of letters, digits, '_', '-', '.' and '~' joined by '/', none of them '.' or '..'; write for example smollm2/model.gguf, or smollm2/ for all files of a model",
);
/// The store alone; what comes after it is bucket and key.
pub const S3_ENDPOINT: CelRule = invalid(
    "self.matches('^https?://[^/?#@\\\\s]+/?$')",
    "endpoint is the http or https address of the store, without a bucket; write for example https://store.example.com:9000",
);
/// Part of what is signed, and of AWS's address.
pub const S3_REGION: CelRule = invalid(
    "self.matches('^[a-z0-9-]+$')",
    "region is lower-case letters, digits and '-'; write for example eu-west-1",
);
/// A Secret.
pub const S3_SECRET: CelRule = invalid(
    "!format.dns1123Subdomain().validate(self.name).hasValue()",
    "secretRef names a Secret of this namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; write for example {name: store}",
);
/// A fetched model reaches its engine through the claim on a GPU.
pub const FETCHED_NEEDS_GPU: CelRule = invalid(
    "!(has(self.model.source.http) || has(self.model.source.huggingFace) || has(self.model.source.s3)) || self.variants.all(variant, !has(variant.accelerator) || variant.accelerator != 'CPU')",
    "a model from source.http, source.huggingFace or source.s3 reaches engines on GPUs only; remove the variant with accelerator CPU, or write source.image",
);
/// Of the PersistentVolumeClaim.
pub const CLAIM_NAME: CelRule = invalid(
    "!format.dns1123Subdomain().validate(self).hasValue()",
    "claimName is the name of a PersistentVolumeClaim: lower-case letters, digits, '-' and '.'; write for example models",
);
/// Path of the weights on the volume.
pub const VOLUME_PATH: CelRule = invalid(
    "self.startsWith('/') && !self.contains('..') && size(self) > 1",
    "path is absolute on the volume and has no '..'; write for example /smollm2/model.gguf",
);
/// Names of TenantQuotas.
pub const TENANTS: CelRule = invalid(
    "self.all(name, !format.dns1123Subdomain().validate(name).hasValue())",
    "a tenant is the name of a TenantQuota: lower-case letters, digits, '-' and '.'; write for example team-b",
);

/// Names of InferenceRuntimes and GpuClasses.
pub const OBJECT_NAME: CelRule = invalid(
    "!format.dns1123Subdomain().validate(self).hasValue()",
    "this is not the name of an object: lower-case letters, digits, '-' and '.'; write for example h100-80g",
);
/// One flag per entry.
pub const EXTRA_ARGS: CelRule =
    invalid("self.all(arg, arg.startsWith('--'))", "each entry is one flag with its value; write for example --seed=7");

/// An estimate needs the headers before there is a place for the model.
pub const AUTO_SOURCE: CelRule = invalid(
    "self.variants.all(variant, (has(variant.accelerator) && variant.accelerator == 'CPU') || !((has(variant.memory) && variant.memory == 'Auto') || (!has(variant.memory) && has(variant.compute)))) || has(self.model.source.http) || (has(self.model.source.huggingFace) && !has(self.model.source.huggingFace.tokenSecretRef)) || (has(self.model.source.s3) && !has(self.model.source.s3.secretRef))",
    "memory: Auto, or compute without memory, needs headers that can be read before placement: source.http, or source.huggingFace or source.s3 without a Secret; write a size, as `kubectl stowage model inspect` prints it",
);
/// Nodes fetch ahead only what everybody may read: a token is read from the pod that needs it.
pub const PRELOAD_SOURCE: CelRule = invalid(
    "!has(self.preload) || has(self.source.http) || (has(self.source.huggingFace) && !has(self.source.huggingFace.tokenSecretRef)) || (has(self.source.s3) && !has(self.source.s3.secretRef))",
    "preload needs weights that node agents fetch without a login: source.http, or source.huggingFace or source.s3 without a Secret; remove model.preload",
);
/// A GPU variant names a class.
pub const GPU_CLASS: CelRule = invalid(
    "(has(self.accelerator) && self.accelerator == 'CPU') || has(self.class)",
    "a GPU variant needs class, the name of a GpuClass (kubectl get gpuc); write for example class: h100-80g",
);
/// A CPU variant has nothing of a GPU.
pub const CPU_FIELDS: CelRule = invalid(
    "!has(self.accelerator) || self.accelerator != 'CPU' || (has(self.cpu) && has(self.memory) && self.memory != 'Auto' && !has(self.class) && !has(self.count) && !has(self.compute) && !has(self.migProfile))",
    "a CPU variant has cpu and memory and nothing of a GPU; write for example cpu: \"8\", memory: 16Gi",
);
/// The cores beside a GPU are the container's.
pub const GPU_HAS_NO_CPU: CelRule = invalid(
    "(has(self.accelerator) && self.accelerator == 'CPU') || !has(self.cpu)",
    "cpu belongs to accelerator CPU; write podTemplate.resources.requests.cpu for the cores beside a GPU",
);
/// A size.
pub const MEMORY: CelRule = invalid(
    "self == 'Auto' || (isQuantity(self) && quantity(self).isGreaterThan(quantity('0')))",
    "memory is a quantity above 0; write for example memory: 20Gi",
);
/// Usually a missing or a wrong unit: `20`, `20m`.
pub const MEMORY_RANGE: CelRule = invalid(
    "!isQuantity(self) || !quantity(self).isGreaterThan(quantity('0')) || (quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('1Pi')) <= 0)",
    "memory is below 1Mi or above 1Pi, check the unit; write for example memory: 20Gi",
);
/// Cores.
pub const CPU: CelRule = invalid(
    "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
    "cpu is a quantity above 0; write for example cpu: \"8\" or 500m",
);
/// Kubernetes counts in thousandths.
pub const CPU_RANGE: CelRule = invalid(
    "!isQuantity(self) || !quantity(self).isGreaterThan(quantity('0')) || (quantity(self).compareTo(quantity('1m')) >= 0 && quantity(self).compareTo(quantity('10k')) <= 0)",
    "cpu is below 1m or above 10k cores, check the unit; write for example cpu: \"8\" or 500m",
);

/// Fewest and most replicas.
pub const MIN_MAX: CelRule = invalid(
    "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
    "minReplicas is above maxReplicas; write minReplicas at most maxReplicas",
);
/// A duration.
pub const DRAIN_TIMEOUT: CelRule = invalid(
    "self.matches('^[0-9]{1,9}(ms|s|m|h)$')",
    "drainTimeout is a whole number and ms, s, m or h; write for example drainTimeout: 600s",
);
/// A pod that drains keeps its GPUs.
pub const DRAIN_TIMEOUT_LONG: CelRule = invalid(
    "!self.matches('^[0-9]{1,9}(ms|s|m|h)$') || (self.endsWith('ms') ? int(self.substring(0, size(self) - 2)) <= 86400000 : int(self.substring(0, size(self) - 1)) <= (self.endsWith('h') ? 24 : self.endsWith('m') ? 1440 : 86400))",
    "drainTimeout is longer than 24h; write at most 24h",
);

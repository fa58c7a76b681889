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
    "url is the http or https address of one file, without a user's name; write for example https://models.example.com/smollm2.gguf",
);
/// Without it a file could change behind its address.
pub const SHA256: CelRule = invalid(
    "self.matches('^[0-9a-f]{64}$')",
    "sha256 is the file's digest, 64 lower-case hexadecimal digits; write what `sha256sum` prints",
);
/// A fetched model reaches its engine through the claim on a GPU.
pub const HTTP_NEEDS_GPU: CelRule = invalid(
    "!has(self.model.source.http) || self.variants.all(variant, !has(variant.accelerator) || variant.accelerator != 'CPU')",
    "a model from source.http reaches engines on GPUs only; remove the variant with accelerator CPU, or write source.image",
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

/// A GPU variant names a class.
pub const GPU_CLASS: CelRule = invalid(
    "(has(self.accelerator) && self.accelerator == 'CPU') || has(self.class)",
    "a GPU variant needs class, the name of a GpuClass (kubectl get gpuc); write for example class: h100-80g",
);
/// A CPU variant has nothing of a GPU.
pub const CPU_FIELDS: CelRule = invalid(
    "!has(self.accelerator) || self.accelerator != 'CPU' || (has(self.cpu) && has(self.memory) && !has(self.class) && !has(self.count) && !has(self.compute) && !has(self.migProfile))",
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

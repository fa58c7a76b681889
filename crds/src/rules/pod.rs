//! Rules of `spec.podTemplate`: what the API server would refuse in a pod is refused here, when it is written.

use super::{CelRule, invalid};

/// The operator's keys.
pub const LABELS: CelRule = invalid(
    "!has(self.labels) || self.labels.all(key, !key.startsWith('stowage.dev/') && key != 'app.kubernetes.io/managed-by')",
    "labels of stowage.dev and app.kubernetes.io/managed-by are the operator's; write other keys",
);
/// Keys of labels.
pub const LABEL_KEYS: CelRule = invalid(
    "!has(self.labels) || self.labels.all(key, !format.qualifiedName().validate(key).hasValue())",
    "a label's key is a name of at most 63 letters, digits, '-', '_' and '.', perhaps after a domain and '/'; write for example team",
);
/// Values of labels.
pub const LABEL_VALUES: CelRule = invalid(
    "!has(self.labels) || self.labels.all(key, !format.labelValue().validate(self.labels[key]).hasValue())",
    "a label's value has at most 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit; write a shorter or simpler one",
);
/// The operator's keys.
pub const ANNOTATIONS: CelRule = invalid(
    "!has(self.annotations) || self.annotations.all(key, !key.startsWith('stowage.dev/'))",
    "annotations of stowage.dev are the operator's; write other keys",
);
/// Keys of annotations; Kubernetes compares them in lower case.
pub const ANNOTATION_KEYS: CelRule = invalid(
    "!has(self.annotations) || self.annotations.all(key, !format.qualifiedName().validate(key.lowerAscii()).hasValue())",
    "an annotation's key is a name of at most 63 letters, digits, '-', '_' and '.', perhaps after a domain and '/'; write for example example.com/team",
);
/// Labels of nodes.
pub const NODE_SELECTOR: CelRule = invalid(
    "!has(self.nodeSelector) || self.nodeSelector.all(key, !format.qualifiedName().validate(key).hasValue() && !format.labelValue().validate(self.nodeSelector[key]).hasValue())",
    "nodeSelector has labels that no node can have: keys and values are at most 63 letters, digits, '-', '_' and '.'; write the labels of kubectl get nodes --show-labels",
);
/// Variables that the operator sets.
pub const ENV: CelRule = invalid(
    "!has(self.env) || self.env.all(entry, !entry.name.startsWith('STOWAGE_'))",
    "environment variables that begin with STOWAGE_ are the operator's; write another name",
);
/// Names of variables.
pub const ENV_NAME: CelRule = invalid(
    "self.matches('^[ -<>-~]+$')",
    "an environment variable's name is printable ASCII without '='; write the name alone, and its value in value",
);
/// Known resources.
pub const RESOURCES: CelRule = invalid(
    "(!has(self.requests) || self.requests.all(key, key in ['cpu', 'memory', 'ephemeral-storage'])) && (!has(self.limits) || self.limits.all(key, key in ['cpu', 'memory', 'ephemeral-storage']))",
    "resources are cpu, memory and ephemeral-storage; GPUs are asked for in spec.variants",
);
/// Quantities of at least 0.
pub const RESOURCE_VALUES: CelRule = invalid(
    "(!has(self.requests) || self.requests.all(key, isQuantity(string(self.requests[key])) && !quantity(string(self.requests[key])).isLessThan(quantity('0')))) && (!has(self.limits) || self.limits.all(key, isQuantity(string(self.limits[key])) && !quantity(string(self.limits[key])).isLessThan(quantity('0'))))",
    "resources are quantities of at least 0; write for example cpu: 500m, memory: 2Gi",
);
/// A pod that requests more than its limit is never admitted.
pub const REQUESTS_OVER_LIMITS: CelRule = invalid(
    "!has(self.requests) || !has(self.limits) || self.requests.all(key, !(key in self.limits) || !isQuantity(string(self.requests[key])) || !isQuantity(string(self.limits[key])) || quantity(string(self.requests[key])).compareTo(quantity(string(self.limits[key]))) <= 0)",
    "a request is above the limit of the same resource; write requests of at most the limits",
);
/// Operator, key and value of a toleration.
pub const TOLERATION: CelRule = invalid(
    "!(has(self.operator) && self.operator == 'Exists' && has(self.value)) && (has(self.key) || (has(self.operator) && self.operator == 'Exists'))",
    "a toleration has key and value, or operator: Exists without a value; write for example key: gpu, operator: Exists",
);
/// Key and value of a taint.
pub const TOLERATION_TAINT: CelRule = invalid(
    "(!has(self.key) || !format.qualifiedName().validate(self.key).hasValue()) && (!has(self.value) || !format.labelValue().validate(self.value).hasValue())",
    "a taint's key and value are at most 63 letters, digits, '-', '_' and '.', the key perhaps after a domain and '/'; write for example key: gpu",
);
/// Label of nodes over which replicas are spread.
pub const TOPOLOGY_KEY: CelRule = invalid(
    "!format.qualifiedName().validate(self).hasValue()",
    "no node can have this label: a key is at most 63 letters, digits, '-', '_' and '.', perhaps after a domain and '/'; write for example topology.kubernetes.io/zone",
);
/// Names of PriorityClasses, ServiceAccounts and Secrets.
pub const OBJECT_NAME: CelRule = invalid(
    "!format.dns1123Subdomain().validate(self).hasValue()",
    "no object can have this name: lower-case letters, digits, '-' and '.'; write the name that kubectl get shows",
);

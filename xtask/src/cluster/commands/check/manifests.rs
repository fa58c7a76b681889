//! What single checks apply: policies, and pods that must be refused.

pub const ALLOW_NEAR: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: near}}}], ports: [{port: 8080}]}]
";

pub const NO_EGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: []}
";

pub const RESTRICTED_LABEL: &str = "pod-security.kubernetes.io/enforce=restricted";

/// Admitted where Pod Security is `restricted`.
pub const MODEST_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: c
    image: localhost/stowage/probe:dev
    imagePullPolicy: Never
    command: [/bin/sleep, '100000']
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
";

/// Not admitted there.
pub const ROOT_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  containers: [{name: c, image: 'localhost/stowage/probe:dev', command: [/bin/sleep, '1']}]
";

/// Refuses ConfigMaps that ask for it, in one namespace.
pub fn admission_policy(namespace: &str) -> String {
    format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {namespace}}}
spec:
  failurePolicy: Fail
  matchConstraints: {{resourceRules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}}]}}
  validations: [{{expression: \"!has(object.data) || !('refuse' in object.data)\", message: refused-by-the-check}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {namespace}}}
spec:
  policyName: {namespace}
  validationActions: [Deny]
  matchResources: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}}}
"
    )
}

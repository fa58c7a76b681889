{{/* A match condition: the writer is neither the operator nor a part of Kubernetes. A cluster whose controllers run
     under other names has them in the group of nodes or of kube-system's accounts. */}}
{{- define "stowage.byOthers" -}}
- name: by-others
  expression: >-
    !(request.userInfo.username in ['{{ include "stowage.operatorUser" . }}', 'system:kube-scheduler', 'system:kube-controller-manager', 'system:apiserver']) &&
    !(has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in ['system:nodes', 'system:serviceaccounts:kube-system']))
{{- end -}}

{{/* Variables with labels and annotations before and after. */}}
{{- define "stowage.metadataVariables" -}}
- name: labels
  expression: "has(object.metadata.labels) ? object.metadata.labels : {}"
- name: oldLabels
  expression: "has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}"
- name: annotations
  expression: "has(object.metadata.annotations) ? object.metadata.annotations : {}"
- name: oldAnnotations
  expression: "has(oldObject.metadata.annotations) ? oldObject.metadata.annotations : {}"
{{- end -}}

{{/* Validations: labels, annotations, owners and finalizers that the operator set are as they were. Others may be
     changed. The argument is the kind, as messages name it. */}}
{{- define "stowage.metadataUnchanged" -}}
- expression: >-
    variables.labels.all(k, !(k.startsWith('stowage.dev/') || k == 'app.kubernetes.io/managed-by') || (k in variables.oldLabels && variables.oldLabels[k] == variables.labels[k])) &&
    variables.oldLabels.all(k, !(k.startsWith('stowage.dev/') || k == 'app.kubernetes.io/managed-by') || k in variables.labels)
  message: "labels stowage.dev/* and app.kubernetes.io/managed-by of a {{ . }} of the Stowage operator are not to be changed; write labels of another domain"
  reason: Forbidden
- expression: >-
    variables.annotations.all(k, !k.startsWith('stowage.dev/') || (k in variables.oldAnnotations && variables.oldAnnotations[k] == variables.annotations[k])) &&
    variables.oldAnnotations.all(k, !k.startsWith('stowage.dev/') || k in variables.annotations)
  message: "annotations stowage.dev/* of a {{ . }} of the Stowage operator are not to be changed; write annotations of another domain"
  reason: Forbidden
- expression: >-
    (has(object.metadata.ownerReferences) ? object.metadata.ownerReferences : []) == (has(oldObject.metadata.ownerReferences) ? oldObject.metadata.ownerReferences : []) &&
    (has(object.metadata.finalizers) ? object.metadata.finalizers : []) == (has(oldObject.metadata.finalizers) ? oldObject.metadata.finalizers : [])
  message: "owners and finalizers of a {{ . }} of the Stowage operator are not to be changed; delete the InferenceDeployment, or the {{ . }} itself"
  reason: Forbidden
- expression: "!has(request.subResource) || request.subResource != 'status'"
  message: "only parts of Kubernetes write the status of a {{ . }} of the Stowage operator"
  reason: Forbidden
{{- end -}}

{{/* A validation: nobody but the operator becomes the owner of what it made. An object with another controller would
     belong to no deployment. The garbage collector takes owners away. Needs the variable isOperator. */}}
{{- define "stowage.notAdopted" -}}
- expression: >-
    variables.isOperator || request.operation != 'UPDATE' || !has(oldObject.metadata.labels) || !('app.kubernetes.io/managed-by' in oldObject.metadata.labels) ||
    oldObject.metadata.labels['app.kubernetes.io/managed-by'] != 'stowage' || !has(object.metadata.ownerReferences) ||
    object.metadata.ownerReferences.all(o, has(oldObject.metadata.ownerReferences) && oldObject.metadata.ownerReferences.exists(p, p.uid == o.uid))
  message: "a {{ . }} of the Stowage operator gets no other owner; choose a selector that does not match the labels stowage.dev/*"
  reason: Forbidden
{{- end -}}

{{/* A validation: only the operator gives the label by which it knows its own. Needs the variable isOperator. The
     argument is the kind in the plural. */}}
{{- define "stowage.labelIsOurs" -}}
- expression: >-
    variables.isOperator || !has(object.metadata.labels) || !('app.kubernetes.io/managed-by' in object.metadata.labels) ||
    object.metadata.labels['app.kubernetes.io/managed-by'] != 'stowage' ||
    (request.operation == 'UPDATE' && has(oldObject.metadata.labels) && 'app.kubernetes.io/managed-by' in oldObject.metadata.labels &&
    oldObject.metadata.labels['app.kubernetes.io/managed-by'] == 'stowage')
  message: "the label app.kubernetes.io/managed-by: stowage is for {{ . }} of the Stowage operator; write another value"
  reason: Forbidden
{{- end -}}

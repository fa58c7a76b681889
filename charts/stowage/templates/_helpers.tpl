{{- define "stowage.image" -}}
{{ .root.Values.image.registry }}/{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "stowage.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: stowage
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* What Pod Security's `restricted` asks of a container. */}}
{{- define "stowage.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stowage.probes" -}}
readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 1}
livenessProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 5, failureThreshold: 6}
{{- end }}

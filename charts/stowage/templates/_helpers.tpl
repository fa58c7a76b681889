{{/* Names are constants: policies, clients and code rely on them, so one Stowage per cluster. */}}
{{- define "stowage.system" -}}stowage-system{{- end -}}
{{- define "stowage.node" -}}stowage-node{{- end -}}
{{- define "stowage.operatorUser" -}}system:serviceaccount:stowage-system:stowage-operator{{- end -}}
{{- define "stowage.agentUser" -}}system:serviceaccount:stowage-node:stowage-node-agent{{- end -}}

{{/* (dict "root" $ "name" "operator") → image reference */}}
{{- define "stowage.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* (dict "root" $ "name" "stowage-operator") → labels of every object */}}
{{- define "stowage.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: stowage
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{/* "true" or "": values may come as text, from --set-string */}}
{{- define "stowage.simulated" -}}
{{- if eq (toString .Values.nodeAgent.simulated.enabled) "true" }}true{{ end -}}
{{- end -}}

{{/* Pod Security `restricted`, container */}}
{{- define "stowage.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Pod Security `restricted`, pod */}}
{{- define "stowage.nonroot" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "stowage.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (dict "env" .Values.x.env "log" "info") */}}
{{- define "stowage.env" -}}
- {name: STOWAGE_LOG, value: {{ .log | quote }}}
{{- range $name, $value := .env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{/* The rule for those that may read metrics; none without one, as a rule without peers would admit everybody. */}}
{{- define "stowage.scraped" -}}
{{- with .Values.networkPolicies.metricsFrom }}
- ports: [{port: 8083, protocol: TCP}]
  from: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Peers that may read decisions, beside the API server. */}}
{{- define "stowage.readers" -}}
{{- with .Values.networkPolicies.decisionsFrom }}{{ toYaml . }}{{ end }}
{{- end -}}

{{/* Addresses of the API server: as given, else those of the Service `kubernetes` right now (none in `helm template`). */}}
{{- define "stowage.apiServers" -}}
{{- if .Values.networkPolicies.apiServerAddresses }}
{{- range .Values.networkPolicies.apiServerAddresses }}
- ipBlock: {cidr: {{ . }}}
{{- end }}
{{- else }}
{{- $slice := lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" }}
{{- range $endpoint := ($slice.endpoints | default list) }}
{{- range $endpoint.addresses }}
- ipBlock: {cidr: {{ . }}/{{ if contains ":" . }}128{{ else }}32{{ end }}}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Egress that every process of ours needs: names and the API server. */}}
{{- define "stowage.egressBase" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
- ports:
{{- range .Values.networkPolicies.apiServerPorts }}
  - {port: {{ . }}, protocol: TCP}
{{- end }}
{{- end -}}

{{- /* What both charts share, word for word: fedpath-site has the same file, which a test compares. */ -}}

{{- define "fedpath.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 50 characters: the longest suffix and the hash of a pod's name still fit into 63. */ -}}
{{- define "fedpath.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "fedpath.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fedpath.selector" -}}
app.kubernetes.io/name: {{ include "fedpath.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedpath.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "fedpath.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/part-of: fedpath
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Of pods: without versions, so that a new chart alone begins no new pod. */ -}}
{{- define "fedpath.podLabels" -}}
{{ include "fedpath.selector" . }}
app.kubernetes.io/part-of: fedpath
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedpath.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "fedpath.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "fedpath.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* None of it can be weakened by values: they only choose the numbers. */ -}}
{{- define "fedpath.podSecurity" -}}
runAsNonRoot: true
{{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- with index $.Values.securityContext $key }}
{{ $key }}: {{ int64 . }}
{{- end }}
{{- end }}
{{- with .Values.securityContext.supplementalGroups }}
supplementalGroups: {{ toJson . }}
{{- end }}
{{- if .Values.securityContext.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "fedpath.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* What every pod of the charts has, whatever runs in it. */ -}}
{{- define "fedpath.pod" -}}
serviceAccountName: {{ include "fedpath.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext:
{{- include "fedpath.podSecurity" . | nindent 2 }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fedpath.env" -}}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* The image's file system is read-only; its environment sends what libraries cache to /tmp. */ -}}
{{- define "fedpath.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "fedpath.scratchVolumes" -}}
- name: tmp
  emptyDir: {}
{{- end -}}

{{- /* Started and alive: only a restart can help where it is not. Ready: see the values of each chart. */ -}}
{{- define "fedpath.probes" -}}
startupProbe:
  httpGet: { path: /health, port: metrics }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div .Values.startupSeconds 5 | max 1 }}
readinessProbe:
  httpGet: { path: /health/ready, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  grpc: { port: 9465 }
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{- define "fedpath.ports" -}}
- name: metrics
  containerPort: 9464
- name: health
  containerPort: 9465
{{- end -}}

{{- /* A claim: dict "root" $ "name" of the claim "values" of it. */ -}}
{{- define "fedpath.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  labels:
{{- include "fedpath.labels" .root | nindent 4 }}
{{- $annotations := merge (dict) .values.annotations (ternary (dict "helm.sh/resource-policy" "keep") (dict) .values.keep) }}
{{- with $annotations }}
  annotations:
{{- toYaml . | nindent 4 }}
{{- end }}
spec:
  accessModes: {{ toJson .values.accessModes }}
{{- with .values.storageClass }}
  storageClassName: {{ . }}
{{- end }}
  resources:
    requests:
      storage: {{ .values.size }}
{{- end -}}

{{- /* A peer of a NetworkPolicy: pods of namespaces, by label; of all namespaces where there is no label. */ -}}
{{- define "fedpath.peer" -}}
- namespaceSelector:
{{- if .namespace }}
    matchLabels:
{{- toYaml .namespace | nindent 6 }}
{{- else }} {}
{{- end }}
{{- with .pods }}
  podSelector:
    matchLabels:
{{- toYaml . | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "fedpath.dnsRule" -}}
- to:
{{- include "fedpath.peer" .Values.networkPolicy.dns | nindent 4 }}
{{- range .Values.networkPolicy.dns.cidrs }}
    - ipBlock: { cidr: {{ . | quote }} }
{{- end }}
  ports:
{{- range .Values.networkPolicy.dns.ports }}
    - { protocol: UDP, port: {{ int . }} }
    - { protocol: TCP, port: {{ int . }} }
{{- end }}
{{- end -}}

{{- /* Who is somewhere outside or inside: address ranges, and pods. */ -}}
{{- define "fedpath.destination" -}}
- to:
{{- range .cidrs }}
    - ipBlock: { cidr: {{ . | quote }} }
{{- end }}
{{- if .namespace }}
{{- include "fedpath.peer" . | nindent 4 }}
{{- end }}
  ports:
    - { protocol: TCP, port: {{ int .port }} }
{{- end -}}

{{- /* Alert rules and dashboards: the files are copies of deploy/, made by helm/generate.py. */ -}}
{{- define "fedpath.rules" -}}
{{- with .Values.monitoring.prometheusRule }}
{{- if .enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "fedpath.fullname" $ }}
  labels:
{{- include "fedpath.labels" $ | nindent 4 }}
{{- with .labels }}
{{- toYaml . | nindent 4 }}
{{- end }}
spec:
  groups:
{{- range $path, $_ := $.Files.Glob "files/rules/*.yml" }}
{{- ($.Files.Get $path | fromYaml).groups | toYaml | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fedpath.dashboards" -}}
{{- with .Values.monitoring.dashboards }}
{{- if .enabled }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "fedpath.fullname" $ }}-dashboards
  labels:
{{- include "fedpath.labels" $ | nindent 4 }}
{{- toYaml .labels | nindent 4 }}
{{- with .annotations }}
  annotations:
{{- toYaml . | nindent 4 }}
{{- end }}
data:
{{- range $path, $_ := $.Files.Glob "files/dashboards/*.json" }}
  {{ base $path }}: |
{{- $.Files.Get $path | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* What the coordinator is told by its environment: where the registry and the Ray cluster are. */ -}}
{{- define "fedpath.coordinatorEnv" -}}
{{- include "fedpath.env" . }}
{{- with .Values.registry.existingSecret }}
- name: FEDPATH_REGISTRY_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.registry.key }}
{{- end }}
{{- if .Values.ray.enabled }}
- name: FEDPATH_RAY_ADDRESS
  value: ray://{{ include "fedpath.fullname" . }}-ray-head-svc:10001
{{- end }}
{{- end -}}

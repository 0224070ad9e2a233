{{- /* Of the site's pods: data, GPU, proxy. */ -}}

{{- define "fedpath.configVolume" -}}
- name: config
  projected:
    defaultMode: 0440
    sources:
      - configMap:
          name: {{ include "fedpath.fullname" . }}
          items:
            - { key: site.toml, path: site.toml }
      - secret:
          name: {{ required "kit.existingSecret is empty: make one of the kit from the coordinator's operator" .Values.kit.existingSecret }}
          items:
            - { key: kit.toml, path: kit/kit.toml }
            - { key: ca.crt, path: kit/ca.crt }
            - { key: node.key, path: kit/node.key }
{{- end -}}

{{- define "fedpath.proxy" -}}
{{- with .Values.proxy.https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.proxy.noProxy }}
- name: NO_PROXY
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "fedpath.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $gpu := dict .Values.gpu.resource (int .Values.gpu.count) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpu "requests" $gpu) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "fedpath.tolerations" -}}
{{- concat .Values.tolerations (ternary .Values.gpu.tolerations list .Values.gpu.enabled) | toYaml -}}
{{- end -}}

{{- define "fedpath.dataMounts" -}}
- name: features
  mountPath: /data/features
{{- if or .Values.data.tables.existingSecret .Values.data.tables.existingClaim }}
- name: tables
  mountPath: /data/tables
  readOnly: true
{{- end }}
{{- if .Values.data.slides.existingClaim }}
- name: slides
  mountPath: /data/slides
  readOnly: true
{{- with .Values.data.slides.subPath }}
  subPath: {{ . }}
{{- end }}
{{- end }}
{{- if .Values.data.weights.existingClaim }}
- name: weights
  mountPath: /data/weights
  readOnly: true
{{- end }}
{{- if .Values.gpu.enabled }}
- name: shm
  mountPath: /dev/shm
{{- end }}
{{- end -}}

{{- define "fedpath.dataVolumes" -}}
- name: features
  persistentVolumeClaim:
    claimName: {{ .Values.data.features.existingClaim | default (printf "%s-features" (include "fedpath.fullname" .)) }}
{{- with .Values.data.tables }}
{{- if and .existingSecret .existingClaim }}
{{- fail "data.tables: give existingSecret or existingClaim, not both" }}
{{- end }}
{{- if .existingSecret }}
- name: tables
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
{{- else if .existingClaim }}
- name: tables
  persistentVolumeClaim:
    claimName: {{ .existingClaim }}
    readOnly: true
{{- end }}
{{- end }}
{{- range $name := list "slides" "weights" }}
{{- with (index $.Values.data $name).existingClaim }}
- name: {{ $name }}
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- end }}
{{- if .Values.gpu.enabled }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.gpu.sharedMemory }}
{{- end }}
{{- end -}}

{{- /* A pod of the Ray cluster: the coordinator's image, whose entrypoint KubeRay replaces. */ -}}
{{- define "fedpath.rayPod" -}}
{{- $root := .root -}}
metadata:
  labels:
{{- include "fedpath.podLabels" $root | nindent 4 }}
    app.kubernetes.io/component: ray
spec:
  serviceAccountName: {{ include "fedpath.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
{{- range . }}
    - name: {{ . }}
{{- end }}
{{- end }}
  securityContext:
{{- include "fedpath.podSecurity" $root | nindent 4 }}
{{- with .values.nodeSelector }}
  nodeSelector:
{{- toYaml . | nindent 4 }}
{{- end }}
{{- with .values.tolerations }}
  tolerations:
{{- toYaml . | nindent 4 }}
{{- end }}
  containers:
    - name: {{ .container }}
      image: {{ include "fedpath.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- with include "fedpath.env" $root }}
      env:
{{- . | nindent 8 }}
{{- end }}
{{- if eq .container "ray-head" }}
      ports:
        - { name: gcs, containerPort: 6379 }
        - { name: dashboard, containerPort: 8265 }
        - { name: client, containerPort: 10001 }
{{- end }}
      # Ray's own processes answer gRPC's health service; KubeRay's probes would need programs that the image lacks.
{{- range $probe, $failures := dict "startupProbe" 60 "readinessProbe" 3 "livenessProbe" 12 }}
      {{ $probe }}:
        grpc: { port: 6380 }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ $failures }}
{{- end }}
      resources:
{{- toYaml .values.resources | nindent 8 }}
      securityContext:
{{- include "fedpath.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - name: shm
          mountPath: /dev/shm
{{- include "fedpath.scratchMounts" $root | nindent 8 }}
  volumes:
    # Ray's object store; it counts as the pod's memory.
    - name: shm
      emptyDir:
        medium: Memory
{{- include "fedpath.scratchVolumes" $root | nindent 4 }}
{{- end -}}

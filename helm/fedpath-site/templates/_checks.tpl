{{- /* site.toml, parsed; whatever would only be found out in the pod is said here. */ -}}
{{- define "fedpath.site" -}}
{{- if not .Values.site -}}
{{- fail "site is empty: give the hospital's file with --set-file site=site.toml" -}}
{{- end -}}
{{- $toml := fromToml .Values.site -}}
{{- if hasKey $toml "Error" -}}
{{- fail (printf "site is no TOML: %s" $toml.Error) -}}
{{- end -}}
{{- range $key := list "site" "data" -}}
{{- if not (hasKey $toml $key) -}}
{{- fail (printf "site: [%s] is missing: is it the hospital's site.toml?" $key) -}}
{{- end -}}
{{- end -}}
{{- if ne (toString $toml.state) "/var/lib/fedpath" -}}
{{- fail "site: write state = \"/var/lib/fedpath\" above the first [table]: the claim is mounted there, the rest is read-only" -}}
{{- end -}}
{{- $paths := list (dict "key" "data.manifest" "path" $toml.data.manifest) (dict "key" "data.features" "path" $toml.data.features) -}}
{{- with $toml.clinical -}}
{{- $paths = append $paths (dict "key" "clinical.table" "path" .table) -}}
{{- end -}}
{{- with $toml.slides -}}
{{- $paths = append $paths (dict "key" "slides.folder" "path" .folder) -}}
{{- end -}}
{{- with $toml.encoder -}}
{{- with .weights -}}
{{- $paths = append $paths (dict "key" "encoder.weights" "path" .) -}}
{{- end -}}
{{- end -}}
{{- range $paths -}}
{{- if not (regexMatch "^/data/(features|tables|slides|weights)(/|$)" (toString .path)) -}}
{{- fail (printf "site: %s is %q: the data are at /data/features, /data/tables, /data/slides and /data/weights" .key (toString .path)) -}}
{{- end -}}
{{- end -}}
{{- if and $toml.slides (not .Values.data.slides.existingClaim) -}}
{{- fail "site: [slides] is there, and data.slides.existingClaim is empty: name the claim that holds the slides" -}}
{{- end -}}
{{- if and .Values.encode.enabled (not .Values.data.slides.existingClaim) -}}
{{- fail "encode.enabled: data.slides.existingClaim is empty: name the claim that holds the slides" -}}
{{- end -}}
{{- toJson $toml -}}
{{- end -}}

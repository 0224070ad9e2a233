{{- /* federation.toml, parsed; whatever would only be found out in the pod is said here. */ -}}
{{- define "fedpath.federation" -}}
{{- if not .Values.federation -}}
{{- fail "federation is empty: give the coordinator's file with --set-file federation=federation.toml" -}}
{{- end -}}
{{- $toml := fromToml .Values.federation -}}
{{- if hasKey $toml "Error" -}}
{{- fail (printf "federation is no TOML: %s" $toml.Error) -}}
{{- end -}}
{{- range $key := list "federation" "server" -}}
{{- if not (hasKey $toml $key) -}}
{{- fail (printf "federation: [%s] is missing: is it the coordinator's federation.toml?" $key) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^0\\.0\\.0\\.0:9443$" (toString $toml.server.listen)) -}}
{{- fail "federation: write listen = \"0.0.0.0:9443\" into [server]: the pod listens there, server.address is what hospitals use" -}}
{{- end -}}
{{- if hasKey $toml.server "credentials" -}}
{{- fail "federation: take server.credentials out: the chart puts the certificate and the keys where the default looks" -}}
{{- end -}}
{{- if hasKey $toml.server "registry" -}}
{{- fail "federation: take server.registry out, it may hold a password and would lie in a ConfigMap: use registry.existingSecret" -}}
{{- end -}}
{{- range $site := $toml.federation.sites -}}
{{- if not (hasKey $.Values.siteKeys $site) -}}
{{- fail (printf "siteKeys has no key of site %s: --set-file siteKeys.%s=credentials/server/sites/%s.pub" $site $site $site) -}}
{{- end -}}
{{- end -}}
{{- toJson $toml -}}
{{- end -}}

{{- /* The host in server.address. */ -}}
{{- define "fedpath.host" -}}
{{- $address := (include "fedpath.federation" . | fromJson).server.address -}}
{{- regexReplaceAll ":[0-9]+$" $address "" -}}
{{- end -}}

{{- define "fedpath.isAddress" -}}
{{- if regexMatch "^[0-9.]+$" (include "fedpath.host" .) -}}yes{{- end -}}
{{- end -}}

{{- define "fedpath.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{- if .Values.tls.existingSecret -}}
{{- fail "tls: give existingSecret or enable certManager, not both" -}}
{{- end -}}
{{- include "fedpath.fullname" . }}-tls
{{- else -}}
{{- required "tls.existingSecret is empty: make one of what `fedpath provision` wrote, or enable tls.certManager" .Values.tls.existingSecret -}}
{{- end -}}
{{- end -}}

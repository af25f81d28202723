{{/* Made by deploy/render_helm.py from deploy/k8s; do not edit. */}}
{{- define "estsuite.image" -}}
{{- if not (or .tag .digest) }}{{ fail (printf "image %s has neither tag nor digest" .repository) }}{{ end -}}
{{- .repository }}{{ with .tag }}:{{ . }}{{ end }}{{ with .digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Text of a settings file: what is given, else the chart's; settings are merged into it. */}}
{{- define "estsuite.text" -}}
{{- $text := .given | default (.root.Files.Get (printf "config/%s" .file)) -}}
{{- if .settings -}}
{{- $parsed := fromYaml $text -}}
{{- if hasKey $parsed "Error" }}{{ fail (printf "%s is not a YAML mapping: %s" .file $parsed.Error) }}{{ end -}}
{{- toYaml (mustMergeOverwrite $parsed (deepCopy .settings)) }}
{{ else -}}
{{- $text -}}
{{- end -}}
{{- end -}}

{{/* Name of a ConfigMap with the hash of its data: a change is a rollout. Kustomize, whose hash it is, leaves out the name. */}}
{{- define "estsuite.name" -}}
{{- $data := include (printf "estsuite.data.%s" .name) .root | fromJson -}}
{{- $hash := dict "kind" "ConfigMap" "name" "" "data" $data | toJson | sha256sum | trunc 10 -}}
{{- $hash = $hash | replace "0" "g" | replace "1" "h" | replace "3" "k" | replace "a" "m" | replace "e" "t" -}}
{{- printf "%s-%s" .name $hash -}}
{{- end -}}

{{- define "estsuite.addresses" -}}
{{- range . }}
- ipBlock: {cidr: {{ toJson . }}}
{{- end }}
{{- end -}}

{{- define "estsuite.data.endpoints" -}}
{{- $nats := "tls://nats.nats.svc:4222" -}}
{{- $postgres := "postgres-rw.postgres.svc:5432" -}}
{{- if .Values.servers.enabled -}}
{{- $nats = printf "tls://nats.%s.svc:4222" .Release.Namespace -}}
{{- $postgres = printf "postgres.%s.svc:5432" .Release.Namespace -}}
{{- end -}}
{{- dict "nats-url" (.Values.endpoints.natsUrl | default $nats) "postgres-address" (.Values.endpoints.postgresAddress | default $postgres) "stream-replicas" (toString .Values.endpoints.streamReplicas) | toJson -}}
{{- end -}}

{{- define "estsuite.data.audit-config" -}}
{{- dict "audit.yaml" (include "estsuite.text" (dict "root" $ "file" "audit.yaml" "given" $.Values.files.audit "settings" $.Values.settings.audit)) | toJson -}}
{{- end -}}

{{- define "estsuite.data.ca-signer-config" -}}
{{- dict "ca-signer.yaml" (include "estsuite.text" (dict "root" $ "file" "ca-signer.yaml" "given" $.Values.files.caSigner "settings" $.Values.settings.caSigner)) "policy.yaml" (include "estsuite.text" (dict "root" $ "file" "policy.yaml" "given" $.Values.files.policy "settings" dict)) "profiles.yaml" (include "estsuite.text" (dict "root" $ "file" "profiles.yaml" "given" $.Values.files.profiles "settings" dict)) | toJson -}}
{{- end -}}

{{- define "estsuite.data.est-frontend-config" -}}
{{- dict "est-frontend.yaml" (include "estsuite.text" (dict "root" $ "file" "est-frontend.yaml" "given" $.Values.files.estFrontend "settings" $.Values.settings.estFrontend)) "policy.yaml" (include "estsuite.text" (dict "root" $ "file" "policy.yaml" "given" $.Values.files.policy "settings" dict)) | toJson -}}
{{- end -}}

{{- define "estsuite.data.renewal-config" -}}
{{- dict "renewal.yaml" (include "estsuite.text" (dict "root" $ "file" "renewal.yaml" "given" $.Values.files.renewal "settings" $.Values.settings.renewal)) | toJson -}}
{{- end -}}

{{- define "estsuite.data.estctl-config" -}}
{{- dict "operator.yaml" (include "estsuite.text" (dict "root" $ "file" "operator.yaml" "given" $.Values.files.estctl "settings" $.Values.settings.estctl)) | toJson -}}
{{- end -}}

{{- define "estsuite.data.postgres-roles" -}}
{{- dict "roles.sql" (include "estsuite.text" (dict "root" $ "file" "roles.sql" "given" "" "settings" dict)) | toJson -}}
{{- end -}}

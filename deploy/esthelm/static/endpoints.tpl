
{{- define "estsuite.data.endpoints" -}}
{{- $nats := "NATS_URL" -}}
{{- $postgres := "POSTGRES_ADDRESS" -}}
{{- if .Values.servers.enabled -}}
{{- $nats = printf "NATS_HERE" .Release.Namespace -}}
{{- $postgres = printf "POSTGRES_HERE" .Release.Namespace -}}
{{- end -}}
{{- dict "nats-url" (.Values.endpoints.natsUrl | default $nats) "postgres-address" (.Values.endpoints.postgresAddress | default $postgres) "stream-replicas" (toString .Values.endpoints.streamReplicas) | toJson -}}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- $seen := dict -}}
{{- range $key, $name := .Values.secrets -}}
{{- if hasKey $seen $name }}{{ fail (printf "secrets.%s and secrets.%s are the same Secret, %s: each holds what others must not read" (get $seen $name) $key $name) }}{{ end -}}
{{- $_ := set $seen $name $key -}}
{{- end -}}
{{- with .Values.estFrontend.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}{{ fail (printf "estFrontend.autoscaling: minReplicas %d is more than maxReplicas %d" (int .minReplicas) (int .maxReplicas)) }}{{ end -}}
{{- end -}}
{{- if and .Values.estIssuer.enabled (eq (toString .Values.estIssuer.namespace) .Release.Namespace) }}{{ fail (printf "estIssuer.namespace is %s, where the Secrets of the suite are: the controller could read them" .Release.Namespace) }}{{ end -}}

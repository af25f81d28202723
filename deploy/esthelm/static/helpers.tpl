{{- define "PREFIX.image" -}}
{{- if not (or .tag .digest) }}{{ fail (printf "image %s has neither tag nor digest" .repository) }}{{ end -}}
{{- .repository }}{{ with .tag }}:{{ . }}{{ end }}{{ with .digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Text of a settings file: what is given, else the chart's; settings are merged into it. */}}
{{- define "PREFIX.text" -}}
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
{{- define "PREFIX.name" -}}
{{- $data := include (printf "PREFIX.data.%s" .name) .root | fromJson -}}
{{- $hash := dict "kind" "ConfigMap" "name" "" "data" $data | toJson | sha256sum | trunc 10 -}}
{{- $hash = $hash | replace "0" "g" | replace "1" "h" | replace "3" "k" | replace "a" "m" | replace "e" "t" -}}
{{- printf "%s-%s" .name $hash -}}
{{- end -}}

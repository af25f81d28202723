
{{- define "estsuite.addresses" -}}
{{- range . }}
- ipBlock: {cidr: {{ toJson . }}}
{{- end }}
{{- end -}}

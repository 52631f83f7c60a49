{{- define "handshake.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "handshake.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "handshake.labels" -}}
{{ include "handshake.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "handshake.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "handshake.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The keys that other values decide take precedence over those of `config`. */}}
{{- define "handshake.settings" -}}
{{- $settings := deepCopy .Values.config -}}
{{- if .Values.wireOnly -}}{{- $_ := set $settings "tls_libraries" "off" -}}{{- end -}}
{{- if .Values.records.enabled -}}{{- $_ := set $settings "records" "/var/log/handshake" -}}{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* Strings, numbers, booleans and lists of them are written the same in JSON and in TOML. */}}
{{- define "handshake.toml" -}}
{{- range $key, $value := include "handshake.settings" . | fromJson }}
{{ $key }} = {{ toJson $value }}
{{- end -}}
{{- end -}}

{{/* The port of the setting `listen`: what follows the last colon. */}}
{{- define "handshake.port" -}}
{{- regexFind "[0-9]+$" (required "config.listen: an address and a port" .Values.config.listen) -}}
{{- end -}}

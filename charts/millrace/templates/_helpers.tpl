{{/* Name of what belongs to this release. */}}
{{- define "millrace.name" -}}
{{- if contains "millrace" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-millrace" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "millrace.labels" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What selects the pods of one component of this release. */}}
{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of the pods of one component, with those that the values add. */}}
{{- define "millrace.podLabels" -}}
{{- with .values.podLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "millrace.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Where the pods of one component run, and with which images. */}}
{{- define "millrace.placement" -}}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Whether the Redis of a component is the bundled one. */}}
{{- define "millrace.isBundled" -}}
{{- $redis := (get .root.Values .component).redis }}
{{- if not (or $redis.url $redis.urlSecret.name) }}true{{ end }}
{{- end }}

{{/* URL of the Redis of a component, where it is known to the chart. */}}
{{- define "millrace.redisUrl" -}}
{{- $redis := (get .root.Values .component).redis }}
{{- with $redis.url }}{{ . }}{{ else }}{{ printf "redis://%s-%s.%s.svc:6379" (include "millrace.name" .root) .component .root.Release.Namespace }}{{ end }}
{{- end }}

{{/* Where the password of the bundled Redis of a component is. */}}
{{- define "millrace.redisPassword" -}}
{{- $given := (get .root.Values .component).redis.passwordSecret -}}
secretKeyRef: {name: {{ $given.name | default (printf "%s-%s" (include "millrace.name" .root) .component) }}, key: {{ $given.key }}}
{{- end }}

{{/* The Secret with that password, unless one is given: made once, since users are derived from it. */}}
{{- define "millrace.redisPasswordSecret" -}}
{{- $given := (get .root.Values .component).redis.passwordSecret }}
{{- if not $given.name }}
{{- $name := printf "%s-%s" (include "millrace.name" .root) .component }}
{{- $before := lookup "v1" "Secret" .root.Release.Namespace $name | default dict -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ $name }}
  labels: {{- include "millrace.labels" .root | nindent 4 }}
stringData:
  {{ $given.key }}: {{ get ($before.data | default dict) $given.key | b64dec | default (randAlphaNum 32) | quote }}
---
{{- end }}
{{- end }}

{{/* The variables by which a container reaches the Redis of a component as the operator does. */}}
{{- define "millrace.redisVariables" -}}
{{- $prefix := printf "MILLRACE_%s" (upper .component) }}
{{- if include "millrace.isBundled" . -}}
- name: {{ $prefix }}_PASSWORD
  valueFrom: {{- include "millrace.redisPassword" . | nindent 4 }}
- {name: {{ $prefix }}_REDIS_URL, value: {{ include "millrace.redisUrl" . | replace "redis://" (printf "redis://default:$(%s_PASSWORD)@" $prefix) | quote }}}
{{- else -}}
- name: {{ $prefix }}_REDIS_URL
  valueFrom: {{- include "millrace.redisUrlSource" . | nindent 4 }}
{{- end }}
{{- end }}

{{/* Whether each namespace has a user of its own on the Redis of a component. */}}
{{- define "millrace.namespaceUsers" -}}
{{- or (get .root.Values .component).redis.namespaceUsers (eq "true" (include "millrace.isBundled" .)) }}
{{- end }}

{{/* Where a container takes the URL of a Redis of one's own from. */}}
{{- define "millrace.redisUrlSource" -}}
{{- $redis := (get .root.Values .component).redis }}
{{- $own := dict "leases" "redis-url" "cache" "cache-redis-url" }}
{{- if $redis.urlSecret.name -}}
secretKeyRef: {name: {{ $redis.urlSecret.name }}, key: {{ $redis.urlSecret.key }}}
{{- else -}}
secretKeyRef: {name: {{ include "millrace.name" .root }}-operator, key: {{ get $own .component }}}
{{- end }}
{{- end }}

{{/* An egress rule to the Redis of a component: its pods, or its port where it is someone else's. */}}
{{/* With isElsewhere, for pods of other namespaces. */}}
{{- define "millrace.redisEgress" -}}
{{- $redis := (get .root.Values .component).redis }}
{{- if include "millrace.isBundled" . -}}
- to:
    - podSelector:
        matchLabels: {{- include "millrace.selector" . | nindent 10 }}
      {{- if .isElsewhere }}
      namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .root.Release.Namespace }}}}
      {{- end }}
  ports: [{protocol: TCP, port: 6379}]
{{- else if $redis.urlSecret.name -}}
- ports: [{protocol: TCP, port: {{ $redis.urlSecret.port }}}]
{{- else -}}
- ports: [{protocol: TCP, port: {{ include "millrace.portOf" (dict "url" $redis.url "otherwise" 6379) }}}]
{{- end }}
{{- end }}

{{- define "millrace.dnsEgress" -}}
- ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}

{{/* An egress rule to the collector of traces, by its port. */}}
{{- define "millrace.otlpEgress" -}}
{{- with .Values.operator.otlpEndpoint -}}
- ports: [{protocol: TCP, port: {{ include "millrace.portOf" (dict "url" . "otherwise" (ternary 443 80 (hasPrefix "https" .))) }}}]
{{- end }}
{{- end }}

{{/* What the pods of services and jobs reach, where the values say it: that, and what all of them need. */}}
{{- define "millrace.podEgress" -}}
{{- with .Values.networkPolicy.pods.egress }}
{{ include "millrace.dnsEgress" $ }}
{{ include "millrace.redisEgress" (dict "root" $ "component" "leases" "isElsewhere" true) }}
{{- if $.Values.cache.enabled }}
{{ include "millrace.redisEgress" (dict "root" $ "component" "cache" "isElsewhere" true) }}
{{- end }}
{{ include "millrace.otlpEgress" $ }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The port that a URL names. */}}
{{- define "millrace.portOf" -}}
{{- $host := (urlParse .url).host }}
{{- with regexFind ":[0-9]+$" $host }}{{ trimPrefix ":" . }}{{ else }}{{ .otherwise }}{{ end }}
{{- end }}

{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

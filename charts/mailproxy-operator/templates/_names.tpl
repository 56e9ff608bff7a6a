{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{/* Names, labels and images. */}}

{{- define "mailproxy-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "mailproxy-operator.fullname" -}}
{{- $name := include "mailproxy-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "mailproxy-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mailproxy-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mailproxy-operator.labels" -}}
{{- $ours := fromYaml (include "mailproxy-operator.selectorLabels" .) -}}
{{- $_ := set $ours "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $ours "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $ours "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- toYaml (mergeOverwrite (dict) .Values.commonLabels $ours) -}}
{{- end -}}

{{- define "mailproxy-operator.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "mailproxy-operator.fullname" .) -}}
{{- end -}}

{{/* An image. Parameter: (list root image). */}}
{{- define "mailproxy-operator.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "mailproxy-operator.replicas" -}}
{{- if kindIs "invalid" .Values.replicas -}}
{{- ternary 2 1 .Values.webhook.enabled -}}
{{- else -}}
{{- .Values.replicas -}}
{{- end -}}
{{- end -}}

{{/* Empty unless the cluster has the kinds of the Prometheus operator. */}}
{{- define "mailproxy-operator.hasMonitoring" -}}
{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}yes{{- end -}}
{{- end -}}

{{/* Pull secrets, each a name or {name: ...}. Parameter: a list. */}}
{{- define "mailproxy-operator.pullSecrets" -}}
{{- range . }}
- name: {{ kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") . }}
{{- end }}
{{- end -}}

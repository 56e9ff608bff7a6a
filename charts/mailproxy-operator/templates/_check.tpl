{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{/* Checks that the schema cannot express: values that contradict each other. */}}

{{- define "mailproxy-operator.check" -}}
{{- if and (hasKey .Values "enabled") (not .Values.enabled) -}}
{{- fail "enabled is false: this value is only for a parent chart, which refers to it in the `condition` of its dependency. To remove the release, run helm uninstall" -}}
{{- end -}}
{{- $metrics := .Values.metrics -}}
{{- if and $metrics.podMonitor.enabled $metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor.enabled and metrics.serviceMonitor.enabled are both true: the operator would be scraped twice; choose one" -}}
{{- end -}}
{{- if and $metrics.serviceMonitor.enabled (not $metrics.service.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled: a ServiceMonitor selects a Service" -}}
{{- end -}}
{{- if and (not (kindIs "invalid" .Values.watchNamespaces)) (not .Values.watchNamespaces) -}}
{{- fail "watchNamespaces is an empty list: add at least one namespace, or set it to null to serve all namespaces" -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.name is empty and serviceAccount.create is false: set the name of the service account to use" -}}
{{- end -}}
{{- if and .Values.sysctlPolicy.enabled (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "sysctlPolicy.enabled needs Kubernetes 1.30 (ValidatingAdmissionPolicy); this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- include "mailproxy-operator.checkWebhook" . -}}
{{- include "mailproxy-operator.checkPods" . -}}
{{- include "mailproxy-operator.checkProxies" . -}}
{{- end -}}

{{- define "mailproxy-operator.checkWebhook" -}}
{{- $webhook := .Values.webhook -}}
{{- if and $webhook.caBundle (not $webhook.certificateSecret) -}}
{{- fail "webhook.caBundle needs webhook.certificateSecret: without it, the operator creates the certificate and writes its authority" -}}
{{- end -}}
{{- if and $webhook.certificateSecret (not $webhook.caBundle) (not $webhook.annotations) -}}
{{- fail "webhook.certificateSecret needs webhook.caBundle, or webhook.annotations with which cert-manager writes the caBundle: otherwise the API server does not trust the certificate" -}}
{{- end -}}
{{- if and $webhook.enabled (eq (int $webhook.port) (int .Values.metrics.port)) -}}
{{- fail "webhook.port and metrics.port are the same" -}}
{{- end -}}
{{- end -}}

{{- define "mailproxy-operator.checkPods" -}}
{{- $fixed := append (keys (fromYaml (include "mailproxy-operator.selectorLabels" .))) "mailproxy.dev/component" -}}
{{- range $key := keys .Values.podLabels -}}
{{- if has $key $fixed -}}
{{- fail (printf "podLabels: %s is a label of the selector of the operator's pods; it cannot be set" $key) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "POD_NAMESPACE" "POD_NAME" "POD_UID") -}}
{{- fail (printf "extraEnv: %s is set by the chart" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- if has .name (list "tmp" "webhook") -}}
{{- fail (printf "extraVolumes: %s is a volume of the chart; choose another name" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "mailproxy-operator.checkProxies" -}}
{{- $served := .Values.watchNamespaces -}}
{{- range $name, $proxy := .Values.proxies -}}
{{- if or (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) (gt (len $name) 50) -}}
{{- fail (printf "proxies.%s: the name must have at most 50 lower-case letters, digits and hyphens, and begin with a letter, because it is also the name of a Service" $name) -}}
{{- end -}}
{{- $namespace := $proxy.namespace | default $.Release.Namespace -}}
{{- if and $served (not (has $namespace $served)) -}}
{{- fail (printf "proxies.%s is in namespace %s, which is not in watchNamespaces: the operator would not serve it" $name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{/* Permissions of the operator in the namespaces that it serves. There is none on Secrets, unless rbac.listSecrets is set. */}}
{{- define "mailproxy-operator.rules" -}}
- apiGroups: [mailproxy.dev]
  resources: [mailproxies]
  verbs: [get, list, watch]
- apiGroups: [mailproxy.dev]
  resources: [mailproxies/status]
  verbs: [patch]
# Required by OwnerReferencesPermissionEnforcement (OpenShift).
- apiGroups: [mailproxy.dev]
  resources: [mailproxies/finalizers]
  verbs: [update]
# Kubernetes deletes them with their owner; the operator deletes none.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, daemonsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors, prometheusrules]
  verbs: [get, list, watch, create, patch, delete]
# For spec.mail.proxySslService: to read TLS settings, and to report what became of a policy.
- apiGroups: [gateway.networking.k8s.io]
  resources: [backendtlspolicies]
  verbs: [list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [backendtlspolicies/status]
  verbs: [patch]
# For spec.upstreams[].service: the members of these Services.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
# The operator patches an annotation so that the kubelet updates a pod's files at once, and deletes pods that a node refused.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch, delete]
# To report which Secret could not be mounted.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- if .Values.rbac.listSecrets }}
# For sslCertificateSelector: the operator requests only the metadata of Secrets, but this permission is also one to read their data.
- apiGroups: [""]
  resources: [secrets]
  verbs: [list]
{{- end }}
{{- end -}}

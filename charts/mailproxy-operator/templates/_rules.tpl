{{- /*
SPDX-License-Identifier: Apache-2.0
*/ -}}
{{/* What the operator may do where it serves MailProxy resources. Nothing here about Secrets. */}}
{{- define "mailproxy-operator.rules" -}}
- apiGroups: [mailproxy.dev]
  resources: [mailproxies]
  verbs: [get, list, watch]
- apiGroups: [mailproxy.dev]
  resources: [mailproxies/status]
  verbs: [patch]
# Asked for by OwnerReferencesPermissionEnforcement (OpenShift).
- apiGroups: [mailproxy.dev]
  resources: [mailproxies/finalizers]
  verbs: [update]
# They go with their owner; the operator deletes none.
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
# An annotation makes the kubelet refresh a pod's files at once; a pod that a node refused is deleted.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch, delete]
# To tell which Secret could not be mounted.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

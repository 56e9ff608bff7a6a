# SPDX-License-Identifier: Apache-2.0
"""Names, labels and annotations."""

from __future__ import annotations

from collections.abc import Mapping

GROUP = "mailproxy.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "MailProxy"

FIELD_MANAGER = "mailproxy-operator"
"""The field manager for server-side apply."""
HANDOVER_MANAGER = f"{FIELD_MANAGER}-handover"
"""The field manager of ``spec.replicas`` until an autoscaler owns the field."""
REPAIR_MANAGER = f"{FIELD_MANAGER}-repair"
"""The field manager for replacing a manually edited list of ports; its entry is removed afterwards."""

CONTAINER = "mailproxy"
CONFIG_KEY = "mailproxy.json"
CONFIG_DIR = "/etc/mailproxy"
MEMBERS_DIR = "/etc/mailproxy-members"
SOCKET_DIR = "/run/mailproxy"
ADMIN_PORT = 9113
ADMIN_PORT_NAME = "admin"

CONFIG_HASH = f"{GROUP}/config-hash"
"""Annotation of pods: the hash of the expected configuration."""
MEMBERS_HASH = f"{GROUP}/members-hash"
"""Annotation of pods: the hash of the members of Services that they should have."""
TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Annotation of the pod template: the hash of everything that requires new pods."""
REFUSED_SYSCTLS = f"{GROUP}/refused-sysctls"
"""Annotation of the workload: the sysctls that nodes have refused, and for which generation."""
PROXY = f"{GROUP}/proxy"
"""Label of all objects of a MailProxy and of all pods that run it; the value is its name.

It is not in the selector of a workload: a selector is immutable, and older releases lack the label.
"""
INJECT = f"{GROUP}/inject"
"""Label of a pod of another workload: the MailProxy to inject as a sidecar."""

OPERATOR_LABELS = {f"{GROUP}/component": "operator"}
"""Labels of the operator's pods: NetworkPolicies of proxies select the operator by them."""
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The label of a namespace with its name, set by Kubernetes."""

_NAME = "app.kubernetes.io/name"
_INSTANCE = "app.kubernetes.io/instance"
_MANAGED_BY = "app.kubernetes.io/managed-by"


def config_map_name(name: str) -> str:
    """Return the name of the ConfigMap with the configuration of a MailProxy."""
    return f"{name}-config"


def members_name(name: str) -> str:
    """Return the name of the ConfigMap with the members of the Services of a MailProxy."""
    return f"{name}-members"


def metrics_service_name(name: str) -> str:
    """Return the name of the headless Service of the admin port."""
    return f"{name}-metrics"


def selector_labels(name: str) -> dict[str, str]:
    """Return the labels that select the pods of a MailProxy; they are immutable."""
    return {_NAME: "mailproxy", _INSTANCE: name}


def injected_pod_labels(name: str) -> dict[str, str]:
    """Return the labels that select pods with a MailProxy as a sidecar."""
    return {INJECT: name}


def proxy_labels(name: str) -> dict[str, str]:
    """Return the label that selects every pod of a MailProxy, including pods with a sidecar."""
    return {PROXY: name}


def owned_labels(name: str) -> dict[str, str]:
    """Return the labels that select the objects a MailProxy owns, including those of older releases."""
    return {**selector_labels(name), _MANAGED_BY: FIELD_MANAGER}


def labels(name: str) -> dict[str, str]:
    """Return the labels of all objects that a MailProxy owns."""
    return {**owned_labels(name), **proxy_labels(name)}


def label_selector(labels: Mapping[str, str]) -> str:
    """Return labels as a ``labelSelector`` of the API."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def owners_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the MailProxies in labels: the one of an object, and the one that a pod requests."""
    found = (labels.get(PROXY) or labels.get(_INSTANCE), labels.get(INJECT))
    return tuple(dict.fromkeys(name for name in found if name))


def owner_of(labels: Mapping[str, str]) -> str:
    """Return the MailProxy that an object belongs to, by its labels; empty if there is none."""
    return next(iter(owners_of(labels)), "")

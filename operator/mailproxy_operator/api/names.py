# SPDX-License-Identifier: Apache-2.0
"""Names, labels and annotations: strings with one home."""

from __future__ import annotations

from collections.abc import Mapping

GROUP = "mailproxy.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "MailProxy"

FIELD_MANAGER = "mailproxy-operator"
"""Who we are to server-side apply."""
HANDOVER_MANAGER = f"{FIELD_MANAGER}-handover"
"""Who holds ``spec.replicas`` until an autoscaler takes it."""
REPAIR_MANAGER = f"{FIELD_MANAGER}-repair"
"""Who replaces a list of ports that a stranger has edited; leaves no trace."""

CONTAINER = "mailproxy"
CONFIG_KEY = "mailproxy.json"
CONFIG_DIR = "/etc/mailproxy"
SOCKET_DIR = "/run/mailproxy"
ADMIN_PORT = 9113
ADMIN_PORT_NAME = "admin"

CONFIG_HASH = f"{GROUP}/config-hash"
"""On pods: the configuration that the operator wants there."""
TEMPLATE_HASH = f"{GROUP}/template-hash"
"""On the pod template: everything that needs new pods."""
REFUSED_SYSCTLS = f"{GROUP}/refused-sysctls"
"""On the workload: what nodes have refused, and for which generation."""
PROXY = f"{GROUP}/proxy"
"""Label of everything that belongs to a MailProxy, every pod that runs it included: its name.

It is in no selector of a workload: those cannot change, and older releases did not know it.
"""
INJECT = f"{GROUP}/inject"
"""Label of somebody else's pod: the MailProxy that it carries as a sidecar."""

OPERATOR_LABELS = {f"{GROUP}/component": "operator"}
"""Labels of the operator's pods: NetworkPolicies of proxies let it in by them."""
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The name of a namespace, as a label that Kubernetes itself puts on it."""

_NAME = "app.kubernetes.io/name"
_INSTANCE = "app.kubernetes.io/instance"
_MANAGED_BY = "app.kubernetes.io/managed-by"


def config_map_name(name: str) -> str:
    """Name the ConfigMap that holds the configuration of a MailProxy."""
    return f"{name}-config"


def metrics_service_name(name: str) -> str:
    """Name the headless Service of the admin port."""
    return f"{name}-metrics"


def selector_labels(name: str) -> dict[str, str]:
    """Labels by which a MailProxy's pods are found; they can never change."""
    return {_NAME: "mailproxy", _INSTANCE: name}


def carrier_labels(name: str) -> dict[str, str]:
    """Labels by which pods are found that carry a MailProxy as a sidecar."""
    return {INJECT: name}


def proxy_labels(name: str) -> dict[str, str]:
    """Label by which every pod of a MailProxy is found, a sidecar's included."""
    return {PROXY: name}


def owned_labels(name: str) -> dict[str, str]:
    """Labels by which what a MailProxy owns is found, also what an older release has made."""
    return {**selector_labels(name), _MANAGED_BY: FIELD_MANAGER}


def labels(name: str) -> dict[str, str]:
    """Labels that everything owned by a MailProxy carries."""
    return {**owned_labels(name), **proxy_labels(name)}


def label_selector(labels: Mapping[str, str]) -> str:
    """Write labels as the API's ``labelSelector``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def owners_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the MailProxies that labels name: the one of an object, and the one that a pod asks for."""
    found = (labels.get(PROXY) or labels.get(_INSTANCE), labels.get(INJECT))
    return tuple(dict.fromkeys(name for name in found if name))


def owner_of(labels: Mapping[str, str]) -> str:
    """Return the MailProxy that an object belongs to, by its labels; empty where they name none."""
    return next(iter(owners_of(labels)), "")

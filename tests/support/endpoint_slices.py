# SPDX-License-Identifier: Apache-2.0
"""Services and their EndpointSlices, as Kubernetes writes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

Object = dict[str, Any]
_NAMES: Final = itertools.count(1)
_IMAP: Final = (("imap", 143, "TCP"),)
_TARGETS: Final = {"imap": 10143}


def service(
    name: str = "dovecot",
    namespace: str = "mail",
    *,
    ports: Sequence[tuple[str, int, str]] = _IMAP,
    **spec: Any,
) -> Object:
    """Return a Service with ports (name, number, protocol) and other fields of its spec."""
    listed = [{"name": each, "port": number, "protocol": protocol} for each, number, protocol in ports]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": listed, "selector": {"app": name}, **spec},
    }


def endpoint(
    number: int,
    *,
    address: str = "",
    hostname: str | None = "",
    uid: str | None = "",
    ready: bool | None = True,
    serving: bool | None = True,
    terminating: bool = False,
) -> Object:
    """Return the endpoint of pod ``dovecot-NUMBER``; without host name or uid if these are ``None``."""
    found: Object = {
        "addresses": [address or f"192.0.2.{10 + number}"],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    }
    if hostname is not None:
        found["hostname"] = hostname or f"dovecot-{number}"
    if uid is not None:
        found["targetRef"] = {"kind": "Pod", "name": f"dovecot-{number}", "uid": uid or f"uid-{number}"}
    return found


def slice_of(
    *endpoints: Object,
    ports: Mapping[str, int] = _TARGETS,
    family: str = "IPv4",
    name: str = "",
    service_name: str = "dovecot",
    namespace: str = "mail",
) -> Object:
    """Return an EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{service_name}-{next(_NAMES)}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": each, "port": port, "protocol": "TCP"} for each, port in ports.items()],
    }

# SPDX-License-Identifier: Apache-2.0
"""A MailProxy with ``mode: Sidecar``, and pods that request it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned
from mailproxy_operator.render.sidecar import Sidecar, sidecar
from mailproxy_operator.settings import Platform
from support.operator_bodies import body

PLATFORM: Final = Platform(kube_version=KubeVersion(1, 36), image="registry.example/mailproxy:1")
INJECT: Final = "mailproxy.dev/inject"
REVIEW: Final = Path(__file__).parents[1] / "operator" / "sidecar" / "data" / "review.json"
"""The admission request of a real API server (1.36) for a pod of a ReplicaSet."""

_SPEC: Final[dict[str, Any]] = {
    "mode": "Sidecar",
    "drain": {"delay": "5s", "timeout": "10s"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
}


def sidecar_body(**spec: Any) -> dict[str, Any]:
    """Return the MailProxy ``mail/edge`` with mode Sidecar, with these fields of its spec replaced."""
    return body(**{**_SPEC, **spec})


def rendered_sidecar(platform: Platform = PLATFORM, **spec: Any) -> Sidecar:
    """Return the rendered sidecar of such a MailProxy."""
    return sidecar(planned(Resource.read(sidecar_body(**spec)), platform))


def review(**changes: Any) -> dict[str, Any]:
    """Return an AdmissionReview with these fields of its request replaced."""
    found: dict[str, Any] = json.loads(REVIEW.read_text())
    found["request"].update(changes)
    return found


def pod(**spec: Any) -> Manifest:
    """Return a pod that requests the sidecar, with these fields of its spec replaced."""
    found: Manifest = copy.deepcopy(review()["request"]["object"])
    found["metadata"]["name"] = "dovecot-0"
    found["spec"] |= copy.deepcopy(spec)
    return found

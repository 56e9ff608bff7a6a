# SPDX-License-Identifier: Apache-2.0
"""A MailProxy with ``mode: Sidecar`` and pods that ask for it."""

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
"""What a real API server (1.36) sends when a ReplicaSet's pod is about to be created."""

_SPEC: Final[dict[str, Any]] = {
    "mode": "Sidecar",
    "drain": {"delay": "5s", "timeout": "10s"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
}


def sidecar_body(**spec: Any) -> dict[str, Any]:
    """The MailProxy ``mail/edge`` for other people's pods, with these fields of its spec replaced."""
    return body(**{**_SPEC, **spec})


def made(platform: Platform = PLATFORM, **spec: Any) -> Sidecar:
    """What it puts into a pod."""
    return sidecar(planned(Resource.read(sidecar_body(**spec)), platform))


def review(**changes: Any) -> dict[str, Any]:
    """An AdmissionReview; changes are of the request."""
    found: dict[str, Any] = json.loads(REVIEW.read_text())
    found["request"].update(changes)
    return found


def pod(**spec: Any) -> Manifest:
    """A pod that asks for it, with these fields of its spec replaced."""
    found: Manifest = copy.deepcopy(review()["request"]["object"])
    found["metadata"]["name"] = "dovecot-0"
    found["spec"] |= copy.deepcopy(spec)
    return found

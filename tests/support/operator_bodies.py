# SPDX-License-Identifier: Apache-2.0
"""MailProxy manifests for tests: a small one, and functions that change it."""

from __future__ import annotations

import copy
from typing import Any

_BODY: dict[str, Any] = {
    "apiVersion": "mailproxy.dev/v1alpha1",
    "kind": "MailProxy",
    "metadata": {"name": "edge", "namespace": "mail"},
    "spec": {
        "mail": {"authHttp": "http://auth.mail.svc:9000/auth"},
        "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
    },
}


def body(**spec: Any) -> dict[str, Any]:
    """Return a MailProxy ``mail/edge`` that listens on 143, with these fields of its spec replaced."""
    manifest = copy.deepcopy(_BODY)
    manifest["spec"].update(copy.deepcopy(spec))
    return manifest


def server(name: str, protocol: str, *ports: int, **more: Any) -> dict[str, Any]:
    """Return one entry of ``spec.servers``."""
    return {"name": name, "protocol": protocol, "listen": [{"port": port} for port in ports], **more}

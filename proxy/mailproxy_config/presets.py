# SPDX-License-Identifier: Apache-2.0
"""Presets of servers: the fields that the usual SMTP servers have (``servers[].preset``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Mx": {
        "protocol": "smtp",
        "smtpAuth": ["none"],
        "smtpAuthCommand": False,
        "starttls": "Enabled",
    },
    "Submission": {
        "protocol": "smtp",
        "smtpAuth": ["plain", "login"],
        "starttls": "Only",
    },
    "Submissions": {
        "protocol": "smtp",
        "smtpAuth": ["plain", "login"],
    },
}
"""The fields of each preset.  A field of the server replaces one of the preset as a whole."""


def with_presets(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ``spec`` in which each server has the fields of its preset."""
    servers = spec.get("servers")
    return {**spec, "servers": list(map(_with_preset, servers))} if isinstance(servers, list) else spec


def _with_preset(server: object) -> object:
    """Return a server with the fields of its preset; unchanged without one, or with an unknown one."""
    if not isinstance(server, Mapping):
        return server
    preset = server.get("preset")
    return {**PRESETS[preset], **server} if isinstance(preset, str) and preset in PRESETS else server

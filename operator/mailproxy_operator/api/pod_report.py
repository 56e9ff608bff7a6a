# SPDX-License-Identifier: Apache-2.0
"""Reads the response of a pod's admin endpoint to ``/config``; wrong values are left out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from mailproxy_operator.api.cluster import RunningConfig, UpstreamConfigError, UpstreamState

MAX_SERVERS = 32
MAX_ERRORS = 4
MAX_TEXTS = 20
"""Certificates, lines of tables of routes, and lines of lists of users."""
_MAX_HASH, _MAX_ERROR, _MAX_NAME, _MAX_MESSAGE = 64, 1000, 64, 500


def read_config(body: object) -> RunningConfig | None:
    """Read a response, which may have any JSON value; ``None`` if it is no object."""
    if not isinstance(body, Mapping):
        return None
    upstreams = body.get("upstreams")
    servers = list(upstreams.items())[:MAX_SERVERS] if isinstance(upstreams, Mapping) else []
    return RunningConfig(
        hash=_text(body.get("hash"), _MAX_HASH),
        last_error=_text(body.get("last_error"), _MAX_ERROR),
        upstreams=tuple(_upstream(name, report) for name, report in servers if isinstance(report, Mapping)),
        certificates=_texts(body.get("certificates")),
        route_tables=_texts(body.get("route_tables")),
        user_files=_texts(body.get("user_files")),
    )


def _texts(found: object) -> tuple[str, ...]:
    listed = found[:MAX_TEXTS] if isinstance(found, list) else []
    return tuple(_text(one, _MAX_ERROR) for one in listed if isinstance(one, str))


def _upstream(name: object, report: Mapping[str, object]) -> UpstreamState:
    tls = report.get("tls")
    tls = tls if isinstance(tls, Mapping) else {}
    errors = report.get("config_errors")
    listed = errors[:MAX_ERRORS] if isinstance(errors, list) else []
    state = tls.get("state")
    return UpstreamState(
        server=_text(name, _MAX_NAME),
        state=state if state in {"failed", "succeeded"} else "unknown",
        failure=_text(tls.get("failure"), _MAX_NAME),
        upstream=_text(tls.get("upstream"), _MAX_MESSAGE),
        message=_text(tls.get("message"), _MAX_MESSAGE),
        certificate_expires=_time(tls.get("certificate_expires_at")),
        errors=tuple(
            UpstreamConfigError(
                stage=_text(one.get("stage"), _MAX_NAME),
                failure=_text(one.get("failure"), _MAX_NAME),
                message=_text(one.get("message"), _MAX_MESSAGE),
            )
            for one in listed
            if isinstance(one, Mapping)
        ),
    )


def _text(value: object, most: int) -> str:
    """Return text without control characters, of limited length; empty for a null value."""
    text = "" if value is None else str(value)[:most]
    return "".join(character if character.isprintable() else "?" for character in text)


def _time(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found

# SPDX-License-Identifier: Apache-2.0
"""Directives about failed logins, which nginx does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.failed_logins import AuthBlock
from mailproxy_config.schema import Integer, Object
from mailproxy_config.upstream_names_directives import NETWORKS
from mailproxy_config.value_types import (
    FLAG,
    MSEC_TIME,
    SEC_SHAPE,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
    identity,
    parse_nginx_number,
)

MAX_FAILURES: Final = 10_000
MAX_WAITING: Final = 100_000
_AUTH_HTTP: Final = "mail_auth_http"
_TIMES: Final = {"window": "window", "for": "seconds", "max": "maximum"}
"""Fields of manifests and of ``AuthBlock``."""


def _read_block(value: Mapping[str, Any], path: ErrorPath) -> AuthBlock | None:
    if value.get("failures") == 0:
        return None
    found: dict[str, Any] = {"failures": value["failures"]} if "failures" in value else {}
    for field, name in _TIMES.items():
        if field in value:
            here = path.field(field)
            seconds = here.try_read(lambda field=field: _seconds(value[field]))  # type: ignore[misc]
            found |= {} if seconds is None else {name: seconds}
    block = AuthBlock(**found)
    if block.maximum < block.seconds:
        path.problems.add(path.field("max").text, "is shorter than the first block (for)")
    return block


def _seconds(value: str | int) -> float:
    seconds = float(units.parse_sec_time(value))
    if seconds < 1:
        raise ValueError("must be 1 second or more")
    return seconds


def _format_block(value: AuthBlock | None) -> Raw:
    if value is None:
        return {"failures": 0}
    times = {field: f"{int(getattr(value, name))}s" for field, name in _TIMES.items()}
    return {"failures": value.failures, **times}


def _parse_nginx_block(arguments: Sequence[str]) -> Raw:
    """``auth_block off`` or ``auth_block failures=20 window=10m for=15m max=24h``."""
    if list(arguments) == ["off"]:
        return {"failures": 0}
    found: dict[str, Raw] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or name not in {"failures", *_TIMES}:
            raise ValueError(f"invalid parameter: {word}")
        if name in found:
            raise ValueError(f"duplicate parameter: {name}")
        found[name] = parse_nginx_number([value]) if name == "failures" else value
    return found


_BLOCK: Final = ValueType(
    syntax="{failures, window, for, max}",
    schema=Object(
        example="{failures: 20, window: 10m, for: 15m, max: 24h}",
        fields={
            "failures": Integer(maximum=MAX_FAILURES),
            "window": SEC_SHAPE,
            "for": SEC_SHAPE,
            "max": SEC_SHAPE,
        },
        descriptions={
            "failures": "Distinct wrong credentials that block the address. Default: 20. 0: no block.",
            "window": "Time in which they are counted. Default: 10m.",
            "for": "Length of the first block; each further one is twice as long. Default: 15m.",
            "max": "Length of the longest block. Default: 24h.",
        },
    ),
    read=_read_block,
    write=_format_block,
    nginx=_parse_nginx_block,
    arity=(1, None),
)


_COUNT: Final = ValueType(
    syntax="number",
    schema=Integer(minimum=1, maximum=MAX_WAITING),
    read=identity,
    write=identity,
    nginx=parse_nginx_number,
)

PENALTY_DIRECTIVES: Final = (
    Directive(
        name="auth_penalty",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Delays logins after failed logins of the same address, by 4, 8, then 15 seconds. Per pod.",
    ),
    Directive(
        name="auth_failure_delay",
        module=_AUTH_HTTP,
        type=MSEC_TIME,
        is_ours=True,
        meaning="Time between refused credentials and the reply. Not set: 2s with authPenalty, else 0s.",
    ),
    Directive(
        name="auth_penalty_exempt",
        module=_AUTH_HTTP,
        type=NETWORKS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Networks without penalty, delay and block.",
    ),
    Directive(
        name="auth_penalty_max",
        module=_AUTH_HTTP,
        type=_COUNT,
        default=1000,
        is_ours=True,
        meaning="Maximum number of delayed logins per pod. Further ones get a temporary error.",
    ),
    Directive(
        name="auth_block",
        module=_AUTH_HTTP,
        type=_BLOCK,
        is_ours=True,
        meaning="Closes connections of addresses with many wrong credentials; needs true addresses. Per pod.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

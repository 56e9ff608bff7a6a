# SPDX-License-Identifier: Apache-2.0
"""Directives about several addresses of an upstream, which nginx's mail module does not have.

Their names are those of ``ngx_stream_proxy_module``, where it has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mailproxy_config.model import NextUpstream
from mailproxy_config.schema import Array, Integer, String
from mailproxy_config.value_types import (
    MSEC_TIME,
    Directive,
    Inheritance,
    ValueType,
    identity,
    parse_nginx_number,
)

MAX_TRIES: Final = 16
"""The most tries of one login; there are not more addresses in a response of the service."""

_UPSTREAM: Final = "mail_proxy"
_OFF: Final = "off"
_FAILURES: Final = {word.value.lower(): word.value for word in NextUpstream}


def _parse_failures(arguments: Sequence[str]) -> list[str]:
    words = [word.lower() for word in arguments]
    if words == [_OFF]:
        return []
    unknown = [word for word in words if word not in _FAILURES]
    if unknown:
        valid = f"{', '.join(_FAILURES)}, or off alone"
        raise ValueError(f'invalid value "{unknown[0]}", the valid words are {valid}')
    return list(dict.fromkeys(_FAILURES[word] for word in words))


_NEXT_UPSTREAM: Final = ValueType(
    syntax="list of " + ", ".join(_FAILURES.values()),
    schema=Array(
        items=String(max_length=64, enum=tuple(_FAILURES.values()), spellings=_FAILURES),
        max_items=len(NextUpstream),
    ),
    read=lambda value, _: frozenset(map(NextUpstream, value)),
    write=lambda value: sorted(map(str, value)),
    nginx=_parse_failures,
    arity=(1, None),
    unordered=True,
)
_TRIES: Final = ValueType(
    syntax=f"number from 1 to {MAX_TRIES}",
    schema=Integer(minimum=1, maximum=MAX_TRIES),
    read=identity,
    write=identity,
    nginx=parse_nginx_number,
)

FAILOVER_DIRECTIVES: Final = (
    Directive(
        name="proxy_connect_timeout",
        module=_UPSTREAM,
        type=MSEC_TIME,
        is_ours=True,
        meaning="Time limit for connecting to one address of a mail server. Not set: timeout.",
    ),
    Directive(
        name="proxy_next_upstream",
        module=_UPSTREAM,
        type=_NEXT_UPSTREAM,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning=(
            "Failures after which a login is tried at the next address; Unavailable: at the same address. "
            "Empty (off): none."
        ),
    ),
    Directive(
        name="proxy_next_upstream_tries",
        module=_UPSTREAM,
        type=_TRIES,
        default=3,
        is_ours=True,
        meaning="Maximum number of connections that are tried for one login.",
    ),
    Directive(
        name="proxy_next_upstream_timeout",
        module=_UPSTREAM,
        type=MSEC_TIME,
        default="30s",
        is_ours=True,
        meaning="Time limit for all tries of a login together, with proxyNextUpstream.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

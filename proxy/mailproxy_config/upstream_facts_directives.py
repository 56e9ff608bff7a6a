# SPDX-License-Identifier: Apache-2.0
"""Directives about facts: what mail servers and the authentication service get to know about a client.

And about what the authentication service may decide for a single login.  nginx has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config.client_variables import check_variables
from mailproxy_config.schema import Array, Object, String
from mailproxy_config.value_types import (
    FLAG,
    Directive,
    ErrorPath,
    Inheritance,
    ValueType,
    read_items,
)

MAX_FORWARDED: Final = 16
"""Facts; with those that are always sent, an IMAP ID has at most 30 pairs (RFC 2971 section 3.3)."""
MAX_FORWARDED_NAME: Final = 20
"""Characters of a name: with ``x-forward-`` before it, 30 (RFC 2971 section 3.3)."""
MAX_FORWARDED_VALUE: Final = 1024
"""Characters of a value (RFC 2971 section 3.3)."""

_AUTH_HTTP: Final = "mail_auth_http"
_PROXY: Final = "mail_proxy"


def _read_fact(value: Mapping[str, str], path: ErrorPath) -> tuple[str, str]:
    path.field("value").try_read(lambda: check_variables(value["value"]))
    return value["name"], value["value"]


def _read_facts(values: Sequence[Any], path: ErrorPath) -> tuple[tuple[str, str], ...]:
    facts: tuple[tuple[str, str], ...] = read_items(values, path, _read_fact)
    names = [name.lower() for name, _ in facts]
    twice = next((name for name, _ in facts if names.count(name.lower()) > 1), None)
    if twice is not None:
        raise ValueError(f'has "{twice}" twice')
    return facts


_FACTS: Final = ValueType(
    syntax="list of {name, value}",
    schema=Array(
        max_items=MAX_FORWARDED,
        items=Object(
            example="{name: NAME, value: VALUE}",
            fields={
                "name": String(
                    max_length=MAX_FORWARDED_NAME,
                    min_length=1,
                    pattern="^[A-Za-z0-9_-]+$",
                    hint="letters, digits, - and _",
                ),
                "value": String(
                    max_length=MAX_FORWARDED_VALUE, pattern="^[ -~]*$", hint="printable ASCII characters"
                ),
            },
            required=("name", "value"),
            descriptions={
                "name": "Name of the fact.",
                "value": "Value of the fact, with the variables of authHttpVariables.",
            },
        ),
    ),
    read=_read_facts,
    write=lambda value: [{"name": name, "value": text} for name, text in value],
    nginx=lambda arguments: [{"name": arguments[0], "value": arguments[1]}],
    arity=(2, 2),
    appends=True,
)

UPSTREAM_FACTS_DIRECTIVES: Final = (
    Directive(
        name="proxy_protocol_unique_id",
        module=_PROXY,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Adds the session's ID in the log to PROXY headers of version 2 (UNIQUE_ID).",
    ),
    Directive(
        name="proxy_forward",
        module=_PROXY,
        type=_FACTS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning=(
            "More facts for mail servers: in ID as x-forward-NAME, in XCLIENT as FORWARD. Values may contain "
            "variables."
        ),
    ),
    Directive(
        name="auth_http_facts",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Sends more facts to the authentication service, such as Client-Port, Server-Addr, X-Session-ID "
            "and Auth-SSL-Server-Name."
        ),
    ),
    Directive(
        name="auth_http_overrides",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Allows the authentication service to change proxySsl, xclient and others for one login "
            "(X-MailProxy-* headers)."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

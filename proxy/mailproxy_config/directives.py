# SPDX-License-Identifier: Apache-2.0
"""The table of directives: one row for every directive of nginx's mail modules.

From it come the CRD's schema, the built-in defaults, the reference page and the
reading of manifests and of ``nginx.conf``.  Names are nginx's; the manifest's
field is the same name in lowerCamelCase.  No row knows about Kubernetes objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mailproxy_config import structured_values
from mailproxy_config.listen_directive import LISTEN
from mailproxy_config.model import AuthMethod, ListenConfig, Protocol, SendProxyProtocol
from mailproxy_config.schema import Integer, IntOrString
from mailproxy_config.tls_directives import FOLDED_DIRECTIVES, TLS_DIRECTIVES
from mailproxy_config.value_types import (
    BUFFER,
    CAPABILITIES,
    FLAG,
    MSEC_TIME,
    NUMBER,
    Context,
    Directive,
    ErrorPath,
    Inheritance,
    ValueType,
    choice,
    control_character_rule,
    enum_set,
    identity,
    lower_camel_case,
    parse_nginx_number,
    parse_nginx_text,
    text,
)

__all__ = [
    "DIRECTIVES",
    "FOLDED_DIRECTIVES",
    "IGNORED",
    "LEVEL_DIRECTIVES",
    "MAIN_DIRECTIVES",
    "SERVER_DIRECTIVES",
    "Context",
    "Directive",
    "Inheritance",
    "by_field",
    "by_name",
    "lower_camel_case",
]


_LIST: Final = Inheritance.LIST

_SERVER: Final = (Context.SERVER,)


_CORE: Final = "mail_core"

_AUTH_HTTP: Final = "mail_auth_http"

_PROXY: Final = "mail_proxy"

_REALIP: Final = "mail_realip"

_IMAP: Final = "mail_imap"

_POP3: Final = "mail_pop3"

_SMTP: Final = "mail_smtp"


def _server_name(value: str, _: ErrorPath) -> str:
    if not value.isascii() or " " in value:
        raise ValueError("serverName must be ASCII without spaces")
    return value


_SERVER_NAME: Final = ValueType(
    syntax="text",
    schema=text(max_length=253, rules=(control_character_rule("serverName"),)).schema,
    read=_server_name,
    write=identity,
    nginx=parse_nginx_text,
)

_WORKERS: Final = ValueType(
    syntax="auto | number",
    schema=IntOrString(minimum=1, maximum=256, pattern="^auto$", hint="auto or a number", max_length=4),
    read=lambda value, _: None if value == "auto" else value,
    write=lambda value: "auto" if value is None else value,
    nginx=lambda arguments: "auto" if arguments[0] == "auto" else parse_nginx_number(arguments),
)

_CONNECTIONS: Final = ValueType(
    syntax="number", schema=Integer(minimum=1), read=identity, write=identity, nginx=parse_nginx_number
)

_PROXY_PROTOCOL: Final = choice({"off": "Disabled", "on": "V1", "v2": "V2"}, SendProxyProtocol)

_PROTOCOL: Final = choice({word: word for word in map(str, Protocol)}, Protocol, case_matters=True)

MAIN_DIRECTIVES: Final = (
    Directive(
        name="worker_processes",
        field="workers",
        module="core",
        type=_WORKERS,
        default=1,
        contexts=(Context.MAIN,),
        inheritance=Inheritance.NONE,
        meaning="How many worker processes share the connections; auto is one for every processor.",
    ),
    Directive(
        name="worker_connections",
        module="core",
        type=_CONNECTIONS,
        default=512,
        contexts=(Context.EVENTS,),
        inheritance=Inheritance.NONE,
        meaning="How many connections a worker takes; above it new clients get the protocol's busy reply.",
    ),
    Directive(
        name="error_log",
        module="core",
        type=structured_values.ERROR_LOG,
        default={"level": "error"},
        contexts=(Context.MAIN,),
        inheritance=Inheritance.NONE,
        meaning=(
            "The least severe level of events; lines about sessions come up to error,"
            " and the supervisor's notices always."
        ),
    ),
)
"""Directives of the manifest's ``spec`` itself."""


LEVEL_DIRECTIVES: Final = (
    Directive(
        name="server_name",
        module=_CORE,
        type=_SERVER_NAME,
        default="",
        meaning=(
            "The name in SMTP greetings and EHLO, and in CRAM-MD5 and APOP challenges;"
            " empty is the machine's host name."
        ),
    ),
    Directive(
        name="error_log",
        module=_CORE,
        type=structured_values.ERROR_LOG,
        meaning=(
            "The least severe level of events about sessions, whose own lines come up to error;"
            " otherwise spec.errorLog's."
        ),
    ),
    Directive(
        name="timeout",
        module=_CORE,
        type=MSEC_TIME,
        default="60s",
        meaning="How long a client may take to log in, and an upstream to be connected to and logged in at.",
    ),
    Directive(
        name="max_errors",
        module=_CORE,
        type=NUMBER,
        default=5,
        meaning="The number of protocol errors after which the connection is closed.",
    ),
    Directive(
        name="resolver",
        module=_CORE,
        type=structured_values.RESOLVER,
        default={"mode": "Disabled"},
        meaning="Name servers for finding the host names of SMTP clients.",
    ),
    Directive(
        name="resolver_timeout",
        module=_CORE,
        type=MSEC_TIME,
        default="30s",
        meaning="How long one look-up may take; 0 is without a limit.",
    ),
    Directive(
        name="auth_http",
        module=_AUTH_HTTP,
        type=structured_values.AUTH_HTTP,
        meaning="The URL of the HTTP service that authorizes logins and names the upstream; required.",
    ),
    Directive(
        name="auth_http_timeout",
        module=_AUTH_HTTP,
        type=MSEC_TIME,
        default="60s",
        meaning="How long the authorization service may take to answer.",
    ),
    Directive(
        name="auth_http_header",
        module=_AUTH_HTTP,
        type=structured_values.HEADERS,
        default=[],
        inheritance=_LIST,
        meaning="Headers of every request to the authorization service, for example a shared secret.",
    ),
    Directive(
        name="auth_http_pass_client_cert",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        meaning="Sends the client's TLS certificate to the authorization service.",
    ),
    Directive(
        name="auth_http_keepalive",
        module=_AUTH_HTTP,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning="Uses connections to the authentication service again; off is nginx's HTTP/1.0, one each.",
    ),
    Directive(
        name="auth_http_max_connections",
        module=_AUTH_HTTP,
        type=_CONNECTIONS,
        is_ours=True,
        meaning="How many connections a worker opens to the authentication service; else worker_connections.",
    ),
    Directive(
        name="imap_auth",
        module=_IMAP,
        type=enum_set(("plain", "login", "cram-md5", "external"), AuthMethod),
        default=["plain"],
        inheritance=_LIST,
        meaning="The ways to log in that IMAP clients are offered; LOGIN, PLAIN and AUTH=LOGIN always work.",
    ),
    Directive(
        name="imap_capabilities",
        module=_IMAP,
        type=CAPABILITIES,
        default=["IMAP4", "IMAP4rev1", "UIDPLUS"],
        inheritance=_LIST,
        meaning="What the reply to IMAP's CAPABILITY lists before login.",
    ),
    Directive(
        name="imap_client_buffer",
        module=_IMAP,
        type=BUFFER,
        default="4k",
        meaning="The longest IMAP command, literals included; afterwards the most that is relayed at once.",
    ),
    Directive(
        name="pop3_auth",
        module=_POP3,
        type=enum_set(("plain", "apop", "cram-md5", "external"), AuthMethod),
        default=["plain"],
        inheritance=_LIST,
        meaning="The ways to log in that POP3 clients are offered; USER/PASS, PLAIN and LOGIN always work.",
    ),
    Directive(
        name="pop3_capabilities",
        module=_POP3,
        type=CAPABILITIES,
        default=["TOP", "USER", "UIDL"],
        inheritance=_LIST,
        meaning="What the reply to POP3's CAPA lists, one line each.",
    ),
    Directive(
        name="pop3_client_buffer",
        module=_POP3,
        type=BUFFER,
        default="512",
        meaning=(
            "The longest POP3 command (in nginx 128 bytes);"
            " lines of a SASL exchange have room for 4096 bytes in any case."
        ),
        is_ours=True,
    ),
    Directive(
        name="smtp_auth",
        module=_SMTP,
        type=enum_set(("plain", "login", "cram-md5", "external", "none"), AuthMethod),
        default=["plain", "login"],
        inheritance=_LIST,
        meaning=(
            "The ways to log in that SMTP clients are offered; PLAIN and LOGIN always work;"
            " none lets mail in without a login."
        ),
    ),
    Directive(
        name="smtp_capabilities",
        module=_SMTP,
        type=CAPABILITIES,
        default=[],
        inheritance=_LIST,
        meaning="What the reply to EHLO lists, one line each.",
    ),
    Directive(
        name="smtp_client_buffer",
        module=_SMTP,
        type=BUFFER,
        default="4k",
        meaning="The longest SMTP command; afterwards the most that is relayed at once.",
    ),
    Directive(
        name="smtp_greeting_delay",
        module=_SMTP,
        type=MSEC_TIME,
        default="0s",
        meaning="How long to wait before greeting an SMTP client; who talks before is turned away.",
    ),
    Directive(
        name="proxy",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning="Does nothing, as in nginx; accepted so that old configurations load.",
    ),
    Directive(
        name="proxy_buffer",
        module=_PROXY,
        type=BUFFER,
        default="4k",
        meaning="The longest reply of an upstream during login; after it, a relay holds 64 KiB for each "
        "direction, whatever this is.",
    ),
    Directive(
        name="proxy_timeout",
        module=_PROXY,
        type=MSEC_TIME,
        default="24h",
        meaning="How long a relayed connection may be silent in both directions.",
    ),
    Directive(
        name="proxy_pass_error_message",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning="Shows the client the upstream's own words when the upstream refuses the login.",
    ),
    Directive(
        name="proxy_smtp_auth",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning="Logs in at SMTP upstreams with AUTH PLAIN.",
    ),
    Directive(
        name="proxy_protocol",
        module=_PROXY,
        type=_PROXY_PROTOCOL,
        default="Disabled",
        meaning="Begins connections to upstreams with a PROXY header of this version.",
    ),
    Directive(
        name="xclient",
        module=_PROXY,
        type=FLAG,
        default=True,
        meaning="Tells SMTP upstreams who the client is, with XCLIENT.",
    ),
    Directive(
        name="set_real_ip_from",
        module=_REALIP,
        type=structured_values.PEERS,
        default=[],
        inheritance=_LIST,
        meaning="Peers that are believed when their PROXY header names another client address.",
    ),
    *TLS_DIRECTIVES,
)
"""Directives of ``spec.mail`` and of every server."""


SERVER_DIRECTIVES: Final = (
    Directive(
        name="protocol",
        module=_CORE,
        type=_PROTOCOL,
        contexts=_SERVER,
        inheritance=Inheritance.NONE,
        meaning="The protocol of this server; may be left out where every port is a well-known one.",
    ),
    Directive(
        name="listen",
        module=_CORE,
        type=LISTEN,
        contexts=_SERVER,
        inheritance=Inheritance.NONE,
        meaning="Where this server listens.",
    ),
)
"""Directives of servers alone."""


DIRECTIVES: Final = MAIN_DIRECTIVES + LEVEL_DIRECTIVES + SERVER_DIRECTIVES + FOLDED_DIRECTIVES

IGNORED: Final = {"proxy": "has no effect, as in nginx"}
"""Fields of a level that are accepted and do nothing."""


def by_field(rows: Iterable[Directive]) -> dict[str, Directive]:
    """Rows by the manifest's names."""
    return {row.field: row for row in rows}


def by_name(rows: Iterable[Directive]) -> dict[str, Directive]:
    """Rows by nginx's names."""
    return {row.name: row for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The directives of one level, by nginx's names.

    ``given`` also names those whose value was no good, and those that a mistyped
    field was meant to be, so that nobody calls them missing.
    """

    values: Mapping[str, object]
    given: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One server: what only servers have (``own``), and the level it inherits with."""

    name: str
    path: str
    own: Level
    level: Level

    @property
    def listen(self) -> tuple[ListenConfig, ...]:
        """Its listeners; empty where they are no good."""
        found = self.own.values.get("listen", ())
        assert isinstance(found, tuple)  # noqa: S101 -- the type of the row
        return found

    @property
    def protocol(self) -> Protocol | None:
        """The protocol that is written, if any."""
        found = self.own.values.get("protocol")
        return Protocol(str(found)) if found is not None else None

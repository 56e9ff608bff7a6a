# SPDX-License-Identifier: Apache-2.0
"""The table of directives: one row for each directive of nginx's mail modules.

The CRD's schema, the built-in defaults, the reference page and the readers of manifests and ``nginx.conf``
are derived from it.  Names are nginx's; the field of a manifest is the same name in lowerCamelCase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mailproxy_config import structured_values
from mailproxy_config.auth_cache_directives import AUTH_CACHE_DIRECTIVES
from mailproxy_config.client_directives import CLIENT_DIRECTIVES
from mailproxy_config.failover_directives import FAILOVER_DIRECTIVES
from mailproxy_config.listen_directive import LISTEN
from mailproxy_config.model import AuthMethod, ListenConfig, Protocol, SendProxyProtocol
from mailproxy_config.oauth_directives import OAUTH_DIRECTIVES, TOKEN_METHODS
from mailproxy_config.policy_directives import POLICY_DIRECTIVES
from mailproxy_config.route_directives import ROUTE_DIRECTIVES
from mailproxy_config.schema import Integer, IntOrString
from mailproxy_config.tempfail_directives import TEMPFAIL_DIRECTIVES
from mailproxy_config.tls_directives import SERVER_NAMES_DIRECTIVE, TLS_DIRECTIVES, TLS_FOLDED_DIRECTIVES
from mailproxy_config.upstream_directives import UPSTREAM_DIRECTIVES, UPSTREAM_FOLDED_DIRECTIVES
from mailproxy_config.upstream_facts_directives import UPSTREAM_FACTS_DIRECTIVES
from mailproxy_config.upstream_login_directives import UPSTREAM_LOGIN_DIRECTIVES
from mailproxy_config.upstream_names_directives import UPSTREAM_NAMES_DIRECTIVES
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
        meaning="Number of worker processes. auto: one per CPU core.",
    ),
    Directive(
        name="worker_connections",
        module="core",
        type=_CONNECTIONS,
        default=512,
        contexts=(Context.EVENTS,),
        inheritance=Inheritance.NONE,
        meaning=(
            "Maximum number of client connections per worker process. Further clients get the busy reply "
            "of their protocol."
        ),
    ),
    Directive(
        name="error_log",
        module="core",
        type=structured_values.ERROR_LOG,
        default={"level": "error"},
        contexts=(Context.MAIN,),
        inheritance=Inheritance.NONE,
        meaning=(
            "Minimum severity that is logged. Session lines have severity error or lower; notices of the "
            "supervisor are always logged."
        ),
    ),
)
"""Directives of ``spec`` itself."""


LEVEL_DIRECTIVES: Final = (
    Directive(
        name="server_name",
        module=_CORE,
        type=_SERVER_NAME,
        default="",
        meaning=(
            "Host name in SMTP greetings and EHLO replies, and in CRAM-MD5 and APOP challenges. Empty: "
            "the host name of the machine."
        ),
    ),
    Directive(
        name="error_log",
        module=_CORE,
        type=structured_values.ERROR_LOG,
        meaning=(
            "Minimum severity for events of sessions, which have severity error or lower. Not set: the "
            "value of spec.errorLog."
        ),
    ),
    Directive(
        name="timeout",
        module=_CORE,
        type=MSEC_TIME,
        default="60s",
        meaning=(
            "Timeout for the client's login, and for the connection to the mail server and the login there."
        ),
    ),
    Directive(
        name="max_errors",
        module=_CORE,
        type=NUMBER,
        default=5,
        meaning="Number of protocol errors after which the connection is closed.",
    ),
    Directive(
        name="resolver",
        module=_CORE,
        type=structured_values.RESOLVER,
        default={"mode": "Disabled"},
        meaning="DNS servers for looking up the host names of SMTP clients, and host names in Auth-Server.",
    ),
    Directive(
        name="resolver_timeout",
        module=_CORE,
        type=MSEC_TIME,
        default="30s",
        meaning="Timeout of one DNS lookup. 0: no timeout.",
    ),
    Directive(
        name="auth_http",
        module=_AUTH_HTTP,
        type=structured_values.AUTH_HTTP,
        meaning=(
            "URL of the HTTP authentication service, which accepts or denies logins and names the mail "
            "server. Required."
        ),
    ),
    Directive(
        name="auth_http_timeout",
        module=_AUTH_HTTP,
        type=MSEC_TIME,
        default="60s",
        meaning="Timeout of a request to the authentication service.",
    ),
    Directive(
        name="auth_http_header",
        module=_AUTH_HTTP,
        type=structured_values.HEADERS,
        default=[],
        inheritance=_LIST,
        meaning="Headers added to requests to the authentication service, for example a shared secret.",
    ),
    Directive(
        name="auth_http_pass_client_cert",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        meaning=(
            "Sends the client's TLS certificate to the authentication service, in the header Auth-SSL-Cert."
        ),
    ),
    Directive(
        name="auth_http_keepalive",
        module=_AUTH_HTTP,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning=(
            "Reuses connections to the authentication service (HTTP/1.1). false: HTTP/1.0 with one "
            "connection per request, as nginx."
        ),
    ),
    Directive(
        name="auth_http_max_connections",
        module=_AUTH_HTTP,
        type=_CONNECTIONS,
        is_ours=True,
        meaning=(
            "Maximum number of connections per worker process to the authentication service. Not set: "
            "workerConnections."
        ),
    ),
    Directive(
        name="imap_auth",
        module=_IMAP,
        type=enum_set(("plain", "login", "cram-md5", "external", *TOKEN_METHODS), AuthMethod),
        default=["plain"],
        inheritance=_LIST,
        meaning=(
            "Authentication methods offered to IMAP clients. LOGIN, AUTH=PLAIN and AUTH=LOGIN are always "
            "accepted."
        ),
    ),
    Directive(
        name="imap_capabilities",
        module=_IMAP,
        type=CAPABILITIES,
        default=["IMAP4", "IMAP4rev1", "UIDPLUS"],
        inheritance=_LIST,
        meaning="Capabilities in the response to the IMAP command CAPABILITY before login.",
    ),
    Directive(
        name="imap_client_buffer",
        module=_IMAP,
        type=BUFFER,
        default="4k",
        meaning=(
            "Maximum size of an IMAP command, literals included. After login: maximum size of one read "
            "from the client."
        ),
    ),
    Directive(
        name="pop3_auth",
        module=_POP3,
        type=enum_set(("plain", "apop", "cram-md5", "external", *TOKEN_METHODS), AuthMethod),
        default=["plain"],
        inheritance=_LIST,
        meaning=(
            "Authentication methods offered to POP3 clients. USER/PASS, AUTH PLAIN and AUTH LOGIN are "
            "always accepted."
        ),
    ),
    Directive(
        name="pop3_capabilities",
        module=_POP3,
        type=CAPABILITIES,
        default=["TOP", "USER", "UIDL"],
        inheritance=_LIST,
        meaning="Capabilities in the reply to the POP3 command CAPA, one per line.",
    ),
    Directive(
        name="pop3_client_buffer",
        module=_POP3,
        type=BUFFER,
        default="512",
        meaning=(
            "Maximum size of a POP3 command (nginx: 128 bytes). Lines of a SASL exchange may always have "
            "4096 bytes."
        ),
        is_ours=True,
    ),
    Directive(
        name="smtp_auth",
        module=_SMTP,
        type=enum_set(("plain", "login", "cram-md5", "external", "none", *TOKEN_METHODS), AuthMethod),
        default=["plain", "login"],
        inheritance=_LIST,
        meaning=(
            "Authentication methods offered to SMTP clients. PLAIN and LOGIN are always accepted; none "
            "also allows mail without login."
        ),
    ),
    Directive(
        name="smtp_capabilities",
        module=_SMTP,
        type=CAPABILITIES,
        default=[],
        inheritance=_LIST,
        meaning="Extensions in the reply to EHLO, one per line.",
    ),
    Directive(
        name="smtp_client_buffer",
        module=_SMTP,
        type=BUFFER,
        default="4k",
        meaning="Maximum size of an SMTP command. After login: maximum number of bytes relayed at once.",
    ),
    Directive(
        name="smtp_greeting_delay",
        module=_SMTP,
        type=MSEC_TIME,
        default="0s",
        meaning="Delay before the SMTP greeting. A client that sends commands earlier is rejected.",
    ),
    Directive(
        name="proxy",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning="No effect, as in nginx. Accepted so that old configurations load.",
    ),
    Directive(
        name="proxy_buffer",
        module=_PROXY,
        type=BUFFER,
        default="4k",
        meaning=(
            "Maximum size of a mail server's reply during login. After login a relay buffers 64 KiB per "
            "direction, independent of this."
        ),
    ),
    Directive(
        name="proxy_timeout",
        module=_PROXY,
        type=MSEC_TIME,
        default="24h",
        meaning="A relayed connection is closed after this time without data in either direction.",
    ),
    Directive(
        name="proxy_pass_error_message",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning=(
            "Passes the mail server's error message to the client when the mail server refuses the login."
        ),
    ),
    Directive(
        name="proxy_smtp_auth",
        module=_PROXY,
        type=FLAG,
        default=False,
        meaning="Authenticates at SMTP servers with AUTH PLAIN.",
    ),
    Directive(
        name="proxy_protocol",
        module=_PROXY,
        type=_PROXY_PROTOCOL,
        default="Disabled",
        meaning="Sends a PROXY protocol header of this version to mail servers.",
    ),
    Directive(
        name="xclient",
        module=_PROXY,
        type=FLAG,
        default=True,
        meaning="Sends the client's address, host name and login to SMTP servers with XCLIENT.",
    ),
    Directive(
        name="set_real_ip_from",
        module=_REALIP,
        type=structured_values.PEERS,
        default=[],
        inheritance=_LIST,
        meaning="Trusted addresses: the client address in a PROXY protocol header from them is used.",
    ),
    *TLS_DIRECTIVES,
    *UPSTREAM_DIRECTIVES,
    *UPSTREAM_NAMES_DIRECTIVES,
    *FAILOVER_DIRECTIVES,
    *TEMPFAIL_DIRECTIVES,
    *UPSTREAM_LOGIN_DIRECTIVES,
    *POLICY_DIRECTIVES,
    *OAUTH_DIRECTIVES,
    *ROUTE_DIRECTIVES,
    *CLIENT_DIRECTIVES,
    *UPSTREAM_FACTS_DIRECTIVES,
    *AUTH_CACHE_DIRECTIVES,
)
"""Directives allowed in ``spec.mail`` and every server."""

SERVER_DIRECTIVES: Final = (
    Directive(
        name="protocol",
        module=_CORE,
        type=_PROTOCOL,
        contexts=_SERVER,
        inheritance=Inheritance.NONE,
        meaning="Protocol of this server. Optional if every port is a well-known port of the same protocol.",
    ),
    Directive(
        name="listen",
        module=_CORE,
        type=LISTEN,
        contexts=_SERVER,
        inheritance=Inheritance.NONE,
        meaning="Addresses and ports of this server.",
    ),
    SERVER_NAMES_DIRECTIVE,
)
"""Directives allowed in servers only."""


FOLDED_DIRECTIVES: Final = TLS_FOLDED_DIRECTIVES + UPSTREAM_FOLDED_DIRECTIVES
"""Directives of nginx whose value is part of another directive's field."""

DIRECTIVES: Final = MAIN_DIRECTIVES + LEVEL_DIRECTIVES + SERVER_DIRECTIVES + FOLDED_DIRECTIVES
IGNORED: Final = {"proxy": "has no effect, as in nginx"}
"""Fields that are accepted without effect, and the notice about each."""


def by_field(rows: Iterable[Directive]) -> dict[str, Directive]:
    """Rows by the field of the manifest."""
    return {row.field: row for row in rows}


def by_name(rows: Iterable[Directive]) -> dict[str, Directive]:
    """Rows by nginx's name."""
    return {row.name: row for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The directives of one level (main, mail or server), by nginx's names.

    ``given`` also contains those whose value was invalid, and the intended names of misspelled
    fields: they are not reported as missing.
    """

    values: Mapping[str, object]
    given: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One server: directives that only servers have (``own``), and the inheritable ones (``level``)."""

    name: str
    path: str
    own: Level
    level: Level

    @property
    def listen(self) -> tuple[ListenConfig, ...]:
        """Its listeners; empty if they are invalid."""
        found = self.own.values.get("listen", ())
        assert isinstance(found, tuple)  # noqa: S101 -- the type of the row
        return found

    @property
    def protocol(self) -> Protocol | None:
        """The ``protocol`` directive, if there is one."""
        found = self.own.values.get("protocol")
        return Protocol(str(found)) if found is not None else None

    @property
    def server_names(self) -> tuple[str, ...]:
        """The ``server_names`` directive."""
        found = self.own.values.get("server_names", ())
        assert isinstance(found, tuple)  # noqa: S101 -- the type of the row
        return found

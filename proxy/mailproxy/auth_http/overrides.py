# SPDX-License-Identifier: Apache-2.0
"""Headers of a response that change directives for one login (``auth_http_overrides``).

Each header stands for one or two directives.  A header never makes weaker what the configuration
requires: with ``proxy_ssl``, TLS stays required; what is *required* (``proxy_id``, ``proxy_pop3_xclient``,
``xclient_mode``) stays so; AUTH that ``proxy_auth`` requires in SMTP stays so, too; and no header turns off
the verification of certificates.  ``proxy_auth_require_tls`` applies to the mechanisms of
``X-MailProxy-Auth`` as to those of the configuration: the login checks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from mailproxy.auth_http.response import quote_value
from mailproxy.enums import AuthErrorReason
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, Decision, Overrides, Secret
from mailproxy_config.model import (
    Protocol,
    ProxySsl,
    Seconds,
    SendIdentity,
    SendProxyProtocol,
    ServerConfig,
    XclientMode,
)
from mailproxy_config.upstream_login import ProxyAuth

MAX_TIMEOUT: Final = 600
"""The longest ``X-MailProxy-Timeout`` in seconds."""

_HEADER: Final = re.compile(rb"^(x-mailproxy-[^:\r\n]*):([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_HOST: Final = re.compile(rb"[A-Za-z0-9:](?:[A-Za-z0-9._:-]{0,251}[A-Za-z0-9:])?")
_NATIVE: Final = (ProxyAuth.NATIVE,)
_MAX_NAME: Final = 64
"""Bytes of a header's name that an error message contains."""


class _Refused(Exception):
    """A value is not accepted; the message says which are."""


Reader = Callable[[str, ServerConfig], Iterator[tuple[str, object]]]
"""Reads a value in lower case: yields directives with their values, or raises ``_Refused``."""


def _one_of(words: Mapping[str, object], value: str) -> object:
    if value not in words:
        raise _Refused("is not one of " + ", ".join(words))
    return words[value]


_SSL: Final = {"off": ProxySsl.DISABLED, "on": ProxySsl.ENABLED, "starttls": ProxySsl.STARTTLS}
_PROXY_PROTOCOL: Final = {
    "off": SendProxyProtocol.DISABLED,
    "v1": SendProxyProtocol.V1,
    "v2": SendProxyProtocol.V2,
}
_IDENTITY: Final = {
    "off": SendIdentity.DISABLED,
    "auto": SendIdentity.AUTO,
    "required": SendIdentity.REQUIRED,
}
_XCLIENT: Final = {
    "off": SendIdentity.DISABLED,
    "on": SendIdentity.AUTO,
    "auto": SendIdentity.AUTO,
    "required": SendIdentity.REQUIRED,
}
_MECHANISMS: Final = {str(each).lower(): each for each in ProxyAuth}
_MODES: Final = {"auto": XclientMode.AUTO, "required": XclientMode.REQUIRED}


def _ssl(value: str, server: ServerConfig) -> Iterator[tuple[str, object]]:
    mode = _one_of(_SSL, value)
    if mode is ProxySsl.DISABLED and server.proxy_ssl is not ProxySsl.DISABLED:
        raise _Refused("is not allowed with proxySsl in the configuration: on, starttls")
    yield "proxy_ssl", mode


def _ssl_name(value: str, _: ServerConfig) -> Iterator[tuple[str, object]]:
    if not _HOST.fullmatch(value.encode()):
        raise _Refused("is not a host name or an IP address, of at most 253 characters")
    yield "proxy_ssl_name", value


def _id(value: str, server: ServerConfig) -> Iterator[tuple[str, object]]:
    mode = _one_of(_IDENTITY, value)
    _check_required(mode, is_required=server.proxy_id is SendIdentity.REQUIRED, directive="proxyId")
    yield "proxy_id", mode


def _xclient(value: str, server: ServerConfig) -> Iterator[tuple[str, object]]:
    mode = _one_of(_XCLIENT, value)
    if server.protocol is Protocol.POP3:
        is_required = server.proxy_pop3_xclient is SendIdentity.REQUIRED
        _check_required(mode, is_required=is_required, directive="proxyXclient")
        yield "proxy_pop3_xclient", mode
    elif server.protocol is Protocol.SMTP:
        is_required = server.xclient and server.xclient_mode is XclientMode.REQUIRED
        _check_required(mode, is_required=is_required, directive="xclientMode")
        yield "xclient", mode is not SendIdentity.DISABLED
        if value in _MODES:
            yield "xclient_mode", _MODES[value]


def _check_required(mode: object, *, is_required: bool, directive: str) -> None:
    if is_required and mode is not SendIdentity.REQUIRED:
        raise _Refused(f"is not allowed with {directive}: Required in the configuration: required")


def _auth(value: str, server: ServerConfig) -> Iterator[tuple[str, object]]:
    words = [word.strip(" \t") for word in value.split(",")]
    if len(set(words)) != len(words) or not _MECHANISMS.keys() >= set(words):
        raise _Refused("is not a list, without repetitions, of " + ", ".join(_MECHANISMS))
    mechanisms = tuple(_MECHANISMS[word] for word in words)
    needs_auth = server.protocol is Protocol.SMTP and not server.proxy_smtp_auth
    if needs_auth and mechanisms == _NATIVE and server.proxy_auth != _NATIVE:
        raise _Refused("is not allowed with proxyAuth in the configuration, and without proxySmtpAuth")
    yield "proxy_auth", mechanisms


def _proxy_protocol(value: str, _: ServerConfig) -> Iterator[tuple[str, object]]:
    yield "proxy_protocol", _one_of(_PROXY_PROTOCOL, value)


def _timeout(value: str, _: ServerConfig) -> Iterator[tuple[str, object]]:
    digits = value.removesuffix("s")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and 1 <= int(digits) <= MAX_TIMEOUT):
        raise _Refused(f"is not a number of seconds from 1 to {MAX_TIMEOUT}")
    yield "timeout", Seconds(float(digits))


_READERS: Final[Mapping[str, Reader]] = {
    "X-MailProxy-Ssl": _ssl,
    "X-MailProxy-Ssl-Name": _ssl_name,
    "X-MailProxy-Auth": _auth,
    "X-MailProxy-Xclient": _xclient,
    "X-MailProxy-Id": _id,
    "X-MailProxy-Proxy-Protocol": _proxy_protocol,
    "X-MailProxy-Timeout": _timeout,
}
"""Headers with their readers.  A new header is added here and to the table in ``docs/auth-http.md``."""
HEADERS: Final = tuple(_READERS)
_BY_NAME: Final = {name.lower().encode(): name for name in HEADERS}


def set_overrides(decision: Decision, head: bytes, server: ServerConfig, password: Secret | None) -> None:
    """Set the overrides of an allowed login; see ``read_overrides``."""
    if isinstance(decision, AuthAllowed):
        decision.overrides = read_overrides(head, server, password=password, sent=decision.password)


def read_overrides(
    head: bytes, server: ServerConfig, *, password: Secret | None, sent: Secret | None
) -> Overrides:
    """Read the headers ``X-MailProxy-*`` of a response that allows a login.

    Args:
        head: The head of the response, which has led to a decision.
        server: The server that the client has connected to.
        password: The client's password, which an error message must not contain.
        sent: The one from the service.

    Returns:
        Directives and their values, sorted; without those that have this value in the configuration.

    Raises:
        InvalidAuthResponse: There is an unknown header, an invalid value, or a header twice.
    """
    found: dict[str, object] = {}
    seen: set[str] = set()
    for raw_name, raw_value in _HEADER.findall(head):
        name = _BY_NAME.get(raw_name.lower())
        if name is None:
            raise _unknown(raw_name)
        if name in seen:
            raise InvalidAuthResponse(f"{name} is in the response twice", AuthErrorReason.INVALID_RESPONSE)
        seen.add(name)
        value = raw_value.strip(b" ")
        try:
            found |= _READERS[name](value.decode("ascii").lower(), server)
        except (UnicodeDecodeError, _Refused) as why:
            reason = str(why) if isinstance(why, _Refused) else "is not ASCII"
            error = InvalidAuthResponse(f"{name} {{}} {reason}", AuthErrorReason.INVALID_RESPONSE)
            error.value = value
            raise quote_value(error, password, None if sent is None else sent.reveal()) from None
    return tuple(sorted((key, value) for key, value in found.items() if getattr(server, key) != value))


def _unknown(name: bytes) -> InvalidAuthResponse:
    shown = name[:_MAX_NAME].decode("ascii", "backslashreplace")
    reason = f"{shown} is not known; there are {', '.join(HEADERS)}"
    return InvalidAuthResponse(reason, AuthErrorReason.INVALID_RESPONSE)

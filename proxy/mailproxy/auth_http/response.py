# SPDX-License-Identifier: Apache-2.0
"""The decision of the authentication service: what the headers of its response mean.

Only headers count; the status code does not, and the connection skips the body
(``response_body``).  Values are checked more strictly than in nginx: a response
never puts a control character into a reply to the client or a command to the
upstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mailproxy.auth_http.response_body import MAX_DIGITS
from mailproxy.auth_http.response_head import ResponseHead
from mailproxy.auth_http.upstream_servers import (
    has_controls,
    is_name,
    parse_port,
    upstream_address,
    upstream_servers,
)
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Credentials, Decision, Secret
from mailproxy_config.model import Protocol

MAX_WAIT: Final = 86400
"""The longest ``Auth-Wait`` in seconds: a day; a longer one is cut."""
MAX_CODE: Final = 32
"""Bytes of ``Auth-Error-Code``; ``535 5.7.0`` has nine."""

_MAX_LINE: Final = {
    Protocol.IMAP: 1024,  # no limit in RFC 9051; the size of a response's head in nginx
    Protocol.POP3: 512,  # RFC 2449 section 4
    Protocol.SMTP: 512,  # RFC 5321 section 4.5.3.1.5
}
_OVERHEAD: Final = {
    Protocol.IMAP: 32 + len(" NO \r\n"),  # after the longest tag
    Protocol.POP3: len("-ERR \r\n"),
    Protocol.SMTP: MAX_CODE + len(" \r\n"),
}
MAX_TEXT: Final = {protocol: _MAX_LINE[protocol] - _OVERHEAD[protocol] for protocol in Protocol}
"""Bytes of ``Auth-Status`` that are sent to the client, so that the reply keeps to the line length."""

_SASL_ERROR: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=))?")
_MAX_HASH_KEY: Final = 255
"""Bytes of ``Auth-Server-Hash``: as many as a login name has."""
_MAX_SASL_ERROR: Final = 4096

_SMTP: Final = Protocol.SMTP
_DIGESTS: Final = frozenset({Method.APOP, Method.CRAM_MD5})
_YES_OR_NO: Final = frozenset((b"yes", b"no"))
_MIN_SECRET: Final = 4
"""The shortest part of a password, in bytes, that is not in a host name by chance."""
_MAX_QUOTED: Final = 64
"""Bytes of a header's value that an error message contains."""
_DECISIVE: Final = frozenset((b"auth-status", b"auth-server", b"auth-port", b"auth-wait"))
_SERVER_ERROR: Final = "the authentication service, or a gateway before it, failed"
_REDIRECT: Final = "redirects are not followed; set auth_http to the URL that the service redirects to"
_OTHER_STATUS: Final = (
    "the response has no Auth-Status, Auth-Server and Auth-Port; is auth_http the right URL?"
)
_HINTS: Final = {
    401: "the service requires credentials of the proxy; send them with auth_http_header",
    403: "the service refuses the proxy; check auth_http_header and its access rules",
    404: "the service does not have this path; check the path in auth_http",
    407: "a proxy before the service requires credentials; auth_http must lead to the service itself",
    408: "the service did not wait for the request",
    429: "the service limits the rate of requests",
}


def decide(
    head: ResponseHead,
    sent: bytes | None,
    protocol: Protocol,
    credentials: Credentials,
    accepts_names: bool = False,
) -> Decision:
    """Make the decision from a response.

    Args:
        head: The head of the response.
        sent: ``Auth-Pass``, which replaces the client's password, and is required where it has none.
        protocol: The client's; SMTP has rules of its own.
        credentials: The client's; ``Auth-User`` replaces the user name.
        accepts_names: ``auth_http_server_names``.

    Raises:
        InvalidAuthResponse: It is no usable response; ``failure`` is the reason.
    """
    try:
        if head.address is None:
            return _decision(head.headers, sent, protocol, credentials, accepts_names)
        address, port = head.address
        return AuthAllowed(address, port, credentials.user, _upstream_password(protocol, credentials, sent))
    except InvalidAuthResponse as error:
        quoted = quote_value(error, credentials.password, sent)
        raise _with_status(quoted, head.headers, head.status) from None


def _with_status(
    error: InvalidAuthResponse, headers: Mapping[bytes, bytes], status: int | None
) -> InvalidAuthResponse:
    """Add the HTTP status to an error, as it is mostly the cause where headers are missing."""
    error.status = status
    if status is None or 200 <= status < 300:
        return error
    if not headers.keys().isdisjoint(_DECISIVE):
        explained = InvalidAuthResponse(f"{error} (HTTP status {status})", error.failure)
    elif status >= 500:
        explained = InvalidAuthResponse(f"HTTP status {status}: {_SERVER_ERROR}", AuthErrorReason.HTTP_5XX)
    else:
        hint = _HINTS.get(status) or (_REDIRECT if status < 400 else _OTHER_STATUS)
        explained = InvalidAuthResponse(f"HTTP status {status}: {hint}", error.failure)
    explained.status = status
    return explained


def _contains_secret(value: bytes, secret: bytes) -> bool:
    """Return whether a value is a secret, or one of the two contains the other."""
    if min(len(value), len(secret)) < _MIN_SECRET:
        return value == secret
    return secret in value or value in secret


def quote_value(
    error: InvalidAuthResponse, password: Secret | None, sent: bytes | None
) -> InvalidAuthResponse:
    """Add the invalid value to an error, unless it contains a password; the log escapes it."""
    value = error.value
    if value is None:
        return error
    secrets = [one for one in (password.reveal() if password else b"", sent or b"") if one]
    text = value[:_MAX_QUOTED].decode("ascii", "backslashreplace")
    if len(value) > _MAX_QUOTED:
        text += "..."
    if any(_contains_secret(value, one) for one in secrets):
        text = "***"
    return InvalidAuthResponse(str(error).replace("{}", f'"{text}"', 1), error.failure)


def _decision(
    headers: Mapping[bytes, bytes],
    new_password: bytes | None,
    protocol: Protocol,
    credentials: Credentials,
    accepts_names: bool,
) -> Decision:
    """Make the decision as nginx does, denials first."""
    user = credentials.user
    new_user = headers.get(b"auth-user")
    if new_user is not None:
        user = _checked("Auth-User", new_user)
    if new_password is not None:
        _checked("Auth-Pass", new_password)
    verdict = headers.get(b"auth-status", b"OK")
    if verdict != b"OK":
        failure, waits = _last_status(verdict.split(b"\n"), protocol)
        wait = _wait_seconds(headers.get(b"auth-wait", b"").split(b"\n"))
        if failure is not None and not (waits and wait):
            return _denial(headers, failure, wait, protocol)
        if waits:
            # Without Auth-Wait nginx sends the request again at once, and for ever.
            return AuthDeferred(wait or 1, new_user, None if new_password is None else Secret(new_password))
    smtp_auth = protocol is not _SMTP or _uses_smtp_auth(headers.get(b"auth-smtp", b"yes"))
    if b"auth-server-group" in headers and b"auth-server" not in headers:
        upstream_password = _upstream_password(protocol, credentials, new_password)
        group = headers[b"auth-server-group"].decode("ascii", "backslashreplace")
        port, key = _group_port(headers), _hash_key(headers)
        return AuthAllowed(
            "", port, user, upstream_password, upstream_group=group, hash_key=key, smtp_auth=smtp_auth
        )
    if not accepts_names:
        address, port = upstream_address(headers)
        upstream_password = _upstream_password(protocol, credentials, new_password)
        return AuthAllowed(address, port, user, upstream_password, smtp_auth=smtp_auth)
    servers = upstream_servers(headers)
    first = servers[0]
    upstream_password = _upstream_password(protocol, credentials, new_password)
    several = servers if len(servers) > 1 or is_name(first.host) else ()
    return AuthAllowed(first.host, first.port, user, upstream_password, several, smtp_auth=smtp_auth)


def _group_port(headers: Mapping[bytes, bytes]) -> int:
    """Return the port of servers of a group that have none, or 0."""
    return parse_port(headers[b"auth-port"]) if b"auth-port" in headers else 0


def _hash_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Parse ``Auth-Server-Hash``; empty without it."""
    key = _checked("Auth-Server-Hash", headers.get(b"auth-server-hash", b""))
    if len(key) > _MAX_HASH_KEY:
        raise InvalidAuthResponse(f"Auth-Server-Hash of {len(key)} bytes, at most {_MAX_HASH_KEY} accepted")
    return key


def _uses_smtp_auth(value: bytes) -> bool:
    """Parse ``Auth-SMTP``: whether ``proxy_smtp_auth`` applies to this login."""
    word = value.lower()
    if word in _YES_OR_NO:
        return word == b"yes"
    error = InvalidAuthResponse("Auth-SMTP {} is neither yes nor no")
    error.value = value
    raise error


def _last_status(verdicts: list[bytes], protocol: Protocol) -> tuple[bytes | None, bool]:
    """Return the last denial among several ``Auth-Status``, and whether one of them is ``WAIT``."""
    failure, waits = None, False
    for verdict in verdicts:
        if verdict == b"WAIT":
            waits = True
        elif verdict != b"OK" and (verdict or protocol is not _SMTP):
            failure = verdict
    return failure, waits


def _wait_seconds(values: list[bytes]) -> int:
    """Return the last of several ``Auth-Wait`` that is a number, or 0."""
    numbers = [value for value in values if value.isdigit() and len(value) <= MAX_DIGITS]
    return min(int(numbers[-1]), MAX_WAIT) if numbers else 0


def _checked(header: str, value: bytes) -> bytes:
    if has_controls(value):
        raise InvalidAuthResponse(f"{header} holds a control character")
    return value


def _denial(headers: Mapping[bytes, bytes], text: bytes, wait: int, protocol: Protocol) -> AuthDenied:
    code = headers.get(b"auth-error-code") if protocol is _SMTP else None
    if code is not None and len(_checked("Auth-Error-Code", code)) > MAX_CODE:
        raise InvalidAuthResponse(f"Auth-Error-Code of {len(code)} bytes, at most {MAX_CODE} accepted")
    shown = _checked("Auth-Status", text)[: MAX_TEXT[protocol]]
    return AuthDenied(shown, wait, code or None, headers.get(b"auth-user"), _sasl_error(headers))


def _sasl_error(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the challenge with the error of a token; ``None`` also for text that is not base64."""
    error = headers.get(b"auth-error-sasl")
    if not error or len(error) > _MAX_SASL_ERROR or _SASL_ERROR.fullmatch(error) is None:
        return None
    return error


def _upstream_password(protocol: Protocol, credentials: Credentials, sent: bytes | None) -> Secret | None:
    """Return the password for the login at the upstream; a digest is none."""
    if sent is not None:
        return Secret(sent)
    method, given = credentials.method, credentials.password
    if given is not None and method not in _DIGESTS:
        return given
    if protocol is _SMTP:
        return None
    raise InvalidAuthResponse(f"the response has no Auth-Pass, which a login by {method} needs")

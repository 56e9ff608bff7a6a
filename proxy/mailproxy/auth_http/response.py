# SPDX-License-Identifier: Apache-2.0
"""Parsing a response of the authentication service: the head of an HTTP response becomes a decision.

Only headers count; the status code does not, and the connection skips the body
(``response_body``).  The form is checked as strictly as in nginx, and values
more strictly: a response never puts a control character into a reply to the
client or a command to the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mailproxy.auth_http.response_body import MAX_DIGITS, BodyFraming, framing_of
from mailproxy.auth_http.upstream_servers import (
    has_controls,
    is_name,
    parse_port,
    upstream_address,
    upstream_servers,
)
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision, Secret
from mailproxy_config.model import Protocol

MAX_HEAD: Final = 16384
"""Bytes of status line and headers together.  nginx accepts 1024; a service may add cookies and traces."""
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

_LINE_ENDS: Final = (b"\r\n", b"\n")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_PASSWORD_LINE: Final = re.compile(rb"\nauth-pass:([^\x00-\x1f]*)\r?\n", re.IGNORECASE)
_STATUS_LINE: Final = re.compile(rb"HTTP/([^\r ]*)(?: +([0-9]{3})(?![0-9]))?")
_NAME: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_SASL_ERROR: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==|[A-Za-z0-9+/]=))?")
_MAX_HASH_KEY: Final = 255
"""Bytes of ``Auth-Server-Hash``: as many as a login name has."""
_MAX_SASL_ERROR: Final = 4096

_SMTP: Final = Protocol.SMTP
_DIGESTS: Final = frozenset({Method.APOP, Method.CRAM_MD5})
_REPEATABLE: Final = {
    b"auth-status": b"\n",
    b"auth-wait": b"\n",
    b"connection": b",",
    b"transfer-encoding": b",",
    b"content-length": b",",
}
"""Headers of which each occurrence counts, and the separator between their values."""
_MEANINGFUL: Final = frozenset(
    (
        *_REPEATABLE,
        b"auth-server",
        b"auth-port",
        b"auth-server-group",
        b"auth-server-hash",
        b"auth-user",
        b"auth-pass",
        b"auth-error-code",
        b"auth-error-sasl",
        b"auth-smtp",
    )
)
_IGNORED: Final = frozenset((b"server", b"date", b"content-type", b"keep-alive", b"cache-control", b"vary"))
"""Other headers that services send often; their names need no check."""
_YES_OR_NO: Final = frozenset((b"yes", b"no"))
_SWITCHING_PROTOCOLS: Final = 101
_CR: Final = 13
_MAX_CACHED: Final = 1024
"""The longest head that is cached, in bytes."""
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


class InterimResponse(Exception):
    """An interim response, with a 1xx status: another head follows (RFC 9110 section 15.2)."""


@dataclass(slots=True)
class AuthResponse:
    """A decision of the service, and how its connection goes on.

    ``keep_alive`` is true only where the end of the body is known and the
    service accepts another request.  ``status`` is the HTTP status; it does
    not decide anything.
    """

    decision: Decision
    framing: BodyFraming
    keep_alive: bool
    status: int | None


def head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """Find the end of a response's head.

    Args:
        buffer: The bytes received so far, from the first of the response.
        start: The number of bytes that an earlier call has searched.

    Returns:
        The offset after the blank line, or -1 while there is none.
    """
    if start < 2:
        if buffer.startswith(_LINE_ENDS):
            return 1 if buffer.startswith(b"\n") else 2
        start = 2
    found = _BLANK_LINE.search(buffer, start - 2)
    return found.end() if found else -1


def parse(
    head: bytes,
    protocol: Protocol,
    method: Method,
    user: bytes,
    password: Secret | None,
    accepts_names: bool = False,
    *,
    use_cache: bool = True,
) -> AuthResponse:
    """Parse the head of a response.

    Args:
        head: The bytes up to ``head_end``.
        protocol: The client's; SMTP has rules of its own.
        method: The client's authentication method.
        user: The client's user name; ``Auth-User`` replaces it.
        password: The client's password or digest; ``Auth-Pass`` replaces it,
            and is required where there is no password.
        accepts_names: ``auth_http_server_names``.
        use_cache: Whether a head that was parsed before may come from the cache of ``read_head``.

    Raises:
        InterimResponse: It is the head of an interim response.
        InvalidAuthResponse: It is no usable response; ``failure`` is the reason.
    """
    common, sent = _without_password(head) if use_cache else (None, None)
    if common is None:
        headers, framing, keep_alive, status, _ = read_head.__wrapped__(head)
        where, sent = None, headers.get(b"auth-pass")
    else:
        headers, framing, keep_alive, status, where = read_head(common)
    try:
        if where is None:
            decision = _decision(headers, sent, protocol, method, user, password, accepts_names)
        else:
            address, port = where
            decision = AuthAllowed(address, port, user, _upstream_password(protocol, method, password, sent))
    except InvalidAuthResponse as error:
        raise _with_status(quote_value(error, password, sent), headers, status) from None
    return AuthResponse(decision, framing, keep_alive, status)


def _without_password(head: bytes) -> tuple[bytes | None, bytes | None]:
    """Separate the password from the rest of a head, which may be cached.

    Returns:
        The head without ``Auth-Pass``, and the value of that header if there
        is one.  ``None`` twice for a head that must not be cached.
    """
    if len(head) > _MAX_CACHED:
        return None, None
    if head.lower().find(b"pass") < 0:  # twice as fast as ``in``
        return head, None
    found = _PASSWORD_LINE.search(head)
    if found is None:
        return None, None
    common = head.replace(found[0], b"\n", 1)
    if common.lower().find(b"pass") >= 0:
        return None, None
    return common, found[1].strip(b" ")


@lru_cache(maxsize=64)
def read_head(
    head: bytes,
) -> tuple[Mapping[bytes, bytes], BodyFraming, bool, int | None, tuple[str, int] | None]:
    """Parse a head without a password; cached, as services send the same ones again and again.

    Returns:
        Its headers, the framing of its body, whether the connection is kept
        alive, the HTTP status, and the upstream's address where the response
        contains nothing else that matters.
    """
    text = head.replace(b"\r\n", b"\n")
    if _CR in text:
        raise InvalidAuthResponse("bare CR")
    lines = text.split(b"\n")
    del lines[-2:]  # the blank one
    version: bytes | None = None
    status: int | None = None
    if lines and lines[0][:5] == b"HTTP/":
        version, status = _status(lines.pop(0))
    if status is not None and 100 <= status < 200:
        if status == _SWITCHING_PROTOCOLS:
            raise InvalidAuthResponse("HTTP status 101: a change of protocols that was not requested")
        raise InterimResponse
    headers = _headers(lines)
    return headers, *framing_of(version, status, headers), status, _simple_address(headers)


def _status(line: bytes) -> tuple[bytes | None, int | None]:
    """Parse a status line: the HTTP version, and the status if there is one."""
    found = _STATUS_LINE.match(line)
    if found is None:
        return None, None
    version, digits = found.groups()
    return version, int(digits) if digits else None


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return the headers that matter; a repeated one replaces the earlier value, or is added to it."""
    headers: dict[bytes, bytes] = {}
    for line in lines:
        raw_name, _, raw_value = line.partition(b":")
        name = raw_name.lower()
        if name in _MEANINGFUL:
            if name in headers and name in _REPEATABLE:
                headers[name] += _REPEATABLE[name] + raw_value.strip(b" ")
            else:
                headers[name] = raw_value.strip(b" ")
        elif name not in _IGNORED and not _NAME.fullmatch(raw_name):
            raise InvalidAuthResponse("malformed header")
    return headers


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


def _simple_address(headers: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """Return the upstream's address, if the response contains nothing else that matters."""
    if headers.get(b"auth-status", b"OK") != b"OK" or b"auth-user" in headers or b"auth-smtp" in headers:
        return None
    try:
        return upstream_address(headers)
    except InvalidAuthResponse:
        return None  # raised again where the decision is made


def _decision(
    headers: Mapping[bytes, bytes],
    new_password: bytes | None,
    protocol: Protocol,
    method: Method,
    user: bytes,
    password: Secret | None,
    accepts_names: bool,
) -> Decision:
    """Make the decision as nginx does, denials first."""
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
        upstream_password = _upstream_password(protocol, method, password, new_password)
        group = headers[b"auth-server-group"].decode("ascii", "backslashreplace")
        port, key = _group_port(headers), _hash_key(headers)
        return AuthAllowed(
            "", port, user, upstream_password, upstream_group=group, hash_key=key, smtp_auth=smtp_auth
        )
    if not accepts_names:
        address, port = upstream_address(headers)
        upstream_password = _upstream_password(protocol, method, password, new_password)
        return AuthAllowed(address, port, user, upstream_password, smtp_auth=smtp_auth)
    servers = upstream_servers(headers)
    first = servers[0]
    upstream_password = _upstream_password(protocol, method, password, new_password)
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


def _upstream_password(
    protocol: Protocol, method: Method, given: Secret | None, sent: bytes | None
) -> Secret | None:
    """Return the password for the login at the upstream; a digest is none."""
    if sent is not None:
        return Secret(sent)
    if given is not None and method not in _DIGESTS:
        return given
    if protocol is _SMTP:
        return None
    raise InvalidAuthResponse(f"the response has no Auth-Pass, which a login by {method} needs")

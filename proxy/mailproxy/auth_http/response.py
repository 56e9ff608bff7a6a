# SPDX-License-Identifier: Apache-2.0
"""What the authorization service answers: the head of an HTTP response, as a decision.

Only headers count; the status code does not, and a body is skipped by whoever
holds the connection (``BodyFraming`` says how much of it there is).  As strict
as nginx about form, and stricter about what may be passed on: an answer never
puts a control character into what a client or an upstream is told.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mailproxy.auth_http.response_body import MAX_DIGITS, BodyFraming, find_end
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision, Secret
from mailproxy_config.model import Protocol

MAX_HEAD: Final = 16384
"""Bytes of status line and headers together.  nginx takes 1024; a service may add cookies and traces."""
MAX_WAIT: Final = 86400
"""Seconds of ``Auth-Wait`` that are honoured; more is cut to a day."""
MAX_CODE: Final = 32
"""Bytes of ``Auth-Error-Code``; ``535 5.7.0`` has nine."""

_MAX_LINE: Final = {
    Protocol.IMAP: 1024,  # no limit in RFC 9051; what an answer's head may hold at all in nginx
    Protocol.POP3: 512,  # RFC 2449 section 4
    Protocol.SMTP: 512,  # RFC 5321 section 4.5.3.1.5
}
_AROUND_TEXT: Final = {
    Protocol.IMAP: 32 + len(" NO \r\n"),  # after the longest tag
    Protocol.POP3: len("-ERR \r\n"),
    Protocol.SMTP: MAX_CODE + len(" \r\n"),
}
MAX_TEXT: Final = {protocol: _MAX_LINE[protocol] - _AROUND_TEXT[protocol] for protocol in Protocol}
"""Bytes of ``Auth-Status`` that a client gets to see, so that its reply stays within the line length."""

_LINE_ENDS: Final = (b"\r\n", b"\n")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_PASSWORD_LINE: Final = re.compile(rb"\nauth-pass:([^\x00-\x1f]*)\r?\n", re.IGNORECASE)
_STATUS_LINE: Final = re.compile(rb"HTTP/([^\r ]*)(?: +([0-9]{3})(?![0-9]))?")
_NAME: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_CONTROLS: Final = bytes(range(0x20))
_BYTE: Final = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = re.compile(_BYTE + rb"(?:\." + _BYTE + rb"){3}")

_SMTP: Final = Protocol.SMTP
_DIGESTS: Final = frozenset({Method.APOP, Method.CRAM_MD5})
_ADD_UP: Final = {
    b"auth-status": b"\n",
    b"auth-wait": b"\n",
    b"connection": b",",
    b"transfer-encoding": b",",
    b"content-length": b",",
}
"""What counts each time it is said, and what is put between one and the next."""
_MEANT: Final = frozenset(
    (*_ADD_UP, b"auth-server", b"auth-port", b"auth-user", b"auth-pass", b"auth-error-code")
)
_USUAL: Final = frozenset((b"server", b"date", b"content-type", b"keep-alive", b"cache-control", b"vary"))
"""What services say beside that; well-formed, and of no meaning here."""
_SWITCHING_PROTOCOLS: Final = 101
_CR: Final = 13
_UNIX: Final = b"unix:"
_MAX_SOCKET_PATH: Final = 107
"""Bytes; what ``sockaddr_un`` holds (unix(7))."""
_WORTH_KEEPING: Final = 1024
"""Bytes of a head that is remembered; sixty-four of them are."""
_TELLING: Final = 4
"""Bytes of a password that are not in a host name by chance."""
_QUOTED_AT_MOST: Final = 64
"""Bytes of a header's value that an error shows."""
_DECIDING: Final = frozenset((b"auth-status", b"auth-server", b"auth-port", b"auth-wait"))
_SERVER_ERROR: Final = "the authentication service, or a gateway before it, failed"
_REDIRECT: Final = "redirects are not followed; set auth_http to the URL that the service redirects to"
_OTHER_STATUS: Final = "the answer has no Auth-Status, Auth-Server and Auth-Port; is auth_http the right URL?"
_HINTS: Final = {
    401: "the service wants credentials of the proxy; send them with auth_http_header",
    403: "the service refuses the proxy; check auth_http_header and its access rules",
    404: "the service does not know this path; check the path in auth_http",
    407: "a proxy before the service wants credentials; auth_http must lead to the service itself",
    408: "the service did not wait for the request",
    429: "the service limits the rate of requests",
}


class InterimResponse(Exception):
    """This is not the answer yet: another head follows one with a 1xx status (RFC 9110 section 15.2)."""


@dataclass(slots=True)
class AuthResponse:
    """What the service decided, and what the connection is good for after that.

    ``keep_alive`` is true only where the body's end is known and the service
    will take another request.  ``status`` is for metrics; it decides nothing.
    """

    decision: Decision
    framing: BodyFraming
    keep_alive: bool
    status: int | None


def head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """Tell where an answer's head ends.

    Args:
        buffer: What has arrived of the answer, from its first byte on.
        start: How many bytes of it an earlier call has seen.

    Returns:
        The offset just after the blank line, or -1 while there is none.
    """
    if start < 2:
        if buffer.startswith(_LINE_ENDS):
            return 1 if buffer.startswith(b"\n") else 2
        start = 2
    found = _BLANK_LINE.search(buffer, start - 2)
    return found.end() if found else -1


def parse(
    head: bytes, *, protocol: Protocol, method: Method, user: bytes, password: Secret | None
) -> AuthResponse:
    """Read an answer's head.

    Args:
        head: From its first byte to ``head_end``.
        protocol: Of the client; SMTP has rules of its own.
        method: How the client presented its credentials.
        user: Whom the client claims to be; ``Auth-User`` replaces it.
        password: What the client gave; ``Auth-Pass`` replaces it, and must
            where the client gave a digest or nothing.

    Raises:
        InterimResponse: The head is that of an interim answer.
        MalformedAnswer: This is not an answer; ``failure`` tells what is wrong.
    """
    common, sent = _without_password(head)
    if common is None:
        said, framing, keep_alive, status, _ = _read.__wrapped__(head)
        where, sent = None, said.get(b"auth-pass")
    else:
        said, framing, keep_alive, status, where = _read(common)
    try:
        if where is None:
            decision = _decision(said, sent, protocol, method, user, password)
        else:
            address, port = where
            decision = AuthAllowed(address, port, user, _known_password(protocol, method, password, sent))
    except InvalidAuthResponse as error:
        raise _with_status(_with_value(error, password, sent), said, status) from None
    return AuthResponse(decision, framing, keep_alive, status)


def _without_password(head: bytes) -> tuple[bytes | None, bytes | None]:
    """Take out of a head what must not be remembered.

    Returns:
        The head without its one ``Auth-Pass``, and what that says, if there is
        one.  ``None`` twice where it is not as simple as that: the whole head
        has to be read then, and no part of it may be kept.
    """
    if len(head) > _WORTH_KEEPING:
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
def _read(
    head: bytes,
) -> tuple[Mapping[bytes, bytes], BodyFraming, bool, int | None, tuple[str, int] | None]:
    """Read the form of an answer, which services repeat again and again; what holds a password is never kept.

    Returns:
        Its headers, its body's end, whether more may be asked, its status; and
        where to log in, if that is all that it says.
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
            raise InvalidAuthResponse("HTTP status 101: a change of protocols that was not asked for")
        raise InterimResponse
    said = _headers(lines)
    return said, *find_end(version, status, said), status, _plain_grant(said)


def _status(line: bytes) -> tuple[bytes | None, int | None]:
    """Read a status line: its version, and the status if there is one."""
    found = _STATUS_LINE.match(line)
    if found is None:
        return None, None
    version, digits = found.groups()
    return version, int(digits) if digits else None


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Gather the headers that mean something; what is said again replaces what was, or is added to it."""
    said: dict[bytes, bytes] = {}
    for line in lines:
        raw_name, _, raw_value = line.partition(b":")
        name = raw_name.lower()
        if name in _MEANT:
            if name in said and name in _ADD_UP:
                said[name] += _ADD_UP[name] + raw_value.strip(b" ")
            else:
                said[name] = raw_value.strip(b" ")
        elif name not in _USUAL and not _NAME.fullmatch(raw_name):
            raise InvalidAuthResponse("malformed header")
    return said


def _with_status(
    error: InvalidAuthResponse, said: Mapping[bytes, bytes], status: int | None
) -> InvalidAuthResponse:
    """Name the HTTP status, which decides nothing, but mostly is the cause where the headers are missing."""
    error.status = status
    if status is None or 200 <= status < 300:
        return error
    if not said.keys().isdisjoint(_DECIDING):
        explained = InvalidAuthResponse(f"{error} (HTTP status {status})", error.failure)
    elif status >= 500:
        explained = InvalidAuthResponse(f"HTTP status {status}: {_SERVER_ERROR}", AuthErrorReason.HTTP_5XX)
    else:
        hint = _HINTS.get(status) or (_REDIRECT if status < 400 else _OTHER_STATUS)
        explained = InvalidAuthResponse(f"HTTP status {status}: {hint}", error.failure)
    explained.status = status
    return explained


def _wrong(header: str, value: bytes, why: str) -> InvalidAuthResponse:
    error = InvalidAuthResponse(f"{header} {{}} {why}", AuthErrorReason.BAD_ADDRESS)
    error.value = value
    return error


def _gives_away(value: bytes, secret: bytes) -> bool:
    """Tell whether a value is a secret, or one holds the other."""
    if min(len(value), len(secret)) < _TELLING:
        return value == secret
    return secret in value or value in secret


def _with_value(
    error: InvalidAuthResponse, password: Secret | None, sent: bytes | None
) -> InvalidAuthResponse:
    """Show the value that is wrong, unless a service put a password there; the log escapes it."""
    value = error.value
    if value is None:
        return error
    secrets = [one for one in (password.reveal() if password else b"", sent or b"") if one]
    text = value[:_QUOTED_AT_MOST].decode("ascii", "backslashreplace")
    if len(value) > _QUOTED_AT_MOST:
        text += "..."
    if any(_gives_away(value, one) for one in secrets):
        text = "***"
    return InvalidAuthResponse(str(error).replace("{}", f'"{text}"', 1), error.failure)


def _plain_grant(said: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """Tell where the client may log in, if that needs no second look."""
    if said.get(b"auth-status", b"OK") != b"OK" or b"auth-user" in said:
        return None
    try:
        return _where(said)
    except InvalidAuthResponse:
        return None  # whoever decides finds it out again, in its turn


def _decision(
    said: Mapping[bytes, bytes],
    new_password: bytes | None,
    protocol: Protocol,
    method: Method,
    user: bytes,
    password: Secret | None,
) -> Decision:
    """Decide as nginx does when the head is complete, failure first."""
    new_user = said.get(b"auth-user")
    if new_user is not None:
        user = _harmless("Auth-User", new_user)
    if new_password is not None:
        _harmless("Auth-Pass", new_password)
    verdict = said.get(b"auth-status", b"OK")
    if verdict != b"OK":
        failure, waits = _judged(verdict.split(b"\n"), protocol)
        wait = _seconds(said.get(b"auth-wait", b"").split(b"\n"))
        if failure is not None and not (waits and wait):
            return _denied(said, failure, wait, protocol)
        if waits:
            # Without Auth-Wait nginx asks again at once, and for ever; a second is what was meant.
            return AuthDeferred(wait or 1, new_user, None if new_password is None else Secret(new_password))
    address, port = _where(said)
    return AuthAllowed(address, port, user, _known_password(protocol, method, password, new_password))


def _judged(verdicts: list[bytes], protocol: Protocol) -> tuple[bytes | None, bool]:
    """Tell the last failure among several ``Auth-Status``, and whether one of them is ``WAIT``."""
    failure, waits = None, False
    for verdict in verdicts:
        if verdict == b"WAIT":
            waits = True
        elif verdict != b"OK" and (verdict or protocol is not _SMTP):
            failure = verdict
    return failure, waits


def _seconds(values: list[bytes]) -> int:
    """Give the last of several ``Auth-Wait`` that is a number, 0 if none is."""
    numbers = [value for value in values if value.isdigit() and len(value) <= MAX_DIGITS]
    return min(int(numbers[-1]), MAX_WAIT) if numbers else 0


def _has_controls(value: bytes) -> bool:
    return len(value.translate(None, _CONTROLS)) != len(value)


def _harmless(header: str, value: bytes) -> bytes:
    if _has_controls(value):
        raise InvalidAuthResponse(f"{header} holds a control character")
    return value


def _denied(said: Mapping[bytes, bytes], text: bytes, wait: int, protocol: Protocol) -> AuthDenied:
    code = said.get(b"auth-error-code") if protocol is _SMTP else None
    if code is not None and len(_harmless("Auth-Error-Code", code)) > MAX_CODE:
        raise InvalidAuthResponse(f"Auth-Error-Code of {len(code)} bytes, at most {MAX_CODE} accepted")
    shown = _harmless("Auth-Status", text)[: MAX_TEXT[protocol]]
    return AuthDenied(shown, wait, code or None, said.get(b"auth-user"))


def _known_password(
    protocol: Protocol, method: Method, given: Secret | None, sent: bytes | None
) -> Secret | None:
    """Find what to log in with at the upstream; a digest is no password."""
    if sent is not None:
        return Secret(sent)
    if given is not None and method not in _DIGESTS:
        return given
    if protocol is _SMTP:
        return None
    raise InvalidAuthResponse(f"the answer has no Auth-Pass, which a login by {method} needs")


def _where(said: Mapping[bytes, bytes]) -> tuple[str, int]:
    server = said.get(b"auth-server")
    if server and server[:5] == _UNIX:
        return _socket(server), 0
    port = said.get(b"auth-port")
    if not server or not port:
        missing = " and ".join(
            name for name, value in (("Auth-Server", server), ("Auth-Port", port)) if not value
        )
        hint = "" if b"auth-status" in said or server or port else "; is auth_http the right URL?"
        raise InvalidAuthResponse(f"the answer has no {missing}{hint}", AuthErrorReason.NO_SERVER)
    return _endpoint(server, port)


@lru_cache(maxsize=1024)
def _endpoint(server: bytes, port: bytes) -> tuple[str, int]:
    """Read where an upstream is: there are few of them, and each is named over and over."""
    return _address(server), _port(port)


def _socket(text: bytes) -> str:
    """Read ``unix:`` and an absolute path; nginx refuses it, and it needs no ``Auth-Port``."""
    path = text[len(_UNIX) :]
    if path.startswith(b"/") and len(path) <= _MAX_SOCKET_PATH and not _has_controls(path):
        try:
            return text.decode()
        except UnicodeDecodeError:
            pass
    why = f"is not unix: and the absolute path of a socket, of at most {_MAX_SOCKET_PATH} bytes"
    raise _wrong("Auth-Server", text, why)


def _address(text: bytes) -> str:
    """Read an IP address.  IPv6 may stand in brackets, which nginx would refuse; a zone may not."""
    if _IPV4.fullmatch(text):
        return text.decode("ascii")
    bare = text[1:-1] if text.startswith(b"[") and text.endswith(b"]") else text
    try:
        address = bare.decode("ascii")
        if "%" not in address:
            ipaddress.IPv6Address(address)
            return address
    except ValueError:
        pass
    why = "is not an IP address: the authentication service must resolve names,"
    why += " and send an IPv4 or IPv6 address there and the port in Auth-Port"
    raise _wrong("Auth-Server", text, why)


def _port(text: bytes) -> int:
    if text.isdigit() and len(text) <= MAX_DIGITS and 0 < int(text) < 65536:
        return int(text)
    raise _wrong("Auth-Port", text, "is not a port: the service must send a number from 1 to 65535")

# SPDX-License-Identifier: Apache-2.0
"""Reading the head of a response: where it ends, its headers, and the heads that were read before.

The form is checked as strictly as in nginx.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mailproxy.auth_http.response_body import BodyFraming, framing_of
from mailproxy.auth_http.upstream_servers import has_controls, upstream_address
from mailproxy.errors import InvalidAuthResponse

MAX_HEAD: Final = 16384
"""Bytes of status line and headers together.  nginx accepts 1024; a service may add cookies and traces."""

_LINE_ENDS: Final = (b"\r\n", b"\n")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_PASSWORD_LINE: Final = re.compile(rb"(\nauth-pass:)([^\x00-\x1f]*)\r?\n", re.IGNORECASE)
_STATUS_LINE: Final = re.compile(rb"HTTP/([^\r ]*)(?: +([0-9]{3})(?![0-9]))?")
_NAME: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
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
_OTHERS: Final = frozenset((b"auth-user", b"auth-pass", b"auth-smtp"))
"""Headers that matter for a login that is allowed, besides the upstream's address."""
_SWITCHING_PROTOCOLS: Final = 101
_CR: Final = 13
_MAX_LENGTH: Final = 1024
"""The longest head that is kept, in bytes, the password included."""
_MAX_KNOWN: Final = 64
"""Heads that are kept for one service."""
_MAX_UNKNOWN: Final = 1000
"""After so many heads in a row that were not known, the service is one whose responses all differ."""
_RETRY_AFTER: Final = 100_000
"""After so many of them, heads are kept again."""


class InterimResponse(Exception):
    """An interim response, with a 1xx status: another head follows (RFC 9110 section 15.2)."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What the head of a response contains.

    ``headers`` are those that matter, without the password where the head is kept.
    ``keep_alive`` is true only where the end of the body is known and the
    service accepts another request.  ``status`` is the HTTP status; it does
    not decide anything.  ``address`` is the upstream's, where the login is
    allowed and ``headers`` has nothing else that matters.
    """

    headers: Mapping[bytes, bytes] = field(repr=False)
    framing: BodyFraming
    keep_alive: bool
    status: int | None
    address: tuple[str, int] | None


class ResponseHeads:
    """Reads the heads of one service, and keeps some without their passwords: it sends the same ones again.

    Nothing is kept or looked up where all heads differ, as with a request ID in each.

    Attributes:
        known: The heads that are kept, the oldest first, with what they contain.  None has ``Auth-Pass``
            or another header with a password.
    """

    __slots__ = ("_password_name", "_unknown", "known")

    def __init__(self) -> None:
        self.known: dict[bytes, ResponseHead] = {}
        self._unknown = 0  # in a row
        self._password_name = b"\nAuth-Pass:"  # as the service writes it

    def find(self, data: bytes) -> tuple[ResponseHead, bytes | None] | None:
        """Return what a head contains that is known, and the password in it.

        Args:
            data: The bytes received so far, from the first of the response.

        Returns:
            ``None`` unless they are one whole head, with nothing after it, and it is known.
        """
        if self._unknown > _MAX_UNKNOWN:
            return None
        password = None
        start = data.find(self._password_name)
        if start < 0:
            known = self.known.get(data)
        else:
            end = data.find(b"\r\n", start + 1)
            known = self.known.get(data[:start] + data[end + 1 :])
            # A head ends with a blank line: this line at the end of the bytes is part of a body.
            if end + 2 == len(data) or len(data) > _MAX_LENGTH:
                return None
            password = data[start + len(self._password_name) : end].strip(b" ")
            if has_controls(password):
                return None
        if known is None:
            return None
        self._unknown = 0
        return known, password

    def read(self, head: bytes) -> tuple[ResponseHead, bytes | None]:
        """Return what a head contains, and the password in it; ``find`` is quicker for one that is known.

        Args:
            head: The bytes up to ``head_end``.

        Raises:
            InterimResponse: It is the head of an interim response.
            InvalidAuthResponse: It is malformed.
        """
        self._unknown = unknown = (self._unknown + 1) % _RETRY_AFTER
        common, password = (None, None) if unknown > _MAX_UNKNOWN else self._without_password(head)
        if common is None:
            parsed = parse_head(head)
            return parsed, parsed.headers.get(b"auth-pass")
        known = self.known.get(common)
        if known is None:
            known = parse_head(common)
            if len(self.known) >= _MAX_KNOWN:
                del self.known[next(iter(self.known))]
            self.known[common] = known
        else:
            self._unknown = 0
        return known, password

    def _without_password(self, head: bytes) -> tuple[bytes | None, bytes | None]:
        """Separate the password from the rest of a head, which may be kept.

        Returns:
            The head without ``Auth-Pass``, and the value of that header if there
            is one.  ``None`` twice for a head that must not be kept.
        """
        if len(head) > _MAX_LENGTH:
            return None, None
        if head.lower().find(b"pass") < 0:  # twice as fast as ``in``
            return head, None
        found = _PASSWORD_LINE.search(head)
        if found is None:
            return None, None
        common = head.replace(found[0], b"\n", 1)
        if common.lower().find(b"pass") >= 0:
            return None, None
        self._password_name = found[1]
        return common, found[2].strip(b" ")


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


def parse_head(head: bytes) -> ResponseHead:
    """Parse the head of a response.

    Raises:
        InterimResponse: It is the head of an interim response.
        InvalidAuthResponse: It is malformed.
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
    framing, keep_alive = framing_of(version, status, headers)
    return ResponseHead(headers, framing, keep_alive, status, _simple_address(headers))


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


def _simple_address(headers: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """Return the upstream's address, if the response contains nothing else that matters."""
    if headers.get(b"auth-status", b"OK") != b"OK" or not _OTHERS.isdisjoint(headers):
        return None
    try:
        return upstream_address(headers)
    except InvalidAuthResponse:
        return None  # raised again where the decision is made

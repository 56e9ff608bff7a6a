# SPDX-License-Identifier: Apache-2.0
"""The two formats of log lines: JSON (RFC 8259) for programs, ``key=value`` for people.

Every line is printable ASCII and ends in one line feed: control characters,
quotation marks, invalid UTF-8, U+2028 and bidirectional controls are escaped,
so that no client can break a line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from json import encoder
from typing import Final, Protocol

from mailproxy.enums import CacheUse, CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy_config.addresses import format_host_port

USER_LIMIT: Final = 256
"""Bytes of a user name that are logged."""
SERVER_NAME_LIMIT: Final = 255
"""Bytes of an SNI name that are logged."""
_TEXT_LIMIT: Final = 200
ELLIPSIS: Final = "..."
"""Marks a truncated value."""

quote: Final = encoder.encode_basestring_ascii
"""Return text as a JSON string, without a limit."""


def quote_limited(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Return text as a JSON string, truncated after ``limit`` characters."""
    if len(text) <= limit:
        return quote(text)
    return quote(text[:limit] + ELLIPSIS)


def quote_bytes(data: bytes, limit: int) -> str:
    r"""Return bytes as a JSON string, truncated: UTF-8 decoded, other bytes as ``\\xNN``."""
    if len(data) <= limit:
        return quote(data.decode("utf-8", "backslashreplace"))
    return quote(data[:limit].decode("utf-8", "backslashreplace") + ELLIPSIS)


def is_unquoted(text: str) -> bool:
    """Return whether text needs no escapes in a JSON string."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _text_string(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Leave text as it is where that reads as one word; else quote it."""
    if text and len(text) <= limit and is_unquoted(text) and " " not in text and "=" not in text:
        return text
    return quote_limited(text, limit)


_MILLISECONDS: Final = tuple(f"{number:03d}Z" for number in range(1000))


class TimestampFormatter:
    """Formats times as in RFC 3339, in UTC with milliseconds; each second is formatted once."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = math.inf  # so that the first time is not in it
        self._prefix = ""

    def format(self, now: float) -> str:
        """Format a Unix time, e.g. ``2026-11-23T04:05:06.789Z``."""
        fraction = now - self._second
        if not 0.0 <= fraction < 1.0:
            self._second = second = float(int(now))
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            fraction = now - second
        return self._prefix + _MILLISECONDS[int(fraction * 1000.0)]


class Held(Protocol):
    """Something that a session holds until its end, or until the end of a login."""

    def login_succeeded(self) -> None:
        """The upstream has accepted the login."""

    def login_failed(self) -> None:
        """The upstream has not accepted the login, and the session goes on without one."""

    def release(self) -> None:
        """The session is over."""


class ServerFields:
    """The fields that are the same in the lines of all sessions of a server.

    Args:
        name: The name of the server.
        protocol: Its protocol.
    """

    __slots__ = ("json", "text")

    def __init__(self, name: str = "", protocol: str = "") -> None:
        self.json: Final = f'"server":{quote_limited(name)},"protocol":"{protocol}"'
        self.text: Final = f"{protocol} server={_text_string(name)}"


_NO_SERVER: Final = ServerFields()


@dataclass(slots=True, eq=False)
class SessionRecord:
    """The values of one session's log line, set while the session runs.

    Times are in seconds: ``started`` on the monotonic clock, the others are
    durations, ``None`` where the stage was not reached.  ``user`` is what the
    client sent; the log escapes and truncates it.  There is no field for a
    password.
    """

    session: str = ""
    """From ``Log.session_id``."""
    server: ServerFields = _NO_SERVER
    client: str = ""
    """The client's address without its port (after ``set_real_ip_from``)."""
    client_port: int = 0
    started: float = 0.0
    proxied: bool = False
    """Whether the address is from a PROXY header, or was named by a trusted client."""
    named_by: str = ""
    """Address of the client that named this one (``real_ip_command``)."""
    received_session: str = ""
    """The session ID that it has sent."""
    tls: str | None = None
    """TLS version, by OpenSSL's name."""
    cipher: str = ""
    server_name: bytes | None = None
    """The name in the TLS handshake (SNI); any bytes that the client chooses."""
    user: bytes = b""
    method: Method | None = None
    result: LoginResult | None = None
    """The result of the last login."""
    attempts: int = 0
    cache: CacheUse | None = None
    """How the cache decided the last login, if it did."""
    password_failures: int = 0
    """Number of logins that were refused because of a wrong password."""
    pwfp: str = ""
    """Fingerprint of the last of these passwords (``log_password_fingerprint``)."""
    policy_refusal: str | None = None
    """What the policy server wrote when it refused the last login; ``None`` if it did not."""
    errors: int = 0
    error: ProtocolErrorKind | None = None
    """The last protocol error."""
    upstream: str = ""
    upstream_port: int = 0
    stage: str | None = None
    """The step at which the last login failed: ``limit``, ``auth``, ``policy``, or an ``UpstreamStage``."""
    reply: bytes | None = None
    """The reply that refused it, prepared for the log (``protocols.redaction``)."""
    auth_seconds: float | None = None
    """Time of all requests to the authentication service."""
    upstream_seconds: float | None = None
    """Time to connect and log in at the upstream."""
    login_seconds: float | None = None
    """Time from complete credentials to the reply to the client."""
    duration: float = 0.0
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0
    reason: CloseReason | None = None
    is_silent: bool = False
    """Whether the client closed the connection before it sent anything."""
    limit_zone: str = ""
    """The zone of ``limit_conn`` or ``limit_req`` that refused the login."""
    held: Held | None = None
    """What limits have counted of the session; released at its end."""


Field = object
"""A field of an event: str, bytes, a number, bool, ``None``, or a value that ``str`` formats."""

LINE_LIMIT: Final = 4096
"""Maximum bytes of an event's line; a pipe takes so many atomically (``PIPE_BUF``)."""
_VALUE_LIMITS: Final = (2048, 256, 32)

_METHODS: Final[dict[Method | None, str]] = {None: "null"} | {word: f'"{word}"' for word in Method}
_RESULTS: Final[dict[LoginResult | None, str]] = {None: "null"} | {word: f'"{word}"' for word in LoginResult}
_ERRORS: Final[dict[ProtocolErrorKind | None, str]] = {None: "null"} | {
    word: f'"{word}"' for word in ProtocolErrorKind
}
_REASONS: Final[dict[CloseReason | None, str]] = {None: "null"} | {word: f'"{word}"' for word in CloseReason}

_SUCCESS: Final = LoginResult.SUCCESS  # saves 900 instructions per access on Python 3.11
# What most sessions have.
_NOT_PROXIED: Final = '"proxied":false,'
_NO_TLS: Final = '"tls":null,"cipher":null,"server_name":null'
_PLAIN: Final = _NOT_PROXIED + _NO_TLS
_FIRST_SUCCESS: Final = '"result":"success","attempts":1,"password_failures":0,"errors":0,"error":null'
_NO_FAILURE: Final = '"stage":null,"reply":null'
_SHORT_SPANS: Final = tuple(f"{number / 10_000:.4f}" for number in range(1000))
"""The spans below 0.1 seconds, by their number of tenths of a millisecond."""


@lru_cache(maxsize=256)
def _upstream(address: str, port: int) -> str:
    """Return what is the same for all sessions at an upstream."""
    return f'"upstream":{quote_limited(address)},"upstream_port":{port}'


def _connection(r: SessionRecord) -> str:
    proxied = _proxied(r) if r.proxied else _NOT_PROXIED
    if not r.tls:
        return proxied + _NO_TLS
    name = "null" if r.server_name is None else quote_bytes(r.server_name, SERVER_NAME_LIMIT)
    return f'{proxied}"tls":{quote_limited(r.tls)},"cipher":{quote_limited(r.cipher)},"server_name":{name}'


def _proxied(r: SessionRecord) -> str:
    if not r.named_by:
        return '"proxied":true,'
    session = quote(r.received_session) if r.received_session else "null"
    return f'"proxied":true,"named_by":{quote_limited(r.named_by)},"received_session":{session},'


def _login_result(r: SessionRecord) -> str:
    cache = "" if r.cache is None else f'"cache":"{r.cache}",'
    pwfp = f'"pwfp":"{r.pwfp}",' if r.pwfp else ""
    return (
        f'"result":{_RESULTS[r.result]},"attempts":{r.attempts},{cache}'
        f'"password_failures":{r.password_failures},{pwfp}"errors":{r.errors},"error":{_ERRORS[r.error]}'
    )


def _seconds(span: float | None) -> str:
    """Return a span of a login, in seconds with four decimals; most are in a table."""
    if span is None:
        return "null"
    number = int(span * 10_000.0 + 0.5)
    return _SHORT_SPANS[number] if number < 1000 else f"{span:.4f}"


def json_session(record: SessionRecord, stamp: str) -> str:
    """Format a session's line as JSON; every field is present, ``null`` where there is no value."""
    r = record
    level = "debug" if r.is_silent else "info"
    is_first_success = r.attempts == 1 and r.result is _SUCCESS and not (r.errors or r.password_failures)
    # Two strings, as CPython makes a list of the parts of one with more than 30.
    login = (
        f'{{"time":"{stamp}","level":"{level}","event":"session","session":"{r.session}",'
        f'{r.server.json},"client":{quote_limited(r.client)},"client_port":{r.client_port},'
        f"{_connection(r) if r.proxied or r.tls else _PLAIN},"
        f'"user":{quote_bytes(r.user, USER_LIMIT)},"method":{_METHODS[r.method]},'
        f"{_FIRST_SUCCESS if is_first_success and r.cache is None else _login_result(r)},"
    )
    return login + (
        f"{_upstream(r.upstream, r.upstream_port)},{_NO_FAILURE if r.stage is None else _failure(r)},"
        f'"auth_seconds":{_seconds(r.auth_seconds)},"upstream_seconds":{_seconds(r.upstream_seconds)},'
        f'"login_seconds":{_seconds(r.login_seconds)},"duration_seconds":{r.duration:.3f},'
        f'"bytes_to_upstream":{r.bytes_to_upstream},"bytes_to_client":{r.bytes_to_client},'
        f'"reason":{_REASONS[r.reason]}}}\n'
    )


def _failure(r: SessionRecord) -> str:
    if r.result is _SUCCESS:
        return _NO_FAILURE  # an earlier login failed
    reply = "null" if r.reply is None else quote_bytes(r.reply, _TEXT_LIMIT)
    zone = f',"limit_zone":{quote(r.limit_zone)}' if r.limit_zone else ""
    return f'"stage":"{r.stage}","reply":{reply}{zone}'


def text_session(record: SessionRecord, stamp: str) -> str:
    """Format a session's line as text; fields without a value are left out."""
    r = record
    level = "debug" if r.is_silent else "info"
    parts = [f"{stamp} {level} session {r.session} {r.server.text}"]
    client = _text_string(format_host_port(r.client, r.client_port))
    parts.append(f"client={client}{_text_proxied(r) if r.proxied else ''}")
    if r.tls:
        parts.append(f"tls={_text_string(r.tls)} cipher={_text_string(r.cipher)}")
        if r.server_name is not None:
            parts.append(f"server_name={quote_bytes(r.server_name, SERVER_NAME_LIMIT)}")
    if r.method is not None:
        parts += _login_parts(r, r.method)
    if r.errors:
        parts.append(f"errors={r.errors}" + (f" error={r.error}" if r.error is not None else ""))
    parts.append(
        f"duration={r.duration:.3f}s to_client={r.bytes_to_client} to_upstream={r.bytes_to_upstream}"
    )
    if r.reason is not None:
        parts.append("reason=" + r.reason)
    return " ".join(parts) + "\n"


def _text_proxied(r: SessionRecord) -> str:
    if not r.named_by:
        return " proxied"
    session = f" received_session={_text_string(r.received_session)}" if r.received_session else ""
    return f" proxied named_by={_text_string(r.named_by)}{session}"


def _login_parts(r: SessionRecord, method: Method) -> list[str]:
    cache = "" if r.cache is None else f" cache={r.cache}"
    # An f-string calls three functions of a member of an enum; "+" takes it as the string that it is.
    parts = [f"user={quote_bytes(r.user, USER_LIMIT)}", "method=" + method, f"attempts={r.attempts}{cache}"]
    if r.password_failures:
        parts.append(f"password_failures={r.password_failures}" + (f" pwfp={r.pwfp}" if r.pwfp else ""))
    if r.result is not None:
        parts.append("result=" + r.result)
    is_failure = r.result is not _SUCCESS
    if r.stage is not None and is_failure:
        parts.append(f"stage={r.stage}{' limit_zone=' + r.limit_zone if r.limit_zone else ''}")
    if r.reply is not None and is_failure:
        parts.append(f"reply={quote_bytes(r.reply, _TEXT_LIMIT)}")
    if r.upstream:
        parts.append(_text_upstream(r.upstream, r.upstream_port))
    for name, span in (("auth", r.auth_seconds), ("connect", r.upstream_seconds), ("login", r.login_seconds)):
        if span is not None:
            parts.append(f"{name}={_seconds(span)}s")
    return parts


@lru_cache(maxsize=256)
def _text_upstream(address: str, port: int) -> str:
    return f"upstream={_text_string(format_host_port(address, port))}"


def _value(value: Field, limit: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else f"{value:d}"
    if isinstance(value, bytes):
        return quote_bytes(value, limit)
    return quote_limited(str(value), limit)


def _text_value(value: Field, limit: int) -> str:
    return _text_string(value, limit) if isinstance(value, str) else _value(value, limit)


def json_event(level: str, name: str, stamp: str, fields: Mapping[str, Field]) -> str:
    """Format an event as JSON; values are truncated until the line is at most ``LINE_LIMIT`` long."""
    head = f'{{"time":"{stamp}","level":"{level}","event":"{name}"'
    line = ""
    for limit in _VALUE_LIMITS:
        line = head + "".join(f',"{key}":{_value(value, limit)}' for key, value in fields.items()) + "}\n"
        if len(line) <= LINE_LIMIT:
            break
    return line


def text_event(level: str, name: str, stamp: str, fields: Mapping[str, Field]) -> str:
    """Format an event as text; values are truncated until the line is at most ``LINE_LIMIT`` long."""
    line = ""
    for limit in _VALUE_LIMITS:
        values = "".join(f" {key}={_text_value(value, limit)}" for key, value in fields.items())
        line = f"{stamp} {level} {name}{values}\n"
        if len(line) <= LINE_LIMIT:
            break
    return line

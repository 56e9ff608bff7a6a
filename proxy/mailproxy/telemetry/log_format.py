# SPDX-License-Identifier: Apache-2.0
"""The two looks of a log line: JSON for machines, ``key=value`` for people.

A session's line is put together in one piece, for there is one per session
(RFC 8259 for JSON; every line is ASCII and ends in one line feed).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from json import encoder
from typing import Final

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy_config.addresses import format_host_port

USER_LIMIT: Final = 256
"""Bytes of a user name that the log keeps."""
MARK: Final = "..."
"""Stands where something was cut off."""

quote: Final = encoder.encode_basestring_ascii
"""Puts text between quotation marks, escaped as JSON has it; ``quote_limited`` without its limit."""


def quote_limited(text: str, limit: int) -> str:
    """Put text between quotation marks, escaped as JSON has it, and cut after ``limit`` characters."""
    if len(text) <= limit:
        return quote(text)
    return quote(text[:limit] + MARK)


def quote_bytes(data: bytes, limit: int) -> str:
    r"""Put bytes between quotation marks: UTF-8 where it is, ``\\xNN`` where it is not."""
    if len(data) <= limit:
        return quote(data.decode("utf-8", "backslashreplace"))
    return quote(data[:limit].decode("utf-8", "backslashreplace") + MARK)


def is_unquoted(text: str) -> bool:
    """Whether text may stand between quotation marks as it is."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


class TimestampFormatter:
    """The time of day as RFC 3339 has it, in UTC with milliseconds; seconds are formatted once."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, now: float) -> str:
        """Write a Unix time down, e.g. ``2026-11-23T04:05:06.789Z``."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{int((now - second) * 1000):03d}Z"


@dataclass(slots=True, eq=False)
class SessionRecord:
    """Everything the log tells about one session.

    Times are seconds: ``started`` on the monotonic clock, the others spans,
    and ``None`` where that stage was never reached.  ``user`` is as the client
    wrote it; the log escapes and cuts it.  There is no field for a password.
    """

    session: str = ""
    """From ``Log.session_id``."""
    server: str = ""
    protocol: str = ""
    client: str = ""
    """The client's address without its port (after ``set_real_ip_from``)."""
    client_port: int = 0
    started: float = 0.0
    proxied: bool = False
    """Whether the address came from a PROXY header."""
    tls: str | None = None
    """TLS version, by OpenSSL's name."""
    cipher: str = ""
    user: bytes = b""
    method: Method | None = None
    result: LoginResult | None = None
    """How the last attempt to log in ended."""
    attempts: int = 0
    errors: int = 0
    error: ProtocolErrorKind | None = None
    """The last of them."""
    upstream: str = ""
    upstream_port: int = 0
    stage: str | None = None
    """Where the last login failed: ``auth``, or how far it had come at the upstream."""
    reply: bytes | None = None
    """What whoever refused it replied, fit for a log (``protocols.redaction``)."""
    auth_seconds: float | None = None
    """Time the authentication service took, all attempts together."""
    upstream_seconds: float | None = None
    """Time to connect and log in at the upstream."""
    login_seconds: float | None = None
    """From complete credentials to the answer to the client."""
    duration: float = 0.0
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0
    reason: CloseReason | None = None
    is_silent: bool = False
    """Whether the client closed the connection before it sent anything."""


Field = object
"""What an event's field may be: text, bytes, numbers, truth, ``None``, or what ``str`` prints well."""

LINE_LIMIT: Final = 4096
"""Bytes of a line; a pipe takes so many in one piece (``PIPE_BUF``)."""
_TEXT_LIMIT: Final = 200
_VALUE_LIMITS: Final = (2048, 256, 32)

_METHODS: Final[dict[Method | None, str]] = {None: "null"} | {word: f'"{word}"' for word in Method}
_RESULTS: Final[dict[LoginResult | None, str]] = {None: "null"} | {word: f'"{word}"' for word in LoginResult}
_ERRORS: Final[dict[ProtocolErrorKind | None, str]] = {None: "null"} | {
    word: f'"{word}"' for word in ProtocolErrorKind
}
_FINE: Final = '"stage":null,"reply":null'
_REASONS: Final[dict[CloseReason | None, str]] = {None: "null"} | {word: f'"{word}"' for word in CloseReason}


_SPANS: Final = '"auth_seconds":%.4f,"upstream_seconds":%.4f,"login_seconds":%.4f,"duration_seconds":%.3f'


def _spans(r: SessionRecord) -> str:
    auth, upstream, login = r.auth_seconds, r.upstream_seconds, r.login_seconds
    if auth is not None and upstream is not None and login is not None:
        return _SPANS % (auth, upstream, login, r.duration)
    return (
        f'"auth_seconds":{_seconds(auth)},"upstream_seconds":{_seconds(upstream)},'
        f'"login_seconds":{_seconds(login)},"duration_seconds":{r.duration:.3f}'
    )


def _seconds(span: float | None) -> str:
    return "null" if span is None else f"{span:.4f}"


def _string(text: str) -> str:
    return quote_limited(text, _TEXT_LIMIT)


def json_session(record: SessionRecord, stamp: str) -> str:
    """Write a session's line as JSON; every field is always there, ``null`` for what never was."""
    r = record
    server, client, upstream = r.server, r.client, r.upstream
    if len(server) + len(client) + len(upstream) <= _TEXT_LIMIT:  # one look instead of three, nearly always
        server, client, upstream = quote(server), quote(client), quote(upstream)
    else:
        server, client, upstream = _string(server), _string(client), _string(upstream)
    tls, cipher = (_string(r.tls), _string(r.cipher)) if r.tls else ("null", "null")
    level = "debug" if r.is_silent else "info"
    return (
        f'{{"time":"{stamp}","level":"{level}","event":"session","session":"{r.session}","server":{server},'
        f'"protocol":"{r.protocol}","client":{client},"client_port":{r.client_port},'
        f'"proxied":{"true" if r.proxied else "false"},'
        f'"tls":{tls},"cipher":{cipher},'
        f'"user":{quote_bytes(r.user, USER_LIMIT)},"method":{_METHODS[r.method]},'
        f'"result":{_RESULTS[r.result]},"attempts":{r.attempts},'
        f'"errors":{r.errors},"error":{_ERRORS[r.error]},'
        f'"upstream":{upstream},"upstream_port":{r.upstream_port},'
        f"{_FINE if r.stage is None else _failure(r)},"
        f'{_spans(r)},"bytes_to_upstream":{r.bytes_to_upstream},"bytes_to_client":{r.bytes_to_client},'
        f'"reason":{_REASONS[r.reason]}}}\n'
    )


def _failure(r: SessionRecord) -> str:
    if r.result is LoginResult.SUCCESS:
        return _FINE  # an earlier attempt failed
    reply = "null" if r.reply is None else quote_bytes(r.reply, _TEXT_LIMIT)
    return f'"stage":"{r.stage}","reply":{reply}'


def endpoint(address: str, port: int) -> str:
    """Write an address with its port; a UNIX socket has none."""
    if not port:
        return address
    return format_host_port(address, port)


def text_session(record: SessionRecord, stamp: str) -> str:
    """Write a session's line for people: who, what, where to, how long, how much, why it ended.

    What never was is left out.
    """
    r = record
    level = "debug" if r.is_silent else "info"
    parts = [f"{stamp} {level} session {r.session} {r.protocol}", f"server={_word(r.server)}"]
    parts.append(f"client={_word(endpoint(r.client, r.client_port))}{' proxied' if r.proxied else ''}")
    if r.tls:
        parts.append(f"tls={_word(r.tls)} cipher={_word(r.cipher)}")
    if r.method is not None:
        parts += _login_parts(r)
    if r.errors:
        parts.append(f"errors={r.errors}" + (f" error={r.error}" if r.error is not None else ""))
    parts.append(
        f"duration={r.duration:.3f}s to_client={r.bytes_to_client} to_upstream={r.bytes_to_upstream}"
    )
    if r.reason is not None:
        parts.append(f"reason={r.reason}")
    return " ".join(parts) + "\n"


def _login_parts(r: SessionRecord) -> list[str]:
    parts = [f"user={quote_bytes(r.user, USER_LIMIT)} method={r.method} attempts={r.attempts}"]
    if r.result is not None:
        parts.append(f"result={r.result}")
    is_failure = r.result is not LoginResult.SUCCESS
    if r.stage is not None and is_failure:
        parts.append(f"stage={r.stage}")
    if r.reply is not None and is_failure:
        parts.append(f"reply={quote_bytes(r.reply, _TEXT_LIMIT)}")
    if r.upstream:
        parts.append(f"upstream={_word(endpoint(r.upstream, r.upstream_port))}")
    for name, span in (("auth", r.auth_seconds), ("connect", r.upstream_seconds), ("login", r.login_seconds)):
        if span is not None:
            parts.append(f"{name}={span:.4f}s")
    return parts


def _word(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Leave text as it is where that reads as one word; else quote it."""
    if text and len(text) <= limit and is_unquoted(text) and " " not in text and "=" not in text:
        return text
    return quote_limited(text, limit)


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
    return _word(value, limit) if isinstance(value, str) else _value(value, limit)


def json_event(level: str, name: str, stamp: str, fields: Mapping[str, Field]) -> str:
    """Write an event as JSON.  Values are cut shorter until the line is at most ``LINE_LIMIT`` long."""
    head = f'{{"time":"{stamp}","level":"{level}","event":"{name}"'
    line = ""
    for limit in _VALUE_LIMITS:
        line = head + "".join(f',"{key}":{_value(value, limit)}' for key, value in fields.items()) + "}\n"
        if len(line) <= LINE_LIMIT:
            break
    return line


def text_event(level: str, name: str, stamp: str, fields: Mapping[str, Field]) -> str:
    """Write an event for people.  Values are cut shorter until the line is at most ``LINE_LIMIT`` long."""
    line = ""
    for limit in _VALUE_LIMITS:
        values = "".join(f" {key}={_text_value(value, limit)}" for key, value in fields.items())
        line = f"{stamp} {level} {name}{values}\n"
        if len(line) <= LINE_LIMIT:
            break
    return line

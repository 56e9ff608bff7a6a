# SPDX-License-Identifier: Apache-2.0
"""The two looks of a log line: JSON for machines, ``key=value`` for people.

A session's line is put together in one piece, for there is one per session
(RFC 8259 for JSON; every line is ASCII and ends in one line feed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.telemetry.escape import USER_LIMIT, is_plain, quoted, quoted_bytes, whole
from mailproxy.telemetry.session_record import SessionRecord
from mailproxy_config.addresses import format_host_port

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
    return quoted(text, _TEXT_LIMIT)


def json_session(record: SessionRecord, stamp: str) -> str:
    """Write a session's line as JSON; every field is always there, ``null`` for what never was."""
    r = record
    server, client, upstream = r.server, r.client, r.upstream
    if len(server) + len(client) + len(upstream) <= _TEXT_LIMIT:  # one look instead of three, nearly always
        server, client, upstream = whole(server), whole(client), whole(upstream)
    else:
        server, client, upstream = _string(server), _string(client), _string(upstream)
    tls, cipher = (_string(r.tls), _string(r.cipher)) if r.tls else ("null", "null")
    level = "debug" if r.is_silent else "info"
    return (
        f'{{"time":"{stamp}","level":"{level}","event":"session","session":"{r.session}","server":{server},'
        f'"protocol":"{r.protocol}","client":{client},"client_port":{r.client_port},'
        f'"proxied":{"true" if r.proxied else "false"},'
        f'"tls":{tls},"cipher":{cipher},'
        f'"user":{quoted_bytes(r.user, USER_LIMIT)},"method":{_METHODS[r.method]},'
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
    reply = "null" if r.reply is None else quoted_bytes(r.reply, _TEXT_LIMIT)
    return f'"stage":"{r.stage}","reply":{reply}'


def text_session(record: SessionRecord, stamp: str) -> str:
    """Write a session's line for people: who, what, where to, how long, how much, why it ended.

    What never was is left out.
    """
    r = record
    level = "debug" if r.is_silent else "info"
    parts = [f"{stamp} {level} session {r.session} {r.protocol}", f"server={_word(r.server)}"]
    parts.append(
        f"client={_word(format_host_port(r.client, r.client_port))}{' proxied' if r.proxied else ''}"
    )
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
    parts = [f"user={quoted_bytes(r.user, USER_LIMIT)} method={r.method} attempts={r.attempts}"]
    if r.result is not None:
        parts.append(f"result={r.result}")
    is_failure = r.result is not LoginResult.SUCCESS
    if r.stage is not None and is_failure:
        parts.append(f"stage={r.stage}")
    if r.reply is not None and is_failure:
        parts.append(f"reply={quoted_bytes(r.reply, _TEXT_LIMIT)}")
    if r.upstream:
        parts.append(f"upstream={_word(format_host_port(r.upstream, r.upstream_port))}")
    for name, span in (("auth", r.auth_seconds), ("connect", r.upstream_seconds), ("login", r.login_seconds)):
        if span is not None:
            parts.append(f"{name}={span:.4f}s")
    return parts


def _word(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Leave text as it is where that reads as one word; else quote it."""
    if text and len(text) <= limit and is_plain(text) and " " not in text and "=" not in text:
        return text
    return quoted(text, limit)


def _value(value: Field, limit: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else f"{value:d}"
    if isinstance(value, bytes):
        return quoted_bytes(value, limit)
    return quoted(str(value), limit)


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

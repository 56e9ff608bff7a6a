# SPDX-License-Identifier: Apache-2.0
"""The two looks of a line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.types import Credentials, Secret
from mailproxy.telemetry.log_format import LINE_LIMIT, json_event, json_session, text_event, text_session
from mailproxy.telemetry.session_record import SessionRecord

STAMP = "2026-11-23T04:16:47.500Z"


def success(**changes: Any) -> SessionRecord:
    """A session that went well."""
    facts: dict[str, Any] = {
        "session": "0a1b2c3d-1f",
        "server": "imaps",
        "protocol": "imap",
        "client": "192.0.2.1",
        "client_port": 4711,
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "user": b"alice",
        "method": Method.PLAIN,
        "result": LoginResult.SUCCESS,
        "attempts": 1,
        "upstream": "10.0.0.3",
        "upstream_port": 143,
        "auth_seconds": 0.00123,
        "upstream_seconds": 0.002,
        "login_seconds": 0.0034,
        "duration": 61.5,
        "bytes_to_upstream": 20,
        "bytes_to_client": 4000,
        "reason": CloseReason.CLIENT_CLOSED,
    }
    return SessionRecord(**(facts | changes))


def test_a_session_as_json() -> None:
    assert json.loads(json_session(success(), STAMP)) == {
        "time": STAMP,
        "level": "info",
        "event": "session",
        "session": "0a1b2c3d-1f",
        "server": "imaps",
        "protocol": "imap",
        "client": "192.0.2.1",
        "client_port": 4711,
        "proxied": False,
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "user": "alice",
        "method": "plain",
        "result": "success",
        "attempts": 1,
        "errors": 0,
        "error": None,
        "upstream": "10.0.0.3",
        "upstream_port": 143,
        "stage": None,
        "reply": None,
        "auth_seconds": 0.0012,
        "upstream_seconds": 0.002,
        "login_seconds": 0.0034,
        "duration_seconds": 61.5,
        "bytes_to_upstream": 20,
        "bytes_to_client": 4000,
        "reason": "client_closed",
    }


def test_a_session_that_never_got_anywhere_has_the_same_fields() -> None:
    line = json.loads(json_session(SessionRecord(session="x"), STAMP))
    assert list(line) == list(json.loads(json_session(success(), STAMP)))
    assert {key for key, value in line.items() if value is None} == {
        "tls",
        "cipher",
        "method",
        "result",
        "error",
        "stage",
        "reply",
        "auth_seconds",
        "upstream_seconds",
        "login_seconds",
        "reason",
    }


def test_a_session_for_people() -> None:
    record = success(proxied=True, errors=2, error=ProtocolErrorKind.LINE_TOO_LONG)
    assert text_session(record, STAMP) == (
        f"{STAMP} info session 0a1b2c3d-1f imap server=imaps client=192.0.2.1:4711 proxied tls=TLSv1.3 "
        'cipher=TLS_AES_128_GCM_SHA256 user="alice" method=plain attempts=1 result=success '
        "upstream=10.0.0.3:143 auth=0.0012s connect=0.0020s login=0.0034s errors=2 error=line_too_long "
        "duration=61.500s to_client=4000 to_upstream=20 reason=client_closed\n"
    )


def test_what_never_was_is_left_out_for_people() -> None:
    record = SessionRecord("1-1", "mx", "smtp", "2001:db8::1", 25, reason=CloseReason.PREAUTH_TIMEOUT)
    assert text_session(record, STAMP) == (
        f"{STAMP} info session 1-1 smtp server=mx client=[2001:db8::1]:25 duration=0.000s "
        "to_client=0 to_upstream=0 reason=preauth_timeout\n"
    )


def test_a_client_without_a_port_and_a_login_that_was_given_up() -> None:
    record = SessionRecord("1-1", "mx", "smtp", "unix:", method=Method.LOGIN, user=b"a b")
    assert 'client=unix: user="a b" method=login attempts=0 duration' in text_session(record, STAMP)


RECORDS = st.builds(
    SessionRecord,
    server=st.text(max_size=300),
    protocol=st.sampled_from(["imap", "pop3", "smtp"]),
    client=st.text(max_size=300),
    client_port=st.integers(0, 65535),
    proxied=st.booleans(),
    tls=st.none() | st.text(max_size=300),
    cipher=st.text(max_size=300),
    user=st.binary(max_size=5000),
    method=st.none() | st.sampled_from(Method),
    result=st.none() | st.sampled_from(LoginResult),
    error=st.none() | st.sampled_from(ProtocolErrorKind),
    stage=st.none() | st.sampled_from(["auth", "login"]),
    reply=st.none() | st.binary(max_size=5000),
    is_silent=st.booleans(),
    upstream=st.text(max_size=300),
    upstream_port=st.integers(0, 65535),
    auth_seconds=st.none() | st.floats(0, 1e6),
    upstream_seconds=st.none() | st.floats(0, 1e6),
    login_seconds=st.none() | st.floats(0, 1e6),
    duration=st.floats(0, 1e9),
    bytes_to_client=st.integers(0, 2**63),
    reason=st.none() | st.sampled_from(CloseReason),
)


@given(RECORDS)
def test_whatever_a_stranger_says_a_session_is_one_line_of_json(record: SessionRecord) -> None:
    line = json_session(record, STAMP)
    assert_is_one_line(line)
    told = json.loads(line)
    assert told["client"] == cut(record.client)
    assert told["upstream"] == cut(record.upstream)
    assert told["user"] == record.user[:256].decode("utf-8", "backslashreplace") + "..." * (
        len(record.user) > 256
    )


def cut(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


@given(RECORDS)
def test_whatever_a_stranger_says_a_session_is_one_line_for_people(record: SessionRecord) -> None:
    assert_is_one_line(text_session(record, STAMP))


def assert_is_one_line(line: str) -> None:
    assert line.endswith("\n")
    assert line.isascii()
    assert line[:-1].isprintable()
    assert len(line) < 2 * LINE_LIMIT


FIELDS = {
    "text": "two words",
    "word": "one",
    "bytes": b'a"\n\xff',
    "number": 3,
    "share": 0.1234567,
    "whole": 60.0,
    "yes": True,
    "no": False,
    "nothing": None,
    "enum": CloseReason.DRAIN,
    "secret": Secret(b"hunter2"),
    "credentials": Credentials(Method.PLAIN, b"a", Secret(b"hunter2")),
}


def test_an_event_as_json() -> None:
    assert json.loads(json_event("warn", "something", STAMP, FIELDS)) == {
        "time": STAMP,
        "level": "warn",
        "event": "something",
        "text": "two words",
        "word": "one",
        "bytes": 'a"\n\\xff',
        "number": 3,
        "share": 0.123457,
        "whole": 60,
        "yes": True,
        "no": False,
        "nothing": None,
        "enum": "drain",
        "secret": "***",
        "credentials": "Credentials(method=<Method.PLAIN: 'plain'>, user=b'a', password=***, challenge=None)",
    }


def test_an_event_for_people() -> None:
    assert text_event("warn", "something", STAMP, FIELDS) == (
        f'{STAMP} warn something text="two words" word=one bytes="a\\"\\n\\\\xff" number=3 share=0.123457 '
        'whole=60 yes=true no=false nothing=null enum=drain secret="***" '
        "credentials=\"Credentials(method=<Method.PLAIN: 'plain'>, user=b'a', password=***, challenge=None)\""
        "\n"
    )


@pytest.mark.parametrize("write", [json_event, text_event])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"a": "x" * 100_000},
        {"a": b"\x00" * 100_000},
        {"a": b"\x00" * 300, "b": "\x00" * 300, "c": "x" * 3000},
        {f"f{n}": "\x00" * 3000 for n in range(12)},
    ],
)
def test_an_event_fits_into_a_pipe_in_one_piece(write: Any, fields: dict[str, object]) -> None:
    line = write("info", "something", STAMP, fields)
    assert_is_one_line(line)
    assert len(line) <= LINE_LIMIT
    assert list(fields) == [key for key in fields if key in line]


@pytest.mark.parametrize("write", [json_event, text_event])
def test_an_event_of_very_many_fields_is_one_line_nevertheless(write: Any) -> None:
    line = write("info", "something", STAMP, {f"f{n}": "x" * 100 for n in range(200)})
    assert line.count("\n") == 1
    assert line.count("x" * 32 + "...") == 200


def test_values_are_cut_no_more_than_they_must() -> None:
    told = json.loads(json_event("error", "internal_error", STAMP, {"where": "x" * 3000}))
    assert told["where"] == "x" * 2048 + "..."

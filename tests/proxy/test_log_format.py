# SPDX-License-Identifier: Apache-2.0
"""Log lines: formats, escapes, and the record of a session."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.enums import CacheUse, CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.types import Credentials, Secret
from mailproxy.telemetry.log_format import (
    LINE_LIMIT,
    ServerFields,
    SessionRecord,
    TimestampFormatter,
    is_unquoted,
    json_event,
    json_session,
    quote_bytes,
    quote_limited,
    text_event,
    text_session,
)

STAMP = "2026-11-23T04:16:47.500Z"


def success(**changes: Any) -> SessionRecord:
    """A session with a successful login."""
    facts: dict[str, Any] = {
        "session": "0a1b2c3d-1f",
        "server": ServerFields("imaps", "imap"),
        "client": "192.0.2.1",
        "client_port": 4711,
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "server_name": b"imap.example.com",
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
        "server_name": "imap.example.com",
        "user": "alice",
        "method": "plain",
        "result": "success",
        "attempts": 1,
        "password_failures": 0,
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


def test_named_client_has_two_more_fields() -> None:
    record = success(proxied=True, named_by="10.0.0.5", received_session="k3Xp0vY")
    line = json.loads(json_session(record, STAMP))
    assert (line["proxied"], line["named_by"], line["received_session"]) == (True, "10.0.0.5", "k3Xp0vY")
    assert line.keys() - json.loads(json_session(success(), STAMP)).keys() == {"named_by", "received_session"}
    assert " proxied named_by=10.0.0.5 received_session=k3Xp0vY " in text_session(record, STAMP)
    record = success(proxied=True, named_by="10.0.0.5")
    assert json.loads(json_session(record, STAMP))["received_session"] is None
    assert " proxied named_by=10.0.0.5 tls=" in text_session(record, STAMP)


def test_refused_passwords_are_counted_and_have_a_fingerprint_if_it_is_made() -> None:
    record = success(result=LoginResult.DENIED, password_failures=2)
    assert json.loads(json_session(record, STAMP))["password_failures"] == 2
    assert "pwfp" not in json.loads(json_session(record, STAMP))
    assert " attempts=1 password_failures=2 result=denied " in text_session(record, STAMP)
    record.pwfp = "00ff00ff00ff00ff"
    assert json.loads(json_session(record, STAMP))["pwfp"] == "00ff00ff00ff00ff"
    assert " password_failures=2 pwfp=00ff00ff00ff00ff result=denied " in text_session(record, STAMP)


def test_session_without_login_has_the_same_fields() -> None:
    line = json.loads(json_session(SessionRecord(session="x"), STAMP))
    assert list(line) == list(json.loads(json_session(success(), STAMP)))
    assert {key for key, value in line.items() if value is None} == {
        "tls",
        "cipher",
        "server_name",
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


@pytest.mark.parametrize("seconds", [0.0, 0.00004, 0.00006, 0.0123, 0.09994, 0.09996, 0.1, 0.99996, 12.34567])
def test_seconds_of_a_login_have_four_decimals(seconds: float) -> None:
    record = success(auth_seconds=seconds, upstream_seconds=seconds, login_seconds=seconds)
    written = f"{seconds:.4f}"
    line = json_session(record, STAMP)
    assert line.count(f'_seconds":{written},') == 3
    assert f" auth={written}s connect={written}s login={written}s " in text_session(record, STAMP)


def test_session_as_text() -> None:
    record = success(proxied=True, errors=2, error=ProtocolErrorKind.LINE_TOO_LONG)
    assert text_session(record, STAMP) == (
        f"{STAMP} info session 0a1b2c3d-1f imap server=imaps client=192.0.2.1:4711 proxied tls=TLSv1.3 "
        'cipher=TLS_AES_128_GCM_SHA256 server_name="imap.example.com" user="alice" method=plain attempts=1 '
        "result=success upstream=10.0.0.3:143 auth=0.0012s connect=0.0020s login=0.0034s "
        "errors=2 error=line_too_long duration=61.500s to_client=4000 to_upstream=20 reason=client_closed\n"
    )


def test_text_session_omits_missing_values() -> None:
    record = SessionRecord(
        "1-1", ServerFields("mx", "smtp"), "2001:db8::1", 25, reason=CloseReason.PREAUTH_TIMEOUT
    )
    assert text_session(record, STAMP) == (
        f"{STAMP} info session 1-1 smtp server=mx client=[2001:db8::1]:25 duration=0.000s "
        "to_client=0 to_upstream=0 reason=preauth_timeout\n"
    )


def test_session_without_client_port_and_with_aborted_login() -> None:
    record = SessionRecord("1-1", ServerFields("mx", "smtp"), "unix:", method=Method.LOGIN, user=b"a b")
    assert 'client=unix: user="a b" method=login attempts=0 duration' in text_session(record, STAMP)


def test_control_characters_in_server_name_are_escaped() -> None:
    record = success(server_name=b'a"\r\n\x1b[31m\xff')
    assert json.loads(json_session(record, STAMP))["server_name"] == 'a"\r\n\x1b[31m\\xff'
    assert r'server_name="a\"\r\n\u001b[31m\\xff" user=' in text_session(record, STAMP)


def test_tls_without_server_name_has_no_server_name() -> None:
    record = success(server_name=None)
    assert json.loads(json_session(record, STAMP))["server_name"] is None
    assert "server_name" not in text_session(record, STAMP)


RECORDS = st.builds(
    SessionRecord,
    server=st.builds(ServerFields, st.text(max_size=300), st.sampled_from(["imap", "pop3", "smtp"])),
    client=st.text(max_size=300),
    client_port=st.integers(0, 65535),
    proxied=st.booleans(),
    named_by=st.text(max_size=300),
    received_session=st.text(max_size=100),
    tls=st.none() | st.text(max_size=300),
    cipher=st.text(max_size=300),
    server_name=st.none() | st.binary(max_size=300),
    user=st.binary(max_size=5000),
    method=st.none() | st.sampled_from(Method),
    result=st.none() | st.just(LoginResult.SUCCESS) | st.sampled_from(LoginResult),
    attempts=st.integers(0, 3),
    cache=st.none() | st.sampled_from(CacheUse),
    password_failures=st.integers(0, 2),
    pwfp=st.sampled_from(["", "00ff00ff00ff00ff"]),
    errors=st.integers(0, 2),
    error=st.none() | st.sampled_from(ProtocolErrorKind),
    stage=st.none() | st.sampled_from(["auth", "login"]),
    reply=st.none() | st.binary(max_size=5000),
    limit_zone=st.sampled_from(["", "addresses"]),
    is_silent=st.booleans(),
    upstream=st.text(max_size=300),
    upstream_port=st.integers(0, 65535),
    auth_seconds=st.none() | st.floats(0, 1e6),
    upstream_seconds=st.none() | st.floats(0, 1e6),
    login_seconds=st.none() | st.floats(0, 1e6),
    duration=st.floats(0, 1e9),
    bytes_to_upstream=st.integers(0, 2**63),
    bytes_to_client=st.integers(0, 2**63),
    reason=st.none() | st.sampled_from(CloseReason),
)


@given(RECORDS)
def test_any_client_data_is_one_line_of_json(record: SessionRecord) -> None:
    line = json_session(record, STAMP)
    assert_is_one_line(line)
    event = json.loads(line)
    assert event["client"] == cut(record.client)
    assert event["upstream"] == cut(record.upstream)
    assert event["user"] == record.user[:256].decode("utf-8", "backslashreplace") + "..." * (
        len(record.user) > 256
    )


@given(RECORDS)
@example(success(attempts=2))
@example(success(attempts=0))
@example(success(password_failures=1, pwfp="00ff00ff00ff00ff"))
@example(success(errors=1, error=ProtocolErrorKind.LINE_TOO_LONG))
@example(success(cache=CacheUse.STALE))
@example(success(result=LoginResult.DENIED))
def test_json_line_has_every_value_of_the_record(record: SessionRecord) -> None:
    event = json.loads(json_session(record, STAMP))
    for name in ("client_port", "proxied", "method", "result", "attempts", "password_failures", "errors",
                 "upstream_port", "bytes_to_upstream", "bytes_to_client", "reason"):  # fmt: skip
        assert event[name] == getattr(record, name), name
    assert event["duration_seconds"] == pytest.approx(record.duration, abs=0.00051)
    for name in ("auth_seconds", "upstream_seconds", "login_seconds"):
        span = getattr(record, name)
        assert event[name] == (None if span is None else pytest.approx(span, abs=0.0000501)), name
    assert event.get("cache") == record.cache
    if record.errors:
        assert event["error"] == record.error
    if record.password_failures:
        assert event.get("pwfp", "") == record.pwfp
    if record.tls:
        assert (event["tls"], event["cipher"]) == (cut(record.tls), cut(record.cipher))
    if record.proxied and record.named_by:
        assert event["named_by"] == cut(record.named_by)
        assert event["received_session"] == (record.received_session or None)
    if record.stage is not None and record.result is not LoginResult.SUCCESS:
        assert (event["stage"], event.get("limit_zone", "")) == (record.stage, record.limit_zone)


def cut(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


@given(RECORDS)
def test_any_client_data_is_one_line_of_text(record: SessionRecord) -> None:
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


def test_event_as_text() -> None:
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
def test_event_is_at_most_pipe_buf_long(write: Any, fields: dict[str, object]) -> None:
    line = write("info", "something", STAMP, fields)
    assert_is_one_line(line)
    assert len(line) <= LINE_LIMIT
    assert list(fields) == [key for key in fields if key in line]


@pytest.mark.parametrize("write", [json_event, text_event])
def test_event_with_many_fields_is_one_line(write: Any) -> None:
    line = write("info", "something", STAMP, {f"f{n}": "x" * 100 for n in range(200)})
    assert line.count("\n") == 1
    assert line.count("x" * 32 + "...") == 200


def test_values_are_truncated_no_more_than_needed() -> None:
    event = json.loads(json_event("error", "internal_error", STAMP, {"where": "x" * 3000}))
    assert event["where"] == "x" * 2048 + "..."


@pytest.mark.parametrize(
    ("data", "written"),
    [
        (b"", '""'),
        (b"alice@example.com", '"alice@example.com"'),
        (b'a"b\\c', r'"a\"b\\c"'),
        (b"a\r\nb\x00\x1b[31m\x7f", r'"a\r\nb\u0000\u001b[31m\u007f"'),
        ("jürgen".encode(), r'"j\u00fcrgen"'),
        (b"\xff\xfe", r'"\\xff\\xfe"'),
        ("a\u2028b\u202ec".encode(), r'"a\u2028b\u202ec"'),
        ("\U0001f4e7".encode(), r'"\ud83d\udce7"'),
    ],
)
def test_bytes_become_a_json_string(data: bytes, written: str) -> None:
    assert quote_bytes(data, 64) == written


@pytest.mark.parametrize(
    ("data", "written"),
    [
        (b"x" * 8, '"xxxxxxxx"'),
        (b"x" * 9, '"xxxxxxxx..."'),
        (b"x" * 7 + "ü".encode(), r'"xxxxxxx\\xc3..."'),  # cut in the middle of a character
    ],
)
def test_long_bytes_are_truncated_with_a_mark(data: bytes, written: str) -> None:
    assert quote_bytes(data, 8) == written


@given(st.binary(max_size=600))
def test_any_bytes_become_printable_ascii_of_limited_length(data: bytes) -> None:
    written = quote_bytes(data, 256)
    assert written.isascii()
    assert written.isprintable()
    assert len(written) <= 6 * 256 + len('"..."')
    assert isinstance(json.loads(written), str)


@given(st.text(max_size=600))
def test_any_text_becomes_printable_ascii_of_limited_length(text: str) -> None:
    written = quote_limited(text, 100)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == (text if len(text) <= 100 else text[:100] + "...")


@given(st.text(max_size=20))
def test_unquoted_text_needs_no_escape(text: str) -> None:
    assert is_unquoted(text) == (quote_limited(text, 100) == f'"{text}"')


@pytest.mark.parametrize(
    ("now", "written"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795407407.5, "2026-11-23T04:16:47.500Z"),
        (1795407407.9999, "2026-11-23T04:16:47.999Z"),
        (1795407408.0, "2026-11-23T04:16:48.000Z"),
        (1795407406.25, "2026-11-23T04:16:46.250Z"),  # the clock was set back
    ],
)
def test_times_are_utc_with_milliseconds(now: float, written: str) -> None:
    format_time = TimestampFormatter().format
    assert format_time(1795407407.0) == "2026-11-23T04:16:47.000Z"
    assert format_time(now) == written


def test_record_has_defaults() -> None:
    record = SessionRecord()
    assert (record.user, record.method, record.result, record.reason) == (b"", None, None, None)


def test_record_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        SessionRecord().password = b"x"  # type: ignore[attr-defined]


def test_record_has_no_field_for_a_secret() -> None:
    secret = {"password", "secret", "credentials", "salt", "digest", "token"}
    assert not secret & {field.name for field in fields(SessionRecord)}


PAGE = (Path(__file__).parents[2] / "docs/session-log.md").read_text()


def documented(column: int) -> dict[str, str]:
    """The table of fields: the values of a column by the names of the fields."""
    table = PAGE.partition("| Field |")[2].partition("\n\n")[0]
    rows = [row.strip("|").split(" | ") for row in table.splitlines()[2:]]
    return {row[0].strip(" `"): row[column].strip(" |") for row in rows}


def test_fields_of_the_session_line_are_those_of_its_page() -> None:
    record = success(proxied=True, named_by="10.0.0.5", password_failures=1, pwfp="0" * 16)
    record.result, record.stage, record.limit_zone = LoginResult.LIMIT_CONN, "limit", "per_user"
    record.cache = CacheUse.HIT
    assert list(json.loads(json_session(record, STAMP))) == list(documented(1))
    always = [name for name, meaning in documented(2).items() if not meaning.startswith("only with")]
    assert list(json.loads(json_session(SessionRecord(), STAMP))) == always


@given(RECORDS)
def test_types_of_the_session_line_are_those_of_its_page(record: SessionRecord) -> None:
    kinds = {"text": str, "number": (int, float), "boolean": bool, "null": type(None)}
    types = documented(1)
    for name, value in json.loads(json_session(record, STAMP)).items():
        assert any(isinstance(value, kinds[kind]) for kind in types[name].split(", ")), name


def test_page_lists_every_result_and_method() -> None:
    results = PAGE.partition("## Results")[2].partition("## ")[0]
    listed = re.findall(
        r"`(\w+)`", "".join(row.split("|")[1] for row in results.splitlines() if row[:3] == "| `")
    )
    assert set(listed) - {"result"} == set(LoginResult)
    assert set(re.findall(r"`(\w+)`", documented(2)["method"])) == set(Method)

# SPDX-License-Identifier: Apache-2.0
"""The log: levels, buffering, session IDs, recovery, and no secrets."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy.enums import Method
from mailproxy.protocols.types import AuthAllowed, AuthRequest, Client, Credentials, Secret
from mailproxy.telemetry.log import LibraryLogHandler, Log
from mailproxy.telemetry.log_format import ServerFields, SessionRecord
from mailproxy.telemetry.log_sinks import CAPACITY
from mailproxy.telemetry.log_writer import LogFormat, LogWriter
from mailproxy_config.model import LogLevel, Protocol, ProxyConfig
from support.configs import server
from support.fuzz import examples

NOW = 1795407407.5
STAMP = "2026-11-23T04:16:47.500Z"
MARKED = b"s3cr3t-ELLIPSIS"


class Page:
    """A log that writes to a file, and its content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file = path.open("wb")

    def log(self, **options: Any) -> Log:
        return Log(self.file.fileno(), now=lambda: NOW, **options)

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path / "log")
    yield page
    page.file.close()


@pytest.mark.parametrize(
    ("level", "logs_sessions"),
    [
        (LogLevel.DEBUG, True),
        (LogLevel.INFO, True),
        (LogLevel.NOTICE, True),
        (LogLevel.WARN, True),
        (LogLevel.ERROR, True),  # the default
        (LogLevel.CRIT, False),
        (LogLevel.ALERT, False),
        (LogLevel.EMERG, False),
    ],
)
def test_session_lines_are_written_up_to_level_error(
    page: Page, level: LogLevel, logs_sessions: bool
) -> None:
    log = page.log(level=level)
    log.session(SessionRecord())
    log.flush()
    assert len(page.lines()) == logs_sessions


@pytest.mark.parametrize("level", LogLevel)
def test_events_below_the_level_are_not_written(page: Page, level: LogLevel) -> None:
    log = page.log(level=level)
    for each in LogLevel:
        log.event(each, "tick")
    log.flush()
    assert [event["level"] for event in page.events()] == list(LogLevel)[list(LogLevel).index(level) :]


def test_a_reload_may_change_the_level(page: Page) -> None:
    log = page.log(level=LogLevel.CRIT)
    log.event(LogLevel.INFO, "no")
    log.level = LogLevel.INFO
    log.event(LogLevel.INFO, "yes")
    log.session(SessionRecord())
    log.flush()
    assert log.level is LogLevel.INFO
    assert [event["event"] for event in page.events()] == ["yes", "session"]


def configured(level: LogLevel, *servers: LogLevel, **changes: Any) -> ProxyConfig:
    """A configuration with a level, and servers with levels of their own."""
    each = tuple(server(Protocol.IMAP, error_log=own) for own in servers)
    return ProxyConfig(servers=each, error_log=level, **changes)


def run_with(log: Log, config: ProxyConfig) -> list[LogWriter]:
    """Open and adopt a configuration; returns the logs of its servers."""
    log.open(config)
    writers = [log.for_server(each) for each in config.servers]
    log.adopt(config)
    return writers


def test_a_server_may_have_a_level_of_its_own(page: Page) -> None:
    log = page.log()
    verbose, terse = run_with(log, configured(LogLevel.ERROR, LogLevel.DEBUG, LogLevel.CRIT))
    verbose.event(LogLevel.INFO, "heard")
    terse.event(LogLevel.ERROR, "unheard")
    terse.session(SessionRecord())
    log.event(LogLevel.INFO, "unheard")
    log.flush()
    assert [event["event"] for event in page.events()] == ["heard"]


@pytest.mark.parametrize(
    ("own", "forced", "expected"),
    [
        (LogLevel.CRIT, LogLevel.INFO, ["info", "error", "session"]),
        (LogLevel.DEBUG, LogLevel.ERROR, ["error", "session"]),
        (LogLevel.DEBUG, LogLevel.CRIT, []),
    ],
)
def test_log_level_option_applies_to_sessions(
    page: Page, own: LogLevel, forced: LogLevel, expected: list[str]
) -> None:
    log = page.log(level=forced, is_fixed=True)
    (writer,) = run_with(log, configured(own, own))
    writer.event(LogLevel.INFO, "info")
    writer.event(LogLevel.ERROR, "error")
    writer.session(SessionRecord())
    log.flush()
    assert [event["event"] for event in page.events()] == expected
    assert log.takes(forced)


@pytest.mark.parametrize("level", LogLevel)
def test_silent_session_is_logged_at_debug_only(page: Page, level: LogLevel) -> None:
    log = page.log(level=level)
    log.session(SessionRecord(session="s-1", is_silent=True))
    log.session(SessionRecord(session="s-2"))
    log.flush()
    found = [(event["session"], event["level"]) for event in page.events()]
    silences = {LogLevel.CRIT, LogLevel.ALERT, LogLevel.EMERG}
    expected_at_info = [] if level in silences else [("s-2", "info")]
    assert found == [("s-1", "debug")] * (level is LogLevel.DEBUG) + expected_at_info


@pytest.mark.parametrize(
    ("format", "line"),
    [
        (LogFormat.JSON, f'{{"time":"{STAMP}","level":"warn","event":"reload_refused","path":"a b"}}'),
        (LogFormat.TEXT, f'{STAMP} warn reload_refused path="a b"'),
    ],
)
def test_both_formats_have_the_same_events(page: Page, format: LogFormat, line: str) -> None:
    page.log(format=format, level=LogLevel.WARN).event(LogLevel.WARN, "reload_refused", path="a b")
    assert page.lines() == [line]


def test_sessions_have_the_same_fields_in_both_formats(page: Page) -> None:
    log = page.log(format=LogFormat.TEXT)
    log.session(SessionRecord("s-1", ServerFields("in", "imap")))
    log.flush()
    assert page.lines()[0].startswith(f"{STAMP} info session s-1 imap server=in ")


def test_lines_are_buffered_and_warnings_are_flushed(page: Page) -> None:
    log = page.log(level=LogLevel.INFO)
    log.session(SessionRecord())
    log.event(LogLevel.NOTICE, "calm")
    assert page.lines() == []
    log.event(LogLevel.WARN, "urgent")
    assert [event["event"] for event in page.events()] == ["session", "calm", "urgent"]


def test_full_buffer_is_flushed(page: Page) -> None:
    log = page.log(level=LogLevel.INFO)
    for _ in range(100):
        log.session(SessionRecord())
        log.event(LogLevel.INFO, "tick")
    assert len(page.lines()) > 100


def test_session_ids_are_unique(page: Page) -> None:
    one, other = page.log(), page.log()
    names = [log.session_id() for log in (one, other) for _ in range(100)]
    assert len(set(names)) == 200
    assert len({name.split("-")[0] for name in names}) == 2
    assert max(map(len, names)) <= 12


def test_dropped_lines_are_counted_and_reported() -> None:
    out, into = os.pipe()
    os.set_blocking(out, False)
    with os.fdopen(out, "rb", buffering=0) as reads, os.fdopen(into, "wb") as writes:
        log = Log(writes.fileno(), level=LogLevel.INFO)
        total = 2 * (CAPACITY + (1 << 16)) // 50
        for number in range(total):
            log.event(LogLevel.INFO, "tick", number=number)
        received = b""
        while more := reads.read(1 << 20):
            received += more
            log.flush()
        log.close()
    events = [json.loads(line) for line in received.splitlines()]
    ticks = [event["number"] for event in events if event["event"] == "tick"]
    dropped = [(event["level"], event["count"]) for event in events if event["event"] == "log_lines_dropped"]
    assert dropped == [("error", total - len(ticks))]
    assert ticks == sorted(ticks)


def test_lines_dropped_before_the_exit_are_reported_by_close() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reads, os.fdopen(into, "wb") as writes:
        log = Log(writes.fileno(), level=LogLevel.INFO)
        total = 2 * (CAPACITY + (1 << 16)) // 50
        for number in range(total):
            log.event(LogLevel.INFO, "tick", number=number)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(reads))
        reader.start()  # the reader is late: it begins when the process exits
        log.close(60.0)
        writes.close()
        reader.join()
    events = [json.loads(line) for line in received]
    ticks = sum(event["event"] == "tick" for event in events)
    assert [event["count"] for event in events if event["event"] == "log_lines_dropped"] == [total - ticks]


def test_close_writes_queued_lines(page: Page) -> None:
    log = page.log()
    log.session(SessionRecord())
    log.close()
    assert len(page.lines()) == 1


# -- secrets


def holders(password: bytes) -> list[object]:
    """All values that contain a password."""
    secret = Secret(password)
    credentials = Credentials(Method.PLAIN, b"alice", secret)
    return [
        secret,
        credentials,
        AuthRequest(credentials, 1, Client("192.0.2.1")),
        AuthAllowed("192.0.2.1", 143, b"alice", secret),
        [secret],
        {"password": secret},
    ]


@pytest.mark.parametrize("holder", holders(MARKED), ids=lambda holder: type(holder).__name__)
@pytest.mark.parametrize("format", LogFormat)
def test_repr_of_values_with_passwords_has_none(page: Page, format: LogFormat, holder: object) -> None:
    log = page.log(format=format, level=LogLevel.DEBUG)
    log.event(LogLevel.DEBUG, "transcript", what=holder)
    log.flush()
    assert len(page.lines()) == 1
    assert MARKED.decode() not in page.lines()[0]
    assert "***" in page.lines()[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(50))
@given(password=st.binary(min_size=1).map(lambda data: MARKED + data))
def test_no_password_is_logged(tmp_path: Path, password: bytes) -> None:
    page = Page(tmp_path / "log")
    for format in LogFormat:
        log = page.log(format=format, level=LogLevel.DEBUG)
        for holder in holders(password):
            log.event(LogLevel.ERROR, "failed", what=holder)
    page.file.close()
    assert MARKED.decode() not in "".join(page.lines())


# -- log records of libraries


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (logging.CRITICAL, "crit"),
        (logging.ERROR, "error"),
        (logging.WARNING, "warn"),
        (logging.INFO, "info"),
        (logging.DEBUG, "debug"),
        (5, "debug"),
    ],
)
def test_library_records_have_the_log_format(page: Page, theirs: int, ours: str) -> None:
    log = page.log(level=LogLevel.DEBUG)
    record = logging.LogRecord("asyncio", theirs, "", 0, "Task %s\nfailed", ("x",), None)
    LibraryLogHandler(log).emit(record)
    log.flush()
    assert page.events() == [
        {"time": STAMP, "level": ours, "event": "library", "logger": "asyncio", "text": "Task x\nfailed"}
    ]


def test_library_records_are_filtered_by_level(page: Page) -> None:
    log = page.log(level=LogLevel.ERROR)
    LibraryLogHandler(log).emit(logging.LogRecord("asyncio", logging.WARNING, "", 0, "slow", (), None))
    log.flush()
    assert page.lines() == []

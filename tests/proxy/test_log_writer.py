# SPDX-License-Identifier: Apache-2.0
"""Logs in files and at syslog servers: levels, reopening, overflow, loss."""

from __future__ import annotations

import gc
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.log_sinks import CAPACITY, FileSink, SyslogSink
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import ErrorLog, LogLevel, Protocol, ProxyConfig, SyslogServer
from support.configs import server

LINE = "x" * 99 + "\n"


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a thread."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def written(sink: FileSink) -> None:
    sink.flush()
    wait_until(lambda: sink.size == 0)


@pytest.fixture
def standard_error(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "stderr").open("wb") as file:
        yield file.fileno()


def names(path: Path) -> list[str]:
    """Return the events of a text log."""
    return [line.split()[2] for line in path.read_text().splitlines()]


def to(path: Path, level: LogLevel = LogLevel.ERROR) -> ErrorLog:
    return ErrorLog(file=str(path), level=level)


def configured(*main: ErrorLog, imap: tuple[ErrorLog, ...] = ()) -> ProxyConfig:
    return ProxyConfig(servers=(server(Protocol.IMAP, error_logs=imap or main),), error_logs=main)


# -- several logs


def test_each_log_takes_events_from_its_level(tmp_path: Path, standard_error: int) -> None:
    quiet, loud, imap = (tmp_path / name for name in ("quiet", "loud", "imap"))
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(
        to(quiet, LogLevel.CRIT), to(loud, LogLevel.DEBUG), imap=(to(imap), to(loud, LogLevel.DEBUG))
    )
    log.open(config)
    log.adopt(config)
    writer = log.for_server(config.servers[0])
    for level in LogLevel:
        log.event(level, f"main_{level}")
    writer.event(LogLevel.INFO, "imap_info")
    writer.event(LogLevel.ERROR, "imap_error")
    writer.session(SessionRecord(is_silent=True))
    writer.session(SessionRecord())
    log.close()
    assert names(quiet) == ["main_crit", "main_alert", "main_emerg"]
    assert names(imap) == ["imap_error", "session"]
    assert names(loud) == [
        *(f"main_{level}" for level in LogLevel),
        "imap_info",
        "imap_error",
        *["session"] * 2,
    ]
    assert (tmp_path / "stderr").read_text() == ""


def test_the_same_log_twice_gets_each_line_once(tmp_path: Path, standard_error: int) -> None:
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(to(tmp_path / "a", LogLevel.WARN), to(tmp_path / "a", LogLevel.INFO))
    log.open(config)
    log.adopt(config)
    log.event(LogLevel.INFO, "info")
    log.event(LogLevel.ERROR, "error")
    log.close()
    assert names(tmp_path / "a") == ["info", "error"]


def test_sessions_before_a_reload_keep_their_log(tmp_path: Path, standard_error: int) -> None:
    log = Log(standard_error, LogFormat.TEXT)
    before, after = configured(to(tmp_path / "a")), configured(to(tmp_path / "b"))
    log.open(before)
    log.adopt(before)
    earlier = log.for_server(before.servers[0])
    log.open(after)
    later = log.for_server(after.servers[0])
    log.adopt(after)
    earlier.session(SessionRecord())
    later.session(SessionRecord())
    log.event(LogLevel.ERROR, "main")
    log.close()
    wait_until(lambda: names(tmp_path / "a") == ["session"])
    assert sorted(names(tmp_path / "b")) == ["main", "session"]


def test_unused_log_is_closed(tmp_path: Path, standard_error: int) -> None:
    log = Log(standard_error, LogFormat.TEXT)

    def is_open(path: Path) -> bool:
        folder = Path("/proc/self/fd")
        return str(path) in [os.readlink(each) for each in folder.iterdir() if each.is_symlink()]

    for name in "abc":
        config = configured(to(tmp_path / name))
        log.open(config)
        log.for_server(config.servers[0]).event(LogLevel.ERROR, "here")
        log.adopt(config)
        log.flush()
    gc.collect()
    wait_until(lambda: not is_open(tmp_path / "a") and not is_open(tmp_path / "b"))
    assert is_open(tmp_path / "c")
    log.close()
    assert names(tmp_path / "a") == ["here"]


def test_log_level_option_applies_to_every_log(tmp_path: Path, standard_error: int) -> None:
    log = Log(standard_error, LogFormat.TEXT, LogLevel.WARN, is_fixed=True)
    config = configured(to(tmp_path / "a", LogLevel.DEBUG), to(tmp_path / "b", LogLevel.EMERG))
    log.open(config)
    log.adopt(config, notices=True)
    log.event(LogLevel.WARN, "warn")
    log.event(LogLevel.NOTICE, "notice")
    log.close()
    assert names(tmp_path / "a") == names(tmp_path / "b") == ["warn"]


def test_notices_of_the_supervisor_are_also_on_standard_error(tmp_path: Path, standard_error: int) -> None:
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(to(tmp_path / "a"))
    log.open(config)
    log.adopt(config, notices=True)
    log.event(LogLevel.NOTICE, "notice")
    log.event(LogLevel.INFO, "info")
    log.event(LogLevel.ERROR, "error")
    log.close()
    assert names(tmp_path / "a") == ["error"]
    assert names(tmp_path / "stderr") == ["notice", "error"]


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("target", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
def test_a_file_that_is_standard_error_is_standard_error(
    tmp_path: Path, standard_error: int, target: str, link: bool
) -> None:
    path = Path(target)
    if link:
        path = tmp_path / "error.log"
        path.symlink_to(target)
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(to(path))
    log.open(config)
    log.adopt(config)
    log.event(LogLevel.ERROR, "error")
    log.close()
    assert names(tmp_path / "stderr") == ["error"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/error.log", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "null (byte|character)"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, standard_error: int, path: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        Log(standard_error).open(configured(ErrorLog(file=f"{tmp_path}/{path}")))
    assert 'or "error_log stderr"' in str(raised.value)


# -- files


def test_file_is_reopened_after_queued_lines(tmp_path: Path) -> None:
    path, moved = tmp_path / "a", tmp_path / "a.1"
    sink = FileSink(str(path))
    sink.put(["one\n"])
    sink.flush()
    path.rename(moved)
    sink.put(["two\n"])
    sink.reopen()
    sink.put(["three\n"])
    sink.close(30)
    assert moved.read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_file_that_cannot_be_reopened_stays_in_use_and_is_logged(tmp_path: Path, standard_error: int) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(to(folder / "a"), ErrorLog())
    log.open(config)
    log.adopt(config)
    log.event(LogLevel.ERROR, "before")
    folder.rename(tmp_path / "moved")
    log.reopen()
    wait_until(lambda: log.flush() or "log_not_reopened" in names(tmp_path / "stderr"))
    log.event(LogLevel.ERROR, "after")
    log.close()
    assert names(tmp_path / "moved" / "a")[:1] == ["before"]
    assert names(tmp_path / "moved" / "a")[-1] == "after"


def test_slow_disk_does_not_block_and_loses_only_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, begun = threading.Event(), threading.Event()
    write = os.write

    def slowly(fd: int, data: bytes) -> int:
        begun.set()
        goes_on.wait(30)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slowly)
    sink = FileSink(str(tmp_path / "a"))
    sink.put([LINE])
    assert not sink.flush()
    begun.wait(30)
    sink.put([LINE] * (2 * CAPACITY // len(LINE)))
    assert not sink.flush()
    assert sink.size <= CAPACITY
    lost = sink.dropped
    assert lost > 0
    goes_on.set()
    written(sink)
    assert sink.flush()
    sink.close(30)
    lines = (tmp_path / "a").read_text().splitlines()
    assert len(lines) + lost == 1 + 2 * CAPACITY // len(LINE)


def test_a_full_disk_loses_lines_and_counts_them(
    tmp_path: Path, standard_error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [250]

    def limited(fd: int, data: bytes) -> int:
        if fd == standard_error:
            return write(fd, data)
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)
    log = Log(standard_error, LogFormat.TEXT)
    config = configured(to(tmp_path / "a"))
    log.open(config)
    log.adopt(config)
    for number in range(20):
        log.event(LogLevel.ERROR, "tick", number=number)
        wait_until(lambda: log.outputs[0].sink.size == 0)
    room[0] = 1 << 20
    log.event(LogLevel.ERROR, "room_again")
    wait_until(lambda: log.outputs[0].sink.size == 0)
    log.close()
    text = (tmp_path / "a").read_text()
    found = [line for line in text.splitlines() if " tick number=" in line and line[-1].isdigit()]
    whole = [line for line in found if re.fullmatch(r"\S+ error tick number=\d+", line)]
    (count,) = re.findall(r"log_lines_dropped count=(\d+)", text)
    assert int(count) + len(whole) in {20, 21}  # a truncated line may have the form of a complete one
    assert "error room_again\n" in text


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    sinks = [FileSink(path) for _ in range(4)]
    for _ in range(50):
        for number, sink in enumerate(sinks):
            sink.put([f"{number}" * 99 + "\n"] * 20)
            sink.flush()
    for sink in sinks:
        sink.close(30)
    lines = Path(path).read_text().splitlines()
    assert len(lines) == 4000
    assert set(lines) == {f"{number}" * 99 for number in range(4)}


# -- syslog

STAMP = 1795407407.5


@pytest.fixture(params=["udp", "udp6", "unix"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, SyslogServer]]:
    if request.param == "unix":
        receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiving.bind(str(tmp_path / "log"))
        where = SyslogServer(unix_path=str(tmp_path / "log"))
    else:
        host = "127.0.0.1" if request.param == "udp" else "::1"
        receiving = socket.socket(
            socket.AF_INET if request.param == "udp" else socket.AF_INET6, socket.SOCK_DGRAM
        )
        receiving.bind((host, 0))
        where = SyslogServer(address=host, port=receiving.getsockname()[1])
    receiving.settimeout(30)
    with receiving:
        yield receiving, where


def test_a_syslog_server_gets_a_datagram_per_line(receiver: tuple[socket.socket, SyslogServer]) -> None:
    receiving, where = receiver
    sink = SyslogSink(where, hostname="Edge-1", now=lambda: STAMP)
    sink.put(["one\n", "two\n"])
    sink.put(["three\n"], LogLevel.CRIT)
    assert sink.flush()
    stamp = time.strftime("%b %e %H:%M:%S", time.localtime(STAMP))
    assert [receiving.recv(4096).decode() for _ in range(3)] == [
        f"<190>{stamp} edge-1 mailproxy: one",
        f"<190>{stamp} edge-1 mailproxy: two",
        f"<186>{stamp} edge-1 mailproxy: three",
    ]
    sink.close()


@pytest.mark.parametrize("level", LogLevel)
def test_facility_level_tag_and_host_name_are_in_the_header(
    receiver: tuple[socket.socket, SyslogServer], level: LogLevel
) -> None:
    receiving, where = receiver
    server = SyslogServer(
        address=where.address,
        port=where.port,
        unix_path=where.unix_path,
        facility="mail",
        tag="edge",
        has_hostname=False,
    )
    sink = SyslogSink(server, hostname="edge-1", now=lambda: STAMP)
    sink.put(["one\n"], level)
    sink.flush()
    severity = 7 - list(LogLevel).index(level)
    assert re.fullmatch(rf"<{2 * 8 + severity}>\w+ [ \d]\d [\d:]+ edge: one", receiving.recv(4096).decode())
    sink.close()


def test_unreachable_syslog_server_loses_lines_and_counts_them(tmp_path: Path) -> None:
    where = SyslogServer(unix_path=str(tmp_path / "log"))
    sink = SyslogSink(where, hostname="")
    sink.put(["one\n"] * 3)
    assert not sink.flush()
    assert (sink.dropped, sink.size) == (3, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "log"))
        sink.put(["two\n"])
        assert sink.flush()
        assert receiving.recv(4096).endswith(b"mailproxy: two")
    sink.close()


def test_slow_syslog_server_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "log"))
        sink = SyslogSink(SyslogServer(unix_path=str(tmp_path / "log")), hostname="")
        count = 2 * CAPACITY // len(LINE)
        for _ in range(count):
            sink.put([LINE])
            sink.flush()
        assert sink.size <= CAPACITY
        assert sink.dropped > 0
        sink.close()

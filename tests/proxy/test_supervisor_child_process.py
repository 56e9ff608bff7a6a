# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: which silent process hangs, and which is only slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from mailproxy.supervisor import child_process as module
from mailproxy.supervisor.child_process import (
    CHECK_SECONDS,
    HUNG_CPU_SECONDS,
    HUNG_LIMIT_SECONDS,
    HUNG_SECONDS,
    LATE_SECONDS,
    Heartbeat,
    cpu_seconds,
)

ITSELF = 4711


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float | None], Heartbeat]:
    """Create the heartbeat of a process with given silence and CPU time."""

    def make(seconds: float, ran: float | None) -> Heartbeat:
        heartbeat = Heartbeat(ITSELF)
        heartbeat.beat()
        used: list[float | None] = [None if ran is None else 5.0]
        monkeypatch.setattr(module, "cpu_seconds", lambda _: used[0])
        for _ in range(int(seconds)):
            heartbeat.check()
        used[0] = None if ran is None else 5.0 + ran
        return heartbeat

    return make


@pytest.mark.parametrize(
    ("silent_seconds", "ran", "serving_hangs", "loading_hangs"),
    [
        # silent for               CPU time used meanwhile
        (HUNG_SECONDS - 1, 0.0, False, False),
        (HUNG_SECONDS, 0.0, True, True),  # stopped, or blocked
        (HUNG_SECONDS, 0.015 * HUNG_SECONDS, False, False),  # a limit of 15 thousandths of a processor
        (HUNG_SECONDS, HUNG_CPU_SECONDS, True, True),  # an endless loop
        (HUNG_LIMIT_SECONDS - 1, 5.0, False, False),
        (HUNG_LIMIT_SECONDS, 5.0, True, False),
        (10 * HUNG_LIMIT_SECONDS, 20.0, True, False),  # a slow start is not interrupted
        (HUNG_SECONDS, None, False, False),  # its CPU time is unknown
        (HUNG_LIMIT_SECONDS, None, True, True),
    ],
)
def test_silent_process_hangs_if_it_is_idle_or_spins(
    silent: Callable[[float, float | None], Heartbeat],
    silent_seconds: float,
    ran: float | None,
    serving_hangs: bool,
    loading_hangs: bool,
) -> None:
    heartbeat = silent(silent_seconds, ran)
    assert heartbeat.is_hung(is_loading=False) is serving_hangs
    assert heartbeat.is_hung(is_loading=True) is loading_hangs


def test_worker_is_late_before_it_hangs_and_not_after_a_message() -> None:
    heartbeat = Heartbeat(os.getpid())
    while not heartbeat.is_late:
        heartbeat.check()
    assert heartbeat.silent_seconds == LATE_SECONDS < HUNG_SECONDS
    heartbeat.beat()
    assert not heartbeat.is_late


def test_pause_of_the_supervisor_counts_as_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(os.getpid())
    heartbeat.check()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3600)
    heartbeat.check()
    assert heartbeat.silent_seconds == 2 * CHECK_SECONDS
    assert not heartbeat.is_late


def test_cpu_time_of_another_process_is_read() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        first = cpu_seconds(process.pid)
        assert first is not None
        assert first >= 0.2
        process.communicate(b"\n")
    assert cpu_seconds(process.pid) is None

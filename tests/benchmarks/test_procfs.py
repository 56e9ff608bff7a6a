# SPDX-License-Identifier: Apache-2.0
"""CPU time, memory and children from ``/proc``: of texts, and of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from benchmarks.procfs import children, command, cpu_of, descendants, pss_bytes, pss_of, schedstat_seconds

_SMAPS = """\
5581d1c5c000-7ffd8c1f0000 ---p 00000000 00:00 0                          [rollup]
Rss:                3524 kB
Pss:                1337 kB
Pss_Anon:            700 kB
"""


def test_schedstat_is_nanoseconds_on_the_processor_first() -> None:
    assert schedstat_seconds("1500000000 42000 17\n") == 1.5


def test_pss_is_read_in_bytes() -> None:
    assert pss_bytes(_SMAPS) == 1337 * 1024


def test_text_without_pss_is_an_error() -> None:
    with pytest.raises(ValueError, match="Pss"):
        pss_bytes("Rss: 1 kB\n")


def test_cpu_of_a_process_includes_its_threads() -> None:
    """The thread uses more CPU than a process has used at its start, and does not end before it is read."""
    before, done, release = cpu_of(os.getpid()), threading.Event(), threading.Event()

    def work() -> None:
        while cpu_of(os.getpid()) < before + 0.05:
            pass
        done.set()
        release.wait()

    thread = threading.Thread(target=work)
    thread.start()
    done.wait()
    assert cpu_of(os.getpid()) >= before + 0.05
    release.set()
    thread.join()


def test_memory_of_this_process_is_positive() -> None:
    assert pss_of(os.getpid()) > 1 << 20


def test_descendants_are_found_at_every_depth() -> None:
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = descendants(process.pid)
        assert found[0] == process.pid
        assert found[1:] == children(process.pid)
        assert "input()" in command(found[1])
        process.stdin.write("\n")

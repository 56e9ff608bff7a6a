# SPDX-License-Identifier: Apache-2.0
"""Memory, descriptors and CPU time of the process."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from mailproxy.telemetry import process_stats
from mailproxy.telemetry.definitions import BY_NAME


def test_process_stats_are_of_this_process() -> None:
    before = process_stats.process_stats()
    ballast = mmap.mmap(-1, 32 << 20)  # from the kernel, because the heap may have as much free memory
    ballast.write(bytes(len(ballast)))
    with Path("/proc/self/stat").open() as one, Path("/proc/self/stat").open() as two:
        after = process_stats.process_stats()
        assert one.fileno() != two.fileno()
    assert (
        after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"] > len(ballast) // 2
    )
    assert after["process_open_fds"] == before["process_open_fds"] + 2
    assert after["process_cpu_seconds_total"] > before["process_cpu_seconds_total"] > 0
    assert after["process_max_fds"] == before["process_max_fds"] > 0


def test_process_stats_are_defined_metrics() -> None:
    assert process_stats.process_stats().keys() <= BY_NAME.keys()


def test_without_proc_the_other_values_are_returned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_stats, "STATM", tmp_path / "statm")
    assert process_stats.process_stats().keys() == {"process_cpu_seconds_total", "process_max_fds"}


def test_descriptors_are_listed_where_the_kernel_does_not_count_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Uncounted(type(tmp_path)):  # type: ignore[misc]
        def stat(self, **_: object) -> object:
            return type("stat", (), {"st_size": 0})

    for name in "012":
        (tmp_path / name).touch()
    monkeypatch.setattr(process_stats, "FDS", Uncounted(tmp_path))
    assert process_stats.process_stats()["process_open_fds"] == 3

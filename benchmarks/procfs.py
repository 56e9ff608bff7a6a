# SPDX-License-Identifier: Apache-2.0
"""CPU time, memory and children of processes, from ``/proc``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def schedstat_seconds(text: str) -> float:
    """Return the seconds on a processor: the first word of a ``schedstat`` is nanoseconds."""
    return int(text.split(maxsplit=1)[0]) / 1e9


def pss_bytes(text: str) -> int:
    """Return ``Pss`` in bytes, from the text of a ``smaps_rollup``.

    Raises:
        ValueError: The text has no such line.
    """
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no line Pss")


def cpu_of(pid: int) -> float:
    """Return the seconds of processor time that a process has used, with its threads."""
    total = 0.0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended in between
            total += schedstat_seconds(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text())
    return total


def pss_of(pid: int) -> int:
    """Return the bytes of a process's memory, each shared page divided by its owners."""
    return pss_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())


def children(pid: int) -> tuple[int, ...]:
    """Return the children of a process."""
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def descendants(pid: int) -> tuple[int, ...]:
    """Return a process, its children, their children, and so on."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += children(parent)
    return tuple(found)


def command(pid: int) -> str:
    """Return the name of a process and its command line."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return name + " " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")

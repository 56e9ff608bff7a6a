# SPDX-License-Identifier: Apache-2.0
"""How many workers ``workers: auto`` means.

nginx counts the machine's processors.  In a container that is too many: what
counts is where this process may run (its affinity) and how much of it the
control group grants, rounded up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable(*, cgroups: Path = _CGROUPS, own_groups: Path = _OWN_GROUPS) -> int:
    """Count the processors that this process may use, at least one.

    Args:
        cgroups: Where the control groups are mounted.
        own_groups: The file that lists those of this process.
    """
    count = len(os.sched_getaffinity(0))
    quotas = [quota for quota in _quotas(cgroups, own_groups) if quota > 0]
    return max(1, min([count, *(math.ceil(quota) for quota in quotas)]))


def _quotas(cgroups: Path, own_groups: Path) -> Iterator[float]:
    """Yield every CPU limit from this process's control group up to the root, in processors."""
    for line in _lines(own_groups):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            if not controllers:
                yield _unified(cgroups / group)
            elif "cpu" in controllers.split(","):
                yield _legacy(cgroups / "cpu" / group)


def _unified(group: Path) -> float:
    words = " ".join(_lines(group / "cpu.max")).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return 0.0
    return int(words[0]) / max(1, int(words[1]))


def _legacy(group: Path) -> float:
    quota = "".join(_lines(group / "cpu.cfs_quota_us"))
    period = "".join(_lines(group / "cpu.cfs_period_us"))
    if not quota.isdigit() or not period.isdigit():
        return 0.0
    return int(quota) / max(1, int(period))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []

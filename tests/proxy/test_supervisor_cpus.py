# SPDX-License-Identifier: Apache-2.0
"""``workers: auto`` is the number of CPUs that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailproxy.supervisor import cpus

MANY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        # own groups                 files of the groups                                       processors
        ("", {}, MANY),
        ("0::/\n", {}, MANY),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "100001 100000\n"}, min(2, MANY)),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, MANY),
        ("0::/pod/box\n", {"pod/cpu.max": "100000 100000\n", "pod/box/cpu.max": "max 100000\n"}, 1),
        ("0::/pod/box\n", {"pod/box/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense"}, MANY),
        ("0::/\n", {"cpu.max": "100000 0\n"}, MANY),
        ("3:cpu,cpuacct:/box\n", {"cpu/box/cpu.cfs_quota_us": "1\n", "cpu/box/cpu.cfs_period_us": "9\n"}, 1),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("3:memory:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "9\n"}, MANY),
        ("nonsense\n", {}, MANY),
    ],
)
def test_cpus_are_limited_by_affinity_and_quota(
    tmp_path: Path, groups: str, files: dict[str, str], count: int
) -> None:
    own = tmp_path / "own"
    own.write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpus.usable(cgroups=tmp_path / "cgroup", own_groups=own) == count


def test_without_control_groups_all_cpus_count(tmp_path: Path) -> None:
    assert cpus.usable(cgroups=tmp_path / "no", own_groups=tmp_path / "nor this") == MANY

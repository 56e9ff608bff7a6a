# SPDX-License-Identifier: Apache-2.0
"""The circuit breaker's memory, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator import breaker, breaker_note
from mailproxy_operator.errors import Finding
from mailproxy_operator.names import REFUSED_SYSCTLS
from mailproxy_operator.observed import Observed, Pod

MESSAGE = 'Pod was rejected: forbidden sysctl: "net.core.somaxconn" not allowlisted'


def workload(annotation: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {REFUSED_SYSCTLS: annotation}} if annotation else {}}


@pytest.mark.parametrize(
    ("annotation", "remembered"),
    [
        ('{"generation": 3, "names": ["a.b", "c.d"]}', {"a.b", "c.d"}),
        ('{"generation": 2, "names": ["a.b"]}', set()),  # a newer resource starts afresh
        ('{"generation": 3, "names": [1]}', set()),
        ("[]", set()),
        ("edited by hand", set()),
        (None, set()),
    ],
)
def test_memory(annotation: str | None, remembered: set[str]) -> None:
    assert breaker.remembered([workload(annotation), workload(None)], 3) == remembered


def test_what_is_written_is_read() -> None:
    noted = {"metadata": {"annotations": breaker_note.written({"b", "a"}, 7)}}
    assert breaker_note.read(noted, 7) == {"a", "b"}


@pytest.mark.parametrize(
    ("pod", "names"),
    [
        (Pod(name="a", failed=Finding("SysctlForbidden", MESSAGE)), {"net.core.somaxconn"}),
        (Pod(name="a", failed=Finding("SysctlForbidden", MESSAGE), is_of_template=False), set()),
        (Pod(name="a", failed=Finding("Evicted", MESSAGE)), set()),
        (Pod(name="a"), set()),
    ],
)
def test_whose_refusal_counts(pod: Pod, names: set[str]) -> None:
    assert breaker.refused_names(Observed(pods=(pod,))) == names


def test_a_storm_is_cleared_a_part_at_a_time() -> None:
    pods = [{"metadata": {"name": str(n)}, "status": {"reason": "SysctlForbidden"}} for n in range(80)]
    pods.append({"metadata": {"name": "fine"}, "status": {"phase": "Running"}})
    assert len(breaker.refused_pods(pods)) == 50


def test_what_is_said() -> None:
    assert breaker.finding(frozenset()) is None
    found = breaker.finding(frozenset({"net.core.somaxconn"}))
    assert found is not None
    assert "allowedUnsafeSysctls" in found.message

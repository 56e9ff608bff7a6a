# SPDX-License-Identifier: Apache-2.0
"""The state of the circuit breaker for sysctls, and its messages."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.api.names import REFUSED_SYSCTLS
from mailproxy_operator.controller import forbidden_sysctls
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.errors import ReportedCause
from mailproxy_operator.render import refused_sysctls

MESSAGE = 'Pod was rejected: forbidden sysctl: "net.core.somaxconn" not allowlisted'


def workload(annotation: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {REFUSED_SYSCTLS: annotation}} if annotation else {}}


@pytest.mark.parametrize(
    ("annotation", "remembered"),
    [
        ('{"generation": 3, "names": ["a.b", "c.d"]}', {"a.b", "c.d"}),
        ('{"generation": 2, "names": ["a.b"]}', set()),  # a newer generation starts with no refused sysctls
        ('{"generation": 3, "names": [1]}', set()),
        ("[]", set()),
        ("edited by hand", set()),
        (None, set()),
    ],
)
def test_memory_sysctls(annotation: str | None, remembered: set[str]) -> None:
    assert forbidden_sysctls.remembered([workload(annotation), workload(None)], 3) == remembered


def test_refused_sysctls_are_read_as_written() -> None:
    noted = {"metadata": {"annotations": refused_sysctls.written({"b", "a"}, 7)}}
    assert refused_sysctls.read(noted, 7) == {"a", "b"}


@pytest.mark.parametrize(
    ("pod", "names"),
    [
        (Pod(name="a", failed=ReportedCause("SysctlForbidden", MESSAGE)), {"net.core.somaxconn"}),
        (Pod(name="a", failed=ReportedCause("SysctlForbidden", MESSAGE), is_of_template=False), set()),
        (Pod(name="a", failed=ReportedCause("Evicted", MESSAGE)), set()),
        (Pod(name="a"), set()),
    ],
)
def test_refused_names_are_of_newest_template(pod: Pod, names: set[str]) -> None:
    assert forbidden_sysctls.refused_names(Observed(pods=(pod,))) == names


def test_number_of_deleted_refused_pods_is_limited() -> None:
    pods = [{"metadata": {"name": str(n)}, "status": {"reason": "SysctlForbidden"}} for n in range(80)]
    pods.append({"metadata": {"name": "fine"}, "status": {"phase": "Running"}})
    assert len(forbidden_sysctls.refused_pods(pods)) == 50


def test_message_names_sysctl_and_advice() -> None:
    assert forbidden_sysctls.finding(frozenset()) is None
    found = forbidden_sysctls.finding(frozenset({"net.core.somaxconn"}))
    assert found is not None
    assert "allowedUnsafeSysctls" in found.message

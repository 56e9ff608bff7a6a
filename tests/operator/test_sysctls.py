# SPDX-License-Identifier: Apache-2.0
"""Which sysctls a pod gets, and the status messages about the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.model import ByteCount, KeepAlive, ListenConfig
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.render.sysctls import Policy, Sysctl, sysctls

NEW, OLD = KubeVersion(1, 36), KubeVersion(1, 30)


def listen(port: int | None, **more: Any) -> ListenConfig:
    return ListenConfig(port=port, address="*" if port else "unix:/x", **more)


def decided(
    *listens: ListenConfig, version: KubeVersion = NEW, port: int | None = None, **policy: Any
) -> dict[str, Sysctl]:
    found = sysctls(listens, Policy(**policy), version, privileged_port=port)
    return {one.name: one for one in found}


def applied(found: dict[str, Sysctl]) -> dict[str, str | None]:
    return {name: one.value for name, one in found.items() if one.applied}


IDLE_30 = KeepAlive(idle=1800, count=10)
IDLE_10 = KeepAlive(idle=600, count=10)
SEED = listen(
    993,
    backlog=511,
    rcvbuf=ByteCount(262144),
    sndbuf=ByteCount(262144),
    so_keepalive=KeepAlive(idle=1800, interval=75, count=10),
)
START, TIME = "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_keepalive_time"
SOMAXCONN, RMEM, WMEM = "net.core.somaxconn", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"


@pytest.mark.parametrize(
    ("listens", "port", "expected"),
    [
        # listeners                             lowest  what the pod gets
        ([listen(25), listen(110), listen(587)], 25, {START: "25"}),
        ([listen(25), listen(110), listen(587)], None, {}),  # HighPort
        (
            [listen(143), SEED],
            143,
            {
                START: "143",
                TIME: "1800",
                "net.ipv4.tcp_keepalive_intvl": "75",
                "net.ipv4.tcp_keepalive_probes": "10",
                RMEM: "4096 524288 33554432",
                WMEM: "4096 524288 4194304",
            },
        ),
        (
            [listen(143, so_keepalive=IDLE_30), listen(993, so_keepalive=IDLE_10)],
            None,
            {"net.ipv4.tcp_keepalive_probes": "10"},
        ),
        (
            [listen(143, so_keepalive=KeepAlive(idle=1800)), listen(993, so_keepalive=KeepAlive())],
            None,
            {TIME: "1800"},
        ),
        ([listen(143, so_keepalive=KeepAlive(enabled=False)), SEED], None, None),
        ([listen(25, backlog=16384)], None, {}),
        ([listen(143, rcvbuf=ByteCount(4096))], None, {}),  # would reduce the default of all other sockets
        ([listen(None, backlog=65535, rcvbuf=ByteCount(1 << 20), so_keepalive=IDLE_30)], None, {}),
        ([listen(143, rcvbuf=ByteCount(33554432))], None, {RMEM: "4096 67108864 67108864"}),
    ],
)
def test_sysctls_of_listeners(
    listens: list[ListenConfig], port: int | None, expected: dict[str, str] | None
) -> None:
    found = applied(decided(*listens, port=port))
    assert found == (applied(decided(SEED)) if expected is None else expected)


def test_each_sysctl_has_a_reason() -> None:
    found = sysctls([listen(143), SEED], Policy(), KubeVersion(1, 36), privileged_port=143)
    assert {one.name.rpartition(".")[2]: one.reason for one in found} == {
        "ip_unprivileged_port_start": "PrivilegedPort",
        "tcp_keepalive_time": "SoKeepalive",
        "tcp_keepalive_intvl": "SoKeepalive",
        "tcp_keepalive_probes": "SoKeepalive",
        "tcp_rmem": "ReceiveBuffer",
        "tcp_wmem": "SendBuffer",
    }


@pytest.mark.parametrize(
    "other",
    [
        listen(143),
        listen(143, so_keepalive=KeepAlive(enabled=True)),
        listen(143, so_keepalive=KeepAlive(enabled=False)),
        listen(143, so_keepalive=KeepAlive(interval=75)),
        listen(None),
    ],
    ids=["absent", "enabled", "disabled", "another time", "unix"],
)
def test_keepalive_sysctl_is_set_when_listeners_agree(other: ListenConfig) -> None:
    found = decided(SEED, other)[TIME]
    assert (found.value, found.applied, found.reason) == ("1800", True, "SoKeepalive")


def test_message_of_a_conflict_names_each_value_and_its_listeners() -> None:
    found = decided(
        listen(993, so_keepalive=IDLE_30),
        listen(995, so_keepalive=IDLE_30),
        listen(143, so_keepalive=IDLE_10),
    )
    assert found[TIME].message == (
        "not set, because listeners have different values: *:143 sets 600, *:993 *:995 set 1800; "
        "each socket has the value of its listener"
    )
    assert found["net.ipv4.tcp_keepalive_probes"].message == ""


@pytest.mark.parametrize(
    ("policy", "version", "reason", "words"),
    [
        ({"host_network": True}, NEW, "HostNetwork", "pod.hostNetwork"),
        ({"automatic": False}, NEW, "ModeNone", "sysctls.mode is None"),
        ({"refused": frozenset({TIME})}, NEW, "SysctlForbidden", "a node refused a pod with it"),
        ({}, KubeVersion(1, 28), "NodeTooOld", "Kubernetes 1.29"),
    ],
)
def test_message_explains_why_sysctl_is_not_applied(
    policy: dict[str, Any], version: KubeVersion, reason: str, words: str
) -> None:
    found = decided(SEED, version=version, **policy)[TIME]
    assert (found.applied, found.reason) == (False, reason)
    assert words in found.message


def test_listeners_that_disagree_are_reported() -> None:
    found = decided(listen(143, so_keepalive=IDLE_30), listen(993, so_keepalive=IDLE_10))
    assert replace(found[TIME], message="") == Sysctl(
        name=TIME, value=None, safe=True, applied=False, reason="ConflictingListeners"
    )


@pytest.mark.parametrize(
    ("policy", "is_applied", "reason"),
    [
        ({}, False, "UnsafeNotAllowed"),
        ({"unsafe_allowed": True}, True, "Backlog"),
        ({"unsafe_allowed": True, "refused": frozenset({SOMAXCONN})}, False, "SysctlForbidden"),
        ({"unsafe_allowed": True, "automatic": False}, False, "ModeNone"),
        ({"unsafe_allowed": True, "host_network": True}, False, "HostNetwork"),
    ],
)
def test_a_large_backlog(policy: dict[str, Any], is_applied: bool, reason: str) -> None:
    found = decided(listen(25, backlog=16384), **policy)[SOMAXCONN]
    assert replace(found, message="") == Sysctl(
        name=SOMAXCONN, value="16384", safe=False, applied=is_applied, reason=reason
    )


def test_extra_sysctls_override_those_of_listeners() -> None:
    found = decided(listen(143, so_keepalive=IDLE_30), extra=((TIME, "600"),))
    assert (found[TIME].value, found[TIME].applied, found[TIME].reason) == ("600", True, "Extra")


@pytest.mark.parametrize(
    ("name", "unsafe_allowed", "is_applied", "reason"),
    [
        ("net.ipv4.tcp_fin_timeout", False, True, "Extra"),
        ("net.core.rmem_default", False, False, "UnsafeNotAllowed"),
        ("net.core.rmem_default", True, True, "Extra"),
        (RMEM, False, False, "NodeTooOld"),
        (RMEM, True, True, "Extra"),
    ],
)
def test_extra_on_an_old_node(name: str, unsafe_allowed: bool, is_applied: bool, reason: str) -> None:
    found = decided(extra=((name, "15"),), unsafe_allowed=unsafe_allowed, version=OLD)[name]
    assert (found.applied, found.reason) == (is_applied, reason)


@pytest.mark.parametrize("unsafe_allowed", [False, True])
def test_buffer_sysctls_need_kubernetes_1_32(unsafe_allowed: bool) -> None:
    found = decided(listen(143, rcvbuf=ByteCount(262144)), version=OLD, unsafe_allowed=unsafe_allowed)[RMEM]
    assert (found.applied, found.reason) == (False, "NodeTooOld")


@given(
    st.lists(
        st.builds(
            ListenConfig,
            port=st.one_of(st.none(), st.integers(1, 65535)),
            backlog=st.integers(1, 1 << 20),
            rcvbuf=st.one_of(st.none(), st.integers(1, 1 << 24).map(ByteCount)),
            so_keepalive=st.one_of(
                st.none(), st.builds(KeepAlive, idle=st.one_of(st.none(), st.integers(1, 32767)))
            ),
        ),
        max_size=6,
    )
)
def test_order_of_listeners_does_not_matter(listens: list[ListenConfig]) -> None:
    forward = sysctls(listens, Policy(), NEW, privileged_port=None)
    assert forward == sysctls(listens[::-1], Policy(), NEW, privileged_port=None)
    assert [one.name for one in forward] == sorted({one.name for one in forward})
    assert all(one.safe for one in forward if one.applied)

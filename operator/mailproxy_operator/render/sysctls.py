# SPDX-License-Identifier: Apache-2.0
"""Decides which sysctls a pod gets, and why others are not applied, in one pure function.

The proxy always sets the options of ``listen`` on the socket.  Sysctls are an
addition for the whole pod: a sysctl is set if all listeners that set a value set
the same one.  A listener with another keep-alive time keeps its own, since its
socket option overrides the sysctl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mailproxy_config.model import KeepAlive, ListenConfig
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.reasons import SysctlReason

PORT_START = "net.ipv4.ip_unprivileged_port_start"
KEEPALIVE_TIME = "net.ipv4.tcp_keepalive_time"
KEEPALIVE_INTERVAL = "net.ipv4.tcp_keepalive_intvl"
KEEPALIVE_PROBES = "net.ipv4.tcp_keepalive_probes"
RECEIVE_BUFFER = "net.ipv4.tcp_rmem"
SEND_BUFFER = "net.ipv4.tcp_wmem"
BACKLOG = "net.core.somaxconn"

SAFE_SINCE = {
    "kernel.shm_rmid_forced": KubeVersion(1, 0),
    "net.ipv4.ip_local_port_range": KubeVersion(1, 0),
    "net.ipv4.tcp_syncookies": KubeVersion(1, 0),
    "net.ipv4.ping_group_range": KubeVersion(1, 0),
    PORT_START: KubeVersion(1, 22),
    "net.ipv4.ip_local_reserved_ports": KubeVersion(1, 27),
    KEEPALIVE_TIME: KubeVersion(1, 29),
    "net.ipv4.tcp_fin_timeout": KubeVersion(1, 29),
    KEEPALIVE_INTERVAL: KubeVersion(1, 29),
    KEEPALIVE_PROBES: KubeVersion(1, 29),
    RECEIVE_BUFFER: KubeVersion(1, 32),
    SEND_BUFFER: KubeVersion(1, 32),
}
"""The safe sysctls of the kubelet, with the version since which each one is safe."""

DEFAULT_SOMAXCONN = 4096
_MINIMUM = 4096
_DEFAULT_RECEIVE, _LARGEST_RECEIVE = 131_072, 33_554_432
_DEFAULT_SEND, _LARGEST_SEND = 16_384, 4_194_304


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """One decision: an entry of ``status.sysctls`` and, if applied, a sysctl of the pod.

    Attributes:
        value: The value; ``None`` when listeners set different ones.
        safe: Whether every kubelet of this version accepts it.
        message: Why it is not applied, and how to fix it; empty when it is applied.
    """

    name: str
    value: str | None
    safe: bool
    applied: bool
    reason: SysctlReason
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of the resource for sysctls.

    Attributes:
        automatic: ``mode: Auto``.
        unsafe_allowed: ``unsafe: Allow``.
        extra: Names and values that override those of the listeners.
        host_network: Whether the pod uses the host network; then no sysctl can be set.
        refused: Names that nodes have refused for this generation.
    """

    automatic: bool = True
    unsafe_allowed: bool = False
    extra: tuple[tuple[str, str], ...] = ()
    host_network: bool = False
    refused: frozenset[str] = frozenset()


def sysctls(
    listens: Sequence[ListenConfig], policy: Policy, version: KubeVersion, *, privileged_port: int | None
) -> tuple[Sysctl, ...]:
    """Decide about every sysctl that the listeners or the resource request.

    Args:
        listens: All listeners; UNIX sockets are ignored.
        policy: The settings of the resource.
        version: The version of the oldest node.
        privileged_port: The smallest container port below 1024, if any.

    Returns:
        The decisions, sorted by name: the order in the pod template is significant.
    """
    tcp = [listen for listen in listens if listen.port is not None]
    found = {one.name: one for one in _requested(tcp, privileged_port)}
    for name, value in policy.extra:
        found[name] = _decision(name, value, SysctlReason.EXTRA)
    return tuple(_check(found[name], policy, version) for name in sorted(found))


def _requested(listens: Sequence[ListenConfig], privileged_port: int | None) -> Iterable[Sysctl]:
    if privileged_port is not None:
        yield _decision(PORT_START, str(privileged_port), SysctlReason.PRIVILEGED_PORT)
    yield from _keepalive(listens)
    receive = max((listen.rcvbuf or 0 for listen in listens), default=0)
    if 2 * receive > _DEFAULT_RECEIVE:
        yield _decision(RECEIVE_BUFFER, _triple(receive, _LARGEST_RECEIVE), SysctlReason.RECEIVE_BUFFER)
    send = max((listen.sndbuf or 0 for listen in listens), default=0)
    if 2 * send > _DEFAULT_SEND:
        yield _decision(SEND_BUFFER, _triple(send, _LARGEST_SEND), SysctlReason.SEND_BUFFER)
    backlog = max((listen.backlog for listen in listens), default=0)
    if backlog > DEFAULT_SOMAXCONN:
        yield _decision(BACKLOG, str(backlog), SysctlReason.BACKLOG)


def _triple(data: int, largest: int) -> str:
    # The kernel doubles SO_RCVBUF and SO_SNDBUF, so the default is doubled as well.
    return f"{_MINIMUM} {2 * data} {max(largest, 2 * data)}"


def _keepalive(listens: Sequence[ListenConfig]) -> Iterable[Sysctl]:
    for name, value_of in _KEEPALIVE_VALUES:
        listeners_by_value: dict[int, list[str]] = {}
        for listen in listens:
            value = value_of(listen.so_keepalive) if listen.so_keepalive else None
            if value is not None:
                listeners_by_value.setdefault(value, []).append(f"{listen.address}:{listen.port}")
        if len(listeners_by_value) == 1:
            yield _decision(name, str(next(iter(listeners_by_value))), SysctlReason.SO_KEEPALIVE)
        elif listeners_by_value:
            yield Sysctl(
                name=name,
                value=None,
                safe=True,
                applied=False,
                reason=SysctlReason.CONFLICTING_LISTENERS,
                message=_conflict(listeners_by_value),
            )


def _conflict(listeners_by_value: Mapping[int, Sequence[str]]) -> str:
    parts = [
        f"{' '.join(sorted(listeners))} {'set' if len(listeners) > 1 else 'sets'} {value}"
        for value, listeners in sorted(listeners_by_value.items())
    ]
    return (
        f"not set, because listeners have different values: {', '.join(parts)}; "
        "each socket has the value of its listener"
    )


_KEEPALIVE_VALUES: tuple[tuple[str, Callable[[KeepAlive], int | None]], ...] = (
    (KEEPALIVE_TIME, lambda keepalive: keepalive.idle),
    (KEEPALIVE_INTERVAL, lambda keepalive: keepalive.interval),
    (KEEPALIVE_PROBES, lambda keepalive: keepalive.count),
)


def _decision(name: str, value: str, reason: SysctlReason) -> Sysctl:
    return Sysctl(name=name, value=value, safe=name in SAFE_SINCE, applied=True, reason=reason)


def _check(one: Sysctl, policy: Policy, version: KubeVersion) -> Sysctl:
    """Return the decision, not applied if the sysctl must not or cannot be set."""
    since = SAFE_SINCE.get(one.name)
    one = replace(one, safe=since is not None and since <= version)
    if not one.applied:
        return one
    reason = _rejection_reason(one, policy, is_known_safe=since is not None)
    if reason is None:
        return one
    return replace(one, applied=False, reason=reason, message=_explanation(reason, since, version))


def _explanation(reason: SysctlReason, since: KubeVersion | None, version: KubeVersion) -> str:
    if reason is SysctlReason.NODE_TOO_OLD and since is not None:
        return f"nodes take it from Kubernetes {since} on, the oldest here is {version}"
    return _EXPLANATIONS[reason]


_EXPLANATIONS = {
    SysctlReason.HOST_NETWORK: "a pod with pod.hostNetwork cannot set net.* sysctls: set it on the node",
    SysctlReason.MODE_NONE: "sysctls.mode is None: set Auto to have it",
    SysctlReason.SYSCTL_FORBIDDEN: (
        "a node refused a pod with it: allow it on the nodes (kubelet --allowed-unsafe-sysctls) "
        "and change the resource, or remove it from sysctls.extra"
    ),
    SysctlReason.UNSAFE_NOT_ALLOWED: (
        "not in the kubelet's safe set: needs sysctls.unsafe: Allow and nodes that allow it"
    ),
}


def _rejection_reason(one: Sysctl, policy: Policy, *, is_known_safe: bool) -> SysctlReason | None:
    if policy.host_network:
        return SysctlReason.HOST_NETWORK
    if not policy.automatic:
        return SysctlReason.MODE_NONE
    if one.name in policy.refused:
        return SysctlReason.SYSCTL_FORBIDDEN
    if not one.safe and not policy.unsafe_allowed:
        return SysctlReason.NODE_TOO_OLD if is_known_safe else SysctlReason.UNSAFE_NOT_ALLOWED
    # Without the user's request, the operator does not set a sysctl that old nodes refuse.
    return (
        SysctlReason.NODE_TOO_OLD
        if not one.safe and is_known_safe and one.reason is not SysctlReason.EXTRA
        else None
    )

# SPDX-License-Identifier: Apache-2.0
"""Evaluates what pods report about TLS with mail servers: the condition ``UpstreamTLSReady``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

from mailproxy_operator.api.cluster import UpstreamState
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.reasons import Reason

CONDITION = "UpstreamTLSReady"
EXPIRY_WARNING = timedelta(days=7)
"""A certificate that expires in less time is reported; the alert has the same threshold."""

_REASONS = {
    "name": Reason.UPSTREAM_NAME_MISMATCH,
    "verify": Reason.UPSTREAM_CERTIFICATE_NOT_TRUSTED,
    "expired": Reason.UPSTREAM_CERTIFICATE_EXPIRED,
    "stripped": Reason.UPSTREAM_TLS_NOT_OFFERED,
    "injected": Reason.UPSTREAM_BYTES_INJECTED,
    "protocol": Reason.UPSTREAM_TLS_INCOMPATIBLE,
    "refused": Reason.UPSTREAM_TLS_REFUSED,
    "timeout": Reason.UPSTREAM_TLS_TIMEOUT,
}
"""The reason by the pod's word for the failure; what needs a change of the resource comes first."""
_ORDER = {failure: position for position, failure in enumerate(_REASONS)}

Found = tuple[str, Reason, str]
"""Status, reason and message of the condition."""


def upstream_tls(observed: Observed, servers: Collection[str], now: datetime | None) -> Found | None:
    """Evaluate TLS with the mail servers.

    Args:
        observed: The pods and what they report.
        servers: The servers of the resource with ``proxySsl``.
        now: The time; without it no expiry is reported.

    Returns:
        ``None`` if no server uses TLS with mail servers: then there is no such condition.
    """
    if not servers:
        return None
    reports = [(pod, state) for pod, state in _reports(observed) if state.server in servers]
    failing = [(pod, state) for pod, state in reports if state.state == "failed"]
    if failing:
        return _failure(failing)
    if not any(state.state == "succeeded" for _, state in reports):
        return "Unknown", Reason.NO_UPSTREAM_TLS_YET, "no pod has connected to a mail server with TLS yet"
    return _expiry(reports, now) or (
        "True",
        Reason.UPSTREAM_TLS_ESTABLISHED,
        "TLS with mail servers is established, and no login has failed for it in the last 5 minutes",
    )


def _reports(observed: Observed) -> Iterator[tuple[Pod, UpstreamState]]:
    for pod in observed.reporting_pods:
        yield from ((pod, state) for state in (pod.running.upstreams if pod.running else ()))


def _failure(failing: list[tuple[Pod, UpstreamState]]) -> Found:
    last = len(_ORDER)
    pod, state = min(failing, key=lambda one: (_ORDER.get(one[1].failure, last), one[1].server, one[0].name))
    reason = _REASONS.get(state.failure, Reason.UPSTREAM_TLS_REFUSED)
    others = sorted({one.server for _, one in failing} - {state.server})
    more = f"; logins also fail at server {', '.join(others)}" if others else ""
    return "False", reason, f"server {state.server}: {state.upstream}: {state.message} (pod {pod.name}){more}"


def _expiry(reports: list[tuple[Pod, UpstreamState]], now: datetime | None) -> Found | None:
    expiries = [
        (state.certificate_expires, state.server) for _, state in reports if state.certificate_expires
    ]
    if now is None or not expiries:
        return None
    earliest, server = min(expiries)
    if earliest - now >= EXPIRY_WARNING:
        return None
    return (
        "True",
        Reason.UPSTREAM_CERTIFICATE_EXPIRING,
        f"server {server}: a certificate of its mail servers expires on {earliest:%Y-%m-%d %H:%M} UTC; "
        "renew it at the mail server",
    )

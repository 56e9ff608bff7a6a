# SPDX-License-Identifier: Apache-2.0
"""What logins at the upstreams of a server have shown: TLS, and errors that an administrator has to mend.

Workers record it, and their snapshots carry it; ``summarize`` joins it for the admin endpoint, from which
the operator takes conditions and events.  It has no user names, and its size is limited: ``MAX_UPSTREAMS``
addresses per server and worker, ``MAX_ERRORS`` errors per server in the summary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypedDict

from mailproxy.errors import UpstreamError

MAX_UPSTREAMS: Final = 8
"""Addresses of upstreams that are kept for each server of a worker; those that fail are kept longest."""
MAX_ERRORS: Final = 2
"""Configuration errors of a server in the summary: the newest ones, of different stages."""
MAX_MESSAGE: Final = 300
RECENT_SECONDS: Final = 300.0
"""An error is reported for this time after it occurred last."""


class TlsState(TypedDict):
    """TLS with one upstream; times are Unix times, 0 for never."""

    succeeded_at: float
    failed_at: float
    count: int
    failure: str
    message: str


class ErrorState(TypedDict):
    """The errors of one stage that an administrator has to mend."""

    count: int
    failed_at: float
    failure: str
    message: str


class ReportState(TypedDict):
    """The report of one server in a snapshot: TLS by upstream, errors by stage."""

    tls: dict[str, TlsState]
    errors: dict[str, ErrorState]


class UpstreamReport:
    """What one worker has found out about the upstreams of one server."""

    __slots__ = ("_errors", "_tls")

    def __init__(self) -> None:
        self._tls: OrderedDict[str, TlsState] = OrderedDict()
        self._errors: dict[str, ErrorState] = {}

    def tls_established(self, upstream: str, now: float) -> None:
        """Record a completed handshake; earlier failures of this upstream are over.

        Args:
            upstream: Its address and port.
            now: A Unix time.
        """
        state = self._state(upstream)
        state["succeeded_at"] = now
        state["count"] = 0

    def failed(self, upstream: str, error: UpstreamError, now: float) -> None:
        """Record a failed login, if the cause is TLS or the configuration."""
        failure, message = str(error.tls_failure or ""), _printable(str(error))
        if failure:
            state = self._state(upstream)
            state["failed_at"], state["count"] = now, state["count"] + 1
            state["failure"], state["message"] = failure, message
        if error.is_misconfigured:
            before = self._errors.get(error.stage)
            count = before["count"] + 1 if before else 1
            self._errors[error.stage] = ErrorState(
                count=count, failed_at=now, failure=failure, message=message
            )

    def _state(self, upstream: str) -> TlsState:
        state = self._tls.get(upstream)
        if state is None:
            if len(self._tls) >= MAX_UPSTREAMS:
                working = (name for name, one in self._tls.items() if not one["count"])
                del self._tls[next(working, next(iter(self._tls)))]
            state = TlsState(succeeded_at=0.0, failed_at=0.0, count=0, failure="", message="")
            self._tls[upstream] = state
        self._tls.move_to_end(upstream)
        return state

    def state(self) -> ReportState | None:
        """Return the content for a snapshot; ``None`` if nothing was recorded."""
        if not self._tls and not self._errors:
            return None
        return ReportState(
            tls={name: state.copy() for name, state in self._tls.items()},
            errors={stage: state.copy() for stage, state in self._errors.items()},
        )


def _printable(text: str) -> str:
    """Return the text with ASCII characters only: a certificate's names may have any."""
    kept = "".join(character if " " <= character <= "~" else "?" for character in text)
    return kept if len(kept) <= MAX_MESSAGE else kept[: MAX_MESSAGE - 3] + "..."


# --- the summary of all workers ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Peer:
    """TLS of all workers with one upstream."""

    succeeded_at: float = 0.0
    failed_at: float = 0.0
    count: int = 0
    failure: str = ""
    message: str = ""

    def add(self, state: TlsState) -> None:
        self.succeeded_at = max(self.succeeded_at, state["succeeded_at"])
        self.count += state["count"]
        if state["failed_at"] >= self.failed_at:
            self.failed_at, self.failure = state["failed_at"], state["failure"]
            self.message = state["message"]

    def is_failing(self, now: float) -> bool:
        """Whether the last attempt failed, not long ago."""
        return self.failed_at > self.succeeded_at and now - self.failed_at <= RECENT_SECONDS


def summarize(states: Iterable[ReportState], now: float, expiry: float | None = None) -> dict[str, object]:
    """Join the reports of all workers about one server.

    Args:
        states: The report of each worker.
        now: A Unix time.
        expiry: The earliest expiry of a certificate of an upstream, as a Unix time.

    Returns:
        ``tls`` with ``state`` ``failed``, ``succeeded`` or ``unknown``, and ``config_errors``; plain JSON.
    """
    states = tuple(states)
    return {"tls": _tls(states, now, expiry), "config_errors": _config_errors(states, now)}


def _tls(states: Iterable[ReportState], now: float, expiry: float | None) -> dict[str, object]:
    peers: dict[str, _Peer] = {}
    for state in states:
        for name, one in state["tls"].items():
            peers.setdefault(name, _Peer()).add(one)
    failing = {name: peer for name, peer in peers.items() if peer.is_failing(now)}
    found: dict[str, object] = {
        "state": "failed" if failing else "succeeded" if peers else "unknown",
        "succeeded_at": _time(max((peer.succeeded_at for peer in peers.values()), default=0.0)),
        "certificate_expires_at": _time(expiry or 0.0),
    }
    if failing:
        name, last = max(failing.items(), key=lambda item: item[1].failed_at)
        found |= {
            "upstream": name,
            "failure": last.failure,
            "message": last.message,
            "failed_at": _time(last.failed_at),
            "count": last.count,
            "failing_upstreams": len(failing),
        }
    return found


def _config_errors(states: Iterable[ReportState], now: float) -> list[dict[str, object]]:
    last: dict[str, ErrorState] = {}
    counts: dict[str, int] = {}
    for state in states:
        for stage, one in state["errors"].items():
            counts[stage] = counts.get(stage, 0) + one["count"]
            if stage not in last or one["failed_at"] > last[stage]["failed_at"]:
                last[stage] = one
    recent = [(stage, one) for stage, one in last.items() if now - one["failed_at"] <= RECENT_SECONDS]
    recent.sort(key=lambda item: item[1]["failed_at"], reverse=True)
    return [
        {
            "stage": stage,
            "failure": one["failure"],
            "message": one["message"],
            "failed_at": _time(one["failed_at"]),
            "count": counts[stage],
        }
        for stage, one in recent[:MAX_ERRORS]
    ]


def _time(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None

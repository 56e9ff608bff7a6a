# SPDX-License-Identifier: Apache-2.0
"""What limits have counted of one session."""

from __future__ import annotations

from mailproxy.limits.zones import ConnZone
from mailproxy.telemetry.log_format import SessionRecord


class SessionLimits:
    """What is counted of one session, until ``release``.

    Attributes:
        attempt: The number of the last login that ``limit_req`` has counted.
        preauth: The session's slot in the zone of ``limit_preauth``; ``None`` after the login.
        sessions: Its slots in the zones of ``limit_conn``.
    """

    __slots__ = ("attempt", "preauth", "sessions")

    def __init__(self, preauth: tuple[ConnZone, int] | None = None) -> None:
        self.attempt = 0
        self.preauth = preauth
        self.sessions: tuple[tuple[ConnZone, int], ...] = ()

    def release(self) -> None:
        """The session is over."""
        if self.preauth is not None:
            self.release_preauth()
        if self.sessions:
            self.release_sessions()

    def login_succeeded(self) -> None:
        """The upstream has accepted the login."""
        self.release_preauth()

    def login_failed(self) -> None:
        """The upstream has not accepted the login, and the session goes on without one."""
        if self.sessions:
            self.release_sessions()

    def release_preauth(self) -> None:
        """The client has logged in."""
        counted, self.preauth = self.preauth, None
        if counted is not None:
            counted[0].release(counted[1])

    def release_sessions(self) -> None:
        """The session or its login is over, or another login takes its place."""
        sessions, self.sessions = self.sessions, ()
        for zone, slot in sessions:
            zone.release(slot)


def session_limits(record: SessionRecord) -> SessionLimits:
    """Return what is counted of a session; nothing, at first."""
    limits = record.held
    if not isinstance(limits, SessionLimits):
        limits = record.held = SessionLimits()
    return limits

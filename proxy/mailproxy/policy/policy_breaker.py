# SPDX-License-Identifier: Apache-2.0
"""Stops requests to a policy server that does not respond, and tries again after a pause.

While it is open, no login waits for the server.  After a pause, one request is sent as a probe, whose
answer no login waits for either: so a server that hangs delays logins once, not at every probe.
"""

from __future__ import annotations

from typing import Final

FAILURES: Final = 3
"""Failures in a row after which it opens; a timeout opens it at once."""
PAUSES: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds until the first probe, the second, and so on."""


class PolicyBreaker:
    """The state of one policy server.

    Attributes:
        is_open: Whether requests are skipped.
    """

    __slots__ = ("_failures", "_is_probing", "_probe_at", "_probes", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._failures = 0
        self._probes = 0
        self._probe_at = 0.0
        self._is_probing = False

    def may_probe(self, now: float) -> bool:
        """Return whether this request is to be sent as a probe; the next one is not before its result."""
        if self._is_probing or now < self._probe_at:
            return False
        self._is_probing = True
        return True

    def on_success(self) -> bool:
        """A request was answered.

        Returns:
            Whether it was open until now.
        """
        was_open, self.is_open = self.is_open, False
        self._failures = self._probes = 0
        self._is_probing = False
        return was_open

    def on_failure(self, now: float, *, is_timeout: bool, is_probe: bool = False) -> bool:
        """A request failed.

        Args:
            now: Seconds of the clock of ``may_probe``.
            is_timeout: Whether a login has waited for the whole timeout.
            is_probe: Whether the request was a probe.

        Returns:
            Whether it has just opened.
        """
        if self.is_open:
            if is_probe:
                self._is_probing = False
                self._pause(now)
            return False
        self._failures += 1
        if not is_timeout and self._failures < FAILURES:
            return False
        self.is_open = True
        self._pause(now)
        return True

    def _pause(self, now: float) -> None:
        self._probe_at = now + PAUSES[min(self._probes, len(PAUSES) - 1)]
        self._probes += 1

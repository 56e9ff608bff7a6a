# SPDX-License-Identifier: Apache-2.0
"""The end of a drain: relays are closed one after the other, not all in one moment.

A mail program connects again as soon as it is disconnected.  A pod that closed
ten thousand relays at once would cause as many logins in the next second, at
the other pods, at the authentication service and at the mail servers.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from mailproxy.context import Drainable
from mailproxy.session.relay import Relay

SPREAD_PART: Final = 0.2
"""The last part of the timeout of a drain, over which the closing is spread."""


class GradualClose:
    """Selects the relays that are to be closed by now: first those that have been silent the longest.

    Args:
        live: Every session and relay of the worker.
        seconds: The timeout of the drain.
    """

    def __init__(self, live: Collection[Drainable], seconds: float) -> None:
        self._live = live
        self._span = seconds * SPREAD_PART
        self._waiting: list[Relay] | None = None
        self._total = 0

    def due(self, seconds_left: float) -> list[Relay]:
        """Return the relays to close now; each is returned once, and may have ended by itself.

        Args:
            seconds_left: Of the timeout of the drain.
        """
        if seconds_left > self._span or not self._span:
            return []
        if self._waiting is None:
            relays = [each for each in self._live if isinstance(each, Relay)]
            self._waiting = sorted(relays, key=lambda relay: relay.last_activity, reverse=True)
            self._total = len(relays)
        kept = math.ceil(self._total * max(seconds_left, 0.0) / self._span)
        due = self._waiting[kept:]
        del self._waiting[kept:]
        return due[::-1]

# SPDX-License-Identifier: Apache-2.0
"""What the configuration of a server has about failed logins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAILURE_DELAY: Final = 2.0
"""Seconds of ``auth_failure_delay`` with ``auth_penalty``, if it is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthBlock:
    """When an address is blocked, and for how long; times are in seconds.

    Attributes:
        failures: Distinct wrong credentials within ``window`` after which it is blocked.
        window: The time in which they are counted.
        seconds: The first block; each further one is twice as long.
        maximum: The longest block.  An address without a block for so long begins with the first again.
    """

    failures: int = 20
    window: float = 600.0
    seconds: float = 900.0
    maximum: float = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedLogins:
    """A part of ``ServerConfig``; times are in seconds."""

    auth_penalty: bool
    auth_failure_delay: float | None
    auth_penalty_exempt: tuple[str, ...]
    auth_penalty_max: int
    auth_block: AuthBlock | None

    @property
    def failure_delay(self) -> float:
        """Seconds between refused credentials and the reply."""
        if self.auth_failure_delay is not None:
            return self.auth_failure_delay
        return FAILURE_DELAY if self.auth_penalty else 0.0

    @property
    def counts_failed_logins(self) -> bool:
        """Whether something happens after failed logins."""
        return self.auth_penalty or self.auth_block is not None or self.failure_delay > 0

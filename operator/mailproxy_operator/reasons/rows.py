# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables of conditions and of their reasons."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy_operator.reasons import Reason

State = tuple[str, str]
"""A condition type and its status: ``("Accepted", "False")``."""


@dataclass(frozen=True, slots=True)
class ConditionType:
    """One condition.

    Attributes:
        good: The status of a healthy resource.
    """

    name: str
    good: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRow:
    """One reason of conditions.

    Attributes:
        states: The conditions that the reason is written to, with the status that it has there.
        action: What to do; empty when there is nothing to do.
        example: A message with this reason.
        is_transient: Whether a resource that is not ready has it during every rollout.
    """

    reason: Reason
    states: tuple[State, ...]
    meaning: str
    action: str = ""
    example: str
    is_transient: bool = False

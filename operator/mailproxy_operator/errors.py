# SPDX-License-Identifier: Apache-2.0
"""Errors of the operator: transient or terminal."""

from __future__ import annotations

from dataclasses import dataclass


class OperatorError(Exception):
    """Base class: an operation of the operator failed."""


class TransientError(OperatorError):
    """A retry may succeed.

    Attributes:
        delay: Seconds to wait before the retry; ``None`` for the back-off of the queue.
    """

    def __init__(self, message: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class TerminalError(OperatorError):
    """A retry fails until a user changes something.

    Attributes:
        reason: The reason of the condition, in CamelCase.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotFoundOrConflict(OperatorError):
    """The object to change was deleted or replaced."""


class NameConflict(OperatorError):
    """An object with the required name exists and has another owner."""


class KindMissing(OperatorError):
    """The cluster does not have this kind."""


@dataclass(frozen=True, slots=True)
class ConditionCause:
    """Why a condition is not met: a reason for programs, a message for people."""

    reason: str
    message: str

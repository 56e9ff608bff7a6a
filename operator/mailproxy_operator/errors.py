# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when the operator acts: waiting helps, or it does not."""

from __future__ import annotations

from dataclasses import dataclass


class OperatorError(Exception):
    """Something kept the operator from doing what it wanted."""


class TransientError(OperatorError):
    """It may work a little later.

    Attributes:
        delay: Seconds to wait before the next try; ``None`` leaves it to the back-off.
    """

    def __init__(self, message: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class TerminalError(OperatorError):
    """It will not work before somebody changes something.

    Attributes:
        reason: The CamelCase word for the condition.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotFoundOrConflict(OperatorError):
    """What we were about to change has vanished or been replaced."""


class NameConflict(OperatorError):
    """An object that we need exists and belongs to somebody else."""


class KindMissing(OperatorError):
    """The cluster does not have this kind of object."""


@dataclass(frozen=True, slots=True)
class ConditionCause:
    """Why a condition does not hold: a word for programs, a sentence for people."""

    reason: str
    message: str

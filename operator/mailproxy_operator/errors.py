# SPDX-License-Identifier: Apache-2.0
"""Errors of the operator: transient or terminal."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy_operator.reasons import InjectionReason, Reason


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
        reason: The reason of the condition.
    """

    def __init__(self, message: str, reason: Reason) -> None:
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

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class ReportedCause:
    """What a controller, the scheduler or the kubelet reports about a workload or a pod.

    Attributes:
        reason: A word of Kubernetes, such as ``ImagePullBackOff``; the operator never writes it as its own.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class InjectionRefusal:
    """Why a pod gets no sidecar: a reason for programs, a message for people."""

    reason: InjectionReason
    message: str

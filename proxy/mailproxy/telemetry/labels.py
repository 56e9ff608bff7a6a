# SPDX-License-Identifier: Apache-2.0
"""The closed sets of label values that no conversation needs to know."""

from __future__ import annotations

from enum import StrEnum


class Limit(StrEnum):
    """A limit that turned a client away."""

    CONN_TOTAL = "conn_total"
    MAX_ERRORS = "max_errors"


class LimitMode(StrEnum):
    """What a limit does when it is hit."""

    ENFORCE = "enforce"


class Direction(StrEnum):
    """Which way relayed bytes went."""

    TO_UPSTREAM = "to_upstream"
    TO_CLIENT = "to_client"


class TlsVersion(StrEnum):
    """A version of TLS, by OpenSSL's name."""

    V1_0 = "TLSv1"
    V1_1 = "TLSv1.1"
    V1_2 = "TLSv1.2"
    V1_3 = "TLSv1.3"
    OTHER = "other"


class ReloadResult(StrEnum):
    """How an attempt to load a configuration ended."""

    SUCCESS = "success"
    FAILURE = "failure"


class RestartReason(StrEnum):
    """Why a worker had to be replaced."""

    CRASH = "crash"
    KILLED = "killed"
    REQUESTED = "requested"
    UNRESPONSIVE = "unresponsive"


class LoginOutcome(StrEnum):
    """Whether a login went through, where its time is all that is told."""

    SUCCESS = "success"
    FAILURE = "failure"


class ConnectResult(StrEnum):
    """Whether an upstream could be connected to."""

    OK = "ok"
    ERROR = "error"


class Authenticated(StrEnum):
    """Whether a session got as far as its upstream."""

    TRUE = "true"
    FALSE = "false"

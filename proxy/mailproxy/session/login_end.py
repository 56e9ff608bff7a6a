# SPDX-License-Identifier: Apache-2.0
"""What is recorded, reported and logged when a login was refused or has succeeded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mailproxy.enums import PASSWORD_METHODS, LoginDenied, LoginResult
from mailproxy.protocols.types import AuthRequest
from mailproxy.telemetry.log_format import Field
from mailproxy_config.model import LogLevel

if TYPE_CHECKING:
    from mailproxy.session.session import Session

WRONG_PASSWORD: Final = frozenset({LoginResult.DENIED, LoginResult.UPSTREAM_DENIED})
"""The results of a wrong password.  All others are outages, or no login."""


def end_login(session: Session, request: AuthRequest, result: LoginResult) -> None:
    """Record a refused password, and report the result where a policy server gets it.

    Not called for a successful login without such a server.
    """
    record, server, policy = session.record, session.server, request.policy
    method = request.credentials.method
    record.policy_refusal = policy.message if policy is not None and policy.is_refused else None
    if result in WRONG_PASSWORD and method in PASSWORD_METHODS and record.policy_refusal is None:
        record.password_failures += 1
        if server.fingerprints is not None:
            record.pwfp = server.fingerprints.make(request.credentials)
    if server.report_login is not None:
        server.report_login(request, result)


def log_denied_login(session: Session, denied: LoginDenied) -> None:
    """Log a login that the authentication service or the policy server has refused."""
    record = session.record
    record.reply = denied.text
    if record.policy_refusal is not None:
        record.stage = "policy"
        session.log_event(LogLevel.INFO, "policy_refused", user=record.user, reason=record.policy_refusal)
        return
    record.stage = "auth"
    is_wrong_password = record.result in WRONG_PASSWORD and record.method in PASSWORD_METHODS
    fields: dict[str, Field] = {"pwfp": record.pwfp} if record.pwfp and is_wrong_password else {}
    session.log_event(
        LogLevel.INFO, "login_denied", user=record.user, reply=denied.text, code=denied.code, **fields
    )

# SPDX-License-Identifier: Apache-2.0
"""Reports a login that failed at the upstream: metrics, log, and the reply to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.enums import LoginResult, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.protocols.temporary_refusal import is_login_refused
from mailproxy.protocols.types import AuthAllowed
from mailproxy.protocols.upstream_reply import reply_for_log
from mailproxy.telemetry.log_format import Field
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import AuthMode, LogLevel, ServerConfig

if TYPE_CHECKING:
    from mailproxy.session.session import Session


def report_upstream_failure(
    session: Session, grant: AuthAllowed, error: UpstreamError, *, is_outage: bool
) -> bytes:
    """Count and log a failure, and return the last reply to the client.

    Args:
        session: The client's session.
        grant: The login.
        error: The failure.
        is_outage: Whether the session goes on after it (``proxy_tempfail``):
            then it is no denial, and the returned reply is not used.

    With ``auth_mode upstream``, a refusal is no failure, and the upstream's reply is returned.
    """
    server = session.server
    if not is_outage and _is_verdict(server.config, error):
        session.count_login(LoginResult.UPSTREAM_DENIED)
        _log_denial(session, grant, error)
        return error.reply
    server.record_upstream_error(session.record, error)
    result, is_denial, is_passed_on = LoginResult.UPSTREAM_FAILED, False, False
    if isinstance(error, UpstreamRefused):
        # A denial concerns this client, a refusal all of them.  A temporary refusal is no failed login.
        is_denial = error.is_denial and not is_outage
        is_failed_login = is_login_refused(error, server.config.protocol)
        result = LoginResult.UPSTREAM_DENIED if is_failed_login else LoginResult.UPSTREAM_REFUSED
        is_passed_on = server.config.proxy_pass_error_message and not is_outage
    session.count_login(result)
    # ``info`` as in nginx, where the client gets to see a denial
    _log(session, grant, error, LogLevel.INFO if is_denial and is_passed_on else LogLevel.ERROR)
    return error.reply if is_passed_on else error.client_reply or server.protocol.internal_error


def _is_verdict(config: ServerConfig, error: UpstreamError) -> bool:
    """Whether the upstream refused the credentials, about which it decides (``auth_mode upstream``)."""
    return (
        config.auth_mode is AuthMode.UPSTREAM
        and isinstance(error, UpstreamRefused)
        and error.stage is UpstreamStage.LOGIN
    )


def _log_denial(session: Session, grant: AuthAllowed, error: UpstreamError) -> None:
    """Log a refusal as one of the authentication service: it is no failure of the upstream."""
    record = session.record
    record.stage, record.reply = error.stage, reply_for_log(error.reply, grant.user, grant.password)
    upstream = format_host_port(record.upstream, record.upstream_port)
    session.log_event(LogLevel.INFO, "login_denied", user=record.user, upstream=upstream, reply=record.reply)


def _log(session: Session, grant: AuthAllowed, error: UpstreamError, level: LogLevel) -> None:
    """Log how far the login came."""
    record = session.record
    record.stage, record.reply = error.stage, None
    # Without an address, no member of the group may get the login.
    upstream = (
        format_host_port(record.upstream, record.upstream_port) if record.upstream else grant.upstream_group
    )
    fields: dict[str, Field] = {"upstream": upstream, "stage": error.stage, "reason": str(error)}
    if error.kind is not None:
        fields["kind"] = error.kind
    if error.tls_failure is not None:
        fields["failure"] = error.tls_failure
    if error.reply:
        record.reply = reply_for_log(error.reply, grant.user, grant.password)
        fields["reply"] = record.reply
    session.log_event(level, "upstream_failed", **fields)

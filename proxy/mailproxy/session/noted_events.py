# SPDX-License-Identifier: Apache-2.0
"""What a session records, counts and logs of the events that its frontend reports (``Note``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy import enums
from mailproxy.protocols import sansio
from mailproxy.session.login_end import log_denied_login
from mailproxy.session.named_client import record_named_client
from mailproxy_config.model import LogLevel

if TYPE_CHECKING:
    from mailproxy.session.session import Session


def note_event(session: Session, effect: sansio.Note) -> None:
    """Perform ``Note``."""
    event, record, metrics = effect.event, session.record, session.protocol_metrics
    if isinstance(event, enums.ProtocolViolation):
        record.errors += 1
        record.error = event.kind
        metrics.errors[event.kind].value += 1
    elif isinstance(event, enums.LoginRefused):
        record.method, record.result = event.method, event.result
        metrics.logins[event.method][event.result].value += 1
    elif isinstance(event, enums.LoginDenied):
        log_denied_login(session, event)
    elif isinstance(event, enums.ClientNamed):
        record_named_client(record, session.client)
    else:
        level = LogLevel.ERROR if event.is_ours else LogLevel.INFO
        session.log_event(level, event.event, text=event.text)

# SPDX-License-Identifier: Apache-2.0
"""The three mail protocols: the classes for both sides of a session, and the replies for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from typing import Protocol as TypingProtocol

from mailproxy.protocols.command_limit import with_command_limit
from mailproxy.protocols.frontend import Frontend, FrontendConfig, passes_token_errors
from mailproxy.protocols.imap import replies as imap_replies
from mailproxy.protocols.imap.after_login import noting_capabilities
from mailproxy.protocols.imap.frontend import ImapFrontend, ImapFrontendConfig
from mailproxy.protocols.imap.id_frontend import ImapIdFrontend
from mailproxy.protocols.imap.tempfail import ImapTempfailFrontend
from mailproxy.protocols.imap.trusted import ImapTrustedFrontend, imap_trusted_config
from mailproxy.protocols.imap.upstream_auth import imap_upstream
from mailproxy.protocols.imap.verdict import ImapVerdictFrontend
from mailproxy.protocols.pop3 import replies as pop3_replies
from mailproxy.protocols.pop3.frontend import Pop3Frontend, Pop3FrontendConfig
from mailproxy.protocols.pop3.tempfail import Pop3TempfailFrontend
from mailproxy.protocols.pop3.trusted import Pop3TrustedFrontend, pop3_trusted_config
from mailproxy.protocols.pop3.upstream_auth import pop3_upstream
from mailproxy.protocols.pop3.verdict import Pop3VerdictFrontend
from mailproxy.protocols.smtp import replies as smtp_replies
from mailproxy.protocols.smtp.bdat import with_bdat
from mailproxy.protocols.smtp.frontend import SmtpFrontend, SmtpFrontendConfig, SmtpWithoutAuthFrontend
from mailproxy.protocols.smtp.tempfail import SmtpTempfailFrontend
from mailproxy.protocols.smtp.trusted import SmtpTrustedFrontendConfig, smtp_trusted_frontend
from mailproxy.protocols.smtp.upstream_choice import smtp_upstream
from mailproxy.protocols.smtp.verdict import SmtpVerdictFrontend
from mailproxy.protocols.tempfail import TempfailFrontend, with_tempfail
from mailproxy.protocols.token_errors import with_token_errors
from mailproxy.protocols.types import Client, LoginSecrets
from mailproxy.protocols.upstream_reply import UpstreamLoginBase
from mailproxy.protocols.verdict import VerdictFrontend
from mailproxy_config.capability_choice import CapabilitiesFrom
from mailproxy_config.model import Protocol, ServerConfig, Tempfail


class UpstreamFactory(TypingProtocol):
    """Makes the login at the upstreams of one server."""

    def __call__(self, server: ServerConfig, secrets: LoginSecrets = ...) -> UpstreamLoginBase:
        """Make it, of the class that the directives need."""
        ...


@dataclass(frozen=True, slots=True)
class MailProtocol:
    """A mail protocol."""

    name: Protocol
    frontend: Callable[[ServerConfig], type[Frontend[Any]]]
    """Returns the class of the server side of a client's session."""
    trusted_frontend: Callable[[ServerConfig], type[Frontend[Any]]]
    """The same for trusted clients (``real_ip_command``)."""
    tempfail_frontend: type[TempfailFrontend[Any]]
    """What is added to it with ``proxy_tempfail rfc5530``."""
    verdict_frontend: type[VerdictFrontend[Any]]
    """What is added to it with ``auth_mode upstream`` and ``static``."""
    frontend_config: Callable[[ServerConfig], FrontendConfig]
    """What all frontends of one server share."""
    trusted_config: Callable[[ServerConfig], FrontendConfig]
    """What all frontends of trusted clients share."""
    upstream: UpstreamFactory
    """The login at the upstreams of one server."""
    internal_error: bytes
    """The reply to a client after an error of the proxy, an upstream or the authentication service."""
    shutdown: bytes
    """The reply to a client that has not logged in when the proxy drains."""
    busy: bytes
    """The reply to a client above ``worker_connections``."""

    def frontend_for(self, server: ServerConfig) -> Callable[[Client], Frontend[Any]]:
        """Return what makes the frontends of one server."""
        return partial(self._complete(self.frontend(server), server), self.frontend_config(server))

    def trusted_frontend_for(self, server: ServerConfig) -> Callable[[Client], Frontend[Any]]:
        """Return what makes the frontends of trusted clients of one server (``real_ip_command``)."""
        return partial(self._complete(self.trusted_frontend(server), server), self.trusted_config(server))

    def _complete(self, frontend: type[Frontend[Any]], server: ServerConfig) -> type[Frontend[Any]]:
        """Add what directives of all protocols need."""
        if server.auth_mode.needs_routes:
            frontend = with_tempfail(self.verdict_frontend, frontend)
        else:
            if server.proxy_tempfail is Tempfail.RFC5530:
                frontend = with_tempfail(self.tempfail_frontend, frontend)
            if passes_token_errors(server):
                frontend = with_token_errors(frontend)
        if server.imap_capability_after_login and issubclass(frontend, ImapFrontend):
            frontend = noting_capabilities(frontend)
        if server.smtp_capabilities_from is CapabilitiesFrom.UPSTREAM and issubclass(frontend, SmtpFrontend):
            frontend = with_bdat(frontend)
        if server.max_commands:
            frontend = with_command_limit(frontend)
        return frontend


def _imap_frontend(server: ServerConfig) -> type[ImapFrontend]:
    return ImapIdFrontend if server.answers_id else ImapFrontend


def _smtp_frontend(server: ServerConfig) -> type[SmtpFrontend]:
    return SmtpFrontend if server.smtp_auth_command else SmtpWithoutAuthFrontend


PROTOCOLS: Final[Mapping[Protocol, MailProtocol]] = MappingProxyType(
    {
        Protocol.IMAP: MailProtocol(
            name=Protocol.IMAP,
            frontend=_imap_frontend,
            trusted_frontend=lambda _: ImapTrustedFrontend,
            tempfail_frontend=ImapTempfailFrontend,
            verdict_frontend=ImapVerdictFrontend,
            frontend_config=ImapFrontendConfig,
            trusted_config=imap_trusted_config,
            upstream=imap_upstream,
            internal_error=imap_replies.INTERNAL_ERROR,
            shutdown=imap_replies.SHUTDOWN,
            busy=imap_replies.BUSY,
        ),
        Protocol.POP3: MailProtocol(
            name=Protocol.POP3,
            frontend=lambda _: Pop3Frontend,
            trusted_frontend=lambda _: Pop3TrustedFrontend,
            tempfail_frontend=Pop3TempfailFrontend,
            verdict_frontend=Pop3VerdictFrontend,
            frontend_config=Pop3FrontendConfig,
            trusted_config=pop3_trusted_config,
            upstream=pop3_upstream,
            internal_error=pop3_replies.INTERNAL_ERROR,
            shutdown=pop3_replies.SHUTDOWN,
            busy=pop3_replies.BUSY,
        ),
        Protocol.SMTP: MailProtocol(
            name=Protocol.SMTP,
            frontend=_smtp_frontend,
            trusted_frontend=smtp_trusted_frontend,
            tempfail_frontend=SmtpTempfailFrontend,
            verdict_frontend=SmtpVerdictFrontend,
            frontend_config=SmtpFrontendConfig,
            trusted_config=SmtpTrustedFrontendConfig,
            upstream=smtp_upstream,
            internal_error=smtp_replies.INTERNAL_ERROR,
            shutdown=smtp_replies.SHUTDOWN,
            busy=smtp_replies.BUSY,
        ),
    }
)
"""The protocols by their names in nginx."""

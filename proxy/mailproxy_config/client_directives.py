# SPDX-License-Identifier: Apache-2.0
"""Directives about clients before login that nginx does not have."""

from __future__ import annotations

from typing import Final

from mailproxy_config.capability_choice import AlpnStrict, CapabilitiesFrom
from mailproxy_config.limit_directives import LIMIT_DIRECTIVES
from mailproxy_config.model import ImapId
from mailproxy_config.penalty_directives import PENALTY_DIRECTIVES
from mailproxy_config.value_types import FLAG, NUMBER, SIZE, Directive, choice

_CAPABILITIES_FROM: Final = choice({"static": "Static", "upstream": "Upstream"}, CapabilitiesFrom)

CLIENT_DIRECTIVES: Final = (
    Directive(
        name="imap_id_command",
        field="imapId",
        module="mail_imap",
        type=choice({"ignore": "Ignore", "answer": "Answer"}, ImapId),
        is_ours=True,
        meaning=(
            "ID and ENABLE before login: Ignore (BAD, as nginx) or Answer. Not set: Answer with proxyId or "
            "realIpCommand."
        ),
    ),
    Directive(
        name="imap_capabilities_from",
        module="mail_imap",
        type=_CAPABILITIES_FROM,
        default="Static",
        is_ours=True,
        meaning=(
            "Capabilities before login: imapCapabilities (Static), or those of them that the mail servers "
            "have (Upstream)."
        ),
    ),
    Directive(
        name="imap_capability_after_login",
        module="mail_imap",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Sends the mail server's capabilities with the response to the login, if it did not.",
    ),
    Directive(
        name="smtp_capabilities_from",
        module="mail_smtp",
        type=_CAPABILITIES_FROM,
        default="Static",
        is_ours=True,
        meaning=(
            "Extensions before login: smtpCapabilities (Static), or those of the mail servers, limited to "
            "the list if there is one (Upstream)."
        ),
    ),
    Directive(
        name="ssl_alpn_strict",
        module="mail_ssl",
        type=choice({"nginx": "Nginx", "registered": "Registered"}, AlpnStrict),
        default="Nginx",
        is_ours=True,
        meaning=(
            "ALPN offers without this protocol are refused: all (Nginx), or those with another registered "
            "protocol (Registered)."
        ),
    ),
    Directive(
        name="smtp_auth_command",
        module="mail_smtp",
        type=FLAG,
        default=True,
        is_ours=True,
        meaning=(
            "Allows the SMTP command AUTH. false: AUTH is not announced and is refused with 502, for port 25 "
            "with smtpAuth none."
        ),
    ),
    Directive(
        name="real_ip_command",
        module="mail_realip",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Webmail and other proxies in setRealIpFrom name the original client, by ID (IMAP) or XCLIENT "
            "(POP3, SMTP)."
        ),
    ),
    Directive(
        name="max_commands",
        module="mail_core",
        type=NUMBER,
        default=0,
        is_ours=True,
        meaning="Number of commands before login after which the connection is closed. 0: not limited.",
    ),
    Directive(
        name="limit_rate",
        module="mail_proxy",
        type=SIZE,
        default="0",
        is_ours=True,
        meaning="Bytes per second that a client gets from the mail server, per connection. 0: not limited.",
    ),
    Directive(
        name="limit_rate_after",
        module="mail_proxy",
        type=SIZE,
        default="0",
        is_ours=True,
        meaning="Bytes that a client gets before limitRate applies.",
    ),
    *PENALTY_DIRECTIVES,
    *LIMIT_DIRECTIVES,
)
"""Directives allowed in ``spec.mail`` and every server."""

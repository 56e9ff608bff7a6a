# SPDX-License-Identifier: Apache-2.0
"""Directives about replies during an outage, and about EHLO to upstreams; nginx does not have them."""

from __future__ import annotations

from typing import Final

from mailproxy_config.model import SmtpHelo, Tempfail
from mailproxy_config.value_types import Directive, choice

_UPSTREAM: Final = "mail_proxy"
_TEMPFAIL: Final = choice({"nginx": "Nginx", "rfc5530": "Rfc5530"}, Tempfail)
_SMTP_HELO: Final = choice({"server": "Server", "client": "Client"}, SmtpHelo)

TEMPFAIL_DIRECTIVES: Final = (
    Directive(
        name="proxy_tempfail",
        module=_UPSTREAM,
        type=_TEMPFAIL,
        default="Nginx",
        is_ours=True,
        meaning=(
            "Reply to a login during an outage: Nginx (internal error, closed), or Rfc5530 (temporary "
            "failure, stays open)."
        ),
    ),
    Directive(
        name="proxy_smtp_helo",
        module=_UPSTREAM,
        type=_SMTP_HELO,
        default="Server",
        is_ours=True,
        meaning=(
            "Name in EHLO to SMTP servers that get no XCLIENT: Server (serverName), or Client (the name that "
            "the client sent)."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

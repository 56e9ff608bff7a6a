# SPDX-License-Identifier: Apache-2.0
"""Directives about clients before login that nginx does not have."""

from __future__ import annotations

from typing import Final

from mailproxy_config.model import ImapId
from mailproxy_config.value_types import Directive, choice

CLIENT_DIRECTIVES: Final = (
    Directive(
        name="imap_id",
        module="mail_client",
        type=choice({"ignore": "Ignore", "answer": "Answer"}, ImapId),
        is_ours=True,
        meaning=(
            "ID and ENABLE before login: Ignore (BAD, as nginx) or Answer. Not set: Answer where proxyId "
            "is not Disabled."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

# SPDX-License-Identifier: Apache-2.0
"""Directives about logins with OAuth 2.0 access tokens, which nginx does not have."""

from __future__ import annotations

from typing import Final

from mailproxy_config.value_types import FLAG, Directive

TOKEN_METHODS: Final = ("xoauth2", "oauthbearer")
"""Methods of ``imap_auth``, ``pop3_auth`` and ``smtp_auth`` with an access token."""

OAUTH_DIRECTIVES: Final = (
    Directive(
        name="oauth_strict",
        module="mail_core",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "With OAUTHBEARER: refuses channel binding, and a host= that is not the server name of the "
            "client's TLS handshake."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

# SPDX-License-Identifier: Apache-2.0
"""The values of the directives about the login at upstreams: ``proxy_auth`` and its like.

Secrets are in files; only their paths are part of a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class ProxyAuth(StrEnum):
    """A way to log in at the upstream: as nginx, or a SASL mechanism."""

    NATIVE = "Native"
    PLAIN = "Plain"
    LOGIN = "Login"
    XOAUTH2 = "Xoauth2"
    OAUTHBEARER = "Oauthbearer"
    EXTERNAL = "External"


TOKEN_MECHANISMS: Final = frozenset({ProxyAuth.XOAUTH2, ProxyAuth.OAUTHBEARER})
"""The mechanisms that send an access token."""


class TokenGrant(StrEnum):
    """How an access token is requested (RFC 6749 sections 4.4 and 6)."""

    CLIENT_CREDENTIALS = "ClientCredentials"
    REFRESH_TOKEN = "RefreshToken"  # noqa: S105 - the name of a grant


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyMasterUser:
    """``proxy_master_user``: a user of the upstream that may log in as every other.

    ``password_file`` holds its password; one line end at its end is removed.
    """

    user: str
    password_file: str
    separator: str = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyAuthToken:
    """``proxy_auth_token``: the token service, and the client that requests tokens there.

    The files hold secrets; one line end at their end is removed.
    """

    token_url: str
    client_id: str
    client_secret_file: str | None = None
    scope: str = ""
    grant: TokenGrant = TokenGrant.CLIENT_CREDENTIALS
    refresh_token_file: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files with its secrets."""
        return tuple(path for path in (self.client_secret_file, self.refresh_token_file) if path is not None)

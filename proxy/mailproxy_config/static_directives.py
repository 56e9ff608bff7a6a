# SPDX-License-Identifier: Apache-2.0
"""``auth_user_file``: users and password hashes of ``auth_mode static``, and what that mode needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from mailproxy_config.model import AuthMethod
from mailproxy_config.secret_refs import FILE, KeyRef, ReferenceKind
from mailproxy_config.value_types import Directive

_CHALLENGE: Final = "a client does not send its password with it, and a hash is not enough to verify it"
_TOKEN: Final = "a token is no password; use authMode Jwt"  # noqa: S105 -- a text
_NOT_VERIFIED: Final = {
    AuthMethod.CRAM_MD5: _CHALLENGE,
    AuthMethod.APOP: _CHALLENGE,
    AuthMethod.EXTERNAL: "there is no password; use authMode Http",
    AuthMethod.NONE: "there is no password; use another server with authMode Http",
    AuthMethod.XOAUTH2: _TOKEN,
    AuthMethod.OAUTHBEARER: _TOKEN,
}


def static_problems(
    value: Callable[[str], Any], protocol: str, listed: Collection[AuthMethod]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a server of ``auth_mode static``, and how to fix it.

    Args:
        value: Returns the value of a directive of the server.
        protocol: The server's protocol.
        listed: Its methods to log in.

    Yields:
        A directive, and a reason.
    """
    file = value("auth_user_file")
    if file is None:
        yield "auth_user_file", "is required for authMode Static: set it here or in spec.mail"
    elif isinstance(file, KeyRef) and file.kind is ReferenceKind.CONFIG_MAP:
        yield "auth_user_file", "must be the key of a Secret: everybody who reads hashes can guess passwords"
    for method in (each for each in _NOT_VERIFIED if each in listed):
        reason = f"{method} is not possible with authMode Static: {_NOT_VERIFIED[method]}"
        yield f"{protocol}_auth", reason


STATIC_DIRECTIVES: Final = (
    Directive(
        name="auth_user_file",
        module="mail_auth_http",
        type=FILE,
        is_ours=True,
        meaning=(
            "With authMode Static: users and password hashes as of htpasswd: bcrypt, sha512-crypt ($6$) or "
            "argon2id."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

# SPDX-License-Identifier: Apache-2.0
"""The SASL messages with an OAuth 2.0 access token: OAUTHBEARER (RFC 7628) and Google's XOAUTH2.

The grammar is freenginx's, and stricter where control characters are concerned: user names and
tokens are sent on to the authentication service and to upstreams.
"""

from __future__ import annotations

import json
import re
from binascii import b2a_base64
from typing import Final, NamedTuple

from mailproxy.enums import Method
from mailproxy.protocols.types import Credentials, Secret
from mailproxy_config.oauth_issuer import OAuthIssuer

MAX_TOKEN: Final = 16384
"""Bytes of an access token."""
TOKEN_LINE: Final = 32768
"""Bytes of the longest command where tokens are accepted; a token of ``MAX_TOKEN`` bytes fits in base64."""
TOKEN_METHODS: Final = frozenset({Method.XOAUTH2, Method.OAUTHBEARER})

_SEPARATOR: Final = b"\1"
_USER: Final = b"user="
_BEARER: Final = b"auth=bearer "
_EMPTY_AUTH: Final = frozenset((b"auth=", b"auth=bearer"))
_ESCAPE: Final = re.compile(rb"=(..?)?", re.DOTALL)
_ESCAPED: Final = {b"2c": b",", b"3d": b"="}
_CONTROLS: Final = bytes((*range(0x20), 0x7F))
_GS2_FLAGS: Final = frozenset((b"n", b"y"))
_ERROR_RESPONSES: Final = {Method.XOAUTH2: b"", Method.OAUTHBEARER: b"AQ=="}


class StrictRules(NamedTuple):
    """The rules of ``oauth_strict``; ``server_name`` is SNI, which ``host=`` must have."""

    server_name: bytes | None


class _BadMessage(Exception):
    """The message is malformed."""


def parse_token(method: Method, message: bytes, strict: StrictRules | None = None) -> Credentials | None:
    """Parse the decoded response of XOAUTH2 or OAUTHBEARER.

    Args:
        method: One of ``TOKEN_METHODS``.
        message: The response after base64.
        strict: The rules of ``oauth_strict``, ``None`` where it is off.

    Returns:
        User name and token; ``None`` if the message is malformed, or the token too long.
    """
    try:
        user, token = _xoauth2(message) if method is Method.XOAUTH2 else _oauthbearer(message, strict)
    except _BadMessage:
        return None
    return Credentials(method, user, Secret(token)) if len(token) <= MAX_TOKEN else None


def has_controls(credentials: Credentials) -> bool:
    """Whether the user name or the token contains a control character."""
    assert credentials.password is not None  # noqa: S101 - ``parse_token`` sets it
    both = credentials.user + credentials.password.reveal()
    return len(both.translate(None, _CONTROLS)) != len(both)


def is_error_response(method: Method, line: bytes) -> bool:
    """Whether a line is the response to the challenge with an error (RFC 7628 section 3.2.3)."""
    expected = _ERROR_RESPONSES[method]
    if not expected:
        return not line
    words = line.split()
    return len(words) == 1 and words[0].startswith(expected)


def is_discovery(method: Method, message: bytes) -> bool:
    """Whether a message has no token, with which a client asks where to get one (RFC 7628 section 4.3)."""
    start, *pairs = message.split(_SEPARATOR)
    is_ours = start[: len(_USER)].lower() == _USER if method is Method.XOAUTH2 else b"," in start
    return is_ours and any(pair.rstrip(b" ").lower() in _EMPTY_AUTH for pair in pairs[:-1])


def error_challenge(issuer: OAuthIssuer) -> bytes:
    """Return the challenge with the error of a token in base64 (RFC 7628 section 3.2.2).

    Args:
        issuer: Where the client may get another token.
    """
    error = {"status": "invalid_token"}
    if issuer.scope:
        error["scope"] = issuer.scope
    error["openid-configuration"] = issuer.openid_configuration
    return b2a_base64(json.dumps(error, separators=(",", ":")).encode(), newline=False)


def _xoauth2(message: bytes) -> tuple[bytes, bytes]:
    """``user=U ^A auth=Bearer T ^A ^A``."""
    user, _, rest = message.partition(_SEPARATOR)
    pair, end, _ = rest.partition(_SEPARATOR)
    if user[: len(_USER)].lower() != _USER or pair[: len(_BEARER)].lower() != _BEARER or not end:
        raise _BadMessage
    return user[len(_USER) :], pair[len(_BEARER) :]


def _oauthbearer(message: bytes, strict: StrictRules | None) -> tuple[bytes, bytes]:
    """``GS2-header ^A``, and pairs that end in ``^A``: one is ``auth=Bearer T`` (RFC 7628 section 3.1)."""
    header, *pairs = message.split(_SEPARATOR)
    tokens = (pair[len(_BEARER) :] for pair in pairs[:-1] if pair[: len(_BEARER)].lower() == _BEARER)
    token = next(filter(None, tokens), b"")
    if not token:
        raise _BadMessage
    if strict is not None:
        _check_strictly(header, pairs, strict)
    return _authorization_id(header), token


def _authorization_id(header: bytes) -> bytes:
    """Return the user name in a GS2 header: ``flag,a=NAME,`` (RFC 5801 section 4)."""
    parts = header.split(b",")[1:-1]
    name = next((part[2:] for part in parts if part[:2].lower() == b"a=" and len(part) > 2), None)
    if name is None:
        raise _BadMessage
    return _ESCAPE.sub(_unescaped, name)


def _unescaped(found: re.Match[bytes]) -> bytes:
    """Decode ``=2C`` and ``=3D``, the only characters that are encoded."""
    character = _ESCAPED.get((found[1] or b"").lower())
    if character is None:
        raise _BadMessage
    return character


def _check_strictly(header: bytes, pairs: list[bytes], strict: StrictRules) -> None:
    """Check the channel binding flag, and ``host=`` against SNI (RFC 7628 section 3.2)."""
    if header.partition(b",")[0] not in _GS2_FLAGS:
        raise _BadMessage
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        if name.lower() == b"host" and value.lower() != (strict.server_name or b"").lower():
            raise _BadMessage

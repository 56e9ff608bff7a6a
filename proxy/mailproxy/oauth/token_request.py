# SPDX-License-Identifier: Apache-2.0
"""One request to a token service (RFC 6749 sections 4.4, 5 and 6).

The answer is limited in size and time, and redirects are not followed: they would send the client's
secret to another host.  Errors have no text of the service but its error code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from mailproxy.enums import TokenResult
from mailproxy.protocols.types import Secret
from mailproxy_config.upstream_login import ProxyAuthToken, TokenGrant

MAX_BODY: Final = 256 * 1024
"""Bytes of an answer."""
MAX_TOKEN: Final = 64 * 1024
"""Bytes of an access token."""
DEFAULT_SECONDS: Final = 300.0
"""Lifetime of a token whose answer has none."""
_MAX_SECONDS: Final = 7 * 86400.0
_READ: Final = 16 * 1024
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""``b64token`` of RFC 6750 section 2.1."""
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")
_ENTRA_CODE: Final = re.compile(r"AADSTS[0-9]{1,10}")
_TRY_LATER: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "MailProxy"}


class TokenRequestError(Exception):
    """A request that provided no token.

    Attributes:
        result: The label of the metric.
        is_misconfigured: Whether the service refuses this client, scope or refresh token.
    """

    def __init__(self, message: str, result: TokenResult, *, is_misconfigured: bool = False) -> None:
        super().__init__(message)
        self.result = result
        self.is_misconfigured = is_misconfigured


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """A token, its lifetime in seconds, and the new refresh token if there is one."""

    token: Secret
    seconds: float
    refresh_token: Secret | None = None


def form(
    config: ProxyAuthToken, client_secret: Secret | None, refresh_token: Secret | None
) -> dict[str, str]:
    """Return the fields of the request, with the client's secret (RFC 6749 section 2.3.1)."""
    fields = {"client_id": config.client_id}
    if config.grant is TokenGrant.REFRESH_TOKEN:
        fields["grant_type"] = "refresh_token"
        if refresh_token is not None:
            fields["refresh_token"] = _text(refresh_token)
    else:
        fields["grant_type"] = "client_credentials"
    if client_secret is not None:
        fields["client_secret"] = _text(client_secret)
    if config.scope:
        fields["scope"] = config.scope
    return fields


def _text(secret: Secret) -> str:
    return secret.reveal().decode("utf-8", "surrogateescape")


async def request_token(url: str, fields: Mapping[str, str]) -> TokenAnswer:
    """Send a request, on a connection of its own.  The caller limits its time.

    The proxy of the environment (``HTTPS_PROXY``, ``NO_PROXY``) is used.

    Raises:
        TokenRequestError: There is no usable answer.
    """
    try:
        async with (
            aiohttp.ClientSession(
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.post(url, data=fields, headers=_HEADERS, allow_redirects=False) as response,
        ):
            body = await _read_body(response)
            return parse(response.status, body)
    except aiohttp.ClientError as error:
        # Its text may contain the URL, never the body of the request.
        reason = f"no connection with the token service ({type(error).__name__})"
        raise TokenRequestError(reason, TokenResult.UNAVAILABLE) from None
    except (OSError, ValueError) as error:
        reason = f"the request to the token service failed ({type(error).__name__})"
        raise TokenRequestError(reason, TokenResult.UNAVAILABLE) from None


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while chunk := await response.content.read(_READ):
        body += chunk
        if len(body) > MAX_BODY:
            reason = f"the answer of the token service is longer than {MAX_BODY} bytes"
            raise TokenRequestError(reason, TokenResult.INVALID)
    return body


def parse(status: int, body: bytes) -> TokenAnswer:
    """Read an answer.

    Raises:
        TokenRequestError: It has no usable token.
    """
    answer = _json(body)
    if status == 200:
        return _token(answer)
    if 300 <= status < 400:
        raise TokenRequestError(
            f"the token service redirects (HTTP {status}): set its final URL", TokenResult.INVALID
        )
    code = answer.get("error")
    if not (isinstance(code, str) and _ERROR_CODE.fullmatch(code)):
        code = ""
    detail = _ENTRA_CODE.search(str(answer.get("error_description"))[:1024])
    words = " ".join(word for word in (f"HTTP {status}", code, detail[0] if detail else "") if word)
    if status >= 500 or status == 429 or code in _TRY_LATER:
        raise TokenRequestError(f"the token service failed ({words})", TokenResult.UNAVAILABLE)
    raise TokenRequestError(
        f"the token service refused the request ({words})", TokenResult.REFUSED, is_misconfigured=True
    )


def _json(body: bytes) -> Mapping[str, Any]:
    """Return the object of an answer; empty if it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _token(answer: Mapping[str, Any]) -> TokenAnswer:
    token, kind, refresh = answer.get("access_token"), answer.get("token_type"), answer.get("refresh_token")
    if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise TokenRequestError("the answer of the token service has no access token", TokenResult.INVALID)
    if kind is not None and str(kind).lower() != "bearer":
        raise TokenRequestError("the token of the token service is no bearer token", TokenResult.INVALID)
    is_rotated = isinstance(refresh, str) and 0 < len(refresh) <= MAX_TOKEN
    return TokenAnswer(
        Secret(token.encode()),
        _lifetime(answer.get("expires_in")),
        Secret(str(refresh).encode("utf-8", "surrogateescape")) if is_rotated else None,
    )


def _lifetime(value: object) -> float:
    """Return a lifetime in seconds; some services write it as text."""
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else DEFAULT_SECONDS
    except (ValueError, OverflowError):
        return DEFAULT_SECONDS
    return min(seconds, _MAX_SECONDS) if seconds > 0 else DEFAULT_SECONDS

# SPDX-License-Identifier: Apache-2.0
"""Requests to a token service: what is sent, and which answers have a token."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import TokenResult
from mailproxy.oauth.token_request import (
    DEFAULT_SECONDS,
    MAX_BODY,
    TokenAnswer,
    TokenRequestError,
    form,
    parse,
    request_token,
)
from mailproxy.protocols.types import Secret
from mailproxy_config.upstream_login import ProxyAuthToken, TokenGrant
from support.token_service import answer, token, token_service

CLIENT = ProxyAuthToken(token_url="https://t", client_id="app", client_secret_file="/s", scope="a b/.default")


def failure(status: int, body: object) -> TokenRequestError:
    with pytest.raises(TokenRequestError) as caught:
        parse(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def test_form_of_client_credentials() -> None:
    assert form(CLIENT, Secret(b"s3cret"), None) == {
        "grant_type": "client_credentials",
        "client_id": "app",
        "client_secret": "s3cret",
        "scope": "a b/.default",
    }


def test_form_of_a_refresh_token() -> None:
    config = ProxyAuthToken(
        token_url="https://t", client_id="app", grant=TokenGrant.REFRESH_TOKEN, refresh_token_file="/r"
    )
    assert form(config, None, Secret(b"1//r")) == {
        "grant_type": "refresh_token",
        "client_id": "app",
        "refresh_token": "1//r",
    }


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [(3599, 3599), ("3599", 3599), (None, DEFAULT_SECONDS), ("soon", DEFAULT_SECONDS), (0, DEFAULT_SECONDS),
     (-5, DEFAULT_SECONDS), (1e300, 7 * 86400), ([], DEFAULT_SECONDS)],
)  # fmt: skip
def test_lifetime_of_a_token(expires_in: object, seconds: float) -> None:
    body = {"access_token": "abc.def-_~+/==", "token_type": "bearer", "expires_in": expires_in}
    assert parse(200, json.dumps(body).encode()) == TokenAnswer(Secret(b"abc.def-_~+/=="), seconds)


def test_other_refresh_token_is_returned() -> None:
    found = parse(200, b'{"access_token": "a", "refresh_token": "new"}')
    assert found.refresh_token == Secret(b"new")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>Sign in</html>", b"[]", b"null", b'{"access_token": 5}', b'{"access_token": ""}',
        b'{"access_token": "a b"}', b'{"access_token": "a\\u0001b"}', b'{"access_token": "a\\r\\nb"}',
        b'{"access_token": "a", "token_type": "mac"}', b"[" * 100_000, b"\xff\xfe",
        json.dumps({"access_token": "a" * 65537}).encode(),
    ],
)  # fmt: skip
def test_answer_without_a_usable_token(body: bytes) -> None:
    assert failure(200, body).result is TokenResult.INVALID


@pytest.mark.parametrize(
    ("status", "body", "result", "words"),
    [
        (400, {"error": "invalid_client"}, TokenResult.REFUSED, "(HTTP 400 invalid_client)"),
        (401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid secret s3cret"},
         TokenResult.REFUSED, "(HTTP 401 invalid_client AADSTS7000215)"),
        (400, {"error": "s3cret \r\n"}, TokenResult.REFUSED, "(HTTP 400)"),
        (403, b"<html>", TokenResult.REFUSED, "(HTTP 403)"),
        (400, {"error": "temporarily_unavailable"}, TokenResult.UNAVAILABLE, "temporarily_unavailable"),
        (429, {"error": "x"}, TokenResult.UNAVAILABLE, "(HTTP 429 x)"),
        (503, b"", TokenResult.UNAVAILABLE, "(HTTP 503)"),
        (302, b"", TokenResult.INVALID, "redirects (HTTP 302)"),
        (204, b"", TokenResult.REFUSED, "(HTTP 204)"),
    ],
)  # fmt: skip
def test_other_answers(status: int, body: object, result: TokenResult, words: str) -> None:
    error = failure(status, body)
    assert (error.result, error.is_misconfigured) == (result, result is TokenResult.REFUSED)
    assert words in str(error)
    assert "s3cret" not in str(error)


@given(st.integers(100, 599), st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_no_answer_raises_another_error(status: int, body: bytes) -> None:
    with contextlib.suppress(TokenRequestError):
        assert parse(status, body).seconds > 0


def test_request_is_a_form_without_redirects() -> None:
    async def play() -> None:
        moved = answer(b"", status="307 Temporary Redirect", head="Location: http://127.0.0.1:1/\r\n")
        async with token_service(token("abc"), moved) as service:
            found = await request_token(service.url, {"client_secret": "a&b=c\u00fc"})
            assert found.token.reveal() == b"abc"
            assert service.forms == [{"client_secret": "a&b=c\u00fc"}]
            assert b"application/x-www-form-urlencoded" in service.heads[0]
            with pytest.raises(TokenRequestError, match="redirects"):
                await request_token(service.url, {})
            assert len(service.forms) == 2

    asyncio.run(play())


@pytest.mark.parametrize("chunked", [False, True])
def test_answer_is_limited(chunked: bool) -> None:
    """The rest is not read."""
    body = b"x" * (MAX_BODY + 1)
    huge = answer(body)
    if chunked:
        part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        huge = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + part * 64 + b"0\r\n\r\n"

    async def play() -> None:
        async with token_service(huge) as service:
            with pytest.raises(TokenRequestError, match="longer than 262144 bytes"):
                await request_token(service.url, {})

    asyncio.run(play())


def test_compressed_answer_is_not_unpacked() -> None:
    async def play() -> None:
        packed = answer(b"\x1f\x8b\x08", head="Content-Encoding: gzip\r\n")
        async with token_service(packed) as service:
            with pytest.raises(TokenRequestError, match="no access token"):
                await request_token(service.url, {})

    asyncio.run(play())


@pytest.mark.parametrize(
    "reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_broken_answer(reply: bytes) -> None:
    async def play() -> None:
        async with token_service(reply) as service:
            with pytest.raises(TokenRequestError) as caught:
                await request_token(service.url, {"client_secret": "s3cret"})
            assert caught.value.result is TokenResult.UNAVAILABLE
            assert "s3cret" not in str(caught.value)

    asyncio.run(play())


def test_service_that_is_down() -> None:
    async def play() -> None:
        async with token_service(b"") as service:
            url = service.url
        with pytest.raises(TokenRequestError) as caught:
            await request_token(url, {})
        assert caught.value.result is TokenResult.UNAVAILABLE

    asyncio.run(play())

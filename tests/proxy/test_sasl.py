# SPDX-License-Identifier: Apache-2.0
"""SASL exchanges, independent of a protocol."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import LoginResult, Method, ProtocolErrorKind
from mailproxy.errors import LineTooLong
from mailproxy.protocols.sansio import LineReader, ProtocolGenerator
from mailproxy.protocols.sasl import (
    Framing,
    SaslFailure,
    authenticate,
    decode_base64,
    find_mechanism,
    is_unsafe,
)
from mailproxy.protocols.types import Credentials, Secret
from mailproxy_config.model import AuthMethod
from support.generator_driver import Driven, drive

FRAMING = Framing(b"334 ", words=3)
CHALLENGE = b"<1.2@mail.example.com>"
DIGEST = b"b913a602c7eda7a495b4e6e7334d3890"
EVERY = frozenset(AuthMethod)
BAD = LoginResult.BAD_CREDENTIALS_SYNTAX


def challenge() -> ProtocolGenerator[bytes]:
    yield from ()
    return CHALLENGE


def exchange(
    *words: bytes, responses: tuple[bytes, ...] = (), enabled: frozenset[AuthMethod] = EVERY
) -> Driven:
    reader = LineReader(256)
    return drive(
        authenticate(words, framing=FRAMING, reader=reader, enabled=enabled, get_challenge=challenge),
        *responses,
    )


def b64(data: bytes) -> bytes:
    return b64encode(data)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"", b""),
        (b"=", b""),
        (b"====", b""),
        (b"=anything", b""),
        (b"AHUAcA==", b"\0u\0p"),
        (b"AHUAcA", b"\0u\0p"),  # padding is optional
        (b"AHUAcA=", b"\0u\0p"),
        (b"AHUAcA=!!", b"\0u\0p"),  # what follows it is ignored
        (b"YWI", b"ab"),
        (b"//++", b"\xff\xff\xbe"),
        (b"A", None),  # one digit too many or too few
        (b"AAAAA", None),
        (b"A===", None),
        (b"*", None),
        (b"a-_b", None),  # the URL-safe alphabet is not accepted
        (b"YW I", None),
        (b"YWI\t", None),
        (b"YWI\0", None),
        (b"\xff\xff\xff\xff", None),
    ],
)
def test_base64_is_decoded_like_nginx(text: bytes, data: bytes | None) -> None:
    assert decode_base64(text) == data


@given(st.binary(max_size=200))
def test_base64_round_trips_with_and_without_padding(data: bytes) -> None:
    assert decode_base64(b64(data)) == data
    assert decode_base64(b64(data).rstrip(b"=")) == data


@given(st.text("AQgw+/=b*-", max_size=9).map(str.encode))
def test_base64_ignores_everything_from_first_padding(text: bytes) -> None:
    digits, _, _ = text.partition(b"=")
    is_base64 = not digits.strip(b"AQgw+/b") and len(digits) % 4 != 1
    assert decode_base64(text) == (b64decode(digits + b"==") if is_base64 else None)


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ((b"PLAIN",), Method.PLAIN),
        ((b"login", b"x"), Method.LOGIN),
        ((b"Cram-MD5",), Method.CRAM_MD5),
        ((b"external",), Method.EXTERNAL),
        ((b"xoauth2",), Method.XOAUTH2),
        ((b"GSSAPI",), None),
        ((b"",), None),
        ((), None),
    ],
)
def test_mechanism_is_found_by_name(words: tuple[bytes, ...], method: Method | None) -> None:
    assert find_mechanism(words) is method


@pytest.mark.parametrize(
    ("data", "unsafe"),
    [(b"", False), (b"a\tb \xff\x7f", False), (b"\r", True), (b"a\n", True), (b"\0a", True)],
)
def test_cr_lf_and_nul_are_unsafe(data: bytes, unsafe: bool) -> None:
    assert is_unsafe(data) is unsafe


@pytest.mark.parametrize(
    ("words", "responses", "prompts", "credentials"),
    [
        ((b"PLAIN", b64(b"\0u\0p")), (), b"", Credentials(Method.PLAIN, b"u", Secret(b"p"))),
        (
            (b"PLAIN",),
            (b64(b"z\0u\0p") + b"\r\n",),
            b"334 \r\n",
            Credentials(Method.PLAIN, b"u", Secret(b"p")),
        ),
        ((b"PLAIN", b64(b"\0\0")), (), b"", Credentials(Method.PLAIN, b"", Secret(b""))),
        (
            (b"LOGIN",),
            (b64(b"u") + b"\n", b64(b"p") + b" junk more\n"),
            b"334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n",
            Credentials(Method.LOGIN, b"u", Secret(b"p")),
        ),
        (
            (b"LOGIN", b64(b"u")),
            (b"\r\n",),
            b"334 UGFzc3dvcmQ6\r\n",
            Credentials(Method.LOGIN, b"u", Secret(b"")),
        ),
        (
            (b"CRAM-MD5",),
            (b64(b"u " + DIGEST) + b"\r\n",),
            b"334 " + b64(CHALLENGE) + b"\r\n",
            Credentials(Method.CRAM_MD5, b"u", Secret(DIGEST), CHALLENGE),
        ),
        ((b"EXTERNAL", b"="), (), b"", Credentials(Method.EXTERNAL)),
        ((b"EXTERNAL",), (b" x\r\n",), b"334 VXNlcm5hbWU6\r\n", Credentials(Method.EXTERNAL)),
    ],
)
def test_sasl_exchange_returns_credentials(
    words: tuple[bytes, ...], responses: tuple[bytes, ...], prompts: bytes, credentials: Credentials
) -> None:
    driven = exchange(*words, responses=responses)
    assert driven.result == credentials
    assert driven.sent == prompts


@pytest.mark.parametrize(
    ("words", "responses", "refusal"),
    [
        ((), (), SaslFailure(None, None, ProtocolErrorKind.BAD_ARGUMENTS)),
        ((b"NTLM",), (), SaslFailure(None, None, ProtocolErrorKind.BAD_ARGUMENTS)),
        ((b"PLAIN", b"a", b"b"), (), SaslFailure(None, None, ProtocolErrorKind.BAD_ARGUMENTS)),
        ((b"PLAIN", b"!"), (), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BASE64_INVALID)),
        ((b"PLAIN", b64(b"u")), (), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BAD_ARGUMENTS)),
        ((b"PLAIN", b64(b"\0u")), (), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BAD_ARGUMENTS)),
        ((b"PLAIN", b64(b"\0u\0p\0")), (), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.CONTROL_CHAR)),
        ((b"PLAIN",), (b"*\r\n",), SaslFailure(Method.PLAIN, LoginResult.ABORTED)),
        ((b"PLAIN", b"*"), (), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BASE64_INVALID)),
        ((b"PLAIN",), (b"* x\r\n",), SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BASE64_INVALID)),
        (
            (b"PLAIN",),
            (b"AHUAcA 2 3 4\r\n",),
            SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.BAD_ARGUMENTS, counts=True),
        ),
        (
            (b"PLAIN",),
            (b"AHU\rAcA\r\n",),
            SaslFailure(Method.PLAIN, BAD, ProtocolErrorKind.CONTROL_CHAR, counts=True),
        ),
        ((b"LOGIN", b64(b"u\n")), (b"\n",), SaslFailure(Method.LOGIN, BAD, ProtocolErrorKind.CONTROL_CHAR)),
        ((b"LOGIN",), (b"!\n",), SaslFailure(Method.LOGIN, BAD, ProtocolErrorKind.BASE64_INVALID)),
        ((b"LOGIN", b"YQ"), (b"*\n",), SaslFailure(Method.LOGIN, LoginResult.ABORTED)),
        ((b"CRAM-MD5", b"YQ"), (), SaslFailure(Method.CRAM_MD5, BAD, ProtocolErrorKind.BAD_ARGUMENTS)),
        (
            (b"CRAM-MD5",),
            (b64(DIGEST) + b"\n",),
            SaslFailure(Method.CRAM_MD5, BAD, ProtocolErrorKind.BAD_ARGUMENTS),
        ),
        ((b"CRAM-MD5",), (b"*\n",), SaslFailure(Method.CRAM_MD5, LoginResult.ABORTED)),
        (
            (b"CRAM-MD5",),
            (b64(b"u x" + DIGEST) + b"\n",),
            SaslFailure(Method.CRAM_MD5, BAD, ProtocolErrorKind.BAD_ARGUMENTS),
        ),
        (
            (b"CRAM-MD5",),
            (b64(b"u\r " + DIGEST) + b"\n",),
            SaslFailure(Method.CRAM_MD5, BAD, ProtocolErrorKind.CONTROL_CHAR),
        ),
        ((b"EXTERNAL", b64(b"a\0")), (), SaslFailure(Method.EXTERNAL, BAD, ProtocolErrorKind.CONTROL_CHAR)),
    ],
)
def test_sasl_exchange_fails(
    words: tuple[bytes, ...], responses: tuple[bytes, ...], refusal: SaslFailure
) -> None:
    assert exchange(*words, responses=responses).result == refusal


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ((b"CRAM-MD5",), Method.CRAM_MD5),
        ((b"EXTERNAL",), Method.EXTERNAL),
        ((b"EXTERNAL", b"YQ=="), Method.EXTERNAL),
    ],
)
def test_cram_md5_and_external_need_configuration(words: tuple[bytes, ...], method: Method) -> None:
    driven = exchange(*words, enabled=frozenset({AuthMethod.PLAIN}))
    assert driven.result == SaslFailure(method, LoginResult.METHOD_DISABLED)
    assert driven.sent == b""


@pytest.mark.parametrize("words", [(b"PLAIN", b"AHUAcA"), (b"LOGIN", b"dQ")])
def test_plain_and_login_always_work(words: tuple[bytes, ...]) -> None:
    assert isinstance(
        exchange(*words, responses=(b"cA\n",) * (words[0] == b"LOGIN"), enabled=frozenset()).result,
        Credentials,
    )


def with_budget(budget: int, *responses: bytes) -> Any:
    reader = LineReader(64)
    drive(reader.read_line(), b"before\n")
    generator = authenticate(
        (b"LOGIN",), framing=FRAMING, reader=reader, enabled=EVERY, get_challenge=challenge, budget=budget
    )
    return drive(generator, *responses).result


def test_response_lines_share_budget() -> None:
    assert isinstance(with_budget(12, b"YQ==\r\n", b"Yg==\r\n"), Credentials)
    with pytest.raises(LineTooLong):
        with_budget(11, b"YQ==\r\n", b"Yg==\r\n")


def test_credentials_repr_has_no_secret() -> None:
    result = exchange(b"PLAIN", b64(b"\0u\0hunter2")).result
    assert "hunter2" not in repr(result)
    assert "hunter2" not in repr(exchange(b"PLAIN", b64(b"\0u\0hunter2\n")).result)

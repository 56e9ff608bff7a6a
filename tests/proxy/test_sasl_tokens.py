# SPDX-License-Identifier: Apache-2.0
"""The messages of XOAUTH2 and OAUTHBEARER, and logins with them whatever their size."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import Receive, Send
from mailproxy.protocols.sasl_tokens import (
    MAX_TOKEN,
    StrictRules,
    has_controls,
    is_discovery,
    is_error_response,
    parse_token,
)
from mailproxy.protocols.types import AuthDenied, AuthRequest, Client, Secret, TlsInfo
from mailproxy_config.model import AuthMethod, Protocol
from support.auth_response import parse
from support.configs import server

X, O = Method.XOAUTH2, Method.OAUTHBEARER  # noqa: E741 - columns of the tables
TOKENS = frozenset({AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})
COMMAND = {
    Protocol.IMAP: (b"a AUTHENTICATE ", b"a BAD invalid command\r\n", b"a NO no\r\n"),
    Protocol.POP3: (b"AUTH ", b"-ERR invalid command\r\n", b"-ERR no\r\n"),
    Protocol.SMTP: (b"AUTH ", b"500 5.5.1 Invalid command\r\n", b"535 5.7.0 no\r\n"),
}
METHODS_DIRECTIVE = {Protocol.IMAP: "imap_auth", Protocol.POP3: "pop3_auth", Protocol.SMTP: "smtp_auth"}


@pytest.mark.parametrize(
    ("method", "message", "user", "token"),
    [
        (X, b"user=bob\1auth=Bearer t\1\1", b"bob", b"t"),
        (X, b"USER=bob\1AUTH=bearer t\1\1", b"bob", b"t"),
        (X, b"user=\1auth=Bearer t\1\1", b"", b"t"),
        (X, b"user=bob\1auth=Bearer t\1", b"bob", b"t"),
        (X, b"user=bob\1auth=Bearer t\1more\1", b"bob", b"t"),
        (X, b"user=bob\1auth=Bearer  t=/+\1\1", b"bob", b" t=/+"),
        (O, b"n,a=bob,\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"y,a=bob,\1AUTH=BEARER t\1\1", b"bob", b"t"),
        (O, b"p=tls-unique,a=bob,\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"n,a=a=2cb=3Dc,\1auth=Bearer t\1host=h\1port=1\1\1", b"a,b=c", b"t"),
        (O, b"n,a=bob,x,y\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"n,A=bob,\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"n,x=y,a=bob,\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"n,a=bob,\1host=h\1port=1\1auth=Bearer t\1\1", b"bob", b"t"),
        (O, b"n,a=bob,\1auth=Bearer \1auth=Bearer t\1\1", b"bob", b"t"),
    ],
)
def test_token_message_is_parsed(method: Method, message: bytes, user: bytes, token: bytes) -> None:
    credentials = parse_token(method, message)
    assert credentials is not None
    assert (credentials.method, credentials.user, credentials.password) == (method, user, Secret(token))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (X, b""),
        (X, b"user=bob"),
        (X, b"user=bob\1"),
        (X, b"user=bob\1auth=Bearer t"),
        (X, b"user=bob\1auth=Basic t\1\1"),
        (X, b"user=bob\1auth=Bearer\1\1"),
        (X, b"login=bob\1auth=Bearer t\1\1"),
        (X, b"auth=Bearer t\1user=bob\1\1"),
        (O, b""),
        (O, b"\1auth=Bearer t\1\1"),
        (O, b"n,,\1auth=Bearer t\1\1"),
        (O, b"n,a=,\1auth=Bearer t\1\1"),
        (O, b"n,a=bob\1auth=Bearer t\1\1"),
        (O, b"n,b=bob,\1auth=Bearer t\1\1"),
        (O, b"n,A=,\1auth=Bearer t\1\1"),
        (O, b"n,a=b=2Db,\1auth=Bearer t\1\1"),
        (O, b"n,a=b=,\1auth=Bearer t\1\1"),
        (O, b"n,a=b=2,\1auth=Bearer t\1\1"),
        (O, b"n,a=bob,\1auth=Bearer \1\1"),
        (O, b"n,a=bob,\1auth=Bearer t"),
        (O, b"n,a=bob,\1host=h\1auth=Basic t\1\1"),
        (O, b"n,a=bob,\1host=h\1auth=Bearer t"),
        (O, b"n,a=bob,auth=Bearer t\1\1"),
    ],
)
def test_malformed_token_message_is_refused(method: Method, message: bytes) -> None:
    assert parse_token(method, message) is None


@pytest.mark.parametrize(
    ("message", "is_accepted"),
    [
        (b"n,a=bob,\1auth=Bearer t\1\1", True),
        (b"y,a=bob,\1auth=Bearer t\1\1", True),
        (b"p=tls-exporter,a=bob,\1auth=Bearer t\1\1", False),
        (b",a=bob,\1auth=Bearer t\1\1", False),
        (b"n,a=bob,\1auth=Bearer t\1host=Mail.Example.com\1port=993\1\1", True),
        (b"n,a=bob,\1auth=Bearer t\1host=other.example\1\1", False),
        (b"n,a=bob,\1auth=Bearer t\1port=993\1host=other.example\1\1", False),
    ],
)
def test_strict_rules_check_channel_binding_and_host(message: bytes, is_accepted: bool) -> None:
    assert (parse_token(O, message, StrictRules(b"mail.example.com")) is not None) is is_accepted


def test_strict_rules_refuse_host_without_sni() -> None:
    assert parse_token(O, b"n,a=bob,\1auth=Bearer t\1host=h\1\1", StrictRules(None)) is None


@pytest.mark.parametrize(
    ("method", "message", "expected"),
    [
        (X, b"user=bob\1auth=Bearer \1\1", True),
        (X, b"user=\1auth=\1\1", True),
        (X, b"USER=bob\1AUTH=BEARER\1\1", True),
        (X, b"user=bob\1auth=Bearer t\1\1", False),
        (X, b"user=bob\1auth=Basic \1\1", False),
        (X, b"user=bob\1auth=", False),
        (X, b"n,a=bob,\1auth=\1\1", False),
        (X, b"user=bob", False),
        (X, b"", False),
        (O, b"n,a=bob,\1auth=Bearer \1\1", True),
        (O, b"n,,\1auth=\1\1", True),
        (O, b"n,a=bob,\1host=h\1port=143\1auth=\1\1", True),
        (O, b"n,a=bob,\1auth=Bearer t\1\1", False),
        (O, b"n,a=bob,\1host=h\1\1", False),
        (O, b"n\1auth=\1\1", False),
        (O, b"", False),
    ],
)
def test_message_without_token_is_recognised(method: Method, message: bytes, expected: bool) -> None:
    assert is_discovery(method, message) is expected


@pytest.mark.parametrize("length", [MAX_TOKEN, MAX_TOKEN + 1])
@pytest.mark.parametrize("method", [X, O])
def test_token_has_limit(method: Method, length: int) -> None:
    start = b"user=bob\1" if method is X else b"n,a=bob,\1"
    credentials = parse_token(method, start + b"auth=Bearer " + b"t" * length + b"\1\1")
    assert (credentials is not None) is (length <= MAX_TOKEN)


def test_token_is_not_in_repr() -> None:
    assert "t0ken" not in repr(parse_token(X, b"user=bob\1auth=Bearer t0ken\1\1"))


@given(
    user=st.binary(min_size=1, max_size=40).filter(lambda data: b"\1" not in data),
    token=st.binary(min_size=1, max_size=80).filter(lambda data: b"\1" not in data),
)
def test_both_messages_carry_user_and_token(user: bytes, token: bytes) -> None:
    encoded = user.replace(b"=", b"=3D").replace(b",", b"=2C")
    for method, start in ((X, b"user=" + user), (O, b"n,a=" + encoded + b",")):
        credentials = parse_token(method, start + b"\1auth=Bearer " + token + b"\1\1")
        assert credentials is not None
        assert (credentials.user, credentials.password) == (user, Secret(token))
        expected = any(byte < 0x20 or byte == 0x7F for byte in user + token)
        assert has_controls(credentials) is expected


@given(st.sampled_from([X, O]), st.binary(max_size=60))
def test_any_message_is_parsed_or_refused(method: Method, message: bytes) -> None:
    parse_token(method, message)
    parse_token(method, message, StrictRules(b"h"))
    is_discovery(method, message)


@pytest.mark.parametrize(
    ("method", "line", "is_response"),
    [
        (X, b"", True),
        (X, b"AQ==", False),
        (X, b" ", False),
        (O, b"AQ==", True),
        (O, b"AQ==AA", True),
        (O, b"", False),
        (O, b"AQ", False),
        (O, b"AQ== AQ==", False),
        (O, b"*", False),
    ],
)
def test_response_to_error_is_recognised(method: Method, line: bytes, is_response: bool) -> None:
    assert is_error_response(method, line) is is_response


def sent_to_client(
    protocol: Protocol,
    data: bytes,
    *,
    size: int = 4096,
    **other: Any,
) -> tuple[bytes, list[Any]]:
    """Send bytes in pieces of at most ``size``; return the replies behind the greeting, and the requests."""
    config = server(protocol, **{METHODS_DIRECTIVE[protocol]: TOKENS}, **other)
    client = Client("192.0.2.1", tls=TlsInfo("TLSv1.3", "x", server_name=b"mail.example.com"))
    generator = PROTOCOLS[protocol].frontend_for(config)(client).run()
    sent = b""
    requests: list[Any] = []
    answer: Any = None
    while True:
        try:
            effect = generator.send(answer)
        except StopIteration:
            return sent.partition(b"\r\n")[2], requests
        answer = None
        if isinstance(effect, Receive):
            taken = min(effect.limit, size)
            answer, data = data[:taken], data[taken:]
            if not answer:
                generator.close()
                return sent.partition(b"\r\n")[2], requests
        elif isinstance(effect, AuthRequest):
            requests.append(effect.credentials)
            answer = AuthDenied(b"no", 1)
        elif isinstance(effect, Send):
            sent += effect.data


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("size", [1, 7, 1000, 40000])
@pytest.mark.parametrize("initial", [True, False])
def test_longest_token_arrives_in_pieces(protocol: Protocol, size: int, initial: bool) -> None:
    token = b"t" * MAX_TOKEN
    message = b64encode(b"user=bob@example.org\1auth=Bearer " + token + b"\1\1")
    command, _, denied = COMMAND[protocol]
    data = command + b"XOAUTH2" + (b" " if initial else b"\r\n") + message + b"\r\n"
    replies, requests = sent_to_client(protocol, data, size=size)
    assert [(one.user, one.password) for one in requests] == [(b"bob@example.org", Secret(token))]
    assert replies.endswith(denied)


@pytest.mark.parametrize("protocol", Protocol)
def test_longer_token_is_refused_and_session_goes_on(protocol: Protocol) -> None:
    message = b64encode(b"user=bob\1auth=Bearer " + b"t" * (MAX_TOKEN + 1) + b"\1\1")
    command, invalid, denied = COMMAND[protocol]
    again = b64encode(b"user=bob\1auth=Bearer t\1\1")
    data = b"".join(command + b"XOAUTH2 " + one + b"\r\n" for one in (message, again))
    replies, requests = sent_to_client(protocol, data)
    assert (replies, len(requests)) == (invalid + denied, 1)


@pytest.mark.parametrize("protocol", Protocol)
def test_oauth_strict_compares_host_with_sni(protocol: Protocol) -> None:
    command, invalid, denied = COMMAND[protocol]
    lines = (
        command + b"OAUTHBEARER " + b64encode(b"n,a=bob,\1auth=Bearer t\1host=" + host + b"\1\1") + b"\r\n"
        for host in (b"other.example", b"mail.example.com")
    )
    replies, _ = sent_to_client(protocol, b"".join(lines), oauth_strict=True)
    assert replies == invalid + denied


def denial(headers: bytes) -> AuthDenied:
    head = b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\n" + headers + b"\r\n"
    response = parse(head, protocol=Protocol.IMAP, method=X, user=b"bob", password=Secret(b"t"))
    assert isinstance(response.decision, AuthDenied)
    return response.decision


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"eyJzIjoxfQ==", b"eyJzIjoxfQ=="),
        (b"YWI=", b"YWI="),
        (b"", None),
        (b"YWI", None),
        (b"YW I=", None),
        (b"YWI=\tx", None),
        (b"not base64", None),
        (b"A" * 4096, b"A" * 4096),
        (b"A" * 4100, None),
    ],
)
def test_auth_error_sasl_is_one_line_of_base64(value: bytes, kept: bytes | None) -> None:
    assert denial(b"Auth-Error-SASL: " + value + b"\r\n").sasl_error == kept

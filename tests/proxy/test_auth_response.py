# SPDX-License-Identifier: Apache-2.0
"""Parsing responses of the authentication service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.response import MAX_CODE, MAX_TEXT, MAX_WAIT
from mailproxy.auth_http.response_body import BodyFraming
from mailproxy.auth_http.response_head import InterimResponse, ResponseHeads
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision, Secret
from mailproxy_config.model import Protocol
from support.auth_response import Response, parse

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
SECRET = Secret(b"secret")
GRANTED = AuthAllowed("192.0.2.10", 143, b"john", SECRET)
WHERE = b"Auth-Server: 192.0.2.10\r\nAuth-Port: 143\r\n"


def parse_headers(
    headers: bytes,
    *,
    protocol: Protocol = IMAP,
    method: Method = Method.PASSWORD,
    password: Secret | None = SECRET,
    status: bytes = b"HTTP/1.0 200 OK\r\n",
    heads: ResponseHeads | None = None,
) -> Response:
    head = status + headers + b"\r\n"
    return parse(head, protocol=protocol, method=method, password=password, heads=heads)


def decided(
    headers: bytes,
    *,
    protocol: Protocol = IMAP,
    method: Method = Method.PASSWORD,
    password: Secret | None = SECRET,
) -> Decision:
    return parse_headers(headers, protocol=protocol, method=method, password=password).decision


# ---- the decision ----


@pytest.mark.parametrize(
    "headers",
    [
        WHERE,
        b"Auth-Status: OK\r\n" + WHERE,
        b"Auth-Status:OK   \r\n" + WHERE,
        b"aUTH-sTATUS: OK\n" + WHERE.replace(b"\r", b""),
        b"X-Other: WAIT\r\nContent-Length: 0\r\nNo-Colon\r\n" + WHERE,
        b"Auth-Wait: 3\r\n" + WHERE,
        b"Auth-Server: 192.0.2.9\r\nAuth-Port: 1\r\n" + WHERE,
        b"Auth-Server: 192.0.2.10\r\nAuth-Port: 00143\r\n",
    ],
)
def test_login_is_allowed(headers: bytes) -> None:
    assert decided(headers) == GRANTED


@pytest.mark.parametrize(
    "status", [b"HTTP/1.1 500 Oh dear\r\n", b"HTTP/1.0 404\r\n", b"HTTP/\n", b"HTTP/x y z\r\n", b""]
)
def test_http_status_is_ignored(status: bytes) -> None:
    assert parse_headers(WHERE, status=status).decision == GRANTED


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n", AuthErrorReason.HTTP_5XX),
        (b"HTTP/1.1 404 Not Found\r\n", AuthErrorReason.NO_SERVER),
        (b"HTTP/1.1 200 OK\r\n", AuthErrorReason.NO_SERVER),
        (b"", AuthErrorReason.NO_SERVER),
    ],
)
def test_response_without_auth_headers_is_counted_by_status(status: bytes, failure: AuthErrorReason) -> None:
    with pytest.raises(InvalidAuthResponse) as caught:
        parse_headers(b"", status=status)
    assert caught.value.failure is failure


def test_auth_user_and_auth_pass_replace_those_of_the_client() -> None:
    headers = WHERE + b"Auth-User: a%20b  c\r\nAuth-Pass: first\r\nAuth-Pass: p w \r\n"
    assert decided(headers) == AuthAllowed("192.0.2.10", 143, b"a%20b  c", Secret(b"p w"))
    assert decided(WHERE + b"Auth-Pass:\r\nAuth-User\r\n") == AuthAllowed("192.0.2.10", 143, b"", Secret(b""))


@pytest.mark.parametrize("protocol", [IMAP, POP3])
@pytest.mark.parametrize("method", [Method.APOP, Method.CRAM_MD5])
def test_digest_is_not_used_as_password(protocol: Protocol, method: Method) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(WHERE, protocol=protocol, method=method)
    assert malformed.value.failure is AuthErrorReason.INVALID_RESPONSE
    granted = decided(WHERE + b"Auth-Pass: own\r\n", protocol=protocol, method=method)
    assert granted == AuthAllowed("192.0.2.10", 143, b"john", Secret(b"own"))


@pytest.mark.parametrize("protocol", [IMAP, POP3])
def test_imap_and_pop3_need_a_password(protocol: Protocol) -> None:
    with pytest.raises(InvalidAuthResponse, match="Auth-Pass"):
        decided(WHERE, protocol=protocol, method=Method.EXTERNAL, password=None)


def test_password_of_a_deferred_response_is_used_for_external() -> None:
    assert decided(WHERE, method=Method.EXTERNAL) == GRANTED


@pytest.mark.parametrize(
    ("method", "given", "known"),
    [
        (Method.PLAIN, SECRET, SECRET),
        (Method.CRAM_MD5, SECRET, None),
        (Method.EXTERNAL, None, None),
        (Method.NONE, None, None),
    ],
)
def test_smtp_needs_no_password(method: Method, given: Secret | None, known: Secret | None) -> None:
    granted = decided(WHERE, protocol=SMTP, method=method, password=given)
    assert granted == AuthAllowed("192.0.2.10", 143, b"john", known)


@pytest.mark.parametrize(
    ("headers", "denied"),
    [
        (b"Auth-Status: Invalid login\r\n", AuthDenied(b"Invalid login")),
        (b"Auth-Status: ok\r\n" + WHERE, AuthDenied(b"ok")),
        (b"Auth-Status:\r\n", AuthDenied(b"")),
        (b"Auth-Status\r\n", AuthDenied(b"")),
        (b"Auth-Status: one\r\nAuth-Status: two\r\n", AuthDenied(b"two")),
        (b"Auth-Status: one\r\nAuth-Status: OK\r\n" + WHERE, AuthDenied(b"one")),
        (b"Auth-Status: no\r\nAuth-Wait: 3\r\n", AuthDenied(b"no", 3)),
        (b"Auth-Status: no\r\nAuth-Wait: 003\r\nAuth-Wait: soon\r\n", AuthDenied(b"no", 3)),
        (b"Auth-Status: no\r\nAuth-Wait: 3\r\nAuth-Wait: 0\r\n", AuthDenied(b"no", 0)),
        (b"Auth-Status: no\r\nAuth-Wait: -1\r\n", AuthDenied(b"no")),
        (b"Auth-Status: no\r\nAuth-Wait: " + b"9" * 19 + b"\r\n", AuthDenied(b"no")),
        (b"Auth-Status: no\r\nAuth-Wait: 999999999\r\n", AuthDenied(b"no", MAX_WAIT)),
        (b"Auth-Status: no\r\nAuth-User: jack\r\n", AuthDenied(b"no", user=b"jack")),
        (b"Auth-Status: no\r\nAuth-Error-Code: 451 4.3.0\r\n", AuthDenied(b"no")),
        (b"Auth-Status: no\r\nAuth-Status: WAIT\r\n", AuthDenied(b"no")),
    ],
)
def test_denial(headers: bytes, denied: AuthDenied) -> None:
    assert decided(headers) == denied


@pytest.mark.parametrize(
    ("headers", "decision"),
    [
        (b"Auth-Status:\r\n" + WHERE, GRANTED),
        (b"Auth-Status: no\r\nAuth-Error-Code: 451 4.3.0\r\n", AuthDenied(b"no", code=b"451 4.3.0")),
        (b"Auth-Error-Code: 1\r\nAuth-Error-Code: 2\r\nAuth-Status: no\r\n", AuthDenied(b"no", code=b"2")),
        (b"Auth-Status: no\r\nAuth-Error-Code:\r\n", AuthDenied(b"no")),
    ],
)
def test_smtp_error_code_and_empty_auth_status(headers: bytes, decision: Decision) -> None:
    assert decided(headers, protocol=SMTP) == decision


@pytest.mark.parametrize(
    ("headers", "postponed"),
    [
        (b"Auth-Status: WAIT\r\nAuth-Wait: 5\r\n", AuthDeferred(5)),
        (b"Auth-Status: WAIT\r\n", AuthDeferred(1)),
        (b"Auth-Status: WAIT\r\nAuth-Wait: x\r\n", AuthDeferred(1)),
        (b"Auth-Status: WAIT\r\nAuth-Status: OK\r\n" + WHERE, AuthDeferred(1)),
        (b"Auth-Status: no\r\nAuth-Status: WAIT\r\nAuth-Wait: 2\r\n", AuthDeferred(2)),
        (
            b"Auth-Status: WAIT\r\nAuth-Wait: 2\r\nAuth-User: u\r\nAuth-Pass: p\r\n",
            AuthDeferred(2, b"u", Secret(b"p")),
        ),
    ],
)
def test_auth_status_wait_defers(headers: bytes, postponed: AuthDeferred) -> None:
    assert decided(headers) == postponed


# ---- addresses ----


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"192.0.2.10", "192.0.2.10"),
        (b"0.0.0.0", "0.0.0.0"),
        (b"255.255.255.255", "255.255.255.255"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_auth_server_is_an_ip_address(text: bytes, address: str) -> None:
    assert decided(b"Auth-Server: " + text + b"\r\nAuth-Port: 143\r\n") == AuthAllowed(
        address, 143, b"john", SECRET
    )


@pytest.mark.parametrize("port", [b"", b"Auth-Port: 143\r\n", b"Auth-Port: x\r\n"])
@pytest.mark.parametrize("path", [b"/run/dovecot/imap.sock", b"/" + 106 * b"x"])
def test_auth_server_may_be_a_unix_socket(path: bytes, port: bytes) -> None:
    address = f"unix:{path.decode()}"
    assert decided(b"Auth-Server: unix:" + path + b"\r\n" + port) == AuthAllowed(address, 0, b"john", SECRET)


BAD_SERVERS = [
    b"mail.example.com", b"127...1", b"127.0.0.01", b"256.0.0.1", b"1.2.3", b"1.2.3.4.5", b"1.2.3.4:25",
    b"[1.2.3.4]", b"fe80::1%eth0", b"[::1", b"[]", b"\xff\xfe", b"\t192.0.2.10",
    b"::1 ::2", b"127.0.0.1 x",
    b"unix:", b"unix:tmp/x", b"unix:/\x01", b"unix:/\xff", b"unix:/" + 107 * b"x",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_SERVERS)
def test_other_auth_server_is_invalid(text: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(b"Auth-Server: " + text + b"\r\nAuth-Port: 143\r\n")
    assert malformed.value.failure is AuthErrorReason.BAD_ADDRESS


@pytest.mark.parametrize("text", [b"0", b"65536", b"-1", b"143x", b"+143", b"1 4", b"9" * 40, b"\xb2"])
def test_auth_port_is_a_number_from_1_to_65535(text: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(b"Auth-Server: ::1\r\nAuth-Port: " + text + b"\r\n")
    assert malformed.value.failure is AuthErrorReason.BAD_ADDRESS


@pytest.mark.parametrize(
    "headers",
    [b"", b"Auth-Status: OK\r\n", b"Auth-Server: ::1\r\n", b"Auth-Port: 1\r\n", WHERE + b"Auth-Server:\r\n"],
)
def test_response_without_server_or_port_is_invalid(headers: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(headers)
    assert malformed.value.failure is AuthErrorReason.NO_SERVER


# ---- hostile responses ----


@pytest.mark.parametrize(
    "headers",
    [
        b"Bad_Name: 1\r\n",
        b"Bad Name: 1\r\n",
        b"-Name: 1\r\n",
        b": 1\r\n",
        b"A: 1\r\n folded\r\n",
        b"A: 1\rB: 2\r\n",
        b"A: 1\r\r\n",
    ],
)
def test_malformed_header_makes_the_response_invalid(headers: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(headers + WHERE)
    assert malformed.value.failure is AuthErrorReason.INVALID_RESPONSE


@pytest.mark.parametrize("status", [b"HTTP/1.0 200\rOK\r\n", b"HTTP/1.0 200 OK\r\r\n"])
def test_bare_cr_makes_the_response_invalid(status: bytes) -> None:
    with pytest.raises(InvalidAuthResponse, match="bare CR"):
        parse_headers(WHERE, status=status)


@pytest.mark.parametrize("byte", [b"\0", b"\x01", b"\t", b"\x1b", b"\x1f"])
@pytest.mark.parametrize(
    "headers",
    [b"Auth-Status: n%bo\r\n", WHERE + b"Auth-User: n%bo\r\n", WHERE + b"Auth-Pass: n%bo\r\n",
     b"Auth-Status: no\r\nAuth-Error-Code: 5%b1\r\n"],
)  # fmt: skip
def test_control_characters_make_the_response_invalid(headers: bytes, byte: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as malformed:
        decided(headers % byte, protocol=SMTP)
    assert malformed.value.failure is AuthErrorReason.INVALID_RESPONSE


@pytest.mark.parametrize(
    ("protocol", "around"),
    [(IMAP, b"t" * 32 + b" NO \r\n"), (POP3, b"-ERR \r\n"), (SMTP, b"c" * MAX_CODE + b" \r\n")],
)
def test_auth_status_is_cut_to_the_line_length(protocol: Protocol, around: bytes) -> None:
    denied = decided(b"Auth-Status: " + b"x" * 2000 + b"\r\n", protocol=protocol)
    assert denied == AuthDenied(b"x" * MAX_TEXT[protocol])
    assert MAX_TEXT[protocol] + len(around) == {IMAP: 1024, POP3: 512, SMTP: 512}[protocol]


def test_auth_error_code_that_is_too_long_is_invalid() -> None:
    with pytest.raises(InvalidAuthResponse, match="33 bytes"):
        decided(b"Auth-Status: no\r\nAuth-Error-Code: " + b"5" * 33 + b"\r\n", protocol=SMTP)


# ---- keep-alive ----

OK_1_0 = b"HTTP/1.0 200 OK\r\n"
OK_1_1 = b"HTTP/1.1 200 OK\r\n"
CLOSE = BodyFraming(until_close=True)
NONE = BodyFraming(length=0)
SEVEN = BodyFraming(length=7)
CHUNKED = BodyFraming(chunked=True)


@pytest.mark.parametrize(
    ("status", "headers", "framing", "keep_alive", "number"),
    [
        (b"", b"Content-Length: 0\r\n", CLOSE, False, None),
        (OK_1_0, b"Content-Length: 0\r\n", NONE, False, 200),
        (OK_1_0, b"Content-Length: 7\r\nConnection: Keep-Alive\r\n", SEVEN, True, 200),
        (b"HTTP/1.1 403 no\r\n", b"Content-Length: 7\r\n", SEVEN, True, 403),
        (OK_1_1, b"Content-Length: 7\r\nConnection: close\r\n", SEVEN, False, 200),
        (OK_1_1, b"Content-Length: 7\r\nConnection: x, Close\r\n", SEVEN, False, 200),
        (OK_1_1, b"Content-Length: 7\r\nConnection: x\r\nConnection: close\r\n", SEVEN, False, 200),
        (OK_1_1, b"", CLOSE, False, 200),
        (OK_1_1, b"Content-Length: 7\r\nContent-Length: 8\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length: -7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length: " + b"9" * 30 + b"\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding: Chunked\r\n", CHUNKED, True, 200),
        (OK_1_1, b"Transfer-Encoding: chunked\r\nContent-Length: 7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding: chunked, chunked\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding:\r\nContent-Length: 7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding:\tchunked\r\n", CLOSE, False, 200),
        (OK_1_0, b"Transfer-Encoding: chunked\r\nConnection: Keep-Alive\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length: 7, 7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length:\t7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length: +7\r\n", CLOSE, False, 200),
        (OK_1_1, b"Content-Length:\r\n", CLOSE, False, 200),
        (OK_1_1, b"Transfer-Encoding: gzip, chunked\r\n", CLOSE, False, 200),
        (b"HTTP/1.1 204 No\r\n", b"", CLOSE, False, 204),
        (b"HTTP/1.1 204 No\r\n", b"Content-Length: 0\r\n", CLOSE, False, 204),
        (b"HTTP/1.1 304 No\r\n", b"Content-Length: 0\r\n", CLOSE, False, 304),
        (b"HTTP/1.1 099 What\r\n", b"Content-Length: 0\r\n", CLOSE, False, 99),
        (b"HTTP/1.1\r\n", b"Content-Length: 7\r\n", CLOSE, False, None),
        (b"HTTP/1.1 2000\r\n", b"Content-Length: 7\r\n", CLOSE, False, None),
        (b"HTTP/2 200 OK\r\n", b"Content-Length: 7\r\n", SEVEN, False, 200),
    ],
)  # fmt: skip
def test_connection_is_kept_alive_only_with_a_certain_end_of_body(
    status: bytes, headers: bytes, framing: BodyFraming, keep_alive: bool, number: int | None
) -> None:
    read = parse_headers(headers + WHERE, status=status).head
    assert (read.framing, read.keep_alive, read.status) == (framing, keep_alive, number)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_response_is_recognized(status: int) -> None:
    for headers in (b"", WHERE, b"Link: </x>\r\n"):
        with pytest.raises(InterimResponse):
            parse_headers(headers, status=b"HTTP/1.1 %d Wait\r\n" % status)


def test_status_101_is_an_invalid_response() -> None:
    with pytest.raises(InvalidAuthResponse, match="101"):
        parse_headers(b"Upgrade: h2c\r\n", status=b"HTTP/1.1 101 Switching Protocols\r\n")


# ---- error messages ----


@pytest.mark.parametrize(
    ("status", "failure", "words"),
    [
        (b"301 Moved", AuthErrorReason.NO_SERVER, "HTTP status 301: redirects are not followed"),
        (b"401 Unauthorized", AuthErrorReason.NO_SERVER, "HTTP status 401: .*auth_http_header"),
        (b"404 Not Found", AuthErrorReason.NO_SERVER, "HTTP status 404: .*check the path in auth_http"),
        (b"418 Teapot", AuthErrorReason.NO_SERVER, "HTTP status 418: .*is auth_http the right URL"),
        (b"502 Bad Gateway", AuthErrorReason.HTTP_5XX, "HTTP status 502: .*gateway"),
        (b"200 OK", AuthErrorReason.NO_SERVER, "no Auth-Server and Auth-Port; is auth_http the right URL"),
    ],
)
def test_error_contains_the_http_status(status: bytes, failure: AuthErrorReason, words: str) -> None:
    with pytest.raises(InvalidAuthResponse, match=words) as caught:
        parse_headers(b"Content-Type: text/html\r\n", status=b"HTTP/1.1 %b\r\n" % status)
    assert caught.value.failure is failure
    assert caught.value.status == int(status[:3])


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (b"Auth-Server: dovecot.mail.svc\r\nAuth-Port: 143\r\n", '"dovecot.mail.svc".*must resolve names'),
        (b"Auth-Server: 10.0.0.1:143\r\nAuth-Port: 143\r\n", '"10.0.0.1:143".*port in Auth-Port'),
        (b"Auth-Server: " + b"x" * 200 + b"\r\nAuth-Port: 1\r\n", '"' + "x" * 64 + r'\.\.\."'),
        (b"Auth-Server: 10.0.0.1\r\nAuth-Port: imap\r\n", '"imap".*1 to 65535'),
        (b"Auth-Server: 10.0.0.1\r\nAuth-Status: OK\r\n", "no Auth-Port$"),
        (b"Auth-Port: 1\r\nAuth-Status: OK\r\n", "no Auth-Server$"),
        (b"Auth-Server: unix:run/x\r\n", '"unix:run/x".*absolute path'),
        (b"Auth-Status: no \x01\r\n", "Auth-Status holds a control character"),
    ],
)
def test_error_contains_header_value_and_hint(headers: bytes, words: str) -> None:
    with pytest.raises(InvalidAuthResponse, match=words):
        parse_headers(headers, status=b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("value", [b"secret", b"x-secret.example", b"sec", b"1234"])
@pytest.mark.parametrize("header", [b"Auth-Server", b"Auth-Port"])
def test_error_does_not_contain_a_password_in_the_wrong_header(header: bytes, value: bytes) -> None:
    headers = WHERE.replace(header + b": ", header + b": " + value + b"/") + b"Auth-Pass: 1234\r\n"
    with pytest.raises(InvalidAuthResponse, match=header.decode()) as caught:
        parse_headers(headers, status=b"HTTP/1.1 200 OK\r\n", password=SECRET)
    message = value.decode() in str(caught.value)
    assert message == (value == b"sec")
    assert message or '"***"' in str(caught.value)


@pytest.mark.parametrize("header", [b"Auth-User", b"Auth-Pass"])
def test_error_does_not_contain_credentials(header: bytes) -> None:
    with pytest.raises(InvalidAuthResponse, match=header.decode()) as caught:
        parse_headers(WHERE + header + b": secret\x01word\r\n", status=b"HTTP/1.1 200 OK\r\n")
    assert "secret" not in str(caught.value)


# ---- properties ----

LINES = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Auth-Status", b"Auth-Server", b"Auth-Port", b"Auth-User", b"Auth-Pass", b"Auth-Wait", b"X"]
        ),
        st.one_of(st.binary(max_size=20), st.sampled_from([b"OK", b"WAIT", b"192.0.2.1", b"25", b"5"])),
    ).map(lambda header: b"%b: %b\r\n" % header)
).map(b"".join)


@given(st.one_of(st.binary(), LINES), st.sampled_from(Protocol), st.sampled_from(Method))
def test_any_response_is_a_decision_or_invalid(headers: bytes, protocol: Protocol, method: Method) -> None:
    try:
        decision = decided(headers, protocol=protocol, method=method)
    except InvalidAuthResponse:
        return
    message = decision.text if isinstance(decision, AuthDenied) else decision.user or b""
    assert not any(byte < 32 for byte in message)


@pytest.mark.parametrize(
    ("value", "expected"), [(b"no", False), (b"NO", False), (b"yes", True), (b"Yes", True)]
)
def test_auth_smtp_decides_about_auth_at_the_upstream(value: bytes, expected: bool) -> None:
    headers = WHERE + b"Auth-SMTP: " + value + b"\r\n"
    for status in (b"", b"Auth-Status: OK\r\n"):
        decision = decided(status + headers, protocol=SMTP)
        assert isinstance(decision, AuthAllowed)
        assert decision.smtp_auth is expected
    without = decided(WHERE, protocol=SMTP)
    assert isinstance(without, AuthAllowed)
    assert without.smtp_auth


@pytest.mark.parametrize("value", [b"", b"none", b"off", b"0", b"no, yes", b"n"])
def test_other_value_of_auth_smtp_is_invalid(value: bytes) -> None:
    headers = WHERE + b"Auth-SMTP: " + value + b"\r\n"
    with pytest.raises(InvalidAuthResponse, match=r'Auth-SMTP "[^"]*" is neither yes nor no'):
        decided(headers, protocol=SMTP)
    for protocol in (IMAP, POP3):
        assert decided(headers, protocol=protocol) == GRANTED


def test_auth_smtp_has_no_effect_on_a_denial() -> None:
    denied = decided(b"Auth-Status: no\r\nAuth-SMTP: whatever\r\n", protocol=SMTP)
    assert denied == AuthDenied(b"no")

# SPDX-License-Identifier: Apache-2.0
"""Requests to authentication services and their responses: common forms and invalid ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    CLOSE,
    GRANT,
    IMAP_OK,
    POP3_OK,
    SILENT,
    SMTP_OK,
    Dialogue,
    PeerOutput,
    Step,
    WaitForReply,
    auth_response,
    b64,
    deny,
    grant,
)
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block(
        "imap-headers",
        "imap",
        "auth_http @here@:@auth@/cgi/auth.pl?a=1&b=%20; auth_http_header X-Auth-Key 'secret string';"
        " auth_http_header Client-Port $remote_port; auth_http_header Auth-Port 143; auth_http_header X-Empty '';",
    ),
    Block("imap-no-uri", "imap", "auth_http http://@here@:@auth@;"),
    Block("imap-query", "imap", "auth_http @here@:@auth@?x=1;"),
    Block("imap-dead", "imap", "auth_http @here@:@dead@/;"),
    Block("imap-auth-timeout", "imap", "auth_http_timeout 1s;"),
    Block("pop3-dead", "pop3", "auth_http @here@:@dead@/;"),
    Block("smtp-dead", "smtp", "auth_http @here@:@dead@/;"),
)

_LOGIN: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n",),
    "pop3": (b"USER user\r\n", b"PASS pass\r\n"),
    "smtp": (b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n",),
}
_UPSTREAM: Final = {"imap": IMAP_OK, "pop3": POP3_OK, "smtp": SMTP_OK}
_WHERE: Final = (b"Auth-Server: @ip@", b"Auth-Port: @port@")


def _raw(*lines: bytes, end: bytes = b"\r\n", status: bytes = b"HTTP/1.0 200 OK") -> bytes:
    return b"".join(line + end for line in (status, *lines, b""))


ANSWERS: Final[dict[str, PeerOutput]] = {
    "status 204": auth_response(*_WHERE, status=b"HTTP/1.1 204 No Content\r\n"),
    "status 203": auth_response(*_WHERE, status=b"HTTP/1.1 203 Non-Authoritative\r\n"),
    "status 401": auth_response(*_WHERE, status=b"HTTP/1.1 401 Unauthorized\r\n"),
    "status 404 and a denial": auth_response(
        "Auth-Status: unknown user", status=b"HTTP/1.1 404 Not Found\r\n"
    ),
    "status 502": auth_response(*_WHERE, status=b"HTTP/1.1 502 Bad Gateway\r\n"),
    "status 500 and nothing of ours": auth_response("Server: x", status=b"HTTP/1.1 500 Oops\r\n"),
    "no reason phrase": auth_response(*_WHERE, status=b"HTTP/1.0 200\r\n"),
    "a strange status line": auth_response(*_WHERE, status=b"HTTP/9.9 what ever\r\n"),
    "no status line": auth_response(*_WHERE, status=b""),
    "bare LF": _raw(*_WHERE, end=b"\n"),
    "CR inside the status line": auth_response(*_WHERE, status=b"HTTP/1.0 2\r00 OK\r\n"),
    "a body": grant() + b"<html>denied</html>\r\n\r\n",
    "a body with its length": grant("Content-Length: 5", "Connection: close") + b"hello",
    "a chunked body": grant("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "no Auth-Status": auth_response(*_WHERE),
    "an empty Auth-Status": auth_response("Auth-Status:", *_WHERE),
    "ok in small letters": auth_response("Auth-Status: ok", *_WHERE),
    "OK with a dot": auth_response("Auth-Status: OK.", *_WHERE),
    "OK with spaces around": auth_response("Auth-Status:    OK   ", *_WHERE),
    "OK without a space": auth_response("Auth-Status:OK", *_WHERE),
    "names in any letters": auth_response("AUTH-STATUS: OK", "auth-server: @ip@", "Auth-port: @port@"),
    "unknown headers": grant(
        "Auth-User-Exists: yes", "Auth-Cache-Alias: FALSE", "Auth-Id: 1", "Set-Cookie: a=b; c"
    ),
    "a header without a colon": grant("nonsense"),
    "a header with an underscore": grant("x_y: z"),
    "a header that begins with a hyphen": grant("-x: z"),
    "a header with a space in its name": grant("x y: z"),
    "a folded header": grant("X-Long: a", " b"),
    "a bare CR in a header": grant("X-Long: a\rb"),
    "an empty header name": grant(": x"),
    "words with colons": deny("user not found:bob@x: really"),
    "a response code": deny("[AUTHENTICATIONFAILED] Authentication failed."),
    "words with 8 bits": deny("\xe9 \u20ac"),
    "words with spaces": deny("  a   b  "),
    "Auth-Wait empty": deny("no", "Auth-Wait: "),
    "Auth-Wait 0": deny("no", "Auth-Wait: 0"),
    "Auth-Wait no number": deny("no", "Auth-Wait: soon"),
    "Auth-Wait negative": deny("no", "Auth-Wait: -1"),
    "Auth-Wait with a fraction": deny("no", "Auth-Wait: 1.5"),
    "Auth-Wait in an acceptance": grant("Auth-Wait: 5"),
    "Auth-Wait twice, the first a number": deny("no", "Auth-Wait: 1", "Auth-Wait: x"),
    "Auth-Error-Code": deny("no", "Auth-Error-Code: 502 5.5.1"),
    "Auth-Error-Code of Mailu": deny("no", "Auth-Error-Code: AUTHENTICATIONFAILED"),
    "Auth-Error-Code empty": deny("no", "Auth-Error-Code:"),
    "two denials": deny("first", "Auth-Status: second"),
    "a denial, then OK": deny("first", "Auth-Status: OK", "Auth-Server: @ip@", "Auth-Port: @port@"),
    "OK, then a denial": grant("Auth-Status: second"),
    "two servers": auth_response("Auth-Server: 192.0.2.1", *_WHERE),
    "two ports": auth_response("Auth-Port: 1", *_WHERE),
    "no server": auth_response("Auth-Status: OK", "Auth-Port: 143"),
    "an empty server": auth_response("Auth-Status: OK", "Auth-Server: ", "Auth-Port: 143"),
    "no port": auth_response("Auth-Status: OK", "Auth-Server: @ip@"),
    "a server by name": auth_response("Auth-Server: localhost", "Auth-Port: 143"),
    "a server with its port": auth_response("Auth-Server: 127.0.0.1:143", "Auth-Port: 143"),
    "a UNIX socket": auth_response("Auth-Server: unix:/tmp/x", "Auth-Port: 143"),
    "port 0": auth_response("Auth-Server: @ip@", "Auth-Port: 0"),
    "port 65536": auth_response("Auth-Server: @ip@", "Auth-Port: 65536"),
    "a port with a sign": auth_response("Auth-Server: @ip@", "Auth-Port: +143"),
    "a port with leading zeros": auth_response("Auth-Server: @ip@", "Auth-Port: 000@port@"),
    "an IPv6 server where nobody listens": auth_response("Auth-Server: ::1", "Auth-Port: 1"),
    "another user": grant("Auth-User: bob", "Auth-Pass: secret"),
    "another user, escaped": grant("Auth-User: a%20b%25", "Auth-Pass: p%20q"),
    "another user with spaces": grant("Auth-User:  a b  c ", "Auth-Pass: p  q"),
    "another user with 8 bits": grant("Auth-User: \xe9", "Auth-Pass: \u20ac"),
    "an empty user": grant("Auth-User:"),
    "an empty password": grant("Auth-Pass:"),
    "users twice": grant("Auth-User: one", "Auth-User: two", "Auth-Pass: three", "Auth-Pass: four"),
    "in single bytes": tuple(GRANT[at : at + 1] for at in range(len(GRANT))),
    "slowly": (
        b"HTTP/1.0 200 OK\r\nAuth-St",
        0.2,
        b"atus: OK\r\nAuth-Server: @ip@\r\nAuth-Port: @port@\r\n",
        0.2,
        b"\r\n",
    ),
    "nothing but a blank line": b"\r\n",
    "noise": bytes(range(256)),
    "nothing": CLOSE,
}


def _answers() -> Iterator[Dialogue]:
    for protocol, login in _LOGIN.items():
        for name, output in ANSWERS.items():
            declared_difference = "xtext" if protocol == "smtp" and name in _XTEXT else ""
            yield Dialogue(
                name=f"{name} ({protocol})",
                block=protocol,
                area="auth_http answers",
                steps=(*login, *((WaitForReply(4.0),) if "a number" in name else ()), b"a2 NOOP\r\n"),
                auth=(output,),
                upstream=_UPSTREAM[protocol],
                declared_difference=declared_difference,
            )


_XTEXT: Final = ("another user with spaces", "another user with 8 bits")

_REQUESTS: Final[dict[str, tuple[str, tuple[Step, ...]]]] = {
    "custom headers, literally": ("imap-headers", (b"a1 LOGIN user pass\r\n",)),
    "no URI": ("imap-no-uri", (b"a1 LOGIN user pass\r\n",)),
    "what is escaped": ("imap", (b'a1 LOGIN "a b%c" "\x01\x1f %\x7f\x80\xff+=/\\"@"\r\n',)),
    "plain bytes": ("pop3", (b"USER \xe9\t\x02@x\r\n", b"PASS p%20 q\r\n")),
    "an unreachable service (imap)": ("imap-dead", (b"a1 LOGIN user pass\r\n",)),
    "an unreachable service (pop3)": ("pop3-dead", (b"USER u\r\n", b"PASS p\r\n")),
    "an unreachable service (smtp)": ("smtp-dead", (b"AUTH PLAIN AHUAcA==\r\n",)),
}


def _requests() -> Iterator[Dialogue]:
    for name, (block, steps) in _REQUESTS.items():
        protocol = block.partition("-")[0]
        yield Dialogue(
            name=name,
            block=block,
            area="auth_http requests",
            steps=steps,
            auth=(GRANT,),
            upstream=_UPSTREAM[protocol],
        )
    for protocol, login in _LOGIN.items():
        yield Dialogue(
            name=f"attempts are counted ({protocol})",
            block=protocol,
            area="auth_http requests",
            steps=(*login, WaitForReply(4.0), *login, WaitForReply(4.0), *login, b"x NOOP\r\n"),
            auth=(deny("no", "Auth-Wait: 1"), deny("no", "Auth-Wait: 1"), GRANT),
            upstream=_UPSTREAM[protocol],
        )
    yield Dialogue(
        name="a service that says nothing",
        block="imap-auth-timeout",
        area="auth_http requests",
        steps=(b"a1 LOGIN user pass\r\n", WaitForReply(4.0)),
        auth=(SILENT,),
    )
    yield Dialogue(
        name="a service that stops in the middle",
        block="imap-auth-timeout",
        area="auth_http requests",
        steps=(b"a1 LOGIN user pass\r\n", WaitForReply(4.0)),
        auth=((b"HTTP/1.0 200 OK\r\nAuth-Sta", SILENT),),
    )


DIALOGUES: Final = (*_answers(), *_requests())

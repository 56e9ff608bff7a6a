# SPDX-License-Identifier: Apache-2.0
"""Responses in the forms of authentication services that are in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    IMAP_OK,
    POP3_OK,
    SMTP_OK,
    Dialogue,
    PeerOutput,
    Step,
    WaitForReply,
    auth_response,
    b64,
)
from support.parity.server_blocks import Block

_KEY: Final = "auth_http_header X-Auth-Key 'shared secret'; auth_http_header X-NGX-Auth-Key other;"
_MAILU: Final = "auth_http_header Auth-Port 143; auth_http_header Client-Port $remote_port;"
BLOCKS: Final = tuple(
    Block(
        f"{protocol}-service",
        protocol,
        _KEY + _MAILU + (" smtp_auth plain none;" if protocol == "smtp" else ""),
    )
    for protocol in ("imap", "pop3", "smtp")
)

_WHERE: Final = ("Auth-Server: @ip@", "Auth-Port: @port@")
_CODES: Final = {"imap": "AUTHENTICATIONFAILED", "pop3": "AUTHENTICATIONFAILED", "smtp": "535 5.7.8"}


def _status(text: bytes) -> bytes:
    return text + b"\r\n"


def _slowly(data: bytes) -> PeerOutput:
    return tuple(data[at : at + 7] for at in range(0, len(data), 7))


def _responses(protocol: str) -> Iterator[tuple[str, str, PeerOutput]]:
    """Yield the name of the service, its decision, and its response."""
    http = _status(b"HTTP/1.1 200 OK")
    mailu = ("Server: gunicorn", "Content-Type: text/html; charset=utf-8", "Content-Length: 0")
    yield (
        "Mailu",
        "accepts",
        auth_response(*mailu, "Auth-Status: OK", *_WHERE, "Auth-User-Exists: True", status=http),
    )
    refusal = f"Auth-Error-Code: {_CODES[protocol]}"
    denied = ("Auth-Status: Authentication credentials invalid", refusal, "Auth-Wait: 0")
    yield "Mailu", "denies", auth_response(*mailu, *denied, status=http)
    limited = ("Auth-Status: Temporary authentication failure (rate-limit)", "Auth-Error-Code: 451 4.3.2")
    yield "Mailu", "limits", auth_response(*mailu, *limited, "Auth-Wait: 0", status=http)
    zimbra = _status(b"HTTP/1.1 200 ")
    names = ("Auth-User: user@example.com", "Auth-Cache-Alias: FALSE", "Auth-Id: 5")
    yield "Zimbra", "accepts", auth_response("Auth-Status: OK", *_WHERE, *names, status=zimbra)
    yield "Zimbra", "denies", auth_response("Auth-Status: user not found:bob@example.com", status=zimbra)
    perl = ("Date: Mon, 01 Jan 2024 00:00:00 GMT", "Server: Apache", "Content-Type: text/plain")
    yield "Perl CGI", "accepts", auth_response(*perl, "Auth-Status: OK", *_WHERE, status=http)
    yield (
        "Perl CGI",
        "denies",
        auth_response(*perl, "Auth-Status: Invalid login or password", "Auth-Wait: 1", status=http),
    )
    yield (
        "Perl CGI",
        "misses its key",
        auth_response(*perl, "Auth-Status: wrong key", status=_status(b"HTTP/1.1 403 Forbidden")),
    )
    php = ("X-Powered-By: PHP/8.2", "Content-Type: text/html; charset=UTF-8", "Transfer-Encoding: chunked")
    accepted = auth_response(*php, "Auth-Status: OK", *_WHERE, "Auth-Pass: secret", status=http)
    yield "PHP", "accepts", accepted + b"2\r\nOK\r\n0\r\n\r\n"
    yield (
        "PHP",
        "denies",
        auth_response(*php, "Auth-Status: Invalid login", "Auth-Wait: 1", status=http) + b"0\r\n\r\n",
    )
    rack = ("content-type: text/plain", "auth-status: OK", "auth-server: @ip@", "auth-port: @port@")
    yield "Rack", "accepts", auth_response(*rack, status=http)
    yield (
        "Rack",
        "denies",
        auth_response("auth-status: Invalid login", "auth-wait: 1", status=_status(b"HTTP/1.1 401 ")),
    )
    go = ("Auth-Status: Invalid credentials", "Auth-Wait: ", "Date: x", "Content-Length: 0")
    yield (
        "nginx-mail-auth-http-server",
        "accepts",
        auth_response("Auth-Status: OK", *_WHERE, "Auth-Wait: ", status=http),
    )
    yield "nginx-mail-auth-http-server", "denies", auth_response(*go, status=http)
    static = _status(b"HTTP/1.1 204 No Content")
    yield (
        "nginx add_header",
        "accepts",
        auth_response("Server: nginx", "Connection: close", *_WHERE, status=static),
    )
    yield "nginx add_header", "denies", auth_response("Server: nginx", "Auth-Status: no", status=static)
    mailur = "Auth-Status: [AUTHENTICATIONFAILED] Authentication failed."
    yield "Mailur", "accepts", auth_response("Auth-Status: OK", *_WHERE, status=http)
    yield "Mailur", "denies", auth_response(mailur, status=http)
    yield "a raw responder", "accepts", auth_response("Auth-Status: OK", *_WHERE, status=b"")
    yield "a raw responder", "denies", auth_response("Auth-Status: no", "Auth-Wait: 1", status=b"")
    yield "a slow one", "accepts", _slowly(auth_response("Auth-Status: OK", *_WHERE))
    yield "a slow one", "denies", _slowly(auth_response("Auth-Status: no", "Auth-Wait: 1"))


_LOGIN: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n",),
    "pop3": (b"USER user\r\n", b"PASS pass\r\n"),
    "smtp": (b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n",),
}
_NEXT: Final = {"imap": b"a2 NOOP\r\n", "pop3": b"NOOP\r\n", "smtp": b"NOOP\r\n"}
_UPSTREAM: Final = {"imap": IMAP_OK, "pop3": POP3_OK, "smtp": SMTP_OK}


AREA: Final = "services: "
"""The prefix of the areas of these dialogues."""


def _dialogues() -> Iterator[Dialogue]:
    for protocol, login in _LOGIN.items():
        for system, outcome, output in _responses(protocol):
            yield Dialogue(
                name=f"{system} {outcome} ({protocol})",
                block=f"{protocol}-service",
                area=AREA + system,
                steps=(*login, *((WaitForReply(2.0),) if outcome == "denies" else ()), _NEXT[protocol]),
                auth=(output, output),
                upstream=_UPSTREAM[protocol],
            )


DIALOGUES: Final = tuple(_dialogues())

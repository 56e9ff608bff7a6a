# SPDX-License-Identifier: Apache-2.0
"""The declared differences, one by one: the behaviour of nginx, and that of the proxy."""

from __future__ import annotations

from typing import Any, Final

from support.parity.dialogue import (
    CLOSE,
    GRANT,
    GRANT_PASS,
    IMAP_OK,
    POP3_OK,
    SMTP_OK,
    Dialogue,
    Disconnect,
    PeerOutput,
    Step,
    Tls,
    WaitForReply,
    auth_response,
    b64,
    deny,
    grant,
)
from support.parity.server_blocks import Block

_PAIR: Final = "ssl_certificate @server_cert@; ssl_certificate_key @server_key@;"

BLOCKS: Final = (
    Block("q-imap", "imap"),
    Block("q-imap-external", "imap", "imap_auth plain external cram-md5;"),
    Block("q-imap-query", "imap", "auth_http @here@:@auth@?x=1;"),
    Block("q-imap-in", "imap", "", listen="proxy_protocol"),
    Block("q-imap-idle", "imap", "proxy_timeout 1s;"),
    Block("q-imap-impatient", "imap", "auth_http_timeout 2s;"),
    Block("q-imap-quick", "imap", "timeout 1s;"),
    Block("q-imap-ssl", "imap", _PAIR, listen="ssl"),
    Block("q-pop3", "pop3"),
    Block("q-pop3-ssl", "pop3", _PAIR, listen="ssl"),
    Block("q-smtp", "smtp", "smtp_auth plain login external;"),
    Block("q-smtp-none", "smtp", "smtp_auth none plain;"),
    Block("q-smtp-stale", "smtp", "smtp_auth none cram-md5;"),
    Block("q-smtp-info", "smtp", "error_log /dev/null info;"),
    Block("q-smtp-only", "smtp", f"smtp_auth none plain; starttls only; {_PAIR}"),
    Block("q-smtp-auth", "smtp", "smtp_auth plain external; proxy_smtp_auth on;"),
)

_IMAP: Final = b"* OK IMAP4 ready\r\n"
_POP3: Final = b"+OK POP3 ready\r\n"
_SMTP: Final = b"220 mx.example.test ESMTP ready\r\n"
_BAD: Final = b"BAD invalid command\r\n"
_ERR: Final = b"-ERR invalid command\r\n"
_INTERNAL: Final = b"* BAD internal server error\r\n"
_LOGIN: Final = b"a1 LOGIN user pass\r\n"


def _case(
    declared_difference: str,
    name: str,
    block: str,
    *steps: Step,
    proxy_record: dict[str, Any],
    nginx_record: dict[str, Any],
    auth: tuple[PeerOutput, ...] = (),
    upstream: tuple[PeerOutput, ...] = (),
    **more: Any,
) -> Dialogue:
    return Dialogue(
        name=name,
        block=block,
        area="declared differences",
        steps=steps,
        auth=auth,
        upstream=upstream,
        declared_difference=declared_difference,
        proxy_record=proxy_record,
        nginx_record=nginx_record,
        **more,
    )


def _said(greeting: bytes, *lines: bytes, **more: Any) -> dict[str, Any]:
    return {"client": greeting + b"".join(lines), **more}


_REFUSED_PLAIN: Final = {
    "a CR LF in the name": "\0us\r\nDELE 1\0pass",
    "a LF in the password": "\0user\0pa\nss",
    "a CR in the password": "\0user\0pa\rss",
    "a NUL in the password": "\0user\0pa\0ss",
}

_CREDENTIALS: Final = tuple(
    _case(
        "Q-11",
        f"{name} ({protocol})",
        f"q-{protocol}",
        line,
        proxy_record={"client": greeting + refusal, "requests": (), "upstreams": ()},
        nginx_record={},
        auth=(grant("Auth-Pass: x"),),
        upstream=upstream,
        allows_other_differences=True,
    )
    for name, text in _REFUSED_PLAIN.items()
    for protocol, line, greeting, refusal, upstream in (
        ("imap", b"a1 AUTHENTICATE PLAIN " + b64(text) + b"\r\n", _IMAP, b"a1 " + _BAD, IMAP_OK),
        ("pop3", b"AUTH PLAIN " + b64(text) + b"\r\n", _POP3, _ERR, POP3_OK),
        ("smtp", b"AUTH PLAIN " + b64(text) + b"\r\n", _SMTP, b"500 5.5.1 Invalid command\r\n", SMTP_OK),
    )
)

_HOSTILE_ANSWERS: Final = tuple(
    _case(
        "hostile-answers",
        f"{name} in the answer",
        "q-imap",
        _LOGIN,
        proxy_record=_said(_IMAP, _INTERNAL, upstreams=()),
        nginx_record={},
        auth=(output,),
        upstream=IMAP_OK,
        allows_other_differences=True,
    )
    for name, output in {
        "a control byte in Auth-User": grant(b"Auth-User: a\x01b"),
        "a NUL in Auth-Pass": grant(b"Auth-Pass: a\0b"),
        "a TAB in Auth-Status": auth_response(b"Auth-Status: no\tway"),
        "an ESC in Auth-Status": auth_response(b"Auth-Status: \x1b[2J"),
    }.items()
)

_STALE: Final = _case(
    "Q-12",
    "the password of an earlier attempt",
    "q-smtp-auth",
    b"AUTH PLAIN " + b64("\0alice\0secret") + b"\r\n",
    WaitForReply(4.0),
    b"AUTH EXTERNAL " + b64("bob") + b"\r\n",
    auth=(deny("no", "Auth-Wait: 1"), grant()),
    upstream=(b"220 a\r\n", b"250 b\r\n", b"250 c\r\n", b"235 in\r\n"),
    proxy_record={"client": _SMTP + b"535 5.7.0 no\r\n451 4.3.2 Internal server error\r\n"},
    nginx_record={},
    check=lambda record: "the old password was sent" if b"secret" in record.requests[1] else "",
    allows_other_differences=True,
)

DIALOGUES: Final = (
    _case(
        "Q-01",
        "a batch that is longer than the buffer",
        "q-pop3",
        b"NOOP\r\n" * 22,
        proxy_record=_said(_POP3, b"+OK\r\n" * 22, ending="open", afterwards="eof"),
        nginx_record={},
        allows_other_differences=True,
    ),
    _case(
        "Q-02",
        "a batch that fills the buffer, and more",
        "q-pop3",
        b"NOOP  \r\n" * 17,
        proxy_record={"turns": (_POP3, b"+OK\r\n" * 17)},
        nginx_record={"turns": (_POP3, b"+OK\r\n" * 16, b"+OK\r\n")},
        allows_other_differences=True,
    ),
    _case(
        "Q-03",
        "a literal of no bytes",
        "q-imap",
        b"a1 LOGIN user {0}\r\n",
        b"\r\n",
        auth=(GRANT,),
        upstream=IMAP_OK,
        proxy_record={"upstreams": (b"a1 LOGIN {4}\r\nuser {0}\r\n\r\n",)},
        nginx_record={"upstreams": (b"a1 LOGIN {4}\r\nuser {1}\r\n\r\r\n",)},
        allows_other_differences=True,
    ),
    _case(
        "Q-04",
        "a quoted string without an end",
        "q-imap",
        b'a1 NOOP "x\r\n',
        b"a2 NOOP\r\n",
        proxy_record=_said(_IMAP, b"a1 ", _BAD, b"a2 OK completed\r\n"),
        nginx_record=_said(_IMAP, b"a1 OK completed\r\na2 OK completed\r\n"),
    ),
    _case(
        "Q-05",
        "a bad name in AUTHENTICATE LOGIN",
        "q-imap",
        b"a1 AUTHENTICATE LOGIN\r\n",
        b"!!\r\n",
        proxy_record=_said(_IMAP, b"+ VXNlcm5hbWU6\r\na1 ", _BAD),
        nginx_record=_said(_IMAP, b"+ VXNlcm5hbWU6\r\n", _BAD),
    ),
    _case(
        "Q-06",
        "a line without a tag after a denial",
        "q-imap",
        b"abc LOGIN user pass\r\n",
        WaitForReply(4.0),
        b"\r\n",
        auth=(deny("no", "Auth-Wait: 1"),),
        proxy_record=_said(_IMAP, b"abc NO no\r\n* ", _BAD),
        nginx_record={},
    ),
    _case(
        "Q-07",
        "EXTERNAL that is not enabled, with an initial response",
        "q-imap",
        b"a1 AUTHENTICATE EXTERNAL " + b64("user") + b"\r\n",
        auth=(GRANT_PASS,),
        upstream=IMAP_OK,
        proxy_record=_said(_IMAP, b"a1 ", _BAD, requests=(), upstreams=(), upstream_endings=()),
        nginx_record=_said(_IMAP, b"a1 OK in\r\n"),
    ),
    _case(
        "Q-08",
        "WAIT without Auth-Wait",
        "q-imap",
        _LOGIN,
        WaitForReply(3.0),
        auth=(auth_response("Auth-Status: WAIT"), GRANT, GRANT, deny("enough")),
        upstream=IMAP_OK,
        proxy_record=_said(_IMAP, b"a1 OK in\r\n", ending="open", afterwards="eof"),
        nginx_record=_said(_IMAP, b"a1 NO enough\r\n"),
        allows_other_differences=True,
    ),
    _case(
        "Q-09",
        "what is pipelined behind a refused MAIL, with error_log info",
        "q-smtp-info",
        b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nNOOP\r\n",
        proxy_record=_said(
            _SMTP,
            b"530 5.7.1 Authentication required\r\n503 5.5.1 Bad sequence of commands\r\n250 2.0.0 OK\r\n",
        ),
        nginx_record=_said(_SMTP, b"530 5.7.1 Authentication required\r\n"),
    ),
    _case(
        "Q-10",
        "MAIL before TLS, where nothing else is allowed",
        "q-smtp-only",
        b"MAIL FROM:<a>\r\n",
        proxy_record=_said(_SMTP, b"530 5.7.0 Must issue a STARTTLS command first\r\n"),
        nginx_record=_said(_SMTP, b"250 2.0.0 OK\r\n"),
    ),
    *_CREDENTIALS,
    *_HOSTILE_ANSWERS,
    _STALE,
    _case(
        "Q-13",
        "an answer of more than 1024 bytes",
        "q-imap",
        _LOGIN,
        auth=(grant("X-Long: " + "x" * 1200),),
        upstream=IMAP_OK,
        proxy_record=_said(_IMAP, b"a1 OK in\r\n", ending="open", afterwards="eof"),
        nginx_record=_said(_IMAP, _INTERNAL),
        allows_other_differences=True,
    ),
    _case(
        "Q-13",
        "an answer that ends in its middle, all at once",
        "q-imap-impatient",
        _LOGIN,
        WaitForReply(4.0),
        auth=((b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\n", CLOSE),),
        proxy_record=_said(_IMAP, _INTERNAL),
        nginx_record={"ending": "eof"},
    ),
    _case(
        "Q-14",
        "an idle client of a busy upstream",
        "q-imap-idle",
        _LOGIN,
        b"idle\r\n",
        WaitForReply(0.7),
        WaitForReply(0.7),
        WaitForReply(0.7),
        WaitForReply(0.7),
        auth=(GRANT,),
        upstream=(
            *IMAP_OK[:4],
            (b"* 1 EXISTS\r\n", 0.6, b"* 2 EXISTS\r\n", 0.6, b"* 3 EXISTS\r\n", 0.6, b"* 4 EXISTS\r\n"),
        ),
        proxy_record=_said(
            _IMAP,
            b"a1 OK in\r\n* 1 EXISTS\r\n* 2 EXISTS\r\n* 3 EXISTS\r\n* 4 EXISTS\r\n",
        ),
        nginx_record={"ending": "eof"},
        allows_other_differences=True,
    ),
    _case(
        "Q-15",
        "a command in one packet with the PROXY header",
        "q-imap-in",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\na1 NOOP\r\n",
        proxy_record={"turns": (b"", _IMAP + b"a1 OK completed\r\n")},
        nginx_record={"turns": (b"", _IMAP, b"a1 OK completed\r\n")},
        allows_other_differences=True,
    ),
    _case(
        "Q-16",
        "a PROXY header in pieces",
        "q-imap-in",
        b"PROXY TCP4 192.0.2.1 19",
        b"2.0.2.2 1 2\r\n",
        b"a1 NOOP\r\n",
        proxy_record=_said(_IMAP, b"a1 OK completed\r\n", ending="open", afterwards="eof"),
        nginx_record={"client": b""},
    ),
    _case(
        "Q-18",
        "an upstream that ends its lines in LF",
        "q-imap-quick",
        _LOGIN,
        WaitForReply(3.0),
        auth=(GRANT,),
        upstream=(b"* OK x\n", b"+\n", b"+\r\n", b"a1 OK in\n"),
        proxy_record=_said(_IMAP, b"a1 OK in\n"),
        nginx_record=_said(_IMAP, _INTERNAL),
        allows_other_differences=True,
    ),
    *(
        _case(
            "Q-19",
            f"untagged lines {name}",
            "q-imap",
            _LOGIN,
            auth=(GRANT,),
            upstream=script,
            proxy_record={"ending": "open", "afterwards": "eof"},
            nginx_record=_said(_IMAP, _INTERNAL),
            allows_other_differences=True,
        )
        for name, script in {
            "ahead of a continuation": (
                b"* OK x\r\n",
                b"* NO quick\r\n+ go\r\n",
                b"+ go\r\n",
                b"a1 OK in\r\n",
            ),
            "ahead of the reply": (
                b"* OK x\r\n",
                b"+ go\r\n",
                b"+ go\r\n",
                b"* CAPABILITY A\r\n* 1 EXISTS\r\na1 OK in\r\n",
            ),
        }.items()
    ),
    Dialogue(
        name="one untagged line ahead of the reply",
        block="q-imap",
        area="imap upstreams",
        steps=(_LOGIN, b"x\r\n"),
        auth=(GRANT,),
        upstream=(*IMAP_OK[:3], b"* CAPABILITY IMAP4rev1\r\na1 OK in\r\n", b"* relayed\r\n"),
        since=(1, 27, 3),
        proxy_record=_said(_IMAP, b"* CAPABILITY IMAP4rev1\r\na1 OK in\r\n* relayed\r\n"),
    ),
    _case(
        "Q-22",
        "a client that shuts its side while an answer is under way",
        "q-imap",
        _LOGIN,
        Disconnect("eof", b"x LOGOUT\r\n"),
        WaitForReply(1.0),
        auth=(GRANT,),
        upstream=(*IMAP_OK[:4], (0.2, b"* BYE\r\n", CLOSE)),
        proxy_record=_said(_IMAP, b"a1 OK in\r\n* BYE\r\n"),
        nginx_record=_said(_IMAP, b"a1 OK in\r\n"),
        allows_other_differences=True,
    ),
    _case(
        "Q-26",
        "a query right behind the host of auth_http",
        "q-imap-query",
        _LOGIN,
        auth=(deny(),),
        proxy_record={},
        nginx_record={},
        check=lambda record: "" if record.requests[0].startswith(b"GET /?x=1 ") else "no slash",
        allows_other_differences=True,
    ),
    _case(
        "Q-32",
        "a control byte in MAIL",
        "q-smtp-none",
        b"MAIL FROM:<a\x01b>\r\n",
        b"MAIL FROM:<a\0b>\r\n",
        proxy_record=_said(_SMTP, b"501 5.5.4 Invalid argument\r\n" * 2),
        nginx_record=_said(_SMTP, b"250 2.0.0 OK\r\n503 5.5.1 Bad sequence of commands\r\n"),
    ),
    _case(
        "Q-32",
        "a control byte in EHLO",
        "q-smtp",
        b"EHLO a\x7fb\r\n",
        proxy_record=_said(_SMTP, b"501 5.5.4 Invalid argument\r\n"),
        nginx_record=_said(_SMTP, b"250-mx.example.test\r\n250 AUTH PLAIN LOGIN EXTERNAL\r\n"),
    ),
    _case(
        "Q-33",
        "commands of a client that has left already",
        "q-pop3",
        Disconnect("eof", b"NOOP\r\nCAPA\r\nQUIT\r\n"),
        WaitForReply(1.0),
        proxy_record=_said(
            _POP3,
            b"+OK\r\n+OK Capability list follows\r\nTOP\r\nUSER\r\nUIDL\r\nSASL PLAIN LOGIN\r\n.\r\n+OK\r\n",
        ),
        nginx_record={},
    ),
    _case(
        "Q-36",
        "a command in one packet with the end of the handshake",
        "q-imap-ssl",
        Tls(behind=b"a1 NOOP\r\n"),
        proxy_record=_said(_IMAP, b"a1 OK completed\r\n"),
        nginx_record={},
        allows_other_differences=True,
    ),
    *(
        _case(
            "Q-37",
            f"Auth-Server {text}",
            "q-imap",
            _LOGIN,
            auth=(auth_response(f"Auth-Server: {text}", "Auth-Port: 1"),),
            proxy_record=_said(_IMAP, _INTERNAL),
            nginx_record=_said(_IMAP, _INTERNAL),
        )
        for text in ("127.0.0.01", "127...1")
    ),
    _case(
        "Q-38",
        "an empty tag",
        "q-imap",
        b" NOOP\r\n",
        proxy_record=_said(_IMAP, b"* ", _BAD),
        nginx_record=_said(_IMAP, b" OK completed\r\n"),
    ),
    *(
        _case(
            "Q-40",
            name,
            "q-imap-in",
            header,
            b"a1 NOOP\r\n",
            proxy_record={"client": b""},
            nginx_record=_said(_IMAP, b"a1 OK completed\r\n"),
            allows_other_differences=True,
        )
        for name, header in {
            "a family word that does not fit": b"PROXY TCP4 ::1 ::2 1 2\r\n",
            "no address": b"PROXY TCP4   1 2\r\n",
            "addresses that are none": b"PROXY TCP6 abc def 1 2\r\n",
        }.items()
    ),
    _case(
        "sasl-literals",
        "a literal behind a response",
        "q-imap",
        b"a1 AUTHENTICATE PLAIN\r\n",
        b"* x {1+}\r\ny z\r\n",
        proxy_record=_said(_IMAP, b"+ \r\na1 ", _BAD, b"y ", _BAD),
        nginx_record=_said(_IMAP, b"+ \r\na1 ", _BAD),
    ),
    Dialogue(
        name="MAIL after another exchange",
        block="q-smtp-stale",
        area="declared differences",
        steps=(
            b"AUTH CRAM-MD5\r\n",
            b64("user b913a602c7eda7a495b4e6e7334d3890") + b"\r\n",
            WaitForReply(4.0),
            b"MAIL FROM:<a>\r\n",
            b"RCPT TO:<b>\r\n",
        ),
        auth=(deny("no", "Auth-Wait: 1"), deny("no")),
        declared_difference="stale-none",
        check=lambda record: (
            "" if b"\r\nAuth-User: \r\nAuth-Pass: \r\nAuth-Protocol" in record.requests[1] else "stale"
        ),
        allows_other_differences=True,
    ),
    _case(
        "brackets",
        "an IPv6 server in brackets",
        "q-imap",
        _LOGIN,
        b"x\r\n",
        auth=(auth_response("Auth-Server: [::1]", "Auth-Port: @port6@"),),
        upstream=IMAP_OK,
        is_exclusive=True,
        proxy_record=_said(_IMAP, b"a1 OK in\r\n* relayed\r\n", ending="open", afterwards="eof"),
        nginx_record=_said(_IMAP, _INTERNAL, upstreams=()),
        allows_other_differences=True,
    ),
    _case(
        "unix-server",
        "a server behind a UNIX socket",
        "q-imap",
        _LOGIN,
        b"x\r\n",
        auth=(auth_response("Auth-Server: unix:@socket@"),),
        upstream=IMAP_OK,
        is_exclusive=True,
        proxy_record=_said(_IMAP, b"a1 OK in\r\n* relayed\r\n", ending="open", afterwards="eof"),
        nginx_record=_said(_IMAP, _INTERNAL, upstreams=()),
        allows_other_differences=True,
    ),
    _case(
        "literals-at-once",
        "an upstream that announces LITERAL+",
        "q-imap",
        _LOGIN,
        b"x\r\n",
        auth=(GRANT,),
        upstream=(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] x\r\n", b"", b"", b"a1 OK in\r\n", b"* relayed\r\n"),
        proxy_record={"upstreams": (b"a1 LOGIN {4+}\r\nuser {4+}\r\npass\r\nx\r\n",)},
        nginx_record={},
        allows_other_differences=True,
    ),
)

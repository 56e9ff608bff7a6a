# SPDX-License-Identifier: Apache-2.0
"""Implicit TLS, STARTTLS, and client certificates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    GRANT,
    IMAP_OK,
    POP3_OK,
    SMTP_OK,
    Dialogue,
    PeerOutput,
    Step,
    Tls,
    WaitForReply,
    b64,
)
from support.parity.server_blocks import Block

_PAIR: Final = "ssl_certificate @server_cert@; ssl_certificate_key @server_key@;"
_MODES: Final = {"on": "on", "optional": "optional", "no-ca": "optional_no_ca"}


def _blocks() -> Iterator[Block]:
    for protocol in ("imap", "pop3", "smtp"):
        auth = f"{protocol}_auth plain" + ("" if protocol == "smtp" else " cram-md5 external") + ";"
        if protocol == "smtp":
            auth = "smtp_auth plain cram-md5 external;"
        yield Block(f"{protocol}-ssl", protocol, _PAIR + auth, listen="ssl")
        for mode in ("on", "only"):
            yield Block(f"{protocol}-starttls-{mode}", protocol, f"{_PAIR} starttls {mode}; {auth}")
        yield Block(f"{protocol}-starttls-slow", protocol, f"{_PAIR} starttls on; timeout 1s;")
        yield Block(f"{protocol}-ssl-slow", protocol, f"{_PAIR} timeout 1s;", listen="ssl")
        for name, mode in _MODES.items():
            directives = f"{_PAIR} {auth} ssl_verify_client {mode}; ssl_client_certificate @ca@; auth_http_pass_client_cert on;"
            yield Block(f"{protocol}-verify-{name}", protocol, directives, listen="ssl")
            yield Block(f"{protocol}-starttls-verify-{name}", protocol, f"{directives} starttls on;")
    yield Block(
        "imap-depth",
        "imap",
        f"{_PAIR} ssl_verify_client on; ssl_client_certificate @ca@; ssl_verify_depth 2;",
        listen="ssl",
    )
    yield Block(
        "imap-crl",
        "imap",
        f"{_PAIR} ssl_verify_client on; ssl_client_certificate @ca@; ssl_crl @crl@;",
        listen="ssl",
    )
    suite = "ECDHE-RSA-AES128-GCM-SHA256"
    for name, directives in {
        "ciphers": f"ssl_ciphers {suite};",
        "preferred": f"ssl_ciphers {suite}:ECDHE-RSA-AES256-GCM-SHA384; ssl_prefer_server_ciphers on;",
        "curve": "ssl_ecdh_curve secp384r1;",
        "command": "ssl_conf_command CipherString ECDHE-RSA-AES256-GCM-SHA384;",
        "tickets": "ssl_session_tickets off; ssl_session_cache shared:parity:1m; ssl_session_timeout 10m;",
        "dhparam": "ssl_dhparam @dhparam@; ssl_ciphers DHE-RSA-AES256-GCM-SHA384;",
        "trusted": "ssl_verify_client on; ssl_client_certificate @others_ca@; ssl_trusted_certificate @ca@;",
    }.items():
        yield Block(f"imap-{name}", "imap", _PAIR + directives, listen="ssl")
    yield Block(
        "imap-locked",
        "imap",
        "ssl_certificate @locked_cert@; ssl_certificate_key @locked_key@; ssl_password_file @passwords@;",
        listen="ssl",
    )
    yield Block("smtp-starttls-none", "smtp", f"{_PAIR} starttls on; smtp_auth none plain;")
    yield Block("imap-tls13", "imap", f"{_PAIR} ssl_protocols TLSv1.3;", listen="ssl")


BLOCKS: Final = tuple(_blocks())

_START: Final = {"imap": b"s STARTTLS\r\n", "pop3": b"STLS\r\n", "smtp": b"STARTTLS\r\n"}
_LOGIN: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n", b"x\r\n"),
    "pop3": (b"USER user\r\n", b"PASS pass\r\n", b"LIST\r\n"),
    "smtp": (b"EHLO cl\r\n", b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n", b"NOOP\r\n"),
}
_ASK: Final = {"imap": b"c CAPABILITY\r\n", "pop3": b"CAPA\r\n", "smtp": b"EHLO cl\r\n"}
_NOOP: Final = {"imap": b"n NOOP\r\n", "pop3": b"NOOP\r\n", "smtp": b"NOOP\r\n"}
_UPSTREAM: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "imap": IMAP_OK,
    "pop3": POP3_OK,
    "smtp": (*SMTP_OK, b"250 r\r\n"),
}
_REFUSED: Final[dict[str, tuple[bytes, ...]]] = {
    "imap": (b"a LOGIN user pass\r\n", b"b AUTHENTICATE PLAIN\r\n"),
    "pop3": (b"USER user\r\n", b"PASS pass\r\n", b"APOP u d\r\n", b"AUTH\r\n", b"AUTH PLAIN AHUAcA==\r\n"),
    "smtp": (b"AUTH PLAIN AHUAcA==\r\n", b"AUTH\r\n", b"AUTH LOGIN\r\n"),
}
_CLIENTS: Final = ("", "client", "expired", "stranger", "selfsigned", "wrongpurpose", "deep", "revoked")


def _courses(protocol: str) -> Iterator[tuple[str, str, tuple[Step, ...]]]:
    start, ask, noop, login = _START[protocol], _ASK[protocol], _NOOP[protocol], _LOGIN[protocol]
    yield "from the start", "ssl", (Tls(), ask, start, *login)
    yield "TLSv1.2 from the start", "ssl", (Tls(version="TLSv1.2"), *login)
    yield "the right ALPN", "ssl", (Tls(alpn=("http/1.1", protocol)), noop)
    yield "another ALPN", "ssl", (Tls(alpn=("http/1.1", "h2")), noop)
    yield "clear text where TLS should be", "ssl", (noop, WaitForReply(1.0))
    yield "HTTP where TLS should be", "ssl", (b"GET / HTTP/1.0\r\n\r\n", WaitForReply(1.0))
    yield "no handshake", "ssl-slow", (WaitForReply(4.0),)
    yield "half a handshake", "ssl-slow", (b"\x16\x03\x01\x02\x00\x01", WaitForReply(4.0))
    yield "silence in TLS", "ssl-slow", (Tls(), WaitForReply(4.0))
    for mode in ("on", "only"):
        block = f"starttls-{mode}"
        yield f"before TLS ({mode})", block, (ask, noop, *_REFUSED[protocol])
        yield f"after TLS ({mode})", block, (ask, start, Tls(), ask, start, noop, *login)
        yield f"with arguments ({mode})", block, (start.replace(b"\r\n", b" now please\r\n"), Tls(), noop)
        yield f"with commands behind it ({mode})", block, (start + noop + noop, Tls(), noop)
        yield f"with clear text in the gap ({mode})", block, (start, Tls(ahead=noop), noop)
        yield f"with ALPN ({mode})", block, (start, Tls(alpn=(protocol,)), noop)
        yield f"errors before and after ({mode})", block, (b"\r\n\r\n", start, Tls(), b"\r\n\r\n\r\n", noop)
        yield f"no handshake after it ({mode})", block, (start, b"GET / HTTP/1.0\r\n\r\n", WaitForReply(1.0))
    yield "silence after STARTTLS", "starttls-slow", (start, WaitForReply(5.0))
    if protocol == "smtp":
        yield "EHLO is forgotten", "starttls-on", (ask, start, Tls(), login[1], noop)
        yield "MAIL is forgotten", "starttls-none", (b"MAIL FROM:<a>\r\n", start, Tls(), b"RCPT TO:<b>\r\n")
    if protocol == "pop3":
        yield "CAPA after USER", "starttls-on", (b"USER u\r\n", ask, start, noop)


def _dialogues() -> Iterator[Dialogue]:
    for protocol, upstream in _UPSTREAM.items():
        for name, block, steps in _courses(protocol):
            yield Dialogue(
                name=f"{name} ({protocol})",
                block=f"{protocol}-{block}",
                area="TLS",
                steps=steps,
                auth=(GRANT,),
                upstream=upstream,
            )
        yield from _certificates(protocol, upstream)
    for block, certificate in (("depth", "deep"), ("crl", "client"), ("crl", "revoked"), ("tls13", "")):
        yield Dialogue(
            name=f"{certificate or 'nobody'} ({block})",
            block=f"imap-{block}",
            area="client certificates",
            steps=(Tls(certificate=certificate), *_LOGIN["imap"]),
            auth=(GRANT,),
            upstream=IMAP_OK,
        )
    for block in ("ciphers", "preferred", "curve", "command", "tickets", "dhparam", "locked"):
        yield Dialogue(
            name=f"TLSv1.2 ({block})",
            block=f"imap-{block}",
            area="TLS",
            steps=(Tls(version="TLSv1.2"), *_LOGIN["imap"]),
            auth=(GRANT,),
            upstream=IMAP_OK,
        )
    for certificate in ("client", "stranger", "selfsigned"):
        yield Dialogue(
            name=f"{certificate}, trusted but not announced",
            block="imap-trusted",
            area="client certificates",
            steps=(Tls(certificate=certificate), *_LOGIN["imap"]),
            auth=(GRANT,),
            upstream=IMAP_OK,
        )
    yield Dialogue(
        name="too old a version",
        block="imap-tls13",
        area="TLS",
        steps=(Tls(version="TLSv1.2"), b"a NOOP\r\n"),
    )


def _certificates(protocol: str, upstream: tuple[PeerOutput, ...]) -> Iterator[Dialogue]:
    for mode in _MODES:
        for certificate in _CLIENTS:
            evidence = Tls(certificate=certificate)
            for way, first in (("verify", ()), ("starttls-verify", (_START[protocol],))):
                yield Dialogue(
                    name=f"{certificate or 'nobody'} by {way} {mode} ({protocol})",
                    block=f"{protocol}-{way}-{mode}",
                    area="client certificates",
                    steps=(*first, evidence, *_LOGIN[protocol]),
                    auth=(GRANT,),
                    upstream=upstream,
                )


DIALOGUES: Final = tuple(_dialogues())

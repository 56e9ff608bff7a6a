# SPDX-License-Identifier: Apache-2.0
"""PROXY headers, in and out, from peers that are trusted and others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

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
from support.parity.record import Record
from support.parity.server_blocks import Block

_PAIR: Final = "ssl_certificate @server_cert@; ssl_certificate_key @server_key@;"
_SENDS_2: Final = (1, 31, 4)
"""The first nginx that writes version 2."""
_TRUST: Final = {
    "trusted": "set_real_ip_from 192.0.2.0/24; set_real_ip_from 127.0.0.0/8;",
    "untrusted": "set_real_ip_from 10.0.0.0/8;",
    "unasked": "",
}


def _blocks() -> Iterator[Block]:
    for protocol in ("imap", "pop3", "smtp"):
        for name, directives in _TRUST.items():
            yield Block(f"{protocol}-in-{name}", protocol, directives, listen="proxy_protocol")
        yield Block(f"{protocol}-out", protocol, "proxy_protocol on;")
        yield Block(f"{protocol}-out2", protocol, "proxy_protocol v2;", since=_SENDS_2)
        yield Block(f"{protocol}-unix", protocol, "proxy_protocol on;", via="unix")
        yield Block(f"{protocol}-ipv6", protocol, "proxy_protocol on;", via="ipv6")
    trusted = _TRUST["trusted"]
    yield Block("smtp-through", "smtp", f"{trusted} proxy_protocol on;", listen="proxy_protocol")
    yield Block(
        "smtp-through2", "smtp", f"{trusted} proxy_protocol v2;", listen="proxy_protocol", since=_SENDS_2
    )
    yield Block("imap-in-ssl", "imap", trusted + _PAIR, listen="ssl proxy_protocol")
    yield Block("imap-out2-ssl", "imap", "proxy_protocol v2;" + _PAIR, listen="ssl", since=_SENDS_2)
    yield Block(
        "imap-out2-verify",
        "imap",
        f"proxy_protocol v2; {_PAIR} ssl_verify_client optional; ssl_client_certificate @ca@;",
        listen="ssl",
        since=_SENDS_2,
    )
    yield Block(
        "imap-out2-any",
        "imap",
        f"proxy_protocol v2; {_PAIR} ssl_verify_client optional_no_ca; ssl_client_certificate @ca@;",
        listen="ssl",
        since=_SENDS_2,
    )
    yield Block("imap-out2-unix", "imap", "proxy_protocol v2;", via="unix", since=_SENDS_2)
    yield Block("imap-out2-ipv6", "imap", "proxy_protocol v2;", via="ipv6", since=_SENDS_2)
    yield Block("imap-in-quick", "imap", "timeout 1s;", listen="proxy_protocol")
    yield Block("imap-in-unix", "imap", "set_real_ip_from unix:;", listen="proxy_protocol", via="unix")


BLOCKS: Final = tuple(_blocks())

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"


def v2(
    source: str,
    destination: str,
    ports: tuple[int, int] = (56324, 143),
    *,
    head: int = 0x21,
    kind: int = 0,
    more: bytes = b"",
) -> bytes:
    """A header of version 2."""
    ends = [ip_address(text).packed for text in (source, destination)]
    body = b"".join(ends) + struct.pack("!HH", *ports) + more
    family = kind or (0x11 if len(ends[0]) == 4 else 0x21)
    return _SIGNATURE + struct.pack("!BBH", head, family, len(body)) + body


def _empty(head: int, kind: int, body: bytes = b"") -> bytes:
    return _SIGNATURE + struct.pack("!BBH", head, kind, len(body)) + body


HEADERS: Final[dict[str, bytes]] = {
    "TCP4": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143\r\n",
    "TCP6": b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 56324 143\r\n",
    "UNKNOWN": b"PROXY UNKNOWN\r\n",
    "UNKNOWN and more": b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n",
    "port 0": b"PROXY TCP4 192.0.2.1 192.0.2.2 0 65535\r\n",
    "port 65536": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 143\r\n",
    "no port": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
    "letters in a port": b"PROXY TCP4 192.0.2.1 192.0.2.2 5x 143\r\n",
    "small letters": b"proxy TCP4 192.0.2.1 192.0.2.2 56324 143\r\n",
    "a family that is none": b"PROXY TCP5 192.0.2.1 192.0.2.2 56324 143\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 56324 143\r\n",
    "a bare LF": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143\n",
    "something behind the ports": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143 x\r\n",
    "no header": b"a NOOP\r\n",
    "no header, but longer": b"EHLO some.long.name.example.com\r\nMAIL FROM:<>\r\n",
    "version 2": v2("192.0.2.1", "192.0.2.2"),
    "version 2 for IPv6": v2("2001:db8::1", "2001:db8::2"),
    "version 2 with more behind": v2("192.0.2.1", "192.0.2.2", more=b"\x03\0\x04abcd\x04\0\x01x"),
    "version 2 LOCAL": _empty(0x20, 0),
    "version 2 LOCAL with addresses": v2("192.0.2.1", "192.0.2.2", head=0x20),
    "version 2 with another command": v2("192.0.2.1", "192.0.2.2", head=0x22),
    "version 2 for datagrams": v2("192.0.2.1", "192.0.2.2", kind=0x12),
    "version 2 for UNIX sockets": _empty(0x21, 0x31, b"\0" * 216),
    "version 2 of no family": _empty(0x21, 0x01, b""),
    "version 2 that is too short": _empty(0x21, 0x11, b"\0" * 8),
    "version 3": v2("192.0.2.1", "192.0.2.2", head=0x31),
}
_LOGIN: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n", b"x\r\n"),
    "pop3": (b"USER user\r\n", b"PASS pass\r\n", b"LIST\r\n"),
    "smtp": (b"EHLO cl\r\n", b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n", b"NOOP\r\n"),
}
_UPSTREAM: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "imap": IMAP_OK,
    "pop3": POP3_OK,
    "smtp": (*SMTP_OK, b"250 r\r\n"),
}


def _in() -> Iterator[Dialogue]:
    for name, header in HEADERS.items():
        for trust in _TRUST:
            yield _dialogue(f"{name} ({trust})", f"imap-in-{trust}", header)
    for protocol in ("pop3", "smtp"):
        for name in ("TCP4", "TCP6", "version 2", "UNKNOWN"):
            yield _dialogue(f"{name} ({protocol})", f"{protocol}-in-trusted", HEADERS[name])
    for name in ("TCP4", "version 2 for IPv6", "UNKNOWN"):
        yield _dialogue(f"{name}, told on", "smtp-through", HEADERS[name], out=1)
    yield _dialogue("a header, then TLS", "imap-in-ssl", HEADERS["TCP4"], Tls())
    yield _dialogue("TLS without a header", "imap-in-ssl", Tls())
    yield _dialogue("a header over a UNIX socket", "imap-in-unix", HEADERS["TCP4"], via="unix")
    for name, steps in {
        "silence": (WaitForReply(4.0),),
        "a part of a header": (b"PROXY TCP4 1", WaitForReply(4.0)),
    }.items():
        yield Dialogue(name=name, block="imap-in-quick", area="PROXY protocol in", steps=steps)


_LONG: Final = {"since": (1, 23, 3), "check": lambda record: "" if record.requests else "it did not log in"}
_MIXED: Final = {"declared_difference": "mixed-families"}


def _dialogue(name: str, block: str, *first: Step, out: int = 0, via: str = "tcp") -> Dialogue:
    special: dict[str, Any] = {}
    if name.startswith("version 2 for UNIX"):
        special = _LONG
    elif name == "version 2 for IPv6, told on":
        special = _MIXED
    protocol = block.partition("-")[0]
    return Dialogue(
        name=name,
        block=block,
        area="PROXY protocol in",
        steps=(*first, *_LOGIN[protocol]),
        auth=(GRANT,),
        upstream=_UPSTREAM[protocol],
        header=out,
        via=via,
        is_exclusive="untrusted" not in block and "unasked" not in block,
        **special,
    )


def _out() -> Iterator[Dialogue]:
    for protocol, login in _LOGIN.items():
        for via in ("out", "unix", "ipv6"):
            yield Dialogue(
                name=f"version 1 from {'tcp' if via == 'out' else via} ({protocol})",
                block=f"{protocol}-{via}",
                area="PROXY protocol out",
                steps=login,
                auth=(GRANT,),
                upstream=_UPSTREAM[protocol],
                header=1,
                via="tcp" if via == "out" else via,
            )


_FROM_TO: Final = "CLIENT HERE CLIENTPORT LISTENPORT"


def _of_tls(flags: str, *, version: str = "1.3", name: str = "") -> str:
    cipher = "TLS_AES_256_GCM_SHA384" if version == "1.3" else "ECDHE-RSA-AES256-GCM-SHA384"
    evidence = f" CN={name}" if name else ""
    keys = "SIGNATURE=ecdsa-with-SHA256 KEY=RSA2048 CRC32C=right"
    return f"SSL={flags} VERSION=TLSv{version}{evidence} CIPHER={cipher} {keys}"


# The server, how a client comes to it, and the header that the upstream is to get.
HEADERS_OUT: Final[dict[str, tuple[str, tuple[Step, ...], str]]] = {
    "version 2 from tcp (imap)": ("imap-out2", (), f"21 11 {_FROM_TO} CRC32C=right"),
    "version 2 from tcp (pop3)": ("pop3-out2", (), f"21 11 {_FROM_TO} CRC32C=right"),
    "version 2 from tcp (smtp)": ("smtp-out2", (), f"21 11 {_FROM_TO} CRC32C=right"),
    "version 2 from ipv6 (imap)": ("imap-out2-ipv6", (), "21 21 ::1 ::1 CLIENTPORT LISTENPORT CRC32C=right"),
    "version 2 from unix (imap)": ("imap-out2-unix", (), "20 00 CRC32C=right"),
    "version 2 of TLS 1.3": ("imap-out2-ssl", (Tls(),), f"21 11 {_FROM_TO} {_of_tls('01/1')}"),
    "version 2 of TLS 1.2": (
        "imap-out2-ssl",
        (Tls(version="TLSv1.2"),),
        f"21 11 {_FROM_TO} {_of_tls('01/1', version='1.2')}",
    ),
    "version 2 of a named server and a protocol": (
        "imap-out2-ssl",
        (Tls(name="mail.example.com", alpn=("imap",)),),
        f"21 11 {_FROM_TO} AUTHORITY=mail.example.com ALPN=imap {_of_tls('01/1')}",
    ),
    "version 2 of a client with a certificate": (
        "imap-out2-verify",
        (Tls(certificate="client"),),
        f"21 11 {_FROM_TO} {_of_tls('07/0', name='client')}",
    ),
    "version 2 of a client with a certificate, resumed": (
        "imap-out2-verify",
        (Tls(certificate="client", resumes="imap-out2-verify"),),
        f"21 11 {_FROM_TO} {_of_tls('05/0', name='client')}",
    ),
    "version 2 of a client without a certificate": (
        "imap-out2-verify",
        (Tls(),),
        f"21 11 {_FROM_TO} {_of_tls('01/1')}",
    ),
    "version 2 of a client with a stranger's certificate": (
        "imap-out2-any",
        (Tls(certificate="stranger"),),
        f"21 11 {_FROM_TO} {_of_tls('07/21', name='stranger')}",
    ),
    "TCP4, told on as version 2": (
        "smtp-through2",
        (HEADERS["TCP4"],),
        "21 11 192.0.2.1 HERE 56324 LISTENPORT CRC32C=right",
    ),
    "TCP6, told on as version 2": (
        "smtp-through2",
        (HEADERS["TCP6"],),
        "21 21 2001:db8::1 ::ffff:HERE 56324 LISTENPORT CRC32C=right",
    ),
    "UNKNOWN, told on as version 2": (
        "smtp-through2",
        (HEADERS["UNKNOWN"],),
        f"21 11 {_FROM_TO} CRC32C=right",
    ),
}


def _begins_with(header: bytes, record: Record) -> str:
    return "" if any(item.startswith(header) for item in record.upstreams) else f"{record.upstreams}"


def _out2() -> Iterator[Dialogue]:
    for name, (block, first, header) in HEADERS_OUT.items():
        protocol = block.partition("-")[0]
        via = block.rpartition("-")[2]
        yield Dialogue(
            name=name,
            block=block,
            area="PROXY protocol out",
            steps=(*first, *_LOGIN[protocol]),
            auth=(GRANT,),
            upstream=_UPSTREAM[protocol],
            header=2,
            via=via if via in {"unix", "ipv6"} else "tcp",
            is_exclusive="through" in block,
            since=_SENDS_2,
            check=partial(_begins_with, f"PROXY2 {header}\r\n".encode()),
        )


DIALOGUES: Final = (*_in(), *_out(), *_out2())

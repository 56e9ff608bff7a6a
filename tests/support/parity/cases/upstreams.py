# SPDX-License-Identifier: Apache-2.0
"""Replies of upstreams, and their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    AUTH_OK,
    CLOSE,
    GRANT,
    GRANT_PASS,
    RESET,
    SILENT,
    Dialogue,
    PeerOutput,
    Step,
    WaitForReply,
    b64,
    grant,
)
from support.parity.server_blocks import Block

_XCLIENT: Final = tuple(
    Block(
        f"smtp-x{xclient}-a{auth}",
        "smtp",
        f"xclient {xclient}; proxy_smtp_auth {auth}; smtp_auth plain cram-md5 external none;",
    )
    for xclient in ("on", "off")
    for auth in ("on", "off")
)
BLOCKS: Final = (
    *_XCLIENT,
    Block("imap-passing", "imap", "proxy_pass_error_message on;"),
    Block("pop3-passing", "pop3", "proxy_pass_error_message on;"),
    Block("smtp-passing", "smtp", "proxy_pass_error_message on; proxy_smtp_auth on; smtp_auth plain none;"),
    Block("smtp-quiet", "smtp", "proxy_smtp_auth on; smtp_auth plain none;"),
    Block("imap-narrow", "imap", "proxy_buffer 256;"),
    Block("pop3-narrow", "pop3", "proxy_buffer 256; proxy_pass_error_message on;"),
    Block("smtp-narrow", "smtp", "proxy_buffer 256;"),
    Block("imap-quick", "imap", "timeout 1s;"),
    Block("pop3-quick", "pop3", "timeout 1s; proxy_pass_error_message on;"),
    Block("smtp-quick", "smtp", "timeout 1s;"),
)

_LOGINS: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n",),
    "pop3": (b"USER user\r\nPASS pass\r\n",),
    "smtp": (b"EHLO cl\r\n", b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n"),
}
_GOOD: Final[dict[str, tuple[bytes, ...]]] = {
    "imap": (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n", b"a1 OK in\r\n", b"* relayed\r\n"),
    "pop3": (b"+OK ready\r\n", b"+OK\r\n", b"+OK in\r\n", b"+OK relayed\r\n"),
    "smtp": (b"220 ready\r\n", b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", AUTH_OK, b"250 relayed\r\n"),
}
_STEPS: Final = {"imap": 4, "pop3": 3, "smtp": 5}
_BAD: Final[dict[str, dict[str, PeerOutput]]] = {
    "imap": {
        "BYE": b"* BYE full\r\n",
        "NO": b"a1 NO [AUTHENTICATIONFAILED] sorry\r\n",
        "BAD": b"a1 BAD what\r\n",
        "another tag": b"b1 OK in\r\n",
        "PREAUTH": b"* PREAUTH ready\r\n",
        "small letters": b"* ok ready\r\n",
    },
    "pop3": {
        "an error": b"-ERR [AUTH] sorry\r\n",
        "small letters": b"+ok\r\n",
        "SMTP": b"220 smtp\r\n",
    },
    "smtp": {
        "an error": b"554 5.7.1 no\r\n",
        "a temporary error": b"421 4.3.2 later\r\n",
        "several lines": b"550-no\r\n550-never\r\n550 not\r\n",
        "another code": b"354 go on\r\n",
        "IMAP": b"* OK ready\r\n",
    },
}
_ENDS: Final[dict[str, PeerOutput]] = {
    "it closes": CLOSE,
    "it breaks off": RESET,
    "it stops in the middle of a line": (b"+OK 220 * ", CLOSE),
}


def _refusals() -> Iterator[Dialogue]:
    for protocol, count in _STEPS.items():
        for block in (f"{protocol}-passing", "smtp-quiet" if protocol == "smtp" else protocol):
            for at in range(count):
                for name, output in (_BAD[protocol] | _ENDS).items():
                    course: list[PeerOutput] = list(_GOOD[protocol])
                    if protocol == "imap" and at and isinstance(output, bytes) and output.startswith(b"*"):
                        continue  # an untagged line may come at any time: see ``quirks``
                    course[at] = output
                    yield Dialogue(
                        name=f"{name} at step {at} ({block})",
                        block=block,
                        area=f"{protocol} upstreams",
                        steps=(*_LOGINS[protocol], b"a2 NOOP\r\n"),
                        auth=(GRANT,),
                        upstream=tuple(course),
                    )


_OTHERS: Final[dict[str, tuple[str, tuple[PeerOutput, ...]]]] = {
    "lines behind the greeting": (
        "imap",
        (
            b"* OK ready\r\n* CAPABILITY IMAP4rev1\r\n",
            b"+ go\r\n",
            b"+ go\r\n",
            b"a1 OK in\r\n",
            b"* relayed\r\n",
        ),
    ),
    "a reply with its capabilities": (
        "imap",
        (*_GOOD["imap"][:3], b"a1 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n", b"* relayed\r\n"),
    ),
    "a bare tag and OK": ("imap", (*_GOOD["imap"][:3], b"a1 OK\r\n", b"* relayed\r\n")),
    "OK and letters": ("imap", (*_GOOD["imap"][:3], b"a1 OKfoo\r\n", b"* relayed\r\n")),
    "more behind the reply": ("imap", (*_GOOD["imap"][:3], b"a1 OK in\r\n* 3 EXISTS\r\n", b"* relayed\r\n")),
    "replies in single bytes": (
        "imap",
        tuple(tuple(line[at : at + 1] for at in range(len(line))) for line in _GOOD["imap"]),
    ),
    "a greeting with its stamp": ("pop3", (b"+OK ready <1.2@x>\r\n", *_GOOD["pop3"][1:])),
    "more behind the reply to PASS": (
        "pop3",
        (*_GOOD["pop3"][:2], b"+OK in\r\n+OK more\r\n", b"+OK relayed\r\n"),
    ),
    "replies cut in two": ("pop3", tuple((line[:4], line[4:]) for line in _GOOD["pop3"])),
    "several lines each": (
        "smtp",
        (
            b"220-a\r\n220 b\r\n",
            b"250-a\r\n250-b\r\n250 c\r\n",
            b"250-x\r\n250 y\r\n",
            b"250-z\r\n250 ok\r\n",
            b"250 relayed\r\n",
        ),
    ),
    "several lines, cut anywhere": (
        "smtp",
        (
            (b"220-a\r", b"\n220 b\r\n"),
            (b"250-a\r\n", b"250", b"-b\r\n250", b" c\r\n"),
            b"250 x\r\n",
            b"250 y\r\n",
            b"250 z\r\n",
        ),
    ),
    "220 after XCLIENT": (
        "smtp",
        (b"220 a\r\n", b"250 b\r\n", b"220 again\r\n", b"250 c\r\n", b"250 relayed\r\n"),
    ),
    "codes that change inside a reply": (
        "smtp",
        (b"220 a\r\n", b"250-a\r\n550 b\r\n", b"250 x\r\n", b"250 c\r\n", b"250 r\r\n"),
    ),
}


def _forms() -> Iterator[Dialogue]:
    for name, (protocol, script) in _OTHERS.items():
        yield Dialogue(
            name=name,
            block=protocol,
            area=f"{protocol} upstreams",
            steps=(*_LOGINS[protocol], b"a2 NOOP\r\n"),
            auth=(GRANT,),
            upstream=script,
        )
    for protocol, login in _LOGINS.items():
        yield Dialogue(
            name="nobody listens",
            block=protocol,
            area=f"{protocol} upstreams",
            steps=(*login, b"a2 NOOP\r\n"),
            auth=(GRANT,),
            reachable=False,
        )
        for at in range(_STEPS[protocol] - (1 if protocol == "smtp" else 0)):
            course: list[PeerOutput] = list(_GOOD[protocol])
            course[at] = b"+OK 250 " + b"x" * 400
            yield Dialogue(
                name=f"too long a line at step {at}",
                block=f"{protocol}-narrow",
                area=f"{protocol} upstreams",
                steps=(*login, b"a2 NOOP\r\n"),
                auth=(GRANT,),
                upstream=tuple(course),
            )
            course[at] = SILENT
            yield Dialogue(
                name=f"silence at step {at}",
                block=f"{protocol}-quick",
                area=f"{protocol} upstreams",
                steps=(
                    b"\r\n".join(step.strip() for step in login if isinstance(step, bytes)) + b"\r\n",
                    WaitForReply(4.0),
                ),
                auth=(GRANT,),
                upstream=tuple(course),
            )
        yield Dialogue(
            name="what was sent ahead",
            block=protocol,
            area=f"{protocol} relays",
            steps=(
                b"".join(step for step in login if isinstance(step, bytes)) + b"STAT\r\nLIST\r\nhalf",
                b" a line\r\n",
            ),
            auth=(GRANT,),
            upstream=(
                *_GOOD[protocol][: _STEPS[protocol] - (protocol == "smtp")],
                b"one\r\n",
                b"two\r\n",
                b"three\r\n",
            ),
        )
        yield Dialogue(
            name="the upstream ends it",
            block=protocol,
            area=f"{protocol} relays",
            steps=(*login, b"LOGOUT\r\n"),
            auth=(GRANT,),
            upstream=(*_GOOD[protocol][: _STEPS[protocol] - (protocol == "smtp")], (b"bye\r\n", CLOSE)),
        )
        yield Dialogue(
            name="much both ways",
            block=protocol,
            area=f"{protocol} relays",
            steps=(*login, b"x" * 50000 + b"\r\n", b"y\r\n"),
            auth=(GRANT,),
            upstream=(
                *_GOOD[protocol][: _STEPS[protocol] - (protocol == "smtp")],
                b"z" * 70000 + b"\r\n",
                bytes(range(256)) * 20,
            ),
        )


_HELLOS: Final[dict[str, tuple[bytes, ...]]] = {
    "no name": (),
    "HELO": (b"HELO cl.example\r\n",),
    "EHLO": (b"EHLO cl.example\r\n",),
    "EHLO, then HELO": (b"EHLO cl.example\r\n", b"HELO other.example\r\n"),
}
_WAYS: Final[dict[str, tuple[tuple[bytes, ...], PeerOutput]]] = {
    "PLAIN": ((b"AUTH PLAIN " + b64("\0us+er=\x7f\0pass") + b"\r\n",), GRANT),
    "PLAIN with an empty name": ((b"AUTH PLAIN " + b64("\0\0pass") + b"\r\n",), GRANT),
    "PLAIN as somebody else": ((b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n",), grant("Auth-User: x y")),
    "CRAM-MD5": (
        (b"AUTH CRAM-MD5\r\n", b64("user b913a602c7eda7a495b4e6e7334d3890") + b"\r\n"),
        GRANT_PASS,
    ),
    "CRAM-MD5 without a password": (
        (b"AUTH CRAM-MD5\r\n", b64("user b913a602c7eda7a495b4e6e7334d3890") + b"\r\n"),
        GRANT,
    ),
    "EXTERNAL without a password": ((b"AUTH EXTERNAL\r\n", b64("user") + b"\r\n"), GRANT),
    "EXTERNAL with an empty password": ((b"AUTH EXTERNAL\r\n", b64("user") + b"\r\n"), grant("Auth-Pass:")),
    "none": ((b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x>\r\n"), GRANT),
    "none as somebody": ((b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x>\r\n"), grant("Auth-User: relay")),
}


def _xclients() -> Iterator[Dialogue]:
    for block in _XCLIENT:
        for hello, first in _HELLOS.items():
            for way, (lines, decision) in _WAYS.items():
                yield Dialogue(
                    name=f"{way} after {hello} ({block.name})",
                    block=block.name,
                    area="smtp XCLIENT and AUTH",
                    steps=(*first, *lines, b"NOOP\r\n"),
                    auth=(decision,),
                    upstream=_accepting_upstream(block.name, hello, way),
                    **_xtext_difference(block.name, way),  # type: ignore[arg-type]
                )


def _accepting_upstream(block: str, hello: str, way: str) -> tuple[PeerOutput, ...]:
    """Return the output of an upstream that accepts every command."""
    hellos = 1 + ("-xon" in block) + ("-xon" in block and hello != "no name")
    script: list[PeerOutput] = [b"220 mta\r\n", *(b"250 ok\r\n",) * hellos]
    if way.startswith("none"):
        script += [b"250 mail\r\n", b"450 rcpt\r\n"]
    elif "-aon" in block:
        script.append(AUTH_OK)
    return (*script, b"250 relayed\r\n")


def _xtext_difference(block: str, way: str) -> dict[str, object]:
    """Return the declared difference of nginx before 1.29.2, which does not encode xtext."""
    if "-xon" in block and "-aoff" in block and way in {"PLAIN", "PLAIN as somebody else"}:
        return {"declared_difference": "xtext"}
    return {}


DIALOGUES: Final = (*_refusals(), *_forms(), *_xclients())

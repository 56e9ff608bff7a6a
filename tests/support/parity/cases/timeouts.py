# SPDX-License-Identifier: Apache-2.0
"""Results of timeouts; durations are not compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    GRANT,
    IMAP_OK,
    POP3_OK,
    Dialogue,
    PeerOutput,
    Step,
    WaitForReply,
    auth_response,
    b64,
    deny,
)
from support.parity.server_blocks import Block

BLOCKS: Final = (
    *(Block(f"{protocol}-impatient", protocol, "timeout 1s;") for protocol in ("imap", "pop3", "smtp")),
    Block("smtp-late", "smtp", "timeout 1s; smtp_greeting_delay 2s;"),
    *(Block(f"{protocol}-idle", protocol, "proxy_timeout 1s;") for protocol in ("imap", "pop3", "smtp")),
)
_NOOP: Final = {"imap": b"a NOOP\r\n", "pop3": b"NOOP\r\n", "smtp": b"NOOP\r\n"}
_LOGIN: Final[dict[str, tuple[Step, ...]]] = {
    "imap": (b"a1 LOGIN user pass\r\n",),
    "pop3": (b"USER user\r\nPASS pass\r\n",),
    "smtp": (b"AUTH PLAIN " + b64("\0user\0pass") + b"\r\n",),
}
_PART: Final = {"imap": b"a1 LOGIN us", "pop3": b"USER us", "smtp": b"AUTH PL"}
_SASL: Final = {"imap": b"a1 AUTHENTICATE PLAIN\r\n", "pop3": b"AUTH PLAIN\r\n", "smtp": b"AUTH PLAIN\r\n"}
_UPSTREAM: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "imap": IMAP_OK,
    "pop3": POP3_OK,
    "smtp": (b"220 a\r\n", b"250 b\r\n", b"250 c\r\n", b"250 r\r\n"),
}
_NO_SILENCE: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "a slow service is no silence of the client": ((2.0, GRANT),),
    "a postponement is none": (auth_response("Auth-Status: WAIT", "Auth-Wait: 2"), GRANT),
    "a wait after a denial is none": (deny("no", "Auth-Wait: 2"),),
}


def _dialogues() -> Iterator[Dialogue]:
    for protocol, noop in _NOOP.items():
        silent = {
            "silence": (WaitForReply(4.0),),
            "silence after commands": (noop, WaitForReply(0.6), noop, WaitForReply(4.0)),
            "silence inside a command": (_PART[protocol], WaitForReply(4.0)),
            "silence inside an exchange": (_SASL[protocol], WaitForReply(4.0)),
        }
        for name, steps in silent.items():
            yield Dialogue(
                name=f"{name} ({protocol})", block=f"{protocol}-impatient", area="time limits", steps=steps
            )
        yield Dialogue(
            name=f"a denial begins a new period ({protocol})",
            block=f"{protocol}-impatient",
            area="time limits",
            steps=(*_LOGIN[protocol], WaitForReply(4.0), noop, WaitForReply(4.0)),
            auth=(deny("no", "Auth-Wait: 1"),),
        )
        yield Dialogue(
            name=f"an idle relay ({protocol})",
            block=f"{protocol}-idle",
            area="time limits",
            steps=(*_LOGIN[protocol], noop, WaitForReply(4.0)),
            auth=(GRANT,),
            upstream=_UPSTREAM[protocol],
        )
        for name, output in _NO_SILENCE.items():
            yield Dialogue(
                name=f"{name} ({protocol})",
                block=f"{protocol}-impatient",
                area="time limits",
                steps=(*_LOGIN[protocol], WaitForReply(4.0), noop),
                auth=output,
                upstream=_UPSTREAM[protocol],
            )
        yield Dialogue(
            name=f"a client that speaks now and then ({protocol})",
            block=f"{protocol}-idle",
            area="time limits",
            steps=(*_LOGIN[protocol], *(noop, WaitForReply(0.6)) * 3, WaitForReply(4.0)),
            auth=(GRANT,),
            upstream=(*_UPSTREAM[protocol], b"* again\r\n", b"* and again\r\n"),
        )
    yield Dialogue(
        name="a greeting that comes late",
        block="smtp-late",
        area="time limits",
        steps=(WaitForReply(4.0), b"NOOP\r\n", WaitForReply(4.0)),
    )


DIALOGUES: Final = tuple(_dialogues())

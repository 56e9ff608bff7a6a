# SPDX-License-Identifier: Apache-2.0
"""What happens when somebody takes too long: outcomes, not durations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.blocks import Block
from support.parity.dialogue import GRANT, IMAP_OK, POP3_OK, Await, Dialogue, Speech, Step, b64, deny

BLOCKS: Final = (
    *(Block(f"{protocol}-impatient", protocol, "timeout 1s;") for protocol in ("imap", "pop3", "smtp")),
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
_UPSTREAM: Final[dict[str, tuple[Speech, ...]]] = {
    "imap": IMAP_OK,
    "pop3": POP3_OK,
    "smtp": (b"220 a\r\n", b"250 b\r\n", b"250 c\r\n", b"250 r\r\n"),
}


def _dialogues() -> Iterator[Dialogue]:
    for protocol, noop in _NOOP.items():
        silent = {
            "silence": (Await(4.0),),
            "silence after commands": (noop, Await(0.6), noop, Await(4.0)),
            "silence inside a command": (_PART[protocol], Await(4.0)),
            "silence inside an exchange": (_SASL[protocol], Await(4.0)),
        }
        for name, steps in silent.items():
            yield Dialogue(
                name=f"{name} ({protocol})", block=f"{protocol}-impatient", area="time limits", steps=steps
            )
        yield Dialogue(
            name=f"a denial begins a new period ({protocol})",
            block=f"{protocol}-impatient",
            area="time limits",
            steps=(*_LOGIN[protocol], Await(4.0), noop, Await(4.0)),
            auth=(deny("no", "Auth-Wait: 1"),),
        )
        yield Dialogue(
            name=f"an idle relay ({protocol})",
            block=f"{protocol}-idle",
            area="time limits",
            steps=(*_LOGIN[protocol], noop, Await(4.0)),
            auth=(GRANT,),
            upstream=_UPSTREAM[protocol],
        )


DIALOGUES: Final = tuple(_dialogues())

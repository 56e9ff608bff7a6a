# SPDX-License-Identifier: Apache-2.0
"""Capabilities that are accepted as in nginx, and that clients read otherwise than was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_CODE: Final = re.compile(r"[0-9]{3}[- ]\s*(.*)|\* CAPABILITY (.*)|\+OK\s*(.*)", re.IGNORECASE)
_SEVERAL: Final = frozenset(
    {
        *("8BITMIME", "BINARYMIME", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "ETRN", "EXPN", "HELP"),
        *("PIPELINING", "SMTPUTF8", "VRFY", "TOP", "UIDL", "USER", "RESP-CODES", "AUTH-RESP-CODE"),
    }
)
_BY_HAND: Final[Mapping[str, Mapping[str, str]]] = {
    "smtp_capabilities": {
        "AUTH": 'the proxy writes the line AUTH itself, from "smtpAuth"',
        "STARTTLS": 'the proxy adds STARTTLS itself where "starttls" is on',
        "XCLIENT": "the proxy does not take XCLIENT from clients",
    },
    "pop3_capabilities": {
        "SASL": 'the proxy writes the line SASL itself, from "pop3Auth"',
        "STLS": 'the proxy adds STLS itself where "starttls" is on',
        "STARTTLS": 'POP3 calls it STLS, and the proxy adds it itself where "starttls" is on',
        "UTF8": "clients send UTF8 before they log in, and the proxy refuses it",
        "LANG": "clients send LANG before they log in, and the proxy refuses it",
    },
    "imap_capabilities": {
        "AUTH": 'the proxy adds AUTH= itself, from "imapAuth"',
        "STARTTLS": 'the proxy adds STARTTLS itself where "starttls" is on',
        "LOGINDISABLED": 'the proxy adds LOGINDISABLED itself where "starttls" is only',
        "ID": "clients send ID before they log in, and the proxy refuses it and counts an error",
    },
}


def capability_hints(directive: str, capabilities: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    """What is odd about a list of capabilities.

    Args:
        directive: ``imap_capabilities``, ``pop3_capabilities`` or ``smtp_capabilities``; others have none.
        capabilities: The list.

    Yields:
        The index of a capability, or ``None`` for the list as a whole, and what is odd about it.
    """
    by_hand = _BY_HAND.get(directive)
    if by_hand is None:
        return
    is_imap = directive == "imap_capabilities"
    for index, written in enumerate(capabilities):
        before = capabilities[index - 1] if index else ""
        hint = _hint(written, before, by_hand, is_imap=is_imap)
        if hint:
            yield index, f'"{written[:64]}": {hint}'
    words = " ".join(capabilities).upper().split()
    if is_imap and not {"IMAP4REV1", "IMAP4REV2"}.intersection(words):
        yield None, "names neither IMAP4rev1 nor IMAP4rev2; clients expect one of them"


def _hint(written: str, before: str, by_hand: Mapping[str, str], *, is_imap: bool) -> str:
    code = _CODE.fullmatch(written)
    if code is not None:
        bare = next(filter(None, code.groups()), "")
        name = bare.upper().split(" ")[0].partition("=")[0]
        return by_hand.get(name, f'write "{bare[:64]}" alone; the proxy writes what belongs before it')
    words = written.upper().split()
    if len(words) == 1 and words[0].isdigit():
        return (
            f'is a capability of its own; if it belongs to "{before[:64]}", put both into one pair of quotes'
            + (f': "{before[:64]} {written[:64]}"' if before else "")
        )
    if len(words) > 1 and not is_imap and _SEVERAL.issuperset(words):
        return "is one line; put each capability into quotes of its own"
    names = [word.partition("=")[0] for word in (words if is_imap else words[:1])]
    return next((by_hand[name] for name in names if name in by_hand), "")

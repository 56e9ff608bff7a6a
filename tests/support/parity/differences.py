"""Every difference from nginx that is meant.  What is not here is a fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from support.parity.dialogue import Dialogue
from support.parity.record import Record


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        name: The quirk's number, or a word.
        nginx: What nginx does.
        proxy: What the proxy does.
        reason: Why.
        kind: ``fixed``, ``chosen``, ``stricter``, ``newer`` (what a newer nginx does) or ``extended``.
        until: The version of nginx that does as the proxy does.
        level: Makes both records equal in what this is about.
        explains: Tells whether this is why a generated dialogue's records differ.
    """

    name: str
    nginx: str
    proxy: str
    reason: str
    kind: str = "fixed"
    until: tuple[int, ...] = ()
    level: Callable[[Record], Record] | None = None
    explains: Callable[[Dialogue, Record, Record], bool] | None = None


RESET_IS_EOF: Final = "Q-25"
GOODBYE: Final = "goodbye"
_DIGEST: Final = re.compile(rb"(?<=Auth-Pass: )[0-9a-f]{32}(?=\r\n)")


def _without_repeated_digest(record: Record) -> Record:
    first, *more = record.requests
    return replace(record, requests=(first, *(_DIGEST.sub(b"", request) for request in more)))


_SALT: Final = re.compile(rb"(?<=\r\n)Auth-Salt: [^\r]*\r\n")


def _without_salt(record: Record) -> Record:
    """Only requests about methods without a challenge lose their salt."""
    return replace(
        record,
        requests=tuple(
            _SALT.sub(b"", request) if b"Auth-Method: external" in request else request
            for request in record.requests
        ),
    )


_LOGIN: Final = re.compile(rb"(?<= LOGIN=).*?(?= NAME=)")
_XTEXT: Final = re.compile(rb"\+([0-9A-F]{2})")


def _without_xtext(record: Record) -> Record:
    def decoded(login: re.Match[bytes]) -> bytes:
        return _XTEXT.sub(lambda octet: bytes([int(octet[1], 16)]), login[0])

    return replace(record, upstreams=tuple(_LOGIN.sub(decoded, octets) for octets in record.upstreams))


_TABLE: Final[tuple[Difference, ...]] = (
    Difference(
        RESET_IS_EOF,
        "closes at once; where input lies unread, TCP resets the connection and the last reply may be lost",
        "shuts its side, reads past what still comes for a moment, then closes",
        "the client should hear the last reply",
    ),
    Difference(
        GOODBYE,
        "ends a relay without a close_notify to a TLS client that shut its side",
        "says close_notify first",
        "the client knows that it heard everything (RFC 8446 section 6.1)",
        kind="better",
    ),
    Difference(
        "Q-31",
        "repeats a request after WAIT with an empty Auth-Pass for apop and cram-md5",
        "repeats the client's digest",
        "without it the service cannot check anything",
        level=_without_repeated_digest,
    ),
    Difference(
        "salt-of-external",
        "before 1.31 also sends Auth-Salt for external, where the greeting had a challenge",
        "sends Auth-Salt for apop and cram-md5 alone",
        "as nginx 1.31 does; external answers no challenge",
        kind="newer",
        until=(1, 29, 7),
        level=_without_salt,
    ),
    Difference(
        "xtext",
        "before 1.29.2 sends the login in XCLIENT as it is",
        "encodes it as xtext",
        "as nginx does since 1.29.2; a space would end the attribute",
        kind="newer",
        until=(1, 29, 2),
        level=_without_xtext,
    ),
)

DIFFERENCES: Final = {difference.name: difference for difference in _TABLE}


def explaining(dialogue: Dialogue, theirs: Record, ours: Record) -> Difference | None:
    """Find the difference that explains why a generated dialogue's records are not the same."""
    for difference in _TABLE:
        if difference.explains is not None and difference.explains(dialogue, theirs, ours):
            return difference
    return None

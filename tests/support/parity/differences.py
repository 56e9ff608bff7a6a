# SPDX-License-Identifier: Apache-2.0
"""Every declared difference from nginx.  Any other difference is a fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from support.parity.record import Record


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        name: The number of the quirk, or a word.
        nginx: What nginx does.
        proxy: What the proxy does.
        reason: Why the proxy differs.
        kind: ``fixed``, ``chosen``, ``stricter``, ``better``,
            ``newer`` (the behaviour of a newer nginx) or ``extended``.
        until: The first version of nginx that behaves as the proxy does.
        explains: Returns whether it explains the records of a generated dialogue; nginx's is the first.
        level: Makes both records equal in the fields that the difference affects.
    """

    name: str
    nginx: str
    proxy: str
    reason: str
    kind: str = "fixed"
    until: tuple[int, ...] = ()
    level: Callable[[Record], Record] | None = None
    explains: Callable[[Record, Record], bool] | None = None


HOW_TO_DECLARE: Final = (
    "If this difference is meant: add a Difference to tests/support/parity/differences.py, name it in the dialogue "
    "(differs=NAME, in tests/support/parity/cases), and give it a row **NAME** in docs/quirks.md."
)
"""How to declare a difference; part of the message of a failed test."""
RESET_IS_EOF: Final = "Q-25"
GOODBYE: Final = "goodbye"
_DIGEST: Final = re.compile(rb"(?<=Auth-Pass: )[0-9a-f]{32}(?=\r\n)")


def _without_repeated_digest(record: Record) -> Record:
    first, *more = record.requests
    return replace(record, requests=(first, *(_DIGEST.sub(b"", request) for request in more)))


_SALT: Final = re.compile(rb"(?<=\r\n)Auth-Salt: [^\r]*\r\n")


def _without_salt(record: Record) -> Record:
    """Remove the salt only from requests about methods without a challenge."""
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
        return _XTEXT.sub(lambda byte: bytes([int(byte[1], 16)]), login[0])

    return replace(record, upstreams=tuple(_LOGIN.sub(decoded, data) for data in record.upstreams))


def _whenever(record: Record) -> Record:
    """Ignore in which steps the client receives its bytes."""
    return replace(record, turns=(record.client,))


def _whatever_was_asked(record: Record) -> Record:
    return replace(record, questions=())


_MAPPED_HERE: Final = re.compile(rb"(?<=^PROXY TCP6 )(\S+) (?:::ffff:)?HERE")


def _unmapped(record: Record) -> Record:
    return replace(record, upstreams=tuple(_MAPPED_HERE.sub(rb"\1 HERE", data) for data in record.upstreams))


_UNSAFE: Final = re.compile(rb"\r\nAuth-(?:User|Pass): [^\r]*%0[0AD]")
_STALE: Final = re.compile(rb"Auth-Method: none\r\n(?!Auth-User: \r\nAuth-Pass: \r\nAuth-Protocol)")


def _had_unsafe_credentials(theirs: Record, ours: Record) -> bool:
    return any(map(_UNSAFE.search, theirs.requests)) and not any(map(_UNSAFE.search, ours.requests))


def _had_stale_credentials(theirs: Record, ours: Record) -> bool:
    return any(map(_STALE.search, theirs.requests)) and not any(map(_STALE.search, ours.requests))


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
        "mixed-families",
        "writes a PROXY header of version 1 with addresses of two families after `set_real_ip_from` changed one",
        "writes the IPv4 address IPv4-mapped, as nginx itself does in version 2",
        "receivers refuse a header whose addresses do not fit its family word",
        level=_unmapped,
    ),
    Difference(
        "dns-at-once",
        "ignores FORMERR and strange codes of a name server, and waits until `resolver_timeout`",
        "takes them for an answer; the client's name is [TEMPUNAVAIL] as in nginx, only sooner",
        "nobody needs to wait for what will not come",
        kind="better",
        level=_whenever,
    ),
    Difference(
        "dns-alias",
        "does not ask for the other family of an alias when one family's answer had an address",
        "asks for both",
        "the answers are the same, and the addresses complete",
        kind="chosen",
        level=_whatever_was_asked,
    ),
    Difference(
        "pop3-lines",
        "refuses a POP3 line of more than 128 bytes and closes, so that a password of 90 characters cannot log in",
        "takes commands up to `pop3_client_buffer`, 512, and SASL responses up to 4096",
        "RFC 2449 section 4 wants 255 where CAPA is served; RFC 5034 section 4 exempts SASL responses",
        kind="better",
    ),
    Difference(
        "Q-01",
        "rejects a batch of commands that is longer than its buffer, though each command fits",
        "executes them all; the limit holds for each command",
        "a batch has no length",
    ),
    Difference(
        "Q-02",
        "does not look at the rest of a batch that fills its buffer exactly, until more comes",
        "goes on",
        "nobody waits for nothing",
    ),
    Difference(
        "Q-03",
        "reads one byte for an IMAP literal of none",
        "reads none",
        "`{0}` is the empty string (RFC 9051 section 4.3)",
    ),
    Difference(
        "Q-04",
        "takes a quoted string without an end for one, and stays inside it",
        "rejects the line",
        "it is a syntax error",
    ),
    Difference(
        "Q-05",
        "answers a bad name in AUTHENTICATE LOGIN without any tag",
        "answers with the command's tag",
        "a reply without a tag belongs to nothing",
    ),
    Difference(
        "Q-06",
        "answers a line without a tag after a delayed denial with stale bytes",
        "answers with `*`",
        "stale bytes are nobody's business",
    ),
    Difference(
        "Q-07",
        "lets EXTERNAL with an initial response pass where it is not enabled",
        "refuses it",
        "a method that is not enabled must not work",
    ),
    Difference(
        "Q-08",
        "after WAIT without Auth-Wait asks again at once, and again after every acceptance",
        "asks again after a second, once",
        "a loop helps nobody",
    ),
    Difference(
        "Q-09",
        "with `error_log info` turns line ends behind a refused MAIL into underscores",
        "leaves the input alone",
        "logging must not change input",
    ),
    Difference(
        "Q-10",
        "`starttls only` lets MAIL pass in clear",
        "answers 530",
        "that is what `only` says",
    ),
    Difference(
        "Q-11",
        "hands CR, LF and NUL in credentials on to services and upstreams",
        "refuses such credentials",
        "they are commands in disguise",
        kind="stricter",
        explains=_had_unsafe_credentials,
    ),
    Difference(
        "hostile-answers",
        "hands control bytes in answers of the service on to clients and upstreams",
        "apologises, and closes",
        "they are lines in disguise",
        kind="stricter",
    ),
    Difference(
        "Q-12",
        "uses the password of an earlier attempt for EXTERNAL",
        "forgets it",
        "it belongs to somebody else",
    ),
    Difference(
        "Q-13",
        "takes 1024 bytes of an answer's header, and notices an early end late",
        "takes 16384, and notices at once",
        "services set cookies; clients wait",
    ),
    Difference(
        "Q-14",
        "`proxy_timeout` counts what the client does alone",
        "counts both directions, as nginx's documentation says",
        "an IDLE client of a busy mailbox is not idle",
    ),
    Difference(
        "Q-15",
        "leaves a command that came with the PROXY header until more comes",
        "executes it",
        "nobody waits for nothing",
    ),
    Difference(
        "Q-16",
        "wants the PROXY header whole at first sight",
        "waits for the rest, up to `timeout`",
        "TCP cuts where it likes",
    ),
    Difference(
        "Q-18",
        "waits for CR LF and four bytes of an upstream's reply",
        "takes LF, and any length",
        "as any client does",
    ),
    Difference(
        "Q-19",
        "takes one untagged line ahead of the tagged reply (before 1.27.3 none)",
        "takes any number, within `proxy_buffer`",
        "RFC 9051 section 2.2.2",
    ),
    Difference(
        "Q-22",
        "ends the session at the first end of a side; what is under way is lost",
        "hands on what is under way",
        "a client that says LOGOUT may leave at once",
    ),
    Difference(
        "Q-26",
        "asks for `?x` where `auth_http` has a query and no path",
        "asks for `/?x`",
        "a request target begins with a slash",
    ),
    Difference(
        "Q-32",
        "stores controls in HELO, MAIL and RCPT, and hands them on",
        "answers 501",
        "nobody needs them, and services see them raw",
        kind="stricter",
    ),
    Difference(
        "Q-33",
        "drops commands that it has already when the client has left",
        "executes them",
        "they were said",
    ),
    Difference(
        "Q-36",
        "leaves what came with the end of the handshake until more comes",
        "executes it",
        "nobody waits for nothing",
    ),
    Difference(
        "Q-37",
        "reads `127...1` and `127.0.0.01` as addresses",
        "refuses the answer",
        "they are none",
        kind="stricter",
    ),
    Difference(
        "Q-38",
        "takes an empty IMAP tag",
        "answers `* BAD`",
        "RFC 9051 section 2.2.1",
    ),
    Difference(
        "Q-40",
        "takes PROXY headers whose addresses are none, or of another family",
        "closes",
        "what is no address must not be believed",
        kind="stricter",
    ),
    Difference(
        "brackets",
        "refuses an IPv6 address in brackets in Auth-Server",
        "takes it",
        "services write them",
        kind="extended",
    ),
    Difference(
        "unix-server",
        "refuses `unix:/path` in Auth-Server",
        "connects to it; Auth-Port is not needed",
        "a mail server in the same pod needs no port",
        kind="extended",
    ),
    Difference(
        "literals-at-once",
        "always waits before each literal at an IMAP upstream",
        "sends all at once where the greeting announces LITERAL+",
        "two round trips less (RFC 7888)",
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
        "before 1.29.1 also sends Auth-Salt for external, where the greeting had a challenge",
        "sends Auth-Salt for apop and cram-md5 alone",
        "as nginx does since 1.29.1; external answers no challenge",
        kind="newer",
        until=(1, 29, 1),
        level=_without_salt,
    ),
    Difference(
        "stale-none",
        "before 1.29.1 sends the name, password and challenge of an earlier exchange with method none",
        "sends none",
        "as nginx does since 1.29.1",
        kind="newer",
        until=(1, 29, 1),
        explains=_had_stale_credentials,
    ),
    Difference(
        "sasl-literals",
        "takes quotes and literals behind the response in a response line of AUTHENTICATE",
        "takes a response line for one line",
        "a response is base64 and nothing else (RFC 9051 section 6.2.2)",
        kind="chosen",
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


def explaining(theirs: Record, ours: Record, version: tuple[int, ...]) -> Difference | None:
    """Return the difference that explains why the records of a generated dialogue differ."""
    for difference in _TABLE:
        is_over = bool(difference.until) and version >= difference.until
        if difference.explains is not None and not is_over and difference.explains(theirs, ours):
            return difference
    return None

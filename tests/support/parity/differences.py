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
        same_since: The first version of nginx that behaves as the proxy does.
        explains: Returns whether it explains the records of a generated dialogue; nginx's is the first.
        equalize: Makes both records equal in the fields that the difference affects.
    """

    name: str
    nginx: str
    proxy: str
    reason: str
    kind: str = "fixed"
    same_since: tuple[int, ...] = ()
    equalize: Callable[[Record], Record] | None = None
    explains: Callable[[Record, Record], bool] | None = None


HOW_TO_DECLARE: Final = (
    "If this difference is intended: add a Difference to tests/support/parity/differences.py, name it in the dialogue "
    "(declared_difference=NAME, in tests/support/parity/cases), and add a row **NAME** to docs/quirks.md."
)
"""How to declare a difference; part of the message of a failed test."""
RESET_IS_EOF: Final = "Q-25"
CLOSE_NOTIFY: Final = "close-notify"
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


def _ignore_step_boundaries(record: Record) -> Record:
    """Ignore in which steps the client receives its bytes."""
    return replace(record, turns=(record.client,))


def _ignore_dns_queries(record: Record) -> Record:
    return replace(record, dns_queries=())


_MAPPED_HERE: Final = re.compile(rb"(?<=^PROXY TCP6 )(\S+) (?:::ffff:)?HERE")


def _unmapped(record: Record) -> Record:
    return replace(record, upstreams=tuple(_MAPPED_HERE.sub(rb"\1 HERE", data) for data in record.upstreams))


_UNSAFE: Final = re.compile(rb"\r\nAuth-(?:User|Pass): [^\r]*%0[0AD]")
_STALE: Final = re.compile(rb"Auth-Method: none\r\n(?!Auth-User: \r\nAuth-Pass: \r\nAuth-Protocol)")


def _had_unsafe_credentials(nginx_record: Record, proxy_record: Record) -> bool:
    return any(map(_UNSAFE.search, nginx_record.requests)) and not any(
        map(_UNSAFE.search, proxy_record.requests)
    )


def _had_stale_credentials(nginx_record: Record, proxy_record: Record) -> bool:
    return any(map(_STALE.search, nginx_record.requests)) and not any(
        map(_STALE.search, proxy_record.requests)
    )


_TABLE: Final[tuple[Difference, ...]] = (
    Difference(
        RESET_IS_EOF,
        "closes at once; if there is unread input, TCP resets the connection and the last reply may be lost",
        "shuts down its sending direction, discards input for a short time, then closes",
        "the client receives the last reply",
    ),
    Difference(
        CLOSE_NOTIFY,
        "ends a relay without a close_notify to a TLS client that has shut down its sending direction",
        "sends close_notify first",
        "the client can detect truncation (RFC 8446 section 6.1)",
        kind="better",
    ),
    Difference(
        "mixed-families",
        "sends a PROXY header of version 1 with addresses of two families after `set_real_ip_from` replaced one",
        "sends the IPv4 address IPv4-mapped, as nginx does in version 2",
        "receivers reject a header whose addresses are not of its family",
        equalize=_unmapped,
    ),
    Difference(
        "dns-at-once",
        "ignores FORMERR and unknown codes of a name server, and waits until `resolver_timeout`",
        "accepts them as replies; the client's name is [TEMPUNAVAIL] as in nginx, but without the wait",
        "no other reply will arrive",
        kind="better",
        equalize=_ignore_step_boundaries,
    ),
    Difference(
        "dns-alias",
        "does not query the other address family of an alias if the reply for one family had an address",
        "queries both",
        "the result is the same, and the list of addresses is complete",
        kind="chosen",
        equalize=_ignore_dns_queries,
    ),
    Difference(
        "pop3-lines",
        "rejects a POP3 line of more than 128 bytes and closes, so that a login with a password of 90 characters fails",
        "accepts commands up to `pop3_client_buffer`, 512, and SASL responses up to 4096",
        "RFC 2449 section 4 requires 255 for servers with CAPA; RFC 5034 section 4 exempts SASL responses",
        kind="better",
    ),
    Difference(
        "Q-01",
        "rejects pipelined commands that together are longer than its buffer, even if each command fits",
        "executes all; the limit applies to each command",
        "the protocols limit the length of a command, not of a pipeline",
    ),
    Difference(
        "Q-02",
        "executes the rest of a pipeline that fills its buffer exactly only when more bytes arrive",
        "executes it at once",
        "the client sends no more until it has the replies",
    ),
    Difference(
        "Q-03",
        "reads one byte for an empty IMAP literal",
        "reads no byte",
        "`{0}` is the empty string (RFC 9051 section 4.3)",
    ),
    Difference(
        "Q-04",
        "accepts a quoted string without its closing quote, and parses the next line as part of it",
        "rejects the line",
        "it is a syntax error",
    ),
    Difference(
        "Q-05",
        "replies to an invalid user name in AUTHENTICATE LOGIN without a tag",
        "replies with the command's tag",
        "the client cannot match a response without a tag to its command",
    ),
    Difference(
        "Q-06",
        "replies to a line without a tag after a delayed denial with bytes of an earlier command",
        "replies with `*`",
        "bytes of an earlier command may be secret",
    ),
    Difference(
        "Q-07",
        "accepts EXTERNAL with an initial response even if it is not enabled",
        "rejects it",
        "a method that is not enabled must not work",
    ),
    Difference(
        "Q-08",
        "after WAIT without Auth-Wait repeats the request at once, and again after each response that allows the login",
        "repeats it once, after a second",
        "the requests would never end",
    ),
    Difference(
        "Q-09",
        "with `error_log info` replaces line ends after a rejected MAIL by underscores",
        "does not change the input",
        "logging must not change input",
    ),
    Difference(
        "Q-10",
        "accepts MAIL without TLS despite `starttls only`",
        "replies 530",
        "`only` requires TLS before any mail transaction",
    ),
    Difference(
        "Q-11",
        "passes CR, LF and NUL in credentials to services and upstreams",
        "rejects such credentials",
        "they would inject header lines or commands",
        kind="stricter",
        explains=_had_unsafe_credentials,
    ),
    Difference(
        "hostile-answers",
        "passes control characters in responses of the service to clients and upstreams",
        "sends the reply for internal errors, and closes",
        "they would inject lines",
        kind="stricter",
    ),
    Difference(
        "Q-12",
        "uses the password of an earlier login for EXTERNAL",
        "discards it",
        "it may belong to another user",
    ),
    Difference(
        "Q-13",
        "accepts 1024 bytes of a response's header, and detects a truncated header only after a timeout",
        "accepts 16384, and detects it at once",
        "services send cookies; clients do not wait without need",
    ),
    Difference(
        "Q-14",
        "only the client's bytes restart `proxy_timeout`",
        "bytes of both directions restart it, as nginx's documentation describes",
        "a client in IMAP IDLE receives bytes and sends none",
    ),
    Difference(
        "Q-15",
        "executes a command in the segment of the PROXY header only when more bytes arrive",
        "executes it at once",
        "the client sends no more until it has the replies",
    ),
    Difference(
        "Q-16",
        "requires the whole PROXY header in one segment",
        "waits for the rest, up to `timeout`",
        "TCP may split it anywhere",
    ),
    Difference(
        "Q-18",
        "requires CR LF and at least four bytes in an upstream's reply",
        "accepts LF, and any length",
        "as mail clients do",
    ),
    Difference(
        "Q-19",
        "accepts one untagged response before the tagged one (before 1.27.3 none)",
        "accepts any number, within `proxy_buffer`",
        "RFC 9051 section 2.2.2",
    ),
    Difference(
        "Q-22",
        "ends the session when one side closes; bytes in transit are lost",
        "sends the bytes in transit first",
        "a client may close directly after LOGOUT",
    ),
    Difference(
        "Q-26",
        "requests `?x` if `auth_http` has a query and no path",
        "requests `/?x`",
        "a request target begins with a slash",
    ),
    Difference(
        "Q-32",
        "accepts control characters in HELO, MAIL and RCPT, and passes them to the service",
        "replies 501",
        "no valid command contains them, and services receive them unescaped",
        kind="stricter",
    ),
    Difference(
        "Q-33",
        "discards received commands if the client has closed its sending direction",
        "executes them",
        "the client sent them before it closed",
    ),
    Difference(
        "Q-36",
        "processes bytes that arrived with the end of the handshake only when more bytes arrive",
        "executes it at once",
        "the client sends no more until it has the replies",
    ),
    Difference(
        "Q-37",
        "accepts `127...1` and `127.0.0.01` as addresses",
        "rejects the response",
        "they are not valid addresses",
        kind="stricter",
    ),
    Difference(
        "Q-38",
        "accepts an empty IMAP tag",
        "replies `* BAD`",
        "RFC 9051 section 2.2.1",
    ),
    Difference(
        "Q-40",
        "accepts PROXY headers with invalid addresses, or addresses of another family",
        "closes",
        "an invalid address must not reach logs or services",
        kind="stricter",
    ),
    Difference(
        "brackets",
        "rejects an IPv6 address in brackets in Auth-Server",
        "accepts it",
        "services send them",
        kind="extended",
    ),
    Difference(
        "unix-server",
        "rejects `unix:/path` in Auth-Server",
        "connects to it; Auth-Port is not needed",
        "a mail server in the same pod can use a UNIX socket",
        kind="extended",
    ),
    Difference(
        "literals-at-once",
        "always waits before each literal at an IMAP upstream",
        "sends all literals at once if the greeting announces LITERAL+",
        "it saves two round trips (RFC 7888)",
        kind="better",
    ),
    Difference(
        "Q-31",
        "repeats a request after WAIT with an empty Auth-Pass for apop and cram-md5",
        "repeats the client's digest",
        "the service cannot verify the login without the digest",
        equalize=_without_repeated_digest,
    ),
    Difference(
        "salt-of-external",
        "before 1.29.1 also sends Auth-Salt for external if the greeting had a challenge",
        "sends Auth-Salt only for apop and cram-md5",
        "as nginx since 1.29.1; external uses no challenge",
        kind="newer",
        same_since=(1, 29, 1),
        equalize=_without_salt,
    ),
    Difference(
        "stale-none",
        "before 1.29.1 sends the name, password and challenge of an earlier exchange with method none",
        "does not send them",
        "as nginx since 1.29.1",
        kind="newer",
        same_since=(1, 29, 1),
        explains=_had_stale_credentials,
    ),
    Difference(
        "sasl-literals",
        "parses quoted strings and literals after the response in a response line of AUTHENTICATE",
        "treats a response line as one line",
        "a response contains only base64 (RFC 9051 section 6.2.2)",
        kind="chosen",
    ),
    Difference(
        "xtext",
        "before 1.29.2 sends the login in XCLIENT unescaped",
        "encodes it as xtext",
        "as nginx since 1.29.2; a space would end the attribute",
        kind="newer",
        same_since=(1, 29, 2),
        equalize=_without_xtext,
    ),
)

DIFFERENCES: Final = {difference.name: difference for difference in _TABLE}


def find_explanation(
    nginx_record: Record, proxy_record: Record, version: tuple[int, ...]
) -> Difference | None:
    """Return the difference that explains why the records of a generated dialogue differ."""
    for difference in _TABLE:
        nginx_behaves_alike = bool(difference.same_since) and version >= difference.same_since
        if (
            difference.explains is not None
            and not nginx_behaves_alike
            and difference.explains(nginx_record, proxy_record)
        ):
            return difference
    return None

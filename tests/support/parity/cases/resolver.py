# SPDX-License-Identifier: Apache-2.0
"""Host names of SMTP clients, from DNS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from support.dns_server import (
    FORMERR,
    NOTIMP,
    REFUSED,
    SERVFAIL,
    DnsReply,
    Record,
    address_record,
    cname_record,
    ptr_record,
    reply_with,
)
from support.parity.dialogue import GRANT, SMTP_OK, Dialogue, WaitForReply, b64
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block("smtp-named", "smtp", "resolver @here@:@dns@ ipv6=off; resolver_timeout 1s;"),
    Block("smtp-named6", "smtp", "resolver @here@:@dns@; resolver_timeout 1s;"),
    Block(
        "smtp-named-delay",
        "smtp",
        "resolver @here@:@dns@ ipv6=off; resolver_timeout 1s; smtp_greeting_delay 200ms;",
    ),
    Block("smtp-nameless", "smtp", "resolver off;"),
)
Zone = dict[tuple[str, str], DnsReply]


def _reverse(ip: str) -> str:
    return ".".join(reversed(ip.split("."))) + ".in-addr.arpa"


def _name(ip: str) -> str:
    return f"h{ip.replace('.', '-')}.example.test"


def _zone(
    answer: DnsReply | None = None, forward: DnsReply | None = None, forward6: DnsReply | None = None
) -> Callable[[str], Zone]:
    """Return a zone with a valid PTR record, or the given replies."""

    def made(ip: str) -> Zone:
        name = _name(ip)
        return {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name)) if answer is None else answer,
            (name, "A"): reply_with(address_record(ip)) if forward is None else forward,
            (name, "AAAA"): DnsReply() if forward6 is None else forward6,
        }

    return made


def _special(build: Callable[[str, str], dict[tuple[str, str], DnsReply]]) -> Callable[[str], Zone]:
    return lambda ip: {(_name(ip), "AAAA"): DnsReply(), **build(ip, _name(ip))}


_OTHER: Final = reply_with(address_record("192.0.2.99"))

ZONES: Final[dict[str, Callable[[str], Zone]]] = {
    "confirmed": _zone(),
    "no such address": _zone(DnsReply(code=3)),
    "an empty answer to PTR": _zone(DnsReply()),
    "SERVFAIL to PTR": _zone(DnsReply(code=SERVFAIL)),
    "REFUSED to PTR": _zone(DnsReply(code=REFUSED)),
    "NOTIMP to PTR": _zone(DnsReply(code=NOTIMP)),
    "FORMERR to PTR": _zone(DnsReply(code=FORMERR)),
    "no answer to PTR": _zone(DnsReply(silent=True)),
    "a wrong number in the answer to PTR": _zone(DnsReply((ptr_record("x.example.test"),), wrong_id=True)),
    "PTR to the root": _zone(reply_with(ptr_record(""))),
    "no such name": _zone(forward=DnsReply(code=3), forward6=DnsReply(code=3)),
    "a name without addresses": _zone(forward=DnsReply()),
    "another address": _zone(forward=_OTHER),
    "several addresses": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name)),
            (name, "A"): reply_with(
                address_record("192.0.2.99"), address_record(ip), address_record("192.0.2.98")
            ),
        }
    ),
    "SERVFAIL to A": _zone(forward=DnsReply(code=SERVFAIL)),
    "no answer to A": _zone(forward=DnsReply(silent=True)),
    "no answer to AAAA": _zone(forward6=DnsReply(silent=True)),
    "SERVFAIL to AAAA": _zone(forward6=DnsReply(code=SERVFAIL)),
    "an IPv6 address as well": _zone(forward6=reply_with(address_record("2001:db8::1"))),
    "several names": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name), ptr_record("other.example.test")),
            (name, "A"): reply_with(address_record(ip)),
        }
    ),
    "capital letters": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name.upper())),
            (name, "A"): reply_with(address_record(ip)),
        }
    ),
    "an alias of the name": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name)),
            (name, "A"): reply_with(cname_record(f"real-{name}")),
            (name, "AAAA"): reply_with(cname_record(f"real-{name}")),
            (f"real-{name}", "A"): reply_with(address_record(ip)),
            (f"real-{name}", "AAAA"): DnsReply(),
        }
    ),
    "an alias of the name with its address": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(ptr_record(name)),
            (name, "A"): reply_with(cname_record(f"real-{name}"), address_record(ip, owner=f"real-{name}")),
            (name, "AAAA"): reply_with(cname_record(f"real-{name}")),
            (f"real-{name}", "A"): reply_with(address_record(ip)),
            (f"real-{name}", "AAAA"): DnsReply(),
        }
    ),
    "an alias of the address": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): reply_with(
                cname_record(f"x-{name}"), Record("PTR", ptr_record(name).data, owner=b"\xc0\x0c")
            ),
            (name, "A"): reply_with(address_record(ip)),
        }
    ),
}


def _dialogues() -> Iterator[Dialogue]:
    for block in ("smtp-named", "smtp-named6", "smtp-named-delay", "smtp-nameless"):
        for name, zone in ZONES.items():
            if block in {"smtp-named-delay", "smtp-nameless"} and name not in _ENOUGH:
                continue
            yield Dialogue(
                name=f"{name} ({block})",
                block=block,
                area="client names",
                steps=(
                    WaitForReply(2.0),
                    WaitForReply(2.0),
                    b"EHLO cl\r\n",
                    b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n",
                    b"NOOP\r\n",
                ),
                auth=(GRANT,),
                upstream=(*SMTP_OK, b"250 r\r\n"),
                dns=zone,
                **_special_case(name, block),
            )
    yield Dialogue(
        name="a name that is no host name",
        block="smtp-named",
        area="client names",
        steps=(WaitForReply(4.0), b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n"),
        auth=(GRANT,),
        upstream=(*SMTP_OK, b"250 r\r\n"),
        dns=lambda ip: {
            (_reverse(ip), "PTR"): reply_with(ptr_record("a_b.example.test")),
            ("a_b.example.test", "A"): reply_with(address_record(ip)),
        },
        since=(1, 29, 7),
        check=lambda record: "" if b"[TEMPUNAVAIL]" in record.requests[0] else "the name was believed",
    )


_ENOUGH: Final = ("confirmed", "no such address", "no such name", "another address")


def _special_case(name: str, block: str) -> dict[str, Any]:
    if name == "PTR to the root":
        return {"since": (1, 29, 7)}
    if name == "FORMERR to PTR":
        return {"declared_difference": "dns-at-once"}
    if name == "an alias of the name with its address" and block == "smtp-named6":
        return {"declared_difference": "dns-alias"}
    return {}


DIALOGUES: Final = tuple(_dialogues())

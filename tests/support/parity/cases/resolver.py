# SPDX-License-Identifier: Apache-2.0
"""What SMTP clients are called, as name servers have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from support.dns_server import FORMERR, NOTIMP, REFUSED, SERVFAIL, Record, Reply, cname, found, host, ptr
from support.parity.dialogue import GRANT, SMTP_OK, Await, Dialogue, b64
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
Zone = dict[tuple[str, str], Reply]


def _reverse(ip: str) -> str:
    return ".".join(reversed(ip.split("."))) + ".in-addr.arpa"


def _name(ip: str) -> str:
    return f"h{ip.replace('.', '-')}.example.test"


def _zone(
    answer: Reply | None = None, forward: Reply | None = None, forward6: Reply | None = None
) -> Callable[[str], Zone]:
    """PTR as given, or a good one; A and AAAA as given."""

    def made(ip: str) -> Zone:
        name = _name(ip)
        return {
            (_reverse(ip), "PTR"): found(ptr(name)) if answer is None else answer,
            (name, "A"): found(host(ip)) if forward is None else forward,
            (name, "AAAA"): Reply() if forward6 is None else forward6,
        }

    return made


def _special(build: Callable[[str, str], dict[tuple[str, str], Reply]]) -> Callable[[str], Zone]:
    return lambda ip: {(_name(ip), "AAAA"): Reply(), **build(ip, _name(ip))}


_OTHER: Final = found(host("192.0.2.99"))

ZONES: Final[dict[str, Callable[[str], Zone]]] = {
    "confirmed": _zone(),
    "no such address": _zone(Reply(code=3)),
    "an empty answer to PTR": _zone(Reply()),
    "SERVFAIL to PTR": _zone(Reply(code=SERVFAIL)),
    "REFUSED to PTR": _zone(Reply(code=REFUSED)),
    "NOTIMP to PTR": _zone(Reply(code=NOTIMP)),
    "FORMERR to PTR": _zone(Reply(code=FORMERR)),
    "no answer to PTR": _zone(Reply(silent=True)),
    "a wrong number in the answer to PTR": _zone(Reply((ptr("x.example.test"),), wrong_id=True)),
    "PTR to the root": _zone(found(ptr(""))),
    "no such name": _zone(forward=Reply(code=3), forward6=Reply(code=3)),
    "a name without addresses": _zone(forward=Reply()),
    "another address": _zone(forward=_OTHER),
    "several addresses": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): found(ptr(name)),
            (name, "A"): found(host("192.0.2.99"), host(ip), host("192.0.2.98")),
        }
    ),
    "SERVFAIL to A": _zone(forward=Reply(code=SERVFAIL)),
    "no answer to A": _zone(forward=Reply(silent=True)),
    "no answer to AAAA": _zone(forward6=Reply(silent=True)),
    "SERVFAIL to AAAA": _zone(forward6=Reply(code=SERVFAIL)),
    "an IPv6 address as well": _zone(forward6=found(host("2001:db8::1"))),
    "several names": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): found(ptr(name), ptr("other.example.test")),
            (name, "A"): found(host(ip)),
        }
    ),
    "capital letters": _special(
        lambda ip, name: {(_reverse(ip), "PTR"): found(ptr(name.upper())), (name, "A"): found(host(ip))}
    ),
    "an alias of the name": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): found(ptr(name)),
            (name, "A"): found(cname(f"real-{name}")),
            (name, "AAAA"): found(cname(f"real-{name}")),
            (f"real-{name}", "A"): found(host(ip)),
            (f"real-{name}", "AAAA"): Reply(),
        }
    ),
    "an alias of the name with its address": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): found(ptr(name)),
            (name, "A"): found(cname(f"real-{name}"), host(ip, owner=f"real-{name}")),
            (name, "AAAA"): found(cname(f"real-{name}")),
            (f"real-{name}", "A"): found(host(ip)),
            (f"real-{name}", "AAAA"): Reply(),
        }
    ),
    "an alias of the address": _special(
        lambda ip, name: {
            (_reverse(ip), "PTR"): found(
                cname(f"x-{name}"), Record("PTR", ptr(name).data, owner=b"\xc0\x0c")
            ),
            (name, "A"): found(host(ip)),
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
                    Await(2.0),
                    Await(2.0),
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
        steps=(Await(4.0), b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n"),
        auth=(GRANT,),
        upstream=(*SMTP_OK, b"250 r\r\n"),
        dns=lambda ip: {
            (_reverse(ip), "PTR"): found(ptr("a_b.example.test")),
            ("a_b.example.test", "A"): found(host(ip)),
        },
        since=(1, 29, 7),
        check=lambda record: "" if b"[TEMPUNAVAIL]" in record.requests[0] else "the name was believed",
    )


_ENOUGH: Final = ("confirmed", "no such address", "no such name", "another address")


def _special_case(name: str, block: str) -> dict[str, Any]:
    if name == "PTR to the root":
        return {"since": (1, 29, 7)}
    if name == "FORMERR to PTR":
        return {"differs": "dns-at-once"}
    if name == "an alias of the name with its address" and block == "smtp-named6":
        return {"differs": "dns-alias"}
    return {}


DIALOGUES: Final = tuple(_dialogues())

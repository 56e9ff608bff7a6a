# SPDX-License-Identifier: Apache-2.0
"""TLS sessions of earlier connections: on which server blocks they are resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import GRANT, IMAP_OK, Dialogue, Tls
from support.parity.server_blocks import Block

_PAIR: Final = "ssl_certificate @server_cert@; ssl_certificate_key @server_key@;"
_VERSIONS: Final = ("TLSv1.2", "TLSv1.3")

# The directives about sessions of each server block.
SETTINGS: Final = {
    "usual": "",
    "cacheless": "ssl_session_tickets off;",
    "refused": "ssl_session_tickets off; ssl_session_cache off;",
    "ticketed": "ssl_session_cache off;",
    "builtin": "ssl_session_tickets off; ssl_session_cache builtin:100;",
    "shared": "ssl_session_tickets off; ssl_session_cache shared:resumption:1m;",
    "both": "ssl_session_cache builtin:100 shared:resumption_too:1m;",
    "lasting": "ssl_session_timeout 1h;",
    "brief": "ssl_session_timeout 1s;",
    "key-a": "ssl_session_ticket_key @ticket_key_a@;",
    "key-b": "ssl_session_ticket_key @ticket_key_b@;",
    "key-ba": "ssl_session_ticket_key @ticket_key_b@; ssl_session_ticket_key @ticket_key_a@;",
}
_VERIFY: Final = "ssl_verify_client on; ssl_client_certificate @ca@; auth_http_pass_client_cert on;"

BLOCKS: Final = (
    *(
        Block(f"imap-resume-{name}", "imap", f"{_PAIR} {directives}", listen="ssl")
        for name, directives in SETTINGS.items()
    ),
    Block("imap-resume-verify", "imap", f"{_PAIR} {_VERIFY}", listen="ssl"),
    Block("imap-resume-starttls", "imap", f"{_PAIR} starttls on;"),
)

# The server block, the block of the earlier connection, and its age in seconds.
COURSES: Final = (
    *((name, name, 0.0) for name in SETTINGS if name != "brief"),  # which may expire on a slow machine
    ("brief", "brief", 2.5),
    ("key-ba", "key-a", 0.0),
    ("key-ba", "key-b", 0.0),
    ("key-a", "key-ba", 0.0),
    ("key-b", "key-a", 0.0),
    ("usual", "key-a", 0.0),
)


def _dialogues() -> Iterator[Dialogue]:
    for version in _VERSIONS:
        for here, before, ago in COURSES:
            late = f", {ago} s later" if ago else ""
            resumption = Tls(version=version, resumes=f"imap-resume-{before}", seconds_ago=ago)
            yield _dialogue(f"{version}: from {before} to {here}{late}", f"imap-resume-{here}", resumption)
        for certificate in ("client", "deep"):
            resumption = Tls(version=version, certificate=certificate, resumes="imap-resume-verify")
            yield _dialogue(f"{version}: the certificate of {certificate}", "imap-resume-verify", resumption)
        yield _dialogue(
            f"{version}: by STARTTLS",
            "imap-resume-starttls",
            b"s STARTTLS\r\n",
            Tls(version=version, resumes="imap-resume-starttls"),
        )


def _dialogue(name: str, block: str, *first: bytes | Tls) -> Dialogue:
    return Dialogue(
        name=name,
        block=block,
        area="TLS sessions",
        steps=(*first, b"a1 LOGIN user pass\r\n", b"x\r\n"),
        auth=(GRANT,),
        upstream=IMAP_OK,
    )


DIALOGUES: Final = tuple(_dialogues())

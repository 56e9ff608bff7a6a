# SPDX-License-Identifier: Apache-2.0
"""Every login method of each protocol, with every decision of the authentication service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import (
    AUTH_OK,
    CLOSE,
    IMAP_OK,
    POP3_OK,
    RESET,
    SMTP_OK,
    Dialogue,
    PeerOutput,
    Step,
    WaitForReply,
    auth_response,
    b64,
    deny,
    grant,
)
from support.parity.server_blocks import Block

_DIGEST: Final = "b913a602c7eda7a495b4e6e7334d3890"
_TLS_FREE: Final = "ssl_session_tickets off;"

BLOCKS: Final = (
    Block("imap-all", "imap", "imap_auth plain login cram-md5 external;"),
    Block("pop3-all", "pop3", "pop3_auth plain apop cram-md5 external;"),
    Block("smtp-all", "smtp", "smtp_auth plain login cram-md5 external none;"),
    Block(
        "smtp-all-auth",
        "smtp",
        "smtp_auth plain login cram-md5 external none; proxy_smtp_auth on; xclient off;",
    ),
)

_PLAIN: Final = b64("\0user\0pass")
_USER, _PASS = b64("user"), b64("pass")
_CRAM: Final = b64(f"user {_DIGEST}")

_SASL: Final[dict[str, tuple[bytes, ...]]] = {
    "PLAIN": (b"PLAIN", _PLAIN),
    "PLAIN at once": (b"PLAIN " + _PLAIN,),
    "LOGIN": (b"LOGIN", _USER, _PASS),
    "LOGIN with the name": (b"LOGIN " + _USER, _PASS),
    "CRAM-MD5": (b"CRAM-MD5", _CRAM),
    "EXTERNAL": (b"EXTERNAL", _USER),
    "EXTERNAL at once": (b"EXTERNAL " + _USER,),
}


def _sasl(command: bytes) -> dict[str, tuple[bytes, ...]]:
    return {
        f"AUTH {name}": (command + lines[0] + b"\r\n", *(line + b"\r\n" for line in lines[1:]))
        for name, lines in _SASL.items()
    }


METHODS: Final[dict[str, dict[str, tuple[bytes, ...]]]] = {
    "imap": {
        "LOGIN": (b"a1 LOGIN user pass\r\n",),
        "LOGIN quoted": (b'a1 login "user" "pa ss"\r\n',),
        "LOGIN literals": (b"a1 LOGIN {4}\r\n", b"user {4}\r\n", b"pass\r\n"),
        "LOGIN literals at once": (b"a1 LOGIN {4+}\r\nuser {4+}\r\npass\r\n",),
        **_sasl(b"a1 AUTHENTICATE "),
    },
    "pop3": {
        "USER and PASS": (b"USER user\r\n", b"PASS pa ss\r\n"),
        "APOP": (b"APOP user " + _DIGEST.encode() + b"\r\n",),
        **_sasl(b"AUTH "),
    },
    "smtp": {
        **_sasl(b"AUTH "),
        "MAIL and RCPT": (b"MAIL FROM:<a@x>  SIZE=1\r\n", b"RCPT TO:<b@x>\r\n"),
    },
}
UPSTREAMS: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "imap": IMAP_OK,
    "pop3": POP3_OK,
    "smtp": (*SMTP_OK, b"250 ok\r\n", b"250 ok\r\n", b"250 relayed\r\n"),
}
_AGAIN: Final = {"imap": b"a1 NOOP\r\n", "pop3": b"NOOP\r\n", "smtp": b"NOOP\r\n"}
_HELLO: Final[dict[str, tuple[bytes, ...]]] = {"imap": (), "pop3": (), "smtp": (b"EHLO client.example\r\n",)}

_WAIT: Final = auth_response("Auth-Status: WAIT", "Auth-Wait: 1")

DECISIONS: Final[dict[str, tuple[PeerOutput, ...]]] = {
    "accepted": (grant("Auth-Pass: backendpass"),),
    "accepted as somebody else": (grant("Auth-User: other%20user", "Auth-Pass: other%20pass"),),
    "accepted without a password": (grant(),),
    "denied": (deny(),),
    "denied without words": (deny(""),),
    "denied with a code": (deny("Try later", "Auth-Error-Code: 451 4.3.0"),),
    "denied with a wait, then accepted": (
        deny("Invalid login", "Auth-Wait: 1"),
        grant("Auth-Pass: backendpass"),
    ),
    "denied with a wait": (deny("Invalid login", "Auth-Wait: 1"),),
    "postponed, then accepted": (_WAIT, grant("Auth-Pass: backendpass")),
    "postponed with other credentials": (
        auth_response("Auth-Status: WAIT", "Auth-Wait: 1", "Auth-User: other", "Auth-Pass: otherpass"),
        grant("Auth-Pass: backendpass"),
    ),
    "no answer": (CLOSE,),
    "connection broken off": (RESET,),
    "answer cut short": ((b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\n", CLOSE),),
    "malformed answer": (auth_response("Auth-Status: OK", "what is_this: x"),),
    "no server in the answer": (auth_response("Auth-Status: OK", "Auth-Pass: x"),),
    "no address in the answer": (auth_response("Auth-Server: localhost", "Auth-Port: 143", "Auth-Pass: x"),),
    "no port in the answer": (auth_response("Auth-Server: @ip@", "Auth-Port: 0x8f", "Auth-Pass: x"),),
}


def _waits(decision: str) -> bool:
    return "wait" in decision or "postponed" in decision


def _steps(protocol: str, method: str, decision: str) -> tuple[Step, ...]:
    lines = METHODS[protocol][method]
    steps: list[Step] = [*_HELLO[protocol], *lines]
    if _waits(decision):
        steps.append(WaitForReply(4.0))
        if decision.startswith("denied"):
            steps.append(_AGAIN[protocol])
    if decision == "denied with a wait, then accepted":
        steps += lines[-1:] if method == "MAIL and RCPT" else lines
    steps.append(_AGAIN[protocol])
    return tuple(steps)


def _difference_of(protocol: str, method: str, decision: str) -> str:
    if decision == "postponed, then accepted" and ("CRAM" in method or method == "APOP"):
        return "Q-31"
    if protocol == "pop3" and "EXTERNAL" in method:
        return "salt-of-external"
    return ""


def _dialogues() -> Iterator[Dialogue]:
    for protocol, methods in METHODS.items():
        blocks = [f"{protocol}-all"] + ["smtp-all-auth"] * (protocol == "smtp")
        for block in blocks:
            for method in methods:
                for decision, output in DECISIONS.items():
                    upstream = UPSTREAMS[protocol]
                    if block == "smtp-all-auth" and method != "MAIL and RCPT":
                        upstream = (b"220 backend\r\n", b"250 ok\r\n", AUTH_OK, b"250 relayed\r\n")
                    yield Dialogue(
                        name=f"{method} {decision}"
                        + (" (proxy_smtp_auth)" if block != f"{protocol}-all" else ""),
                        block=block,
                        area=f"{protocol} logins",
                        steps=_steps(protocol, method, decision),
                        auth=output,
                        upstream=upstream,
                        declared_difference=_difference_of(protocol, method, decision),
                    )


_OFFERS: Final = {
    "imap": b"a CAPABILITY\r\n",
    "pop3": b"CAPA\r\nAUTH\r\n",
    "smtp": b"EHLO client.example\r\n",
}


def _offers() -> Iterator[Dialogue]:
    for block in BLOCKS:
        yield Dialogue(
            name=f"what is offered ({block.name})",
            block=block.name,
            area=f"{block.protocol} logins",
            steps=(_OFFERS[block.protocol],),
        )


DIALOGUES: Final = (*_dialogues(), *_offers())

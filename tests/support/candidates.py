# SPDX-License-Identifier: Apache-2.0
"""Logins at several addresses of an upstream: servers that die in one stage, and what each received."""

from __future__ import annotations

import contextlib
import socket
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mailproxy.protocols.types import UpstreamAddress, UpstreamLogin
from mailproxy.session.session import Session
from mailproxy.session.upstream_candidates import UpstreamAttempts
from mailproxy_config.model import AuthHttp, ListenConfig, NextUpstream, Protocol, ProxySsl, ServerConfig
from support.configs import server
from support.loopback_worker import Builder, LoopbackWorker, Peer
from support.upstream_tls import GO_AHEAD, GREETINGS, Connection, MailServer, Step, accept_login

USER: Final = b"alice"
PASSWORD: Final = b"correct-horse"
LOGINS: Final = {
    Protocol.IMAP: (b"a LOGIN alice correct-horse\r\n",),
    Protocol.POP3: (b"USER alice\r\n", b"PASS correct-horse\r\n"),
    Protocol.SMTP: (b"EHLO me.example\r\n", b"AUTH PLAIN " + b64encode(b"\0alice\0" + PASSWORD) + b"\r\n"),
}
SUCCESS: Final = {
    Protocol.IMAP: b"a OK logged in\r\n",
    Protocol.POP3: b"+OK logged in\r\n",
    Protocol.SMTP: b"235 2.0.0 OK\r\n",
}
INTERNAL_ERROR: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
BEFORE_LOGIN: Final = frozenset(NextUpstream) - {NextUpstream.UNAVAILABLE}
"""Every failure that is tried again at another address."""
STAGES: Final = ("greeting", "starttls", "tls", "hello", "login", "password")


def has_stage(protocol: Protocol, mode: ProxySsl, stage: str) -> bool:
    """Whether a login has this stage."""
    if stage == "tls":
        return mode is not ProxySsl.DISABLED
    if stage == "starttls":
        return mode is ProxySsl.STARTTLS
    if stage == "hello":
        return protocol is Protocol.SMTP
    return stage != "password" or protocol is not Protocol.SMTP  # AUTH PLAIN is one command


class Died(ConnectionError):
    """The server closes the connection."""


def dies_in(protocol: Protocol, mode: ProxySsl, stage: str) -> Step:
    """A session that the server ends in a stage: after the command that belongs to it."""
    return _stops_in(protocol, mode, stage, is_silent=False)


def stalls_in(protocol: Protocol, mode: ProxySsl, stage: str) -> Step:
    """A session in which the server sends nothing more from a stage on, and keeps the connection."""
    return _stops_in(protocol, mode, stage, is_silent=True)


def _stops_in(protocol: Protocol, mode: ProxySsl, stage: str, *, is_silent: bool) -> Step:
    def die(c: Connection, now: str) -> None:
        if now == stage:
            _stop(c, is_silent=is_silent)

    def step(c: Connection) -> None:
        if mode is ProxySsl.ENABLED:
            die(c, "tls")
            c.start_tls()
        die(c, "greeting")
        c.send(GREETINGS[protocol])
        if mode is ProxySsl.STARTTLS:
            if protocol is Protocol.SMTP:
                c.answer(b"250-mail.example\r\n250 STARTTLS\r\n")
            c.read_line()
            die(c, "starttls")
            c.send(GO_AHEAD[protocol])
            die(c, "tls")
            c.start_tls()
        if protocol is Protocol.SMTP:
            c.read_line()
            die(c, "hello")
            c.send(b"250-mail.example\r\n250 AUTH PLAIN\r\n")
        c.read_line()
        die(c, "login")
        c.send({Protocol.IMAP: b"+ ok\r\n", Protocol.POP3: b"+OK\r\n"}[protocol])
        c.read_line()
        die(c, "password")
        raise AssertionError(stage)

    return step


def _stop(c: Connection, *, is_silent: bool) -> None:
    while is_silent and c.recv():
        pass
    raise Died


def plain_session(protocol: Protocol) -> Step:
    """A login without TLS that is accepted."""

    def step(c: Connection) -> None:
        c.send(GREETINGS[protocol])
        accept_login(protocol)(c)

    return step


def refuses(protocol: Protocol, reply: bytes) -> Step:
    """A login without TLS whose credentials get this reply; ``TAG`` is the client's tag."""

    def step(c: Connection) -> None:
        c.send(GREETINGS[protocol])
        if protocol is Protocol.IMAP:
            tag = c.answer(b"+ ok\r\n").split()[0]
            c.answer(b"+ ok\r\n")
            c.answer(reply.replace(b"TAG", tag))
        elif protocol is Protocol.POP3:
            c.answer(b"+OK\r\n")
            c.answer(reply)
        else:
            c.answer(b"250-mail.example\r\n250 AUTH PLAIN\r\n")
            c.answer(reply)
        c.recv()

    return step


def saw_credentials(upstream: MailServer) -> bool:
    """Whether a user name or a password was received."""
    data = upstream.received()
    return any(secret in data for secret in (USER, PASSWORD, b64encode(b"\0alice\0" + PASSWORD)))


def address(upstream: MailServer, name: str = "") -> UpstreamAddress:
    return UpstreamAddress("127.0.0.1", upstream.port, name)


def proxy(protocol: Protocol, **directives: Any) -> Builder:
    """Return a builder of a server whose logins are tried again before they are committed."""
    values: dict[str, Any] = {
        "proxy_next_upstream": BEFORE_LOGIN,
        "proxy_smtp_auth": True,
        "xclient": False,
        **directives,
    }

    def builder(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(protocol, auth_http=auth, listen=(listen,), **values)

    return builder


def use_addresses(w: LoopbackWorker, addresses: Sequence[UpstreamAddress]) -> None:
    """Log in at these addresses from now on, in place of those from the authentication service."""

    def connect(session: Session, login: UpstreamLogin) -> UpstreamAttempts:
        return UpstreamAttempts.start(session, login, addresses)

    for virtual_server in w.app._servers.values():
        virtual_server.connect = connect


async def log_in(w: LoopbackWorker, protocol: Protocol) -> tuple[Peer, bytes]:
    """Log in, and return the client with the last reply."""
    client = await w.client()
    reply = await client.read_line()
    for command in LOGINS[protocol]:
        reply = await client.exchange(command)
        while protocol is Protocol.SMTP and reply[3:4] == b"-":
            reply = await client.read_line()
    return client, reply


def tries(w: LoopbackWorker, protocol: Protocol) -> dict[str, int]:
    """Return the counted tries by result, those that there were."""
    found = w.metrics.snapshot()["series"]["mailproxy_upstream_tries_total"]
    return {labels[1]: int(value) for labels, value in found if labels[0] == protocol and value}  # type: ignore[arg-type]


def unused_port() -> int:
    """Return a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def refused_addresses(count: int) -> Iterator[list[UpstreamAddress]]:
    """Addresses that refuse connections for as long as this lasts: bound, without a listener."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        yield [UpstreamAddress("127.0.0.1", sock.getsockname()[1]) for sock in sockets]

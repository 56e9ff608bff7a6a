# SPDX-License-Identifier: Apache-2.0
"""Plays a transcript over sockets, through a whole worker: client, services and upstream are scripted.

The steps are those of ``dialogue_player``.  These are compared: every byte
that the client and the upstream get, every byte of the request to the
authentication service, the reason for the end and, where the transcript
contains them, the counters.  The client's address arrives by PROXY header.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mailproxy.app import App
from mailproxy.enums import ProtocolErrorKind
from mailproxy.loop.worker_loop import WorkerLoop
from mailproxy.net.listen_plan import plan_sockets
from mailproxy.session.driver import ProtocolDriver
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    LogLevel,
    ProxyConfig,
    ResolverConfig,
    Seconds,
    ServerConfig,
)
from support import invariants
from support.auth_http_messages import answer, request
from support.dialogue_player import Differs
from support.dns_server import NXDOMAIN, SERVFAIL, DnsServer, Reply, dns_server, host, ptr
from support.loopback_worker import Peer, listening_socket
from support.streams import abort
from support.tls_identities import Identities
from support.transcripts import Step, Transcript

PATIENCE: Final = 30.0
_HURRY: Final = 0.02
_SILENCE: Final = Seconds(0.3)
_MARKS: Final = (b"to the upstream\r\n", b"to the client\r\n")
_UPSTREAMS: Final = frozenset(
    (ProtocolErrorKind.NO_GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, ProtocolErrorKind.REPLY_TOO_LONG)
)


class HurriedLoop(WorkerLoop):
    """A worker's event loop in which only the delays of sessions are fifty times shorter."""

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if getattr(callback, "__func__", None) is ProtocolDriver._on_wait_over:
            delay *= _HURRY
        return super().call_later(delay, callback, *args, context=context)


def play(transcript: Transcript, identities: Identities, folder: Path) -> None:
    """Play a transcript from the first line to the last.

    Raises:
        Differs: The bytes or the actions are not those of the transcript.
    """

    async def perform() -> None:
        async with contextlib.AsyncExitStack() as stack:
            player = _Player(transcript, identities, folder)
            await player.open(stack)
            await player.play()

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(perform())


@dataclass
class _Arrivals:
    """The connections to one port of the test."""

    peers: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_down: bool = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        if self.is_down:
            writer.close()
        else:
            self.peers.put_nowait(Peer(reader, writer))

    async def next(self) -> Peer:
        async with asyncio.timeout(PATIENCE):
            return await self.peers.get()


@dataclass
class _Player:
    transcript: Transcript
    identities: Identities
    folder: Path
    service: _Arrivals = field(default_factory=_Arrivals)
    upstreams: _Arrivals = field(default_factory=_Arrivals)
    asking: Peer | None = None
    upstream: Peer | None = None
    upstream_speaks: bool = False
    relays: bool = False
    is_over: bool = False
    tls: ssl.SSLObject | None = None

    # ---- set-up ----

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the authentication service, the upstream and the worker, and connect."""
        ports = [
            await stack.enter_async_context(_serving(arrivals)) for arrivals in (self.service, self.upstreams)
        ]
        self.upstream_port = ports[1]
        self.metrics = WorkerMetrics()
        self._log = stack.enter_context(_log())
        self.app = App(log=self._log.log, metrics=self.metrics)
        self.app.context.make_challenge = _challenge  # type: ignore[method-assign]
        server = self._server(AuthHttp(host="127.0.0.1", port=ports[0], uri="/auth"))
        if server.resolver is not None:
            names = await stack.enter_async_context(self._names())
            server = replace(server, resolver=ResolverConfig(addresses=(names.address,), ipv6=False))
        stack.push_async_callback(self.app.drain, 0.0)
        await self._listen(server)
        self.client = await self._connect()
        stack.callback(abort, self.client.writer)

    def _server(self, auth: AuthHttp) -> ServerConfig:
        """Return the transcript's server block with real addresses and files, and short timeouts."""
        server = self.transcript.server
        changes: dict[str, Any] = {"auth_http": auth, "error_log": LogLevel.INFO}
        if any(step.text == "falls silent" for step in self.transcript.steps):
            changes["timeout"] = _SILENCE
        if server.tls_is_used or self._is_implicit:
            changes["ssl_certificate"] = (self.identities.server,)
        if server.ssl_verify_client.value != "Disabled":
            changes["ssl_client_certificate"] = self.identities.authority
        if self._is_unix:
            listen = ListenConfig(address=f"unix:{self.folder}/listener")
        else:
            changes["set_real_ip_from"] = ("127.0.0.0/8",)
            self.sock = listening_socket()
            port = self.sock.getsockname()[1]
            listen = ListenConfig(address="127.0.0.1", port=port, proxy_protocol=True, ssl=self._is_implicit)
        return replace(server, listen=(listen,), **changes)

    @property
    def _is_implicit(self) -> bool:
        return self.transcript.facts.get("tls") == "implicit"

    @property
    def _is_unix(self) -> bool:
        return self.transcript.facts.get("client") == "unix:"

    @contextlib.asynccontextmanager
    async def _names(self) -> AsyncIterator[DnsServer]:
        """Start a DNS server with the records that the transcript needs."""
        name = next(
            step.text.partition(" -> ")[2] for step in self.transcript.steps if "resolve" in step.text
        )
        async with dns_server() as server:
            server.otherwise = Reply(code=SERVFAIL if name == "[TEMPUNAVAIL]" else NXDOMAIN)
            server.answers_ptr("42.2.0.192.in-addr.arpa", ptr(name))
            server.zone[name, "A"] = Reply((host("192.0.2.42"),))
            yield server

    async def _listen(self, server: ServerConfig) -> None:
        config = ProxyConfig(servers=(server,))
        (planned,) = plan_sockets(config, {})
        if self._is_unix:
            self.sock = _unix_socket(f"{self.folder}/listener")
        self.port = 0 if self._is_unix else self.sock.getsockname()[1]
        await self.app.apply(config, {planned.key: [self.sock]}, names={}, ticket_keys={})

    async def _connect(self) -> Peer:
        if self._is_unix:
            return Peer(*await asyncio.open_unix_connection(f"{self.folder}/listener"))
        client = Peer(*await asyncio.open_connection("127.0.0.1", self.port))
        address = self.transcript.client().address
        family, server = ("TCP6", "2001:db8::2") if ":" in address else ("TCP4", "198.51.100.1")
        await client.send(f"PROXY {family} {address} {server} 4711 25\r\n".encode())
        if self._is_implicit:
            await self._shake(client)
        return client

    async def _shake(self, client: Peer) -> None:
        context = self.identities.client(self.transcript.facts.get("certificate", "none"))
        await client.writer.start_tls(context)
        self.tls = client.writer.get_extra_info("ssl_object")

    # ---- the steps ----

    async def play(self) -> None:
        """Perform all steps, then check the end."""
        for step in self.transcript.steps:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._take(step)
            except (TimeoutError, OSError) as error:
                self._differ(step, f"{type(error).__name__} {error}")
            except asyncio.IncompleteReadError as short:
                self._differ(step, repr(short.partial))
        await self._end()
        await invariants.settle(self.app, self.metrics)
        self._compare_accounts(self._log.read())

    async def _take(self, step: Step) -> None:
        match step.side:
            case "C":
                await self._say(self.client, step)
            case "S":
                self._compare(step, await self.client.data(len(step.data)), step.data)
            case "U":
                await self._say(await self._upstream(), step)
            case "P":
                wanted = self._with_real_places(step.data)
                self._compare(step, await (await self._upstream()).data(len(wanted)), wanted)
            case _:
                await self._happen(step)

    async def _say(self, peer: Peer, step: Step) -> None:
        peer.writer.write(step.data)
        if step.is_joined:
            return
        await peer.writer.drain()
        for _ in range(4):  # after this the proxy has read the bytes, if it reads at all
            await asyncio.sleep(0)

    async def _upstream(self) -> Peer:
        if self.upstream is None:
            self.upstream = await self.upstreams.next()
        return self.upstream

    def _with_real_places(self, data: bytes) -> bytes:
        """Replace the listening address in an expected PROXY header by the real one."""
        if not data.startswith(b"PROXY "):
            return data
        port = data.split()[-1]
        return data.replace(b" 198.51.100.1 ", b" 127.0.0.1 ").replace(port, b"%d" % self.port)

    async def _happen(self, step: Step) -> None:
        verb, _, rest = step.text.partition(" ")
        match verb:
            case "authorize":
                await self._authorize(step, rest)
            case "tls" if rest == "failed":
                await self.client.send(b"this is no handshake\r\n")
            case "tls":
                await self._shake(self.client)
            case "closes":
                peer = await self._upstream() if self.upstream_speaks else self.client
                peer.writer.write_eof() if peer.writer.can_write_eof() else peer.close()
            case "shutdown":
                await self.app.drain(0.2)
            case "relay":
                self.upstream_speaks, self.relays = False, True
            case "closed":
                self.is_over = True
                self._compare(step, await self.client.rest(), b"")
                self.client.close()
                await invariants.settle(self.app, self.metrics)
                key = (self.transcript.server.name, self.transcript.server.protocol.value, rest)
                closed = invariants.series(self.metrics, "mailproxy_connections_closed_total")
                self._compare(step, closed, {key: 1})

    async def _authorize(self, step: Step, text: str) -> None:
        if self.asking is None:
            self.asking = await self.service.next()
        asked, _, answered = text.partition(" -> ")
        said = await self.asking.reader.readuntil(b"\r\n\r\n")
        self._compare(step, said, request(asked, self.transcript, self.tls, self.identities))
        if answered == "unavailable":
            self.service.is_down = True
            self.asking.close()
            return
        self.upstream_speaks = answered.startswith("granted")
        await self.asking.send(answer(answered, self.upstream_port))

    # ---- the end ----

    async def _end(self) -> None:
        """Check that neither the client nor the upstream gets more bytes than the transcript has."""
        last = self.transcript.steps[-1]
        async with asyncio.timeout(PATIENCE):
            if self.relays:
                upstream = await self._upstream()
                await self.client.send(_MARKS[0])
                self._compare(last, await upstream.data(len(_MARKS[0])), _MARKS[0])
                await upstream.send(_MARKS[1])
                self._compare(last, await self.client.data(len(_MARKS[1])), _MARKS[1])
                self.client.close()
                self._compare(last, await upstream.rest(), b"")
            elif self.upstream_speaks and not self.is_over:
                await self._upstream()
                states = invariants.series(self.metrics, "mailproxy_sessions_active")
                self._compare(last, states, {(self.transcript.server.protocol.value, "upstream"): 1})
                self.client.reset()
            elif not self.is_over and self.client.writer.can_write_eof():
                self.client.writer.write_eof()
                self._compare(last, await self.client.rest(), b"")
            self.client.close()
            for writer in (*self.service.writers, *self.upstreams.writers):
                abort(writer)

    def _compare_accounts(self, log: str) -> None:
        """Compare counters and log with the notes of the transcript, if it has any of that kind."""
        steps = self.transcript.steps
        notes = [step.text for step in steps if step.text.startswith("note ")]
        erred = Counter(text.split()[2] for text in notes if text.startswith("note client_erred"))
        errors = invariants.series(self.metrics, "mailproxy_protocol_errors_total")
        found = {kind: count for (_, kind), count in errors.items() if kind not in _UPSTREAMS}
        if notes:
            self._compare(steps[-1], found, dict(erred))
        for text in notes:
            sort, _, words = text.removeprefix("note ").partition(" ")
            if sort == "login_refused":
                key = (self.transcript.server.protocol.value, *words.split())
                assert invariants.series(self.metrics, "mailproxy_logins_total").get(key), text
            elif sort == "remark":
                assert words.partition(":")[0] in log, f"{text} is not in {log}"
        for step in steps:
            if step.text.startswith("trouble "):
                family = invariants.series(self.metrics, "mailproxy_upstream_errors_total")
                assert family[self.transcript.server.protocol.value, step.text.split()[1]] == 1, family

    def _compare(self, step: Step, found: object, wanted: object) -> None:
        if found != wanted:
            self._differ(step, f"{found!r} instead of {wanted!r}")

    def _differ(self, step: Step, happened: str) -> None:
        before = [str(one) for one in self.transcript.steps if one.line <= step.line]
        raise Differs("\n".join([self.transcript.name, *before, f"  ->  {happened}"]))


def _challenge(server_name: str) -> bytes:
    return b"<1304717.1795355079@%b>" % server_name.encode()


@dataclass
class _Lines:
    log: Log
    _pipe: int

    def read(self) -> str:
        self.log.flush()
        with contextlib.suppress(BlockingIOError):
            return os.read(self._pipe, 1 << 20).decode()
        return ""


@contextlib.contextmanager
def _log() -> Any:
    read, write = os.pipe()
    os.set_blocking(read, False)
    log = Log(write, LogFormat.TEXT, LogLevel.INFO)
    try:
        yield _Lines(log, read)
    finally:
        log.close()
        os.close(write)
        os.close(read)


@contextlib.asynccontextmanager
async def _serving(arrivals: _Arrivals) -> AsyncIterator[int]:
    server = await asyncio.start_server(arrivals, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in arrivals.writers:
            abort(writer)
        await asyncio.sleep(0)


def _unix_socket(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    sock.setblocking(False)
    return sock

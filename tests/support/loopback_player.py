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
from support.auth_http_messages import auth_request, auth_response
from support.dialogue_player import TranscriptMismatch
from support.dns_server import NXDOMAIN, SERVFAIL, DnsReply, DnsServer, address_record, dns_server, ptr_record
from support.loopback_worker import Peer, listening_socket, listening_unix_socket
from support.streams import abort
from support.tls_identities import Identities
from support.transcripts import Step, Transcript

TIMEOUT_SECONDS: Final = 30.0
_DELAY_FACTOR: Final = 0.02
_SILENT_TIMEOUT: Final = Seconds(0.3)
_RELAY_LINES: Final = (b"to the upstream\r\n", b"to the client\r\n")
_UPSTREAM_ERRORS: Final = frozenset(
    (ProtocolErrorKind.NO_GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, ProtocolErrorKind.REPLY_TOO_LONG)
)


class ShortDelayLoop(WorkerLoop):
    """A worker's event loop in which only the delays of sessions are fifty times shorter."""

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if getattr(callback, "__func__", None) is ProtocolDriver.on_wait_over:
            delay *= _DELAY_FACTOR
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

    with asyncio.Runner(loop_factory=ShortDelayLoop) as runner:
        runner.run(perform())


@dataclass
class _Listener:
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

    async def accept(self) -> Peer:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self.peers.get()


@dataclass
class _Player:
    transcript: Transcript
    identities: Identities
    folder: Path
    service: _Listener = field(default_factory=_Listener)
    upstreams: _Listener = field(default_factory=_Listener)
    auth_connection: Peer | None = None
    upstream: Peer | None = None
    upstream_is_peer: bool = False
    relays: bool = False
    is_over: bool = False
    tls: ssl.SSLObject | None = None

    # ---- set-up ----

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the authentication service, the upstream and the worker, and connect."""
        ports = [
            await stack.enter_async_context(_serving(listener)) for listener in (self.service, self.upstreams)
        ]
        self.upstream_port = ports[1]
        self.metrics = WorkerMetrics()
        self._log = stack.enter_context(_log())
        self.app = App(log=self._log.log, metrics=self.metrics)
        self.app.context.make_challenge = _challenge  # type: ignore[method-assign]
        server = self._server(AuthHttp(host="127.0.0.1", port=ports[0], uri="/auth"))
        if server.resolver is not None:
            names = await stack.enter_async_context(self._dns_server())
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
            changes["timeout"] = _SILENT_TIMEOUT
        if server.tls_is_used or self._is_implicit:
            changes["ssl_certificate"] = (self.identities.server,)
        if server.ssl_verify_client.value != "Disabled":
            changes["ssl_client_certificate"] = self.identities.authority
        if self._is_unix:
            listen = ListenConfig(address=f"unix:{self.folder}/listener")
        else:
            changes["set_real_ip_from"] = ("127.0.0.0/8",)
            if self.transcript.is_trusted:
                changes["set_real_ip_from"] += (self.transcript.client().address,)
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
    async def _dns_server(self) -> AsyncIterator[DnsServer]:
        """Start a DNS server with the records that the transcript needs."""
        name = next(
            step.text.partition(" -> ")[2] for step in self.transcript.steps if "resolve" in step.text
        )
        async with dns_server() as server:
            server.default_reply = DnsReply(code=SERVFAIL if name == "[TEMPUNAVAIL]" else NXDOMAIN)
            server.set_ptr("42.2.0.192.in-addr.arpa", ptr_record(name))
            server.zone[name, "A"] = DnsReply((address_record("192.0.2.42"),))
            yield server

    async def _listen(self, server: ServerConfig) -> None:
        config = ProxyConfig(servers=(server,))
        (planned,) = plan_sockets(config, {})
        if self._is_unix:
            self.sock = listening_unix_socket(f"{self.folder}/listener")
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
            await self._handshake(client)
        return client

    async def _handshake(self, client: Peer) -> None:
        context = self.identities.client(self.transcript.facts.get("certificate", "none"))
        await client.writer.start_tls(context)
        self.tls = client.writer.get_extra_info("ssl_object")

    # ---- the steps ----

    async def play(self) -> None:
        """Perform all steps, then check the end."""
        for step in self.transcript.steps:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self._perform(step)
            except (TimeoutError, OSError) as error:
                self._fail(step, f"{type(error).__name__} {error}")
            except asyncio.IncompleteReadError as short:
                self._fail(step, repr(short.partial))
        await self._end()
        await invariants.wait_until_idle(self.app, self.metrics)
        self._compare_counters(self._log.read())

    async def _perform(self, step: Step) -> None:
        match step.side:
            case "C":
                await self._send(self.client, step)
            case "S":
                self._compare(step, await self.client.read_bytes(len(step.data)), step.data)
            case "U":
                await self._send(await self._upstream(), step)
            case "P":
                expected = self._with_real_addresses(step.data)
                self._compare(step, await (await self._upstream()).read_bytes(len(expected)), expected)
            case _:
                await self._perform_event(step)

    async def _send(self, peer: Peer, step: Step) -> None:
        if self.service.is_down:  # only for the last request
            self.service.is_down, self.auth_connection = False, None
        peer.writer.write(step.data)
        if step.is_joined:
            return
        await peer.writer.drain()
        for _ in range(4):  # now the proxy has read the bytes, unless it has stopped reading
            await asyncio.sleep(0)

    async def _upstream(self) -> Peer:
        if self.upstream is None:
            self.upstream = await self.upstreams.accept()
        return self.upstream

    def _with_real_addresses(self, data: bytes) -> bytes:
        """Replace the listening address in an expected PROXY header by the real one."""
        if not data.startswith(b"PROXY "):
            return data
        port = data.split()[-1]
        return data.replace(b" 198.51.100.1 ", b" 127.0.0.1 ").replace(port, b"%d" % self.port)

    async def _perform_event(self, step: Step) -> None:
        verb, _, rest = step.text.partition(" ")
        match verb:
            case "authorize":
                await self._answer_auth_request(step, rest)
            case "tls" if rest == "failed":
                await self.client.send(b"this is no handshake\r\n")
            case "tls":
                await self._handshake(self.client)
            case "closes":
                peer = await self._upstream() if self.upstream_is_peer else self.client
                peer.writer.write_eof() if peer.writer.can_write_eof() else peer.close()
            case "shutdown":
                await self.app.drain(0.2)
            case "relay":
                self.upstream_is_peer, self.relays = False, True
            case "closed":
                self.is_over = True
                self._compare(step, await self.client.read_to_eof(), b"")
                self.client.close()
                await invariants.wait_until_idle(self.app, self.metrics)
                key = (self.transcript.server.name, self.transcript.server.protocol.value, rest)
                closed = invariants.series(self.metrics, "mailproxy_connections_closed_total")
                self._compare(step, closed, {key: 1})

    async def _answer_auth_request(self, step: Step, text: str) -> None:
        if self.auth_connection is None:
            self.auth_connection = await self.service.accept()
        description, _, response = text.partition(" -> ")
        request = await self.auth_connection.reader.readuntil(b"\r\n\r\n")
        self._compare(step, request, auth_request(description, self.transcript, self.tls, self.identities))
        if response == "unavailable":
            self.service.is_down = True
            self.auth_connection.close()
            return
        self.upstream_is_peer = response.startswith("granted")
        self.upstream = None
        await self.auth_connection.send(auth_response(response, self.upstream_port))

    # ---- the end ----

    async def _end(self) -> None:
        """Check that neither the client nor the upstream gets more bytes than the transcript has."""
        last = self.transcript.steps[-1]
        async with asyncio.timeout(TIMEOUT_SECONDS):
            if self.relays:
                upstream = await self._upstream()
                await self.client.send(_RELAY_LINES[0])
                self._compare(last, await upstream.read_bytes(len(_RELAY_LINES[0])), _RELAY_LINES[0])
                await upstream.send(_RELAY_LINES[1])
                self._compare(last, await self.client.read_bytes(len(_RELAY_LINES[1])), _RELAY_LINES[1])
                self.client.close()
                self._compare(last, await upstream.read_to_eof(), b"")
            elif self.upstream_is_peer and not self.is_over:
                await self._upstream()
                states = invariants.series(self.metrics, "mailproxy_sessions_active")
                self._compare(last, states, {(self.transcript.server.protocol.value, "upstream"): 1})
                self.client.reset()
            elif not self.is_over and self.client.writer.can_write_eof():
                self.client.writer.write_eof()
                self._compare(last, await self.client.read_to_eof(), b"")
            self.client.close()
            for writer in (*self.service.writers, *self.upstreams.writers):
                abort(writer)

    def _compare_counters(self, log: str) -> None:
        """Compare counters and log with the notes of the transcript, if it has any of that kind."""
        steps = self.transcript.steps
        notes = [step.text for step in steps if step.text.startswith("note ")]
        erred = Counter(text.split()[2] for text in notes if text.startswith("note client_erred"))
        errors = invariants.series(self.metrics, "mailproxy_protocol_errors_total")
        found = {kind: count for (_, kind), count in errors.items() if kind not in _UPSTREAM_ERRORS}
        if notes:
            self._compare(steps[-1], found, dict(erred))
        for text in notes:
            kind, _, words = text.removeprefix("note ").partition(" ")
            if kind == "login_refused":
                key = (self.transcript.server.protocol.value, *words.split())
                assert invariants.series(self.metrics, "mailproxy_logins_total").get(key), text
            elif kind == "remark":
                assert words.partition(":")[0] in log, f"{text} is not in {log}"
        for step in steps:
            if step.text.startswith("trouble "):
                family = invariants.series(self.metrics, "mailproxy_upstream_errors_total")
                assert family[self.transcript.server.protocol.value, step.text.split()[1]] == 1, family

    def _compare(self, step: Step, found: object, expected: object) -> None:
        if found != expected:
            self._fail(step, f"{found!r} instead of {expected!r}")

    def _fail(self, step: Step, actual: str) -> None:
        before = [str(one) for one in self.transcript.steps if one.line <= step.line]
        raise TranscriptMismatch("\n".join([self.transcript.name, *before, f"  ->  {actual}"]))


def _challenge(server_name: str) -> bytes:
    return b"<1304717.1795355079@%b>" % server_name.encode()


@dataclass
class _LogPipe:
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
        yield _LogPipe(log, read)
    finally:
        log.close()
        os.close(write)
        os.close(read)


@contextlib.asynccontextmanager
async def _serving(listener: _Listener) -> AsyncIterator[int]:
    server = await asyncio.start_server(listener, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in listener.writers:
            abort(writer)
        await asyncio.sleep(0)

# SPDX-License-Identifier: Apache-2.0
"""Plays dialogues to nginx and to the proxy, many at a time, and records what they send.

nginx is first: each step ends when nginx sends no more.  The proxy must then
send as much, however slow the machine is, and no more.  A dialogue that differs
is played twice more, with longer timeouts, before the difference counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from support.dns_server import DnsServer, dns_server
from support.parity.client import ClientConnection, TlsSession, client_context
from support.parity.compared_programs import Nginx, Process, start_nginx, start_proxy
from support.parity.dialogue import Dialogue, Disconnect, SendPieces, Step, Tls, WaitForReply
from support.parity.normalization import Normalizer
from support.parity.peers import DialogueRun, Peers
from support.parity.record import Record
from support.parity.server_blocks import Block, ProgramAddresses, render

T = TypeVar("T")

_CONCURRENT_DIALOGUES: Final = 96
_BLOCKS_PER_CONFIG: Final = 30
"""The number of server blocks in one configuration; the proxy accepts 32."""
_END_SECONDS: Final = 4.0


@dataclass(frozen=True)
class Timeouts:
    """Timeouts in seconds.

    Attributes:
        first: Until nginx starts to react.
        quiet: Until nginx continues.
        catch_up: Until the proxy has sent as much as nginx.
    """

    first: float = 0.05
    quiet: float = 0.02
    catch_up: float = 5.0


_SHORT_TIMEOUTS: Final = Timeouts()
_LONG_TIMEOUTS: Final = Timeouts(first=0.4, quiet=0.2, catch_up=8.0)
_LONGEST_TIMEOUTS: Final = Timeouts(first=1.5, quiet=0.8, catch_up=20.0)
"""For a machine with a high load."""


@dataclass(frozen=True)
class Progress:
    """The progress of a dialogue at the end of a step."""

    received: int
    is_open: bool
    requests: int
    upstreams: int
    closed: int


class ComparedProgram:
    """One of the two programs, with its scripted peers."""

    def __init__(self, addresses: ProgramAddresses, blocks: Sequence[Block]) -> None:
        self.addresses = addresses
        self.blocks = blocks
        self.peers = Peers()
        self.dns: DnsServer | None = None
        self.process: Process | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start_peers(self) -> None:
        """Start the peers."""
        await self.peers.start(self.addresses.here, self.addresses.auth, self.addresses.folder)
        self.dns = await self._stack.enter_async_context(dns_server(self.addresses.here, self.addresses.dns))

    async def stop_peers(self) -> None:
        """Stop the peers."""
        self.peers.stop()
        await self._stack.aclose()

    def text(self, load: str, certificates: dict[str, str]) -> str:
        """Return the text of its configuration."""
        return render(self.blocks, self.addresses, load=load, certificates=certificates)


@dataclass(frozen=True, eq=False)
class Pair:
    """nginx and the proxy with one configuration."""

    nginx: ComparedProgram
    proxy: ComparedProgram


class Kit:
    """nginx and the proxy, side by side, until the context ends.

    Args:
        nginx: The nginx to compare with.
        blocks: The server blocks of both programs; those that no dialogue uses may be omitted.
        certificates: The certificate files, by the names that directives and dialogues use.
    """

    def __init__(self, nginx: Nginx, blocks: Iterable[Block], certificates: dict[str, str]) -> None:
        self.nginx = nginx
        self.blocks = {block.name: block for block in blocks}
        self.certificates = certificates
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="parity")
        self._folder = tempfile.TemporaryDirectory(prefix="parity-")
        self._addresses = iter(_addresses())
        self._net = random.randint(1, 250)
        self._pairs: dict[str, Pair] = {}
        all_blocks = list(self.blocks.values())
        for start in range(0, len(all_blocks), _BLOCKS_PER_CONFIG):
            group = all_blocks[start : start + _BLOCKS_PER_CONFIG]
            pair = self._pair(group, start // _BLOCKS_PER_CONFIG)
            self._pairs |= {block.name: pair for block in group}

    def _pair(self, blocks: Sequence[Block], number: int) -> Pair:
        known = [block for block in blocks if self.nginx.version >= block.since]
        return Pair(
            self._program(f"nginx-{number}", known, 2 * number + 1),
            self._program(f"proxy-{number}", blocks, 2 * number + 2),
        )

    def _program(self, name: str, blocks: Sequence[Block], host: int) -> ComparedProgram:
        folder = Path(self._folder.name) / name
        folder.mkdir()
        ports = {}
        for number, block in enumerate(blocks):
            ports[block.name] = _free_port6() if block.via == "ipv6" else 20100 + number
        addresses = ProgramAddresses(
            here=f"127.90.{self._net}.{host}", auth=20001, dead=20002, dns=20003, folder=folder, ports=ports
        )
        return ComparedProgram(addresses, blocks)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            for pair in self._all_pairs():
                self._start(pair)
            for process in self._processes():
                process.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _all_pairs(self) -> list[Pair]:
        return list(dict.fromkeys(self._pairs.values()))

    def _processes(self) -> list[Process]:
        programs = (program for pair in self._all_pairs() for program in (pair.nginx, pair.proxy))
        return [program.process for program in programs if program.process is not None]

    def _start(self, pair: Pair) -> None:
        for program in (pair.nginx, pair.proxy):
            self.wait(program.start_peers())
        text = pair.nginx.text(self.nginx.load, self.certificates)
        pair.nginx.process = start_nginx(self.nginx, text, pair.nginx.addresses.folder)
        pair.proxy.process = start_proxy(pair.proxy.text("", self.certificates), pair.proxy.addresses.folder)

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            process.ask_to_stop()
        for process in self._processes():
            process.stop()
        for pair in self._all_pairs():
            for program in (pair.nginx, pair.proxy):
                self.wait(program.stop_peers())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the peers."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(600)

    def addresses(self, program: ComparedProgram, block: str) -> ProgramAddresses:
        """Return the addresses of the program like ``program`` that has this server block."""
        pair = self._pairs[block]
        is_ours = any(program is pair.proxy for pair in self._all_pairs())
        return (pair.proxy if is_ours else pair.nginx).addresses

    # -- playing

    def play(
        self, dialogues: Sequence[Dialogue], is_settled: Callable[[Dialogue, Record | None, Record], bool]
    ) -> list[tuple[Record | None, Record]]:
        """Play dialogues to both programs.

        Args:
            dialogues: The dialogues to play.
            is_settled: Returns whether two records need no second run.

        Returns:
            For each dialogue, nginx's record (``None`` if this nginx is too old for
            the server block) and the proxy's record.
        """
        return self.wait(self._play_all(dialogues, is_settled))

    async def _play_all(
        self, dialogues: Sequence[Dialogue], is_settled: Callable[[Dialogue, Record | None, Record], bool]
    ) -> list[tuple[Record | None, Record]]:
        slots, exclusive = asyncio.Semaphore(_CONCURRENT_DIALOGUES), asyncio.Lock()

        async def play_one(dialogue: Dialogue) -> tuple[Record | None, Record]:
            is_alone = dialogue.is_exclusive or dialogue.via != "tcp"
            async with exclusive if is_alone else slots:
                for timeouts in (_SHORT_TIMEOUTS, _LONG_TIMEOUTS, _LONGEST_TIMEOUTS):
                    found = await self._play_both(dialogue, timeouts)
                    if is_settled(dialogue, *found):
                        break
                return found

        return list(await asyncio.gather(*map(play_one, dialogues)))

    async def _play_both(self, dialogue: Dialogue, timeouts: Timeouts) -> tuple[Record | None, Record]:
        ip, pair = next(self._addresses), self._pairs[dialogue.block]
        nginx_record, expected_progress = None, None
        if self.nginx.version >= self.blocks[dialogue.block].since:
            nginx_record, expected_progress = await self._play(pair.nginx, dialogue, ip, timeouts, None)
        proxy_record, _ = await self._play(pair.proxy, dialogue, ip, timeouts, expected_progress)
        return nginx_record, proxy_record

    async def _play(
        self,
        program: ComparedProgram,
        dialogue: Dialogue,
        ip: str,
        timeouts: Timeouts,
        expected_progress: list[Progress] | None,
    ) -> tuple[Record, list[Progress]]:
        run = DialogueRun(
            ip,
            program.peers.upstream_port if dialogue.reachable else program.addresses.dead,
            list(dialogue.auth),
            dialogue.upstream,
            dialogue.header,
            port6=program.peers.upstream_port6,
            socket=program.peers.upstream_socket,
        )
        program.peers.runs[ip] = run
        is_alone = dialogue.is_exclusive or dialogue.via != "tcp"
        if is_alone:
            program.peers.exclusive_run = run
        if dialogue.dns is not None:
            assert program.dns is not None
            program.dns.zone.update(dialogue.dns(ip))
        player = _Player(self, program, dialogue, run, timeouts, expected_progress)
        try:
            return await player.play(), player.progress
        finally:
            if is_alone:
                program.peers.exclusive_run = None
            del program.peers.runs[ip]


class _Player:
    """Plays one dialogue to one program."""

    def __init__(
        self,
        kit: Kit,
        program: ComparedProgram,
        dialogue: Dialogue,
        run: DialogueRun,
        timeouts: Timeouts,
        expected_progress: list[Progress] | None,
    ) -> None:
        self._kit, self._program, self._dialogue = kit, program, dialogue
        self._run, self._timeouts, self._expected_progress = run, timeouts, expected_progress
        self.progress: list[Progress] = []
        self._turns: list[bytes] = []
        self._tls: list[str] = []
        self._recorded_bytes = 0
        self._normalizer = Normalizer({})
        self._tls_session: TlsSession | None = None

    async def play(self) -> Record:
        activity = self._run.activity
        self._tls_session = await self._earlier_session()
        connection = ClientConnection(await self._connect(self._dialogue.block), activity)
        self._normalizer = self._normalizer_for(connection)
        try:
            await self._settle(connection, self._timeouts.first)
            for step in self._dialogue.steps:
                if not connection.is_open:
                    break
                await self._settle(connection, await self._perform(connection, step))
            ending = connection.ending
            if connection.is_open:
                connection.send_eof()
                await self._wait_until(lambda: not connection.is_open)
            afterwards = "" if ending != "open" else connection.ending
            self._record_new_bytes(connection)
        finally:
            connection.close()
        await self._wait_until(lambda: all(upstream.is_closed for upstream in self._run.upstreams))
        return self._record(ending, afterwards)

    async def _earlier_session(self) -> TlsSession | None:
        """Return the TLS session that the client resumes, if there is one."""
        for number, step in enumerate(self._dialogue.steps):
            if isinstance(step, Tls) and step.resumes:
                connection = ClientConnection(await self._connect(step.resumes), self._run.activity)
                try:
                    return await self._tls_session_of(connection, self._dialogue.steps[:number], step)
                finally:
                    connection.close()
        return None

    async def _tls_session_of(
        self, connection: ClientConnection, ahead: tuple[Step, ...], tls_step: Tls
    ) -> TlsSession:
        settle = self._run.activity.settle
        for step in ahead:
            await settle(_LONG_TIMEOUTS.first, self._timeouts.quiet)
            await self._perform(connection, step)
        await settle(self._timeouts.first, self._timeouts.quiet)
        context = client_context(tls_step, self._kit.certificates)
        await connection.start_tls(replace(tls_step, behind=b""), context, self._timeouts.catch_up)
        await settle(self._timeouts.first, self._timeouts.quiet)  # session tickets arrive after the handshake
        session = connection.tls_session(context)
        connection.send_eof()
        await asyncio.sleep(tls_step.seconds_ago)
        return session

    async def _connect(self, block: str) -> socket.socket:
        via, addresses = self._dialogue.via, self._kit.addresses(self._program, block)
        family = {"unix": socket.AF_UNIX, "ipv6": socket.AF_INET6}.get(via, socket.AF_INET)
        sock = socket.socket(family)
        sock.setblocking(False)
        target: Any = (addresses.here, addresses.ports[block])
        if via == "tcp":
            sock.bind((self._run.ip, 0))
        elif via == "ipv6":
            target = ("::1", addresses.ports[block])
        else:
            target = f"{addresses.folder}/{block}.sock"
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, target)
        return sock

    async def _perform(self, connection: ClientConnection, step: Step) -> float:
        """Perform one step; return how long to wait for a reaction."""
        run, first = self._run, self._timeouts.first
        match step:
            case bytes():
                await connection.send(run.replace_placeholders(step))
            case SendPieces(pieces):
                await connection.send_pieces(tuple(map(run.replace_placeholders, pieces)))
            case Tls():
                context = self._tls_session or client_context(step, self._kit.certificates)
                self._tls.append(await connection.start_tls(step, context, self._timeouts.catch_up))
            case WaitForReply(seconds):
                return seconds
            case Disconnect(how, last_bytes):
                await connection.send(run.replace_placeholders(last_bytes))
                if how == "reset":
                    connection.reset()
                else:
                    connection.send_eof()
        return first

    async def _settle(self, connection: ClientConnection, first: float) -> None:
        """Wait until the step ends: nginx sends no more, or the proxy has sent as much as nginx."""
        step = len(self.progress)
        activity = self._run.activity
        if self._expected_progress is None:
            await activity.settle(first, self._timeouts.quiet)
        else:
            goal = self._expected_progress[step] if step < len(self._expected_progress) else None
            await self._wait_until(
                lambda: goal is None or _has_reached(self._current_progress(connection), goal),
                max(self._timeouts.catch_up, first),
            )
            await activity.settle(self._timeouts.quiet / 4, self._timeouts.quiet / 2)
        self.progress.append(self._current_progress(connection))
        self._record_new_bytes(connection)
        if len(self._turns) < len(self.progress):
            self._turns.append(b"")

    def _record_new_bytes(self, connection: ClientConnection) -> None:
        if len(connection.received) > self._recorded_bytes:
            self._turns.append(connection.received[self._recorded_bytes :])
            self._recorded_bytes = len(connection.received)

    def _current_progress(self, connection: ClientConnection) -> Progress:
        run = self._run
        closed = sum(upstream.is_closed for upstream in run.upstreams)
        normalize = self._normalizer.normalize
        received = sum(
            len(self._normalizer.normalize_upstream(upstream.data)) + 1 for upstream in run.upstreams
        )
        return Progress(
            len(normalize(connection.received)), connection.is_open, len(run.requests), received, closed
        )

    async def _wait_until(self, condition: Callable[[], bool], seconds: float = _END_SECONDS) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._run.activity.next(0.25)

    def _normalizer_for(self, connection: ClientConnection) -> Normalizer:
        addresses = self._program.addresses
        replaced = {addresses.here: "HERE", self._run.ip: "CLIENT", f"{addresses.folder}": "FOLDER"}
        replaced[str(addresses.ports[self._dialogue.block])] = "LISTENPORT"
        if self._dialogue.via != "unix":
            replaced[str(connection.sock.getsockname()[1])] = "CLIENTPORT"
        return Normalizer(replaced)

    def _record(self, ending: str, afterwards: str) -> Record:
        run, normalizer = self._run, self._normalizer
        return Record(
            turns=tuple(map(normalizer.normalize, self._turns)),
            ending=ending,
            afterwards=afterwards,
            tls=tuple(self._tls),
            requests=tuple(map(normalizer.normalize_request, run.requests)),
            upstreams=tuple(normalizer.normalize_upstream(upstream.data) for upstream in run.upstreams),
            upstream_endings=tuple("closed" if upstream.is_closed else "open" for upstream in run.upstreams),
            dns_queries=self._dns_queries(),
        )

    def _dns_queries(self) -> tuple[tuple[str, str], ...]:
        if self._dialogue.dns is None or self._program.dns is None:
            return ()
        own_names = {name for name, _ in self._dialogue.dns(self._run.ip)}
        reverse = ".".join(reversed(self._run.ip.split(".")))
        queries = {
            (name.lower().replace(reverse, "REVERSED"), kind)
            for _, name, kind in self._program.dns.queries
            if name.lower() in own_names
        }
        return tuple(sorted(queries))


def _has_reached(now: Progress, goal: Progress) -> bool:
    return (
        now.received >= goal.received
        and now.is_open <= goal.is_open
        and now.requests >= goal.requests
        and now.upstreams >= goal.upstreams
        and now.closed >= goal.closed
    )


def _addresses() -> Iterable[str]:
    """Yield addresses of clients, each one different."""
    start = random.randint(0, 1 << 20)
    for number in itertools.count(start):
        rest, last = divmod(number, 254)
        high, middle = divmod(rest, 254)
        yield f"127.{101 + high % 100}.{1 + middle}.{1 + last}"


def _free_port6() -> int:
    """Return a free port of ``::1``, below the kernel's range of ephemeral ports."""
    for _ in range(100):
        port = random.randint(21000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("::1", port), family=socket.AF_INET6):
            return port
    raise OSError("no port of ::1 is free")

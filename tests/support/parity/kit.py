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
from support.parity.client import Session, Wire, context_of
from support.parity.compared_programs import Nginx, Process, start_nginx, start_proxy
from support.parity.dialogue import Await, Cut, Dialogue, Leave, Step, Tls
from support.parity.normalization import Names
from support.parity.peers import Peers, Playing
from support.parity.record import Record
from support.parity.server_blocks import Block, Place, render

T = TypeVar("T")

_AT_ONCE: Final = 96
_SERVERS: Final = 30
"""The number of server blocks in one configuration; the proxy accepts 32."""
_END_SECONDS: Final = 4.0


@dataclass(frozen=True)
class Patience:
    """Timeouts in seconds.

    Attributes:
        first: Until nginx starts to react.
        quiet: Until nginx continues.
        catch_up: Until the proxy has sent as much as nginx.
    """

    first: float = 0.05
    quiet: float = 0.02
    catch_up: float = 5.0


_USUAL: Final = Patience()
_MORE: Final = Patience(first=0.4, quiet=0.2, catch_up=8.0)
_MOST: Final = Patience(first=1.5, quiet=0.8, catch_up=20.0)
"""For a machine with a high load."""


@dataclass(frozen=True)
class Progress:
    """The progress of a dialogue at the end of a step."""

    heard: int
    is_open: bool
    requests: int
    upstreams: int
    closed: int


class Subject:
    """One of the two programs, with its scripted peers."""

    def __init__(self, place: Place, blocks: Sequence[Block]) -> None:
        self.place = place
        self.blocks = blocks
        self.peers = Peers()
        self.dns: DnsServer | None = None
        self.process: Process | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start_peers(self) -> None:
        """Start the peers."""
        await self.peers.start(self.place.here, self.place.auth, self.place.folder)
        self.dns = await self._stack.enter_async_context(dns_server(self.place.here, self.place.dns))

    async def stop_peers(self) -> None:
        """Stop the peers."""
        self.peers.stop()
        await self._stack.aclose()

    def text(self, load: str, certificates: dict[str, str]) -> str:
        """Return the text of its configuration."""
        return render(self.blocks, self.place, load=load, certificates=certificates)


@dataclass(frozen=True, eq=False)
class Pair:
    """nginx and the proxy with one configuration."""

    theirs: Subject
    ours: Subject


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
        every = list(self.blocks.values())
        for start in range(0, len(every), _SERVERS):
            some = every[start : start + _SERVERS]
            pair = self._pair(some, start // _SERVERS)
            self._pairs |= {block.name: pair for block in some}

    def _pair(self, blocks: Sequence[Block], number: int) -> Pair:
        known = [block for block in blocks if self.nginx.version >= block.since]
        return Pair(
            self._subject(f"nginx-{number}", known, 2 * number + 1),
            self._subject(f"proxy-{number}", blocks, 2 * number + 2),
        )

    def _subject(self, name: str, blocks: Sequence[Block], host: int) -> Subject:
        folder = Path(self._folder.name) / name
        folder.mkdir()
        ports = {}
        for number, block in enumerate(blocks):
            ports[block.name] = _free_port6() if block.via == "ipv6" else 20100 + number
        place = Place(
            here=f"127.90.{self._net}.{host}", auth=20001, dead=20002, dns=20003, folder=folder, ports=ports
        )
        return Subject(place, blocks)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            for pair in self._each():
                self._start(pair)
            for process in self._processes():
                process.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _each(self) -> list[Pair]:
        return list(dict.fromkeys(self._pairs.values()))

    def _processes(self) -> list[Process]:
        subjects = (subject for pair in self._each() for subject in (pair.theirs, pair.ours))
        return [subject.process for subject in subjects if subject.process is not None]

    def _start(self, pair: Pair) -> None:
        for subject in (pair.theirs, pair.ours):
            self.wait(subject.start_peers())
        text = pair.theirs.text(self.nginx.load, self.certificates)
        pair.theirs.process = start_nginx(self.nginx, text, pair.theirs.place.folder)
        pair.ours.process = start_proxy(pair.ours.text("", self.certificates), pair.ours.place.folder)

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            process.ask_to_stop()
        for process in self._processes():
            process.stop()
        for pair in self._each():
            for subject in (pair.theirs, pair.ours):
                self.wait(subject.stop_peers())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the peers."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(600)

    def place(self, subject: Subject, block: str) -> Place:
        """Return the place of a server block in the same program as ``subject``."""
        pair = self._pairs[block]
        is_ours = any(subject is one.ours for one in self._each())
        return (pair.ours if is_ours else pair.theirs).place

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
        room, alone = asyncio.Semaphore(_AT_ONCE), asyncio.Lock()

        async def one(dialogue: Dialogue) -> tuple[Record | None, Record]:
            is_alone = dialogue.alone or dialogue.via != "tcp"
            async with alone if is_alone else room:
                for patience in (_USUAL, _MORE, _MOST):
                    found = await self._play_both(dialogue, patience)
                    if is_settled(dialogue, *found):
                        break
                return found

        return list(await asyncio.gather(*map(one, dialogues)))

    async def _play_both(self, dialogue: Dialogue, patience: Patience) -> tuple[Record | None, Record]:
        ip, pair = next(self._addresses), self._pairs[dialogue.block]
        theirs, goals = None, None
        if self.nginx.version >= self.blocks[dialogue.block].since:
            theirs, goals = await self._play(pair.theirs, dialogue, ip, patience, None)
        ours, _ = await self._play(pair.ours, dialogue, ip, patience, goals)
        return theirs, ours

    async def _play(
        self, subject: Subject, dialogue: Dialogue, ip: str, patience: Patience, goals: list[Progress] | None
    ) -> tuple[Record, list[Progress]]:
        playing = Playing(
            ip,
            subject.peers.upstream_port if dialogue.reachable else subject.place.dead,
            list(dialogue.auth),
            dialogue.upstream,
            dialogue.header,
            port6=subject.peers.upstream_port6,
            socket=subject.peers.upstream_socket,
        )
        subject.peers.playings[ip] = playing
        is_alone = dialogue.alone or dialogue.via != "tcp"
        if is_alone:
            subject.peers.alone = playing
        if dialogue.dns is not None:
            assert subject.dns is not None
            subject.dns.zone.update(dialogue.dns(ip))
        player = _Player(self, subject, dialogue, playing, patience, goals)
        try:
            return await player.play(), player.progress
        finally:
            if is_alone:
                subject.peers.alone = None
            del subject.peers.playings[ip]


class _Player:
    """Plays one dialogue to one program."""

    def __init__(
        self,
        kit: Kit,
        subject: Subject,
        dialogue: Dialogue,
        playing: Playing,
        patience: Patience,
        goals: list[Progress] | None,
    ) -> None:
        self._kit, self._subject, self._dialogue = kit, subject, dialogue
        self._playing, self._patience, self._goals = playing, patience, goals
        self.progress: list[Progress] = []
        self._turns: list[bytes] = []
        self._tls: list[str] = []
        self._marked = 0
        self._names = Names({})
        self._kept: Session | None = None

    async def play(self) -> Record:
        activity = self._playing.activity
        self._kept = await self._rehearsed()
        wire = Wire(await self._connect(self._dialogue.block), activity)
        self._names = self._names_of(wire)
        try:
            await self._settle(wire, self._patience.first)
            for step in self._dialogue.steps:
                if not wire.is_open:
                    break
                await self._settle(wire, await self._take(wire, step))
            ending = wire.ending
            if wire.is_open:
                wire.shut()
                await self._until(lambda: not wire.is_open)
            afterwards = "" if ending != "open" else wire.ending
            self._note_rest(wire)
        finally:
            wire.close()
        await self._until(lambda: all(one.is_closed for one in self._playing.upstreams))
        return self._record(ending, afterwards)

    async def _rehearsed(self) -> Session | None:
        """Return the TLS session that the client resumes, if there is one."""
        for number, step in enumerate(self._dialogue.steps):
            if isinstance(step, Tls) and step.resumes:
                wire = Wire(await self._connect(step.resumes), self._playing.activity)
                try:
                    return await self._session(wire, self._dialogue.steps[:number], step)
                finally:
                    wire.close()
        return None

    async def _session(self, wire: Wire, ahead: tuple[Step, ...], how: Tls) -> Session:
        settle = self._playing.activity.settle
        for step in ahead:
            await settle(_MORE.first, self._patience.quiet)
            await self._take(wire, step)
        await settle(self._patience.first, self._patience.quiet)
        context = context_of(how, self._kit.certificates)
        await wire.start_tls(replace(how, behind=b""), context, self._patience.catch_up)
        await settle(self._patience.first, self._patience.quiet)  # session tickets arrive after the handshake
        kept = wire.kept(context)
        wire.shut()
        await asyncio.sleep(how.later)
        return kept

    async def _connect(self, block: str) -> socket.socket:
        via, place = self._dialogue.via, self._kit.place(self._subject, block)
        family = {"unix": socket.AF_UNIX, "ipv6": socket.AF_INET6}.get(via, socket.AF_INET)
        sock = socket.socket(family)
        sock.setblocking(False)
        target: Any = (place.here, place.ports[block])
        if via == "tcp":
            sock.bind((self._playing.ip, 0))
        elif via == "ipv6":
            target = ("::1", place.ports[block])
        else:
            target = f"{place.folder}/{block}.sock"
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, target)
        return sock

    async def _take(self, wire: Wire, step: Step) -> float:
        """Perform one step; return how long to wait for a reaction."""
        playing, first = self._playing, self._patience.first
        match step:
            case bytes():
                await wire.say(playing.filled(step))
            case Cut(pieces):
                await wire.say_in_pieces(tuple(map(playing.filled, pieces)))
            case Tls():
                context = self._kept or context_of(step, self._kit.certificates)
                self._tls.append(await wire.start_tls(step, context, self._patience.catch_up))
            case Await(seconds):
                return seconds
            case Leave(how, saying):
                await wire.say(playing.filled(saying))
                if how == "reset":
                    wire.reset()
                else:
                    wire.shut()
        return first

    async def _settle(self, wire: Wire, first: float) -> None:
        """Wait until the step ends: nginx sends no more, or the proxy has sent as much as nginx."""
        step = len(self.progress)
        activity = self._playing.activity
        if self._goals is None:
            await activity.settle(first, self._patience.quiet)
        else:
            goal = self._goals[step] if step < len(self._goals) else None
            await self._until(
                lambda: goal is None or _reaches(self._now(wire), goal), max(self._patience.catch_up, first)
            )
            await activity.settle(self._patience.quiet / 4, self._patience.quiet / 2)
        self.progress.append(self._now(wire))
        self._note_rest(wire)
        if len(self._turns) < len(self.progress):
            self._turns.append(b"")

    def _note_rest(self, wire: Wire) -> None:
        if len(wire.heard) > self._marked:
            self._turns.append(wire.heard[self._marked :])
            self._marked = len(wire.heard)

    def _now(self, wire: Wire) -> Progress:
        playing = self._playing
        closed = sum(one.is_closed for one in playing.upstreams)
        said = self._names.said
        heard = sum(len(self._names.carried(one.data)) + 1 for one in playing.upstreams)
        return Progress(len(said(wire.heard)), wire.is_open, len(playing.requests), heard, closed)

    async def _until(self, is_so: Callable[[], bool], seconds: float = _END_SECONDS) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_so():
                    await self._playing.activity.next(0.25)

    def _names_of(self, wire: Wire) -> Names:
        place = self._subject.place
        replaced = {place.here: "HERE", self._playing.ip: "CLIENT", f"{place.folder}": "FOLDER"}
        replaced[str(place.ports[self._dialogue.block])] = "LISTENPORT"
        if self._dialogue.via != "unix":
            replaced[str(wire.sock.getsockname()[1])] = "CLIENTPORT"
        return Names(replaced)

    def _record(self, ending: str, afterwards: str) -> Record:
        playing, names = self._playing, self._names
        return Record(
            turns=tuple(map(names.said, self._turns)),
            ending=ending,
            afterwards=afterwards,
            tls=tuple(self._tls),
            requests=tuple(map(names.asked, playing.requests)),
            upstreams=tuple(names.carried(one.data) for one in playing.upstreams),
            upstream_endings=tuple("closed" if one.is_closed else "open" for one in playing.upstreams),
            questions=self._questions(),
        )

    def _questions(self) -> tuple[tuple[str, str], ...]:
        if self._dialogue.dns is None or self._subject.dns is None:
            return ()
        mine = {name for name, _ in self._dialogue.dns(self._playing.ip)}
        reverse = ".".join(reversed(self._playing.ip.split(".")))
        asked = {
            (name.lower().replace(reverse, "REVERSED"), kind)
            for _, name, kind in self._subject.dns.asked
            if name.lower() in mine
        }
        return tuple(sorted(asked))


def _reaches(now: Progress, goal: Progress) -> bool:
    return (
        now.heard >= goal.heard
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

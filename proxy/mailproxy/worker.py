# SPDX-License-Identifier: Apache-2.0
"""One worker process: the fork server runs ``preload`` in itself, and ``main`` in each worker.

It does what the supervisor says on its channel: put a configuration to work,
report metrics, drain, stop.  When the supervisor is gone it drains and exits:
no worker outlives the one who could stop it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from mailproxy import app
from mailproxy.loop.worker_loop import make_loop
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.ipc import Channel, ChannelError, Message
from mailproxy.supervisor.reserve import Reserve
from mailproxy.telemetry.log import Bridge, Log, LogFormat
from mailproxy.telemetry.metrics import Meter
from mailproxy.tls.openssl import load_openssl
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import load
from mailproxy_config.model import DrainConfig, LogLevel, ProxyConfig

REPORT_SECONDS: Final = 5.0
"""How often metrics are sent unasked; a worker that is killed takes no more than that with it."""

_LAST_WORDS_SECONDS: Final = 1.0


_Order = tuple[ipc_messages.Configure, list[socket.socket]] | ipc_messages.TicketKeys | ipc_messages.Drain


class Application(Protocol):
    """What a worker works with; ``mailproxy.app.App`` is one."""

    @property
    def sessions(self) -> int:
        """How many sessions there are."""

    async def apply(
        self,
        config: ProxyConfig,
        sockets: Mapping[str, Sequence[socket.socket]],
        *,
        names: Mapping[str, tuple[str, ...]],
        ticket_keys: Mapping[int, tuple[bytes, ...]],
    ) -> None:
        """Run a configuration; with ``ConfigError`` the one before goes on running."""

    def set_ticket_keys(self, ticket_keys: Mapping[int, tuple[bytes, ...]]) -> None:
        """Seal and open TLS session tickets with these keys from now on."""

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - what relays get, not this call
        """Accept no more, say goodbye, and return when the last session is over."""

    def stop(self) -> None:
        """End everything at once."""


class Service:
    """What one worker process does, from its start to its end.

    Args:
        app: What it works with.
        meter: The numbers that ``app`` counts in.
        log: Where ``app`` logs.
    """

    def __init__(self, app: Application, *, meter: Meter, log: Log) -> None:
        self._app = app
        self._meter = meter
        self._log = log
        self._drain = DrainConfig()
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self._channel: Channel
        self._obeying: asyncio.Task[None]
        self._reserve = Reserve()
        self._is_frozen = False
        self._is_leaving = False

    async def run(self, control: socket.socket) -> None:
        """Obey the supervisor until it says that this is the end, or is gone.

        Args:
            control: Our end of the channel; it is closed at the end.
        """
        loop = asyncio.get_running_loop()
        self._channel = Channel(
            control, received=self._received, closed=self._closed, make_room=self._reserve.release
        )
        self._channel.start(loop)
        for signum in (signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(signum, self._leave)
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_regularly())
                self._obeying = tasks.create_task(self._obey())
                await asyncio.wait({self._obeying})
                reporting.cancel()
        finally:
            self._report()
            self._channel.flush(_LAST_WORDS_SECONDS)
            self._channel.close()

    async def _obey(self) -> None:
        """Carry out orders one after the other; the last one is to drain."""
        while True:
            match await self._orders.get():
                case ipc_messages.Drain(delay, timeout):
                    await asyncio.sleep(delay)
                    self._log.event(LogLevel.INFO, "worker_draining", sessions=self._app.sessions)
                    await self._app.drain(timeout)
                    self._send(ipc_messages.Drained())
                    return
                case ipc_messages.TicketKeys(keys):
                    self._app.set_ticket_keys(keys)
                case order, sockets:
                    await self._configure(order, sockets)

    async def _configure(self, order: ipc_messages.Configure, sockets: list[socket.socket]) -> None:
        try:
            _require_all(order, sockets)
            config = _config_of(order, sockets)
            self._reserve.release()
            await self._open_logs(config, sockets)
            given: dict[str, list[socket.socket]] = {}
            for key, sock in zip(order.sockets, sockets, strict=True):
                given.setdefault(key, []).append(sock)
            self._reserve.release()  # what was taken back meanwhile
            await self._app.apply(config, given, names=order.names, ticket_keys=order.ticket_keys)
        except ConfigError as error:
            self._reserve.fill()
            self._send(ipc_messages.Refused(order.serial, error.problems))
            return
        self._reserve.keep(len(sockets))
        self._adopt(config)
        self._meter.config_loaded(order.hash, order.generation, order.loaded_at)
        self._send(ipc_messages.Ready(order.serial))

    async def _open_logs(self, config: ProxyConfig, sockets: Sequence[socket.socket]) -> None:
        """Open the configuration's logs, in a thread where a disk may be slow; sockets go with a refusal."""
        try:
            if config.error_logs:
                await asyncio.to_thread(self._log.open, config)
            else:
                self._log.open(config)
        except ConfigError:
            for sock in sockets:
                sock.close()
            raise

    def _adopt(self, config: ProxyConfig) -> None:
        self._drain = config.drain
        self._log.adopt(config)
        if not self._is_frozen:
            gc.collect()
            gc.freeze()
            self._is_frozen = True

    def _received(self, data: Message, descriptors: list[int]) -> None:
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        try:
            order = ipc_messages.decode_for_worker(data)
        except ChannelError as error:
            self._closed(error)
            return
        match order:
            case ipc_messages.Configure():
                self._orders.put_nowait((order, sockets))
            case (
                ipc_messages.Drain() | ipc_messages.TicketKeys()
            ):  # in turn: a configuration has keys as well
                self._orders.put_nowait(order)
            case ipc_messages.Report(number):
                self._report(number)
            case ipc_messages.Reopen():
                self._log.reopen()
            case ipc_messages.Stop():
                self._app.stop()
                self._obeying.cancel()

    def _closed(self, error: ChannelError | None) -> None:
        """Nobody is there any more who could tell us to leave."""
        self._log.event(LogLevel.WARN, "supervisor_gone", reason=str(error) if error else None)
        self._orders.put_nowait(ipc_messages.Drain(0.0, self._drain.timeout))

    def _leave(self) -> None:
        """Somebody wants this one worker to end (``SIGTERM``, ``SIGQUIT``); it is replaced as it drains."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self._send(ipc_messages.Leaving())
        self._orders.put_nowait(ipc_messages.Drain(0.0, self._drain.timeout))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._reserve.fill()
            self._report()

    def _report(self, number: int = 0) -> None:
        self._send(ipc_messages.Reported(number, self._meter.snapshot()))

    def _send(self, message: ipc_messages.ToSupervisor) -> None:
        try:
            self._channel.send(ipc_messages.encode(message))
        except ChannelError:
            return  # the supervisor is gone, and ``_closed`` has seen to the rest


def preload() -> None:
    """Look up, once for all workers, what each would look up at its start; the imports are done by now."""
    load_openssl()


def main(argv: Sequence[str] | None = None) -> int:
    """Be a worker process."""
    return run(argv, make_app=app.App, make_loop=make_loop)


def run(
    argv: Sequence[str] | None,
    *,
    make_app: Callable[..., Application],
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> int:
    """Be a worker process with this application.

    Args:
        argv: Command line arguments; ``None`` for the process's own.
        make_app: Called with ``log`` and ``meter``.
        make_loop: Makes the event loop.
    """
    options = _options(argv)
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    level = LogLevel(options.log_level) if options.log_level else None
    log = Log(2, LogFormat(options.log_format), level or LogLevel.NOTICE, is_fixed=level is not None)
    logging.basicConfig(handlers=[Bridge(log)], level=logging.WARNING)
    meter = Meter()

    async def serve() -> None:
        service = Service(make_app(log=log, meter=meter), meter=meter, log=log)
        await service.run(socket.socket(fileno=options.control_fd))

    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(serve())
    finally:
        log.close()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mailproxy.worker", description="Started by mailproxy run.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--log-format", choices=list(LogFormat), default=LogFormat.JSON)
    parser.add_argument("--log-level", choices=list(LogLevel))
    return parser.parse_args(argv)


def _require_all(order: ipc_messages.Configure, sockets: Sequence[socket.socket]) -> None:
    """Refuse a configuration whose listening sockets this process had no room for; none came then."""
    if len(sockets) != len(order.sockets):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        reason = f"a worker has too many open files to take the listening sockets (its limit is {limit})"
        raise ConfigError([Problem("", reason)])


def _config_of(order: ipc_messages.Configure, sockets: Sequence[socket.socket]) -> ProxyConfig:
    """Read the configuration; the sockets have no other owner yet, so they go with a refusal."""
    try:
        return load(order.config.encode(), source="configuration", hostname=order.hostname).config
    except ConfigError:
        for sock in sockets:
            sock.close()
        raise
